"""Late answers waited for, ignored and remembered: a quadratic, and sorted digits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.delays.against_the_clock import Problem, time_to
from experiments.runner.study import Numbers, Once, Study
from experiments.runner.tables import ResultTable, interval
from jaxwgc import codes, stragglers

# Of the quadratic.
CONDITION, NUM_CURVATURES = 100.0, 50
HETEROGENEITIES = (0.1, 1.0)
TARGETS = (1e-2, 1e-3, 1e-4)
# How many answers are waited for.
AWAITED = {"one_slow_seconds": 3, "uneven_seconds": 26}
STEP_SIZES = 2 * np.geomspace(0.02, 0.98, 32)
# Logistic regression on two digits, one worker of so many three times slower.
NUM_SORTED, SLOWNESS, BATCH_SHARE = 4, 3.0, 0.1
DIGIT_STEPS = (0.25, 0.5, 1.0, 1.5)


def memory(traces: dict[str, np.ndarray], runs: int, key: jax.Array) -> Study:
    """Descent on a quadratic, late answers waited for, ignored or remembered."""
    cells = [
        {
            "trace": name,
            "awaited": awaited,
            "heterogeneity": heterogeneity,
            "": Once(descents, traces[name].sum(-1), awaited, heterogeneity, runs, key),
        }
        for name, awaited in AWAITED.items()
        for heterogeneity in HETEROGENEITIES
    ]
    return Study(cells, tables={"": tabulate_memory})


def descents(
    seconds: np.ndarray, awaited: int, heterogeneity: float, runs: int, key: jax.Array
) -> Numbers:
    """Seconds to each target by the best constant step of each way."""
    num_workers = seconds.shape[1]
    delay = stragglers.empirical(seconds, "rounds", replace=True)
    ways = {
        "all": (num_workers, False),
        "ignored": (awaited, False),
        "remembered": (awaited, True),
    }
    times = {}
    for name, (number, is_remembered) in ways.items():
        model = stragglers.delayed(delay, stragglers.fastest(number), late="busy")
        clock, loss = descend(
            model, num_workers, heterogeneity, is_remembered, runs, key
        )
        times[name] = [best_time(clock, loss, target) for target in TARGETS]
    return times


def descend(
    model: stragglers.StragglerModel,
    num_workers: int,
    heterogeneity: float,
    is_remembered: bool,
    runs: int,
    key: jax.Array,
    num_steps: int = 400,
) -> tuple[np.ndarray, np.ndarray]:
    """Time and loss after each step, (step sizes, runs, steps) both."""
    curvature = jnp.geomspace(1 / CONDITION, 1, NUM_CURVATURES)
    code = codes.uncoded(num_workers)
    slopes = jax.random.normal(jax.random.key(1), (num_workers, NUM_CURVATURES))
    slopes = slopes - slopes.mean(0)
    size = heterogeneity * jnp.sum(curvature**2) / jnp.sum(slopes**2, 1).mean()
    slopes = slopes * jnp.sqrt(size)

    def run(step_size, key):
        aggregate: Any = jaxwgc.coded_aggregate(code, model, key, memory=is_remembered)
        start = jnp.ones(NUM_CURVATURES)

        def step(carry, _):
            params, state = carry
            parts = (curvature * params + slopes) / num_workers
            gradient, state = aggregate.update(parts, state, params)
            if not is_remembered:
                # The step is that of the mean gradient of those who answered.
                gradient = gradient / state.share
            params = params - step_size * gradient
            return (params, state), (state.elapsed, jnp.sum(curvature * params**2))

        _, (clock, loss) = jax.lax.scan(
            step, (start, aggregate.init(start)), length=num_steps
        )
        return clock, loss / curvature.sum()

    keys = jax.random.split(key, runs)
    over_runs = jax.vmap(run, in_axes=(None, 0))
    curves = jax.jit(jax.vmap(over_runs, in_axes=(0, None)))(
        jnp.asarray(STEP_SIZES), keys
    )
    clock, loss = (np.asarray(curve, float) for curve in curves)
    return clock, loss


def best_time(clock: np.ndarray, loss: np.ndarray, target: float) -> Any:
    """The least mean time to a target over the step sizes; None if none gets there."""
    is_below = np.flip(np.logical_and.accumulate(np.flip(loss <= target, -1), -1), -1)
    first = is_below.argmax(-1)
    times = np.take_along_axis(clock, first[..., None], -1)[..., 0]
    times = np.where(is_below.any(-1), times, np.inf)
    best = times[times.mean(1).argmin()]
    return jaxwgc.summarize(best) if np.isfinite(best).all() else None


def tabulate_memory(numbers: Numbers) -> ResultTable:
    """A row a trace and heterogeneity."""

    def show_times(times):
        return ", ".join("never" if t is None else interval(t, 0) for t in times)

    def show(row):
        return {
            "trace": f"`{row['trace']}`, first {row['awaited']}",
            "heterogeneity": f"{row['heterogeneity']:g}",
            "wait for all": show_times(row["all"]),
            "ignore the late": show_times(row["ignored"]),
            "remember the late": show_times(row["remembered"]),
        }

    targets = ", ".join(f"{target:g}" for target in TARGETS)
    return ResultTable.of_records(
        f"Seconds to {targets} of the loss at the start, without a code, on a "
        f"quadratic of condition {CONDITION:g}, by the best constant step of each. "
        "Late workers go on, and join the round in which they have answered",
        show,
        numbers,
    )


def digits(runs: int, quick: bool, key: jax.Array) -> Study:
    """Logistic regression on sorted digits, where one worker is always slow."""
    problem = Problem.of_digits(1_920 if quick else 9_984, NUM_SORTED, is_sorted=True)
    cells = [
        {
            "rows": rows,
            "heterogeneity": problem.heterogeneity,
            "": Once(train_digits, problem, share, runs, key),
        }
        for rows, share in (("all", 1.0), (f"{BATCH_SHARE:.0%}", BATCH_SHARE))
    ]
    return Study(cells, tables={"": tabulate_digits})


def train_digits(problem: Problem, share: float, runs: int, key: jax.Array) -> Numbers:
    """Each way with the step that is best for it."""
    speeds = np.ones(NUM_SORTED)
    speeds[-1] = 1 / SLOWNESS
    delay = stragglers.unequal_speeds(
        stragglers.shifted_exponential(shift=1.0, rate=10.0), speeds
    )
    ways = {
        "wait for all": (NUM_SORTED, False),
        "ignore the late": (NUM_SORTED - 1, False),
        "remember the late": (NUM_SORTED - 1, True),
    }
    chosen = {}
    for name, (number, is_remembered) in ways.items():
        model = stragglers.delayed(delay, stragglers.fastest(number), late="busy")
        clock, loss, error = _descend_digits(
            problem, model, is_remembered, share, runs, key
        )
        averages = [
            np.where(np.isfinite(ends), ends, np.inf).mean() for ends in loss[..., -50:]
        ]
        reached = [
            np.array([time_to(*run) for run in zip(*pair, strict=True)]).mean()
            for pair in zip(clock, loss, strict=True)
        ]
        best = int(np.lexsort((averages, reached))[0])
        chosen[name] = clock[best], loss[best], error[best], DIGIT_STEPS[best]
    until = chosen["wait for all"][0][:, -1].min()

    def numbers(clock, loss, error, step_size):
        times = np.array([time_to(*run) for run in zip(clock, loss, strict=True)])
        last = (clock <= until).sum(1) - 1

        def at_end(values):
            ends = [curve[: at + 1][-20:].mean() for curve, at in zip(values, last)]
            return jaxwgc.summarize(np.array(ends))

        return {
            "step_size": step_size,
            "loss": at_end(100 * loss),
            "error": at_end(error),
            "step": jaxwgc.summarize(clock[:, -1] / (clock.shape[1] - 1)),
            "time": jaxwgc.summarize(times) if np.isfinite(times).all() else None,
        }

    return {"until": until, **{name: numbers(*run) for name, run in chosen.items()}}


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _descend_digits(problem, model, is_remembered, share, runs, key):
    """Time, loss and test error by step size, run and step."""
    code = codes.uncoded(NUM_SORTED)
    num_rows, num_features = problem.rows.shape
    per_part = num_rows // NUM_SORTED
    batch = int(share * per_part)
    signed = problem.rows * problem.signs[:, None]

    def run(step_size, key):
        model_key, batch_key = jax.random.split(key)
        aggregate: Any = jaxwgc.coded_aggregate(
            code, model, model_key, memory=is_remembered
        )

        def step(carry, index):
            params, state = carry
            rows = signed.reshape(NUM_SORTED, per_part, num_features)
            if share < 1:
                draw = jax.random.fold_in(batch_key, index)
                chosen = jax.random.randint(draw, (NUM_SORTED, batch), 0, per_part)
                rows = jax.vmap(lambda part, rows: part[rows])(rows, chosen)
            slopes = -jax.nn.sigmoid(-(rows @ params))
            parts = jnp.einsum("jr,jrf->jf", slopes, rows) / rows.shape[1] / NUM_SORTED
            gradient, state = aggregate.update(parts, state, params)
            if not is_remembered:
                gradient = gradient / jnp.maximum(state.share, 1 / NUM_SORTED)
            gradient = gradient + problem.ridge * params
            params = params - step_size / problem.curvature * gradient
            loss = jax.nn.softplus(-(signed @ params)).mean()
            loss = loss + problem.ridge / 2 * jnp.sum(params**2)
            margins = (problem.test_rows @ params) * problem.test_signs
            return (params, state), (state.elapsed, loss, 100 * jnp.mean(margins <= 0))

        start = jnp.zeros(num_features)
        state = aggregate.init(start)
        return jax.lax.scan(step, (start, state), jnp.arange(300))[1]

    keys = jax.random.split(key, runs)
    clock, loss, error = jax.lax.map(
        lambda step_size: jax.vmap(functools.partial(run, step_size))(keys),
        jnp.asarray(DIGIT_STEPS),
    )
    return clock, (loss - problem.least) / (jnp.log(2.0) - problem.least), error


def tabulate_digits(numbers: Numbers) -> ResultTable:
    """A row a way, with whole parts and with minibatches."""

    def show(pair):
        row, name = pair
        record = row[name]
        return {
            "late answers": name,
            "rows a step": row["rows"],
            "step (s)": interval(record["step"]),
            "time to 1% of the loss (s)": "never"
            if record["time"] is None
            else interval(record["time"], 0),
            "loss at the end (%)": interval(record["loss"]),
            "test error (%)": interval(record["error"]),
            "at (s)": f"{row['until']:.0f}",
        }

    names = "wait for all", "ignore the late", "remember the late"
    pairs = [(row, name) for row in numbers for name in names]
    return ResultTable.of_records(
        f"Logistic regression on MNIST 4 vs 9 sorted by digit, {NUM_SORTED} workers of "
        f"which the last is always {SLOWNESS:g} times slower: who is late is waited "
        "for, ignored or remembered",
        show,
        pairs,
    )
