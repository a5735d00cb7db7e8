"""Time to a target loss: codes and waiting rules with measured delays."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from matplotlib.figure import Figure

import jaxwgc
from experiments.delays.traces import halves, label, read_traces
from experiments.paper.mnist import load_digits
from experiments.runner import figures
from experiments.runner.study import Numbers, Once, Sections, Study, command
from experiments.runner.tables import interval, table_of
from jaxwgc import stragglers
from jaxwgc.planning import Candidates, Choice, Goal

# Target: loss above its minimum, relative to the start.
TARGET = 0.01
# Condition number, small enough to reach the minimum.
CONDITION = 100.0
SHOWN = 12
# Decoding errors below this are those of exact gradients in float32.
ROUNDING = 1e-6
NUM_TIMES = 60
# Trace that also trains on parts sorted by digit.
SORTED = "one_slow_seconds"


NUM_STEPS = 100


@command("time", "Training by time")
def time(
    trace: Path | None = None, runs: int = 20, quick: bool = False, seed: int = 0
) -> Sections:
    """Simulates the time to a target loss, by code and waiting rule.

    Args:
        trace: File with measured times, see `python -m jaxwgc report`. By default
            two trainings of language models and four jobs on Alibaba's PAI.
        runs: Simulated trainings per choice.
        quick: Train on the first trace alone, on fewer rows, at most 8 times.
    """
    traces = read_traces(trace)
    names = [*traces]
    num_rows = 9_984
    if quick:
        names = names[:1]
        runs = min(runs, 8)
        num_rows = 960
    key = jax.random.key(seed)
    sections = {}
    for name in names:
        build = functools.partial(
            study, name, traces[name], runs=runs, num_rows=num_rows, key=key
        )
        sections[name] = functools.partial(build, is_sorted=False)
        if trace is None and name == SORTED:
            sections[f"{name}_sorted"] = functools.partial(build, is_sorted=True)
    return sections


def study(
    name: str,
    times: np.ndarray,
    is_sorted: bool,
    runs: int,
    num_rows: int,
    key: jax.Array,
) -> Study:
    """Returns a cell per choice, planned by the first half of the rounds."""
    num_workers = times.shape[1]
    # Codes on request have up to eight parts per worker.
    rows = num_rows - num_rows % (8 * num_workers)
    problem = Problem.of_digits(rows, num_workers, is_sorted)
    first, second = halves(times)
    judged = stragglers.empirical(second, replace=True)
    plan_key, train_key = jax.random.split(key)
    plan = jaxwgc.plan(
        stragglers.empirical(first, replace=True),
        num_workers,
        plan_key,
        candidates=Candidates(copies=(1, 2), memory=True),
        goal=Goal(TARGET, CONDITION, problem.heterogeneity),
    )
    numbers = {
        "trace": f"{name}, parts sorted by digit" if is_sorted else name,
        "num_workers": num_workers,
        "choices": [
            {
                "name": choice.name,
                "copies": choice.copies,
                "waits_for": choice.waits_for,
                "planned_step": choice.step_time.value,
                "planned_time": choice.time.value,
                "": Once(train, problem, judged, runs, train_key, choice),
            }
            for choice in shown_choices(plan)
        ],
    }
    return Study(
        numbers,
        runs=runs,
        derive=curves,
        tables={"": tabulate},
        figures={} if is_sorted else {"": draw},
    )


def shown_choices(plan: jaxwgc.Plan) -> list[Choice]:
    """Returns waiting for all, and the best choices of each code.

    Exact and inexact gradients are separate. Deadlines, which insure against stalls,
    are left out.
    """
    best: dict[tuple[str, float, bool, bool], Choice] = {}
    for choice in plan.choices:
        if isinstance(choice.wait, stragglers.deadline):
            continue
        is_exact = bool(choice.decoding_error.value < ROUNDING)
        kind = (choice.name, choice.copies, choice.memory, is_exact)
        best.setdefault(kind, choice)
    everyone = best.pop(("uncoded", 1.0, False, True))
    return [everyone, *best.values()][:SHOWN]


class Problem(NamedTuple):
    """Logistic regression with a ridge on two digits.

    Attributes:
        rows: Images times the signs of their labels, centred, with a constant,
            (num_rows, features).
        ridge: Ridge of the mean loss.
        curvature: Largest curvature.
        minimum: Minimum of the mean loss.
        heterogeneity: See `planning.Goal`.
    """

    rows: jax.Array
    ridge: float
    curvature: float
    minimum: float
    heterogeneity: float

    @classmethod
    def of_digits(cls, num_rows: int, num_parts: int, is_sorted: bool) -> "Problem":
        """Returns the first rows of MNIST 4 vs 9, in their order or sorted by digit."""
        training, _ = load_digits()
        images = np.asarray(training.images, float)[:num_rows]
        labels = np.asarray(training.labels, float)[:num_rows]
        rows = signed_rows(images, labels, is_sorted)
        eigenvalues = np.linalg.eigvalsh(rows.T @ rows / num_rows)
        curvature = float(eigenvalues[-1]) / 4
        ridge = curvature / (CONDITION - 1)

        def part_slopes(params):
            weights = -scipy.special.expit(-rows @ params).reshape(num_parts, -1, 1)
            slopes = weights * rows.reshape(num_parts, -1, rows.shape[1])
            return slopes.mean(1) + ridge * params

        optimum = solve(rows, ridge)
        spread = np.sum(part_slopes(optimum.x) ** 2, 1).mean()
        start_slope = part_slopes(np.zeros(rows.shape[1])).mean(0)
        return cls(
            rows=jnp.asarray(rows, jnp.float32),
            ridge=ridge,
            curvature=curvature + ridge,
            minimum=float(optimum.fun),
            heterogeneity=float(spread / np.sum(start_slope**2)),
        )


def signed_rows(images: np.ndarray, labels: np.ndarray, is_sorted: bool) -> np.ndarray:
    """Returns centred images with a constant, times the signs of their labels.

    In their order, or sorted by label.
    """
    rows = np.append(images - images.mean(0), np.ones((len(images), 1)), axis=1)
    rows *= (2 * labels - 1)[:, None]
    return rows[np.argsort(labels, stable=True)] if is_sorted else rows


def solve(rows: np.ndarray, ridge: float) -> scipy.optimize.OptimizeResult:
    """Returns the least mean logistic loss of signed rows, with a ridge."""

    def loss_and_slope(params):
        margins = rows @ params
        weights = -scipy.special.expit(-margins)
        loss = np.logaddexp(0, -margins).mean() + ridge / 2 * params @ params
        return loss, weights @ rows / len(rows) + ridge * params

    start = np.zeros(rows.shape[1])
    return scipy.optimize.minimize(
        loss_and_slope, start, jac=True, method="L-BFGS-B", tol=1e-12
    )


def train(
    problem: Problem,
    delay: stragglers.DelayModel,
    runs: int,
    key: jax.Array,
    choice: Choice,
) -> Numbers:
    """Returns time and loss before each step of each run, (runs, steps)."""
    code = choice.code
    model = choice.model(delay)
    step_size = choice.step_size / problem.curvature

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def descend(problem, key):
        aggregate = jaxwgc.coded_aggregate(
            code,
            model,
            key,
            memory=choice.memory,
            debias=None if choice.memory else "share",
        )
        num_rows, num_features = problem.rows.shape
        parts = problem.rows.reshape(code.num_parts, -1, num_features)

        def step(carry, _):
            params, state = carry
            margins = parts @ params
            slopes = jnp.einsum("jr,jrf->jf", -jax.nn.sigmoid(-margins), parts)
            gradient, after = aggregate.update(slopes / num_rows, state, params)
            loss = jax.nn.softplus(-margins).mean()
            loss = loss + problem.ridge / 2 * jnp.sum(params**2)
            params = params - step_size * (gradient + problem.ridge * params)
            return (params, after), (state.elapsed, loss)

        start = jnp.zeros(num_features)
        carry = (start, aggregate.init(start))
        _, clock_and_loss = jax.lax.scan(step, carry, length=NUM_STEPS)
        return clock_and_loss

    clock, loss = descend(problem, jax.random.split(key, runs))
    clock = np.asarray(clock)
    # The loss of the start is that of θ = 0.
    loss = (np.asarray(loss) - problem.minimum) / (np.log(2) - problem.minimum)
    step = jaxwgc.summarize(clock[:, -1] / (NUM_STEPS - 1))
    return {"step": step, "curves": {"time": clock, "loss": loss}}


def curves(numbers: Numbers) -> Numbers:
    """Returns times to the target, and curves on times that all choices have."""
    choices = numbers["choices"]
    all_reached = []
    ends = []
    for choice in choices:
        clocks = choice["curves"]["time"]
        losses = choice["curves"]["loss"]
        reached = [time_to(*run) for run in zip(clocks, losses, strict=True)]
        choice["reached"] = np.array(reached)
        all_reached.append(choice["reached"])
        ends.append(clocks[:, -1].min())
    last = np.ma.masked_invalid(all_reached).max()
    times = np.linspace(0, min(*ends, 1.3 * float(last)), NUM_TIMES)
    for choice in choices:
        runs = choice.pop("curves")
        on_grid = []
        for clock, loss in zip(runs["time"], runs["loss"], strict=True):
            on_grid.append(np.interp(times, clock, loss))
        choice["loss"] = jaxwgc.summarize(np.array(on_grid))
        choice["time"] = jaxwgc.summarize(choice.pop("reached"))
    return {"times": times}


def time_to(clock: np.ndarray, loss: np.ndarray) -> float:
    """Returns when the target is reached for good, by a line between logarithms."""
    logs = np.log(np.maximum(loss, 1e-12) / TARGET)
    last = int(np.flatnonzero(logs > 0)[-1])
    if last == len(logs) - 1:
        return np.inf
    share = logs[last] / (logs[last] - logs[last + 1])
    return float(clock[last] + share * (clock[last + 1] - clock[last]))


def shown_time(choice: Numbers) -> str:
    """Returns the time to the target."""
    if np.isfinite(choice.time.mean):
        return interval(choice.time, 0)
    return "never"


def shown_planned_time(choice: Numbers) -> str:
    """Returns the planned time to the target."""
    if np.isfinite(choice.planned_time):
        return f"{choice.planned_time:.0f}"
    return "never"


tabulate = table_of(
    "{trace}, {num_workers} workers: time of a step, and time until the loss above its "
    f"minimum falls to {TARGET:.0%} of the start, in the unit of the trace",
    {
        "code, waiting rule": label,
        "step": "{step}",
        "planned": "{planned_step:.2f}",
        "time to target": shown_time,
        "planned time": shown_planned_time,
    },
    "choices",
)


def draw(numbers: Numbers) -> Figure:
    """Draws the loss against the clock."""
    figure, (axes,) = figures.new_figure(7.4, 3.8)
    choices = numbers["choices"][: len(figures.COLORS)]
    for index, choice in enumerate(choices):
        name = label(choice).replace("`", "").replace("_", " ")
        figures.line(
            axes,
            index,
            x=numbers["times"],
            y=choice["loss"].mean,
            band=figures.log_interval(choice["loss"]),
            num_lines=len(choices),
            label=name,
        )
    axes.axhline(TARGET, color="0.3", linewidth=1, linestyle="--")
    axes.set(yscale="log", ylabel="loss above its minimum", xlabel="time")
    axes.locator_params(axis="x", nbins=6)
    figure.legend(loc="outside right upper")
    return figure
