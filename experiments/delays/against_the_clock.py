"""Training against the clock: codes and waiting rules with measured delays.

Rounds are simulated first, with who answers and when; then what decoding makes of the
parts' gradients, as one weight a part; then gradient descent with these weights, which
is one compiled function for all codes.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxwgc
from experiments.delays.traces import LANGUAGE_MODELS, Trace, read_traces, simulated
from experiments.paper.mnist import load_digits
from experiments.runner import figures
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable, interval
from jaxwgc import stragglers
from jaxwgc.studies import Choice

# Of the loss above its minimum, over that of the start.
TARGET = 0.01
# The ridge makes the minimum one that is reached: over the largest curvature.
CONDITION = 100.0
SHOWN, DRAWN = 10, 8
# Mean squared errors below this are exact gradients in float32.
ROUNDING = 1e-6
NUM_TIMES = 60
CURVES = ("time", "loss")


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is computed."""

    runs: int
    num_rows: int
    num_steps: int
    num_rounds: int
    copies: tuple[int, ...]


FULL = Effort(
    runs=40, num_rows=9_984, num_steps=200, num_rounds=2_000, copies=(2, 3, 4)
)
QUICK = Effort(runs=8, num_rows=1_920, num_steps=120, num_rounds=400, copies=(2,))


def time(
    trace: Path | None = None,
    num_workers: int = 32,
    runs: int | None = None,
    quick: bool = False,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Training against the clock, with measured delays: which code, and whether any.

    Args:
        trace: File of NumPy with measured times, as for `delays`. By default those of
            two trainings of language models.
        num_workers: At most; fewer where fewer were measured.
        runs: Simulated trainings of each choice; 40 by default, 8 with --quick.
        quick: The first trace alone, fewer rows, steps and codes.
        seed: Of the random numbers.
        out: Folder for tables, figures and numbers.
    """
    if num_workers < 2:
        raise ExperimentError(f"--num-workers must be at least 2; got {num_workers}")
    effort = QUICK if quick else FULL
    if runs is not None:
        effort = dataclasses.replace(effort, runs=runs)
    traces = read_traces(LANGUAGE_MODELS if trace is None else trace)
    sections = {}
    for name, recorded in list(traces.items())[: 1 if quick else None]:
        for source in ("measured",) if quick else ("measured", "fitted"):
            key = jax.random.key(seed)
            sections[f"{name}_{source}"] = functools.partial(
                study, recorded, source, num_workers, effort, key
            )
    title = "Training against the clock"
    run("time", title, sections, effort.runs, seed, out)


def study(
    trace: Trace, source: str, num_workers: int, effort: Effort, key: jax.Array
) -> Study:
    """A cell a choice; what is best of each code is planned by other rounds."""
    num_workers = min(num_workers, trace.seconds.shape[2])
    # Codes on request have up to eight parts a worker.
    rows = effort.num_rows - effort.num_rows % (8 * num_workers)
    problem = Problem.of_digits(rows, num_workers)
    planned, judged = delays_of(trace, source)
    keys = jax.random.split(key)
    plan = jaxwgc.plan(
        planned,
        num_workers,
        keys[0],
        replications=[copies for copies in effort.copies if copies <= num_workers],
        num_rounds=effort.num_rounds,
        target=TARGET,
        condition=CONDITION,
        heterogeneity=problem.heterogeneity,
        memory=True,
    )
    choices = shown_choices(plan)
    measure = functools.partial(train, problem, judged, effort.num_steps, keys[1])
    numbers = {
        "trace": trace.name,
        "source": source,
        "num_workers": num_workers,
        "target": TARGET,
        "heterogeneity": problem.heterogeneity,
        "choices": [
            {
                "name": choice.name,
                "copies": choice.replication,
                "waits_for": choice.waits_for,
                "planned_step": choice.step_time.value,
                "planned_time": choice.time.value,
                "": Once(measure, choice, effort.runs),
            }
            for choice in choices
        ],
    }
    return Study(
        numbers,
        runs=effort.runs,
        derive=curves,
        tables={"": tabulate},
        # No page shows that of a fitted model.
        figures={"": draw} if source == "measured" else {},
    )


def delays_of(trace: Trace, source: str) -> tuple[Any, Any]:
    """To plan with and to train with: the halves of the rounds, or the same model."""
    if source == "measured":
        return trace.half(0).delay(), trace.half(1).delay()
    try:
        model = trace.fit()[0].delay
    except ValueError as error:
        raise ExperimentError(f"{trace.name}: {error}") from error
    return model, model


def shown_choices(plan: jaxwgc.Plan) -> list[Choice]:
    """Waiting for all, ignoring and remembering the late; of each code what is best.

    First with exact gradients, then with others where these are better.
    """
    uncoded = [choice for choice in plan.choices if not choice.is_coded]
    waits = [choice for choice in uncoded if choice.waits_for == "all"]
    others = [choice for choice in uncoded if choice.waits_for != "all"]
    ignores, remembers = (
        [choice for choice in others if choice.memory == memory][:1]
        for memory in (False, True)
    )
    coded = [choice for choice in plan.choices if choice.is_coded]
    exact: dict[Any, Choice] = {}
    for choice in coded:
        if choice.decoding_error.value < ROUNDING:
            exact.setdefault((choice.name, choice.replication), choice)
    others = [
        choice
        for choice in plan.by_code
        if choice in coded and choice not in exact.values()
    ]
    others = others[: max(SHOWN - 2 - len(exact), 3)]
    return [*waits, *ignores, *remembers, *exact.values(), *others]


class Problem(NamedTuple):
    """Logistic regression with a ridge on two digits.

    Attributes:
        rows: (num_rows, features), centred, with a constant.
        signs: (num_rows,), of the labels.
        ridge: Of the mean loss.
        curvature: The largest one.
        least: The minimum of the mean loss.
        heterogeneity: See `jaxwgc.plan`.
        test_rows: Of other images.
        test_signs: Theirs.
    """

    rows: jax.Array
    signs: jax.Array
    ridge: float
    curvature: float
    least: float
    heterogeneity: float
    test_rows: jax.Array
    test_signs: jax.Array

    @classmethod
    def of_digits(
        cls, num_rows: int, num_parts: int, is_sorted: bool = False
    ) -> "Problem":
        """The first rows of MNIST 4 vs 9, as many in each part; or sorted by digit."""
        num_rows -= num_rows % num_parts
        training, test = load_digits()
        if is_sorted:
            order = jnp.argsort(training.labels[:num_rows], stable=True)
            training = training._replace(
                images=training.images[order], labels=training.labels[order]
            )
        mean = training.images[:num_rows].mean(0)
        rows, test_rows = (
            jnp.concatenate([images - mean, jnp.ones((len(images), 1))], axis=1)
            for images in (training.images[:num_rows], test.images)
        )
        signs, test_signs = 2 * training.labels[:num_rows] - 1, 2 * test.labels - 1
        gram = np.asarray(rows.T @ rows, np.float64) / num_rows
        curvature = float(np.linalg.eigvalsh(gram)[-1]) / 4
        ridge = curvature / (CONDITION - 1)
        best, least = minimum(np.asarray(rows), np.asarray(signs), ridge)
        slopes = part_gradients(rows, signs, jnp.asarray(best), num_parts, ridge)
        start = part_gradients(rows, signs, 0 * jnp.asarray(best), num_parts, ridge)
        heterogeneity = jnp.sum(slopes**2, 1).mean() / jnp.sum(start.mean(0) ** 2)
        return cls(
            rows,
            signs,
            ridge,
            curvature + ridge,
            least,
            float(heterogeneity),
            test_rows,
            test_signs,
        )


def minimum(rows: np.ndarray, signs: np.ndarray, ridge: float) -> tuple[Any, float]:
    """By SciPy."""
    from scipy.optimize import minimize

    signed = (rows * signs[:, None]).astype(np.float64)

    def value_and_slope(params):
        margins = signed @ params
        value = np.logaddexp(0, -margins).mean() + ridge / 2 * params @ params
        slope = -signed.T @ (1 / (1 + np.exp(margins))) / len(rows) + ridge * params
        return value, slope

    start = np.zeros(rows.shape[1])
    optimum = minimize(value_and_slope, start, jac=True, method="L-BFGS-B", tol=1e-12)
    return optimum.x.astype(np.float32), float(optimum.fun)


def part_gradients(rows, signs, params, num_parts: int, ridge: float) -> jax.Array:
    """Returns gradients of the mean loss of each part, (parts, features)."""
    slopes = -signs * jax.nn.sigmoid(-signs * (rows @ params))
    each = (slopes[:, None] * rows).reshape(num_parts, -1, rows.shape[1]).mean(1)
    return each + ridge * params


def train(
    problem: Problem,
    delay: stragglers.DelayModel,
    num_steps: int,
    key: jax.Array,
    choice: Choice,
    runs: int,
) -> Numbers:
    """Time, loss and test error after each step of each run, (runs, steps)."""
    keys = jax.random.split(key, runs)
    step_size = choice.step_size / problem.curvature
    model = choice.model(delay)
    if choice.memory:
        elapsed, loss, error = descend_with_memory(
            problem, choice.code, model, step_size, num_steps, keys
        )
    else:
        loads = jnp.asarray(choice.code.loads, float)
        arrivals = simulated(model, loads, num_steps, keys)
        elapsed = arrivals.elapsed
        weights = jax.jit(jaxwgc.effective_weights)(choice.code, arrivals)
        loss, error = descend(problem, weights, step_size)
    clock = np.cumsum(np.asarray(elapsed, np.float64), axis=1)
    start = np.zeros((runs, 1))
    return {
        "step": jaxwgc.summarize(np.asarray(elapsed).mean(1)),
        "curves": {
            "time": np.concatenate([start, clock], 1),
            "loss": np.asarray(loss),
            "error": np.asarray(error),
        },
    }


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def descend_with_memory(
    problem: Problem,
    code: jaxwgc.GradientCode,
    model: stragglers.StragglerModel,
    step_size: jax.Array,
    num_steps: int,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `descend`, by the aggregator itself; seconds (runs, steps) come first."""
    parts, num_rows = code.num_parts, len(problem.rows)
    signed = problem.rows * problem.signs[:, None]

    def look(params):
        loss = jax.nn.softplus(-(signed @ params)).mean()
        loss = loss + problem.ridge / 2 * jnp.sum(params**2)
        wrong = (problem.test_rows @ params) * problem.test_signs <= 0
        return loss, 100 * wrong.mean()

    def run(key):
        aggregate: Any = jaxwgc.coded_aggregate(code, model, key, memory=True)

        def step(carry, _):
            params, state = carry
            slopes = -jax.nn.sigmoid(-(signed @ params)).reshape(parts, -1) / num_rows
            rows = signed.reshape(parts, -1, len(params))
            slopes = jnp.einsum("jr,jrf->jf", slopes, rows)
            gradient, after = aggregate.update(slopes, state, params)
            gradient = gradient + problem.ridge * params
            shown = after.elapsed - state.elapsed, *look(params)
            return (params - step_size * gradient, after), shown

        start = jnp.zeros(signed.shape[1])
        carry = start, aggregate.init(start)
        (params, _), (elapsed, *shown) = jax.lax.scan(step, carry, length=num_steps)
        last = look(params)
        return elapsed, *(jnp.append(curve, end) for curve, end in zip(shown, last))

    elapsed, loss, error = jax.lax.map(run, keys, batch_size=8)
    return elapsed, (loss - problem.least) / (jnp.log(2.0) - problem.least), error


@jax.jit
def descend(
    problem: Problem, weights: jax.Array, step_size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Loss above the minimum over that of the start, and test error in percent.

    Args:
        problem: What is minimised.
        weights: (runs, steps, parts), of the gradients of the parts.
        step_size: Of gradient descent.

    Returns:
        Before the first step and after each, (runs, steps + 1) both.
    """
    runs, _, num_parts = weights.shape
    num_rows, num_features = problem.rows.shape
    # The scale that all weights share is the step's.
    weights = weights / jnp.mean(weights, axis=(0, 1, 2))
    signed = problem.rows * problem.signs[:, None]

    def look(params):
        margins = signed @ params
        loss = jax.nn.softplus(-margins).mean(0)
        loss = loss + problem.ridge / 2 * jnp.sum(params**2, 0)
        wrong = (problem.test_rows @ params) * problem.test_signs[:, None] <= 0
        return margins, loss, 100 * wrong.mean(0)

    def step(params, weights):
        margins, loss, error = look(params)
        slopes = jax.nn.sigmoid(-margins).reshape(num_parts, -1, runs)
        slopes = (weights.T[:, None] * slopes).reshape(num_rows, runs) / num_rows
        gradient = problem.ridge * params - signed.T @ slopes
        return params - step_size * gradient, (loss, error)

    params = jnp.zeros((num_features, runs))
    params, (loss, error) = jax.lax.scan(step, params, weights.swapaxes(0, 1))
    _, last, last_error = look(params)
    loss = jnp.concatenate([loss, last[None]]).T
    error = jnp.concatenate([error, last_error[None]]).T
    return (loss - problem.least) / (jnp.log(2.0) - problem.least), error


def curves(numbers: Numbers) -> Numbers:
    """Time to the target, and curves on times that all choices have, with intervals."""
    choices = numbers["choices"]
    reached_by = [
        np.array([time_to(*run) for run in zip(*map(choice["curves"].get, CURVES))])
        for choice in choices
    ]
    longest = min(choice["curves"]["time"][:, -1].min() for choice in choices)
    last = max(reached[np.isfinite(reached)].max(initial=0) for reached in reached_by)
    times = np.linspace(0, min(longest, 1.3 * last or np.inf), NUM_TIMES)
    for choice, reached in zip(choices, reached_by, strict=True):
        runs = choice.pop("curves")
        choice["share_reached"] = float(np.isfinite(reached).mean())
        choice["time"] = jaxwgc.summarize(reached)
        choice["end"] = jaxwgc.summarize(runs["loss"][:, -1])
        for name in ("loss", "error"):
            on_grid = [
                np.interp(times, clock, curve)
                for clock, curve in zip(runs["time"], runs[name], strict=True)
            ]
            choice[name] = jaxwgc.summarize(np.array(on_grid))
    # Test error when waiting for all has come to the target.
    first = float(choices[0]["time"].mean)
    place = min(int(np.searchsorted(times, first)), NUM_TIMES - 1)
    for choice in choices:
        choice["error_then"] = jax.tree.map(lambda leaf: leaf[place], choice["error"])
    return {"times": times, "moment": float(times[place])}


def time_to(clock: np.ndarray, loss: np.ndarray) -> float:
    """When the target is reached for good, by a line between two steps' logarithms."""
    logs = np.log(np.maximum(loss, 1e-12) / TARGET)
    above = np.flatnonzero(logs > 0)
    last = above[-1] if len(above) else 0
    if last == len(logs) - 1:
        return np.inf
    share = logs[last] / (logs[last] - logs[last + 1])
    return float(clock[last] + share * (clock[last + 1] - clock[last]))


def label(choice: Numbers) -> str:
    """Name, copies and waiting."""
    copies = f" {choice['copies']:.3g}×" if choice["copies"] > 1 else ""
    return f"{choice['name'].replace('_', ' ')}{copies}, {choice['waits_for']}"


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a choice."""

    def show(choice):
        is_reached = choice["share_reached"] == 1
        planned = choice["planned_time"]
        return {
            "code, waiting": label(choice),
            "step (s)": interval(choice["step"]),
            "planned": f"{choice['planned_step']:.2f}",
            "time to target (s)": interval(choice["time"], 0)
            if is_reached
            else f"not reached in {1 - choice['share_reached']:.0%}",
            "planned time": f"{planned:.0f}" if np.isfinite(planned) else "never",
            "test error (%)": interval(choice["error_then"]),
        }

    return ResultTable.of_records(
        f"{numbers['trace']}, {numbers['source']}, {numbers['num_workers']} workers: "
        f"seconds a step, and to {100 * numbers['target']:g}% of the loss above its "
        f"minimum at the start; test error after {numbers['moment']:.0f} s",
        show,
        numbers["choices"],
    )


def draw(numbers: Numbers) -> Figure:
    """Loss and test error against the clock."""
    figure = Figure(figsize=(8.6, 3.8))
    panels = figure.subplots(1, 2)
    times = numbers["times"]
    drawn = numbers["choices"][:DRAWN]
    for index, choice in enumerate(drawn):
        for axes, name in zip(panels, ("loss", "error"), strict=True):
            mean, band = choice[name].mean, figures.log_interval(choice[name])
            look = {"label": label(choice), "of": len(drawn)}
            figures.line(axes, index, times, mean, band, **look)
    panels[0].axhline(numbers["target"], color="0.3", linewidth=1, linestyle="--")
    panels[0].set(yscale="log", ylabel="loss above its minimum", xlabel="seconds")
    panels[1].set(yscale="log", ylabel="test error (%)", xlabel="seconds")
    least = min(choice["error"].mean.min() for choice in numbers["choices"])
    panels[1].set_ylim(0.9 * least, 6 * least)
    panels[1].yaxis.set_major_formatter("{x:g}")
    panels[1].yaxis.set_minor_formatter("{x:g}")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2
    )
    return figure
