"""Slow workers that still count: finished parts on request, late answers remembered."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.patches import Patch

import jaxwgc
from experiments.delays.against_the_clock import Problem, time_to
from experiments.delays.traces import LANGUAGE_MODELS
from experiments.runner import figures
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable, interval
from jaxwgc import codes, stragglers

COPIES = (2, 3, 4)
# Of each worker without copies, where no trace says how many.
NUM_WORKERS, NUM_PARTS = 20, 8
LAWS: dict[str, stragglers.DelayModel] = {
    "1 + Exp(1)": stragglers.shifted_exponential(shift=1.0, rate=1.0),
    "Pareto, shape 2": stragglers.pareto(scale=1.0, shape=2.0),
    "10% ten times slower": stragglers.bernoulli_slowdown(0.1, slowdown=10.0),
}
# Optimization-based block coordinate gradient coding: 20,000 units of work, each of
# 50 + Exp(mean 1000) on its worker; what is published, in millions, by workers.
PUBLISHED = {10: 2.41, 30: 1.100, 50: 0.806}
WORK, BLOCK_COPIES, BLOCK_PARTS = 20_000, 6, 20

# Of the quadratic.
CONDITION, NUM_CURVATURES = 100.0, 50
HETEROGENEITIES = (0.1, 1.0)
TARGETS = (1e-2, 1e-3, 1e-4)
# How many answers are waited for.
AWAITED = {"one_slow_seconds": 3, "uneven_seconds": 26}
STEP_SIZES = 2 * np.geomspace(0.02, 0.98, 32)
COVERED = (0.99, 0.97, 0.9)
# Logistic regression on two digits, one worker of so many three times slower.
NUM_SORTED, SLOWNESS, BATCH_SHARE = 4, 3.0, 0.1
DIGIT_STEPS = (0.25, 0.5, 1.0, 1.5)
# Two digits of the speed of a worker in the picture, the last one slow.
SPEEDS = (1.0, 0.9, 1.1, 0.3)


def slow_workers(
    runs: int | None = None,
    quick: bool = False,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Slow workers that still count: on request, by coverage, and remembered.

    Args:
        runs: Simulated trainings of each choice; 40 by default, 4 with --quick. And a
            thousand rounds for each of them.
        quick: Fewer of both.
        seed: Of the random numbers.
        out: Folder for tables and numbers.
    """
    runs = runs or (4 if quick else 40)
    with np.load(LANGUAGE_MODELS) as file:
        traces = {name: file[name].astype(float) for name in AWAITED}
    key = jax.random.key(seed)
    sections = {
        "on_request": functools.partial(on_request, traces, 1000 * runs, key),
        "blocks": functools.partial(blocks, 1000 * runs, key),
        "memory": functools.partial(memory, traces, runs, key),
        "digits": functools.partial(digits, runs, quick, key),
    }
    run("slow_workers", "Slow workers that still count", sections, runs, seed, out)


def ends(times: jax.Array, wait: Callable[[Any], stragglers.WaitingRule], code: Any):
    """When rounds end, (rounds,), of times (rounds, workers) of a load of one."""
    loads = np.asarray(code.loads) * code.num_workers / code.num_parts
    rule = wait(code)
    keys = jax.random.split(jax.random.key(0), len(times))

    @jax.jit
    def batch(keys, times):
        return jax.vmap(lambda key, own: rule.arrivals(key, own * loads).elapsed)(
            keys, times
        )

    # As many rounds at once as fit into memory.
    size = max(1, 2**24 // code.num_messages)
    pieces = [
        batch(keys[start : start + size], times[start : start + size])
        for start in range(0, len(times), size)
    ]
    return np.concatenate(pieces).astype(float)


def ratio(times: np.ndarray, other: np.ndarray) -> jaxwgc.Summary:
    """Of the means of two columns of the same rounds, by the delta method."""
    found = times.mean() / other.mean()
    return jaxwgc.summarize((times - found * other) / other.mean() + found)


def rounds_of(times: np.ndarray, parts: int) -> Numbers:
    """Seconds a round by what is waited for, and over waiting for all."""
    times = np.asarray(times, float)
    num_workers = times.shape[1]
    in_order = np.sort(times, axis=1)[:, ::-1]
    everyone = in_order[:, 0]
    # With any n - s of the workers, each with s + 1 times the work.
    exact = in_order * np.arange(1, num_workers + 1)
    best = int(exact.mean(0).argmin())
    drawn = jnp.asarray(times, jnp.float32)
    found = {"best_code": exact[:, best]}
    if num_workers % 2 == 0:
        repetition = codes.fractional_repetition(num_workers, 1)
        found["repetition"] = ends(drawn, stragglers.until_decodable, repetition)
    for copies in COPIES:
        code = codes.replicated(num_workers, num_workers * parts, copies)
        found[f"request_{copies}"] = ends(drawn, stragglers.until_decodable, code)
    code = codes.replicated(num_workers, num_workers * parts, 2)
    for share in COVERED:
        found[f"covered_{share}"] = ends(
            drawn, lambda code, share=share: stragglers.coverage(code, share), code
        )
    found["bound"] = num_workers / np.sum(1 / times, axis=1)
    return {
        "num_workers": num_workers,
        "parts": parts,
        "stragglers": best,
        "wait_for_all": jaxwgc.summarize(everyone),
        "seconds": {name: jaxwgc.summarize(own) for name, own in found.items()},
        "ratio": {name: ratio(own, everyone) for name, own in found.items()},
    }


def on_request(traces: dict[str, np.ndarray], num_rounds: int, key: jax.Array) -> Study:
    """Every round of the traces, and rounds of random delays."""

    def of_law(law, key):
        keys = jax.random.split(key, num_rounds)
        loads = jnp.ones(NUM_WORKERS)
        state = law.init(NUM_WORKERS)
        times = jax.vmap(lambda key: law.sample(key, state, loads)[0])(keys)
        return rounds_of(np.asarray(times), NUM_PARTS)

    cells = [
        {"delays": f"`{name}`", "": Once(rounds_of, own.sum(-1), own.shape[2])}
        for name, own in traces.items()
    ]
    for law_key, (name, law) in zip(
        jax.random.split(key, len(LAWS)), LAWS.items(), strict=True
    ):
        cells.append({"delays": name, "": Once(of_law, law, law_key)})
    return Study(
        cells,
        tables={"": tabulate_rounds, "coverage": tabulate_coverage},
        figures={"meeting": lambda numbers: draw_meeting()},
    )


def tabulate_rounds(numbers: Numbers) -> ResultTable:
    """A row a distribution of delays."""

    def show(row):
        seconds, over = row["seconds"], row["ratio"]
        return {
            "delays": row["delays"],
            "workers × parts": f"{row['num_workers']} × {row['parts']}",
            "wait for all": interval(row["wait_for_all"]),
            "best exact code": f"{seconds['best_code'].mean:.2f} "
            f"(s = {row['stragglers']})",
            "repetition ×2": interval(over["repetition"]),
            "request ×2": interval(seconds["request_2"]),
            "over all": interval(over["request_2"]),
            "×3": interval(seconds["request_3"]),
            "×4": interval(seconds["request_4"]),
            "bound": interval(seconds["bound"]),
        }

    return ResultTable.of_records(
        "Seconds a step with exact gradients: waiting for all without a code; any n - "
        "s of the workers, each with s + 1 times the work; fractional repetition over "
        "waiting for all; finished parts on request with 2, 3 and 4 copies; and the "
        "bound, all workers busy until the last part is done and none of them twice",
        show,
        numbers,
    )


def tabulate_coverage(numbers: Numbers) -> ResultTable:
    """The same for rounds that are over before all parts are."""

    def show(row):
        return {
            "delays": row["delays"],
            "all": interval(row["seconds"]["request_2"]),
            **{
                f"{share:.0%}": interval(row["seconds"][f"covered_{share}"])
                for share in COVERED
            },
        }

    return ResultTable.of_records(
        "Seconds a step with two copies on request, until a share of the parts is "
        "covered",
        show,
        numbers,
    )


def blocks(num_rounds: int, key: jax.Array) -> Study:
    """The setting of block coordinate gradient coding, in millions."""

    def measure(num_workers):
        law = stragglers.shifted_exponential(shift=50.0, rate=1e-3)
        loads, state = jnp.ones(num_workers), law.init(num_workers)
        keys = jax.random.split(key, num_rounds // 10)
        times = jax.vmap(lambda key: law.sample(key, state, loads)[0])(keys)
        times = np.asarray(times, float) * WORK / num_workers / 1e6
        in_order = np.sort(times, axis=1)[:, ::-1]
        exact = (in_order * np.arange(1, num_workers + 1)).mean(0)
        code = codes.replicated(num_workers, num_workers * BLOCK_PARTS, BLOCK_COPIES)
        found = ends(jnp.asarray(times, jnp.float32), stragglers.until_decodable, code)
        return {"best_code": exact.min(), "request": jaxwgc.summarize(found)}

    cells = [
        {"num_workers": number, "published": value, "": Once(measure, number)}
        for number, value in PUBLISHED.items()
    ]
    return Study(cells, tables={"": tabulate_blocks})


def tabulate_blocks(numbers: Numbers) -> ResultTable:
    """A row a number of workers."""

    def show(row):
        return {
            "workers": str(row["num_workers"]),
            "best exact code": f"{row['best_code']:.2f}",
            "published optimum": f"{row['published']:.3g}",
            f"on request ×{BLOCK_COPIES}": interval(row["request"], 3),
        }

    return ResultTable.of_records(
        f"Time of a step, in millions, of {WORK:,} units of work that each take 50 + "
        "Exp(mean 1000): block coordinate gradient coding as published, and finished "
        "parts on request. Computing alone is counted, as there",
        show,
        numbers,
    )


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
    found = {}
    for name, (number, is_remembered) in ways.items():
        model = stragglers.delayed(delay, stragglers.fastest(number), late="busy")
        clock, loss = descend(
            model, num_workers, heterogeneity, is_remembered, runs, key
        )
        found[name] = [best_time(clock, loss, target) for target in TARGETS]
    return found


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
    found = jax.jit(jax.vmap(over_runs, in_axes=(0, None)))(
        jnp.asarray(STEP_SIZES), keys
    )
    clock, loss = (np.asarray(own, float) for own in found)
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

    def show_times(found):
        return ", ".join("never" if own is None else interval(own, 0) for own in found)

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
    found = {}
    for name, (number, is_remembered) in ways.items():
        model = stragglers.delayed(delay, stragglers.fastest(number), late="busy")
        clock, loss, error = _descend_digits(
            problem, model, is_remembered, share, runs, key
        )
        averages = [
            np.where(np.isfinite(own), own, np.inf).mean() for own in loss[..., -50:]
        ]
        reached = [
            np.array([time_to(*run) for run in zip(*own, strict=True)]).mean()
            for own in zip(clock, loss, strict=True)
        ]
        best = int(np.lexsort((averages, reached))[0])
        found[name] = clock[best], loss[best], error[best], DIGIT_STEPS[best]
    until = found["wait for all"][0][:, -1].min()

    def numbers(clock, loss, error, step_size):
        times = np.array([time_to(*run) for run in zip(clock, loss, strict=True)])
        last = (clock <= until).sum(1) - 1

        def at_end(values):
            ends = [own[: at + 1][-20:].mean() for own, at in zip(values, last)]
            return jaxwgc.summarize(np.array(ends))

        return {
            "step_size": step_size,
            "loss": at_end(100 * loss),
            "error": at_end(error),
            "step": jaxwgc.summarize(clock[:, -1] / (clock.shape[1] - 1)),
            "time": jaxwgc.summarize(times) if np.isfinite(times).all() else None,
        }

    return {"until": until, **{name: numbers(*own) for name, own in found.items()}}


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
        own = row[name]
        return {
            "late answers": name,
            "rows a step": row["rows"],
            "step (s)": interval(own["step"]),
            "time to 1% of the loss (s)": "never"
            if own["time"] is None
            else interval(own["time"], 0),
            "loss at the end (%)": interval(own["loss"]),
            "test error (%)": interval(own["error"]),
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


def draw_meeting() -> figures.Figure:
    """Who computes which part when, in a round of four workers."""
    num_workers, parts = len(SPEEDS), 8
    code = codes.replicated(num_workers, num_workers * parts, copies=2)
    times = jnp.asarray(code.loads / np.array(SPEEDS) / parts, jnp.float32)
    wait = stragglers.until_decodable(code)
    arrivals = wait.arrivals(jax.random.key(0), times)
    requests = np.asarray(jaxwgc.decoding(code, arrivals).requests)
    elapsed = float(arrivals.elapsed)
    figure, (axes,) = figures.new_figure(8.6, 2.6)
    looks: dict[str, dict[str, Any]] = {
        "its own part, sent": {"color": figures.COLORS[0]},
        "a part of the next one, sent": {"color": figures.COLORS[1]},
        "computed in vain": {"color": "0.8"},
    }
    decoder: Any = code.decoders[0]
    copies = np.asarray(decoder.copies)
    for worker, speed in enumerate(SPEEDS):
        seconds = 1 / speed / parts
        for turn in range(int(np.ceil(elapsed / seconds - 1e-6))):
            if turn >= code.messages_per_worker:
                break
            message = worker * code.messages_per_worker + turn
            part = int(np.nonzero(copies == message)[0][0])
            is_sent = bool(requests[worker, turn])
            look = list(looks.values())[2 if not is_sent else int(turn >= parts)]
            start, end = turn * seconds, min((turn + 1) * seconds, elapsed)
            axes.barh(
                worker, end - start, 0.8, start, edgecolor="white", linewidth=1, **look
            )
            if end - start > 0.06:
                middle = (start + end) / 2
                color = "white" if is_sent and turn < parts else "black"
                look: Any = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": 8,
                    "color": color,
                }
                axes.text(middle, worker, str(part), **look)
    axes.set(xlabel="time of the round, in times of an even share of the work")
    axes.set_yticks(
        range(num_workers), [f"worker {each}" for each in range(num_workers)]
    )
    axes.invert_yaxis()
    axes.grid(False)
    axes.axvline(elapsed, color="0.3", linewidth=1, linestyle="--")
    handles = [Patch(**look) for look in looks.values()]
    figure.legend(handles, list(looks), loc="outside lower center", ncols=3)
    return figure
