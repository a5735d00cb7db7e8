"""Time to a target loss: codes and waiting rules with measured delays."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

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
from jaxwgc.studies import Choice

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
    runs, num_rows = (min(runs, 8), 960) if quick else (runs, 9_984)
    traces = [*read_traces(trace).items()][: 1 if quick else None]
    key = jax.random.key(seed)
    sections = {}
    for name, times in traces:
        sections[name] = functools.partial(
            study, name, times, is_sorted=False, runs=runs, num_rows=num_rows, key=key
        )
        if trace is None and name == SORTED:
            sections[f"{name}_sorted"] = functools.partial(
                study,
                name,
                times,
                is_sorted=True,
                runs=runs,
                num_rows=num_rows,
                key=key,
            )
    return sections


def study(name, times, is_sorted: bool, runs: int, num_rows: int, key) -> Study:
    """Returns a cell per choice, planned by the first half of the rounds."""
    num_workers = times.shape[1]
    # Codes on request have up to eight parts per worker.
    rows = num_rows - num_rows % (8 * num_workers)
    problem = Problem.of_digits(rows, num_workers, is_sorted)
    planned, judged = (
        stragglers.empirical(half, replace=True) for half in halves(times)
    )
    keys = jax.random.split(key)
    plan = jaxwgc.plan(
        planned,
        num_workers,
        keys[0],
        replications=(1, 2),
        target=TARGET,
        condition=CONDITION,
        heterogeneity=problem.heterogeneity,
        memory=True,
    )
    numbers = {
        "trace": f"{name}, parts sorted by digit" if is_sorted else name,
        "num_workers": num_workers,
        "choices": [
            {
                "name": choice.name,
                "replication": choice.replication,
                "waits_for": choice.waits_for,
                "planned_step": choice.step_time.value,
                "planned_time": choice.time.value,
                "": Once(train, problem, judged, runs, keys[1], choice),
            }
            for choice in shown_choices(plan)
        ],
    }
    show: Any = {"tables": {"": tabulate}, "figures": {} if is_sorted else {"": draw}}
    return Study(numbers, runs=runs, derive=curves, **show)


def shown_choices(plan: jaxwgc.Plan) -> list[Choice]:
    """Returns waiting for all, and the best choices of each code.

    Exact and inexact gradients are separate. Deadlines, which insure against stalls,
    are left out.
    """
    best: dict[Any, Choice] = {}
    for choice in plan.choices:
        is_exact = choice.decoding_error.value < ROUNDING
        kind = choice.name, choice.replication, choice.memory, is_exact
        if not isinstance(choice.wait, stragglers.deadline):
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
        least: Minimum of the mean loss.
        heterogeneity: See `jaxwgc.plan`.
    """

    rows: jax.Array
    ridge: float
    curvature: float
    least: float
    heterogeneity: float

    @classmethod
    def of_digits(cls, num_rows: int, num_parts: int, is_sorted: bool) -> "Problem":
        """Returns the first rows of MNIST 4 vs 9, in their order or sorted by digit."""
        digits = load_digits()[0]
        images, labels = (np.asarray(each, float)[:num_rows] for each in digits)
        rows = np.append(images - images.mean(0), np.ones((num_rows, 1)), axis=1)
        rows *= (2 * labels - 1)[:, None]
        if is_sorted:
            rows = rows[np.argsort(labels, stable=True)]
        curvature = float(np.linalg.eigvalsh(rows.T @ rows / num_rows)[-1]) / 4
        ridge = curvature / (CONDITION - 1)

        def loss_and_slope(params):
            margins = rows @ params
            loss = np.logaddexp(0, -margins).mean() + ridge / 2 * params @ params
            return loss, part_slopes(params).mean(0)

        def part_slopes(params):
            weights = -scipy.special.expit(-rows @ params).reshape(num_parts, -1, 1)
            slopes = weights * rows.reshape(num_parts, -1, rows.shape[1])
            return slopes.mean(1) + ridge * params

        start = np.zeros(rows.shape[1])
        options = {"jac": True, "method": "L-BFGS-B", "tol": 1e-12}
        optimum = scipy.optimize.minimize(loss_and_slope, start, **options)
        spread = np.sum(part_slopes(optimum.x) ** 2, 1).mean()
        return cls(
            jnp.asarray(rows, jnp.float32),
            ridge,
            curvature + ridge,
            float(optimum.fun),
            float(spread / np.sum(loss_and_slope(start)[1] ** 2)),
        )


def train(problem: Problem, delay, runs: int, key, choice: Choice) -> Numbers:
    """Returns time and loss before each step of each run, (runs, steps)."""
    code = choice.code
    model = choice.model(delay)
    step_size = choice.step_size / problem.curvature

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def descend(problem, key):
        debias = None if choice.memory else "share"
        options = {"memory": choice.memory, "debias": debias}
        aggregate: Any = jaxwgc.coded_aggregate(code, model, key, **options)
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
        carry = start, aggregate.init(start)
        return jax.lax.scan(step, carry, length=NUM_STEPS)[1]

    keys = jax.random.split(key, runs)
    clock, loss = map(np.asarray, descend(problem, keys))
    loss = (loss - problem.least) / (np.log(2) - problem.least)
    step = jaxwgc.summarize(clock[:, -1] / (NUM_STEPS - 1))
    return {"step": step, "curves": {"time": clock, "loss": loss}}


def curves(numbers: Numbers) -> Numbers:
    """Returns times to the target, and curves on times that all choices have."""
    choices = numbers["choices"]
    for choice in choices:
        runs = choice["curves"]
        choice["reached"] = np.array([*map(time_to, runs["time"], runs["loss"])])
    last = np.ma.masked_invalid([choice["reached"] for choice in choices]).max()
    longest = min(choice["curves"]["time"][:, -1].min() for choice in choices)
    times = np.linspace(0, min(longest, 1.3 * float(last)), NUM_TIMES)
    for choice in choices:
        pairs = zip(*choice.pop("curves").values(), strict=True)
        on_grid = np.array([np.interp(times, *pair) for pair in pairs])
        choice["loss"] = jaxwgc.summarize(on_grid)
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


tabulate = table_of(
    "{trace}, {num_workers} workers: time of a step, and time until the loss above its "
    f"minimum falls to {TARGET:.0%} of the start, in the unit of the trace",
    {
        "code, waiting rule": label,
        "step": "{step}",
        "planned": "{planned_step:.2f}",
        "time to target": lambda choice: (
            interval(choice["time"], 0) if np.isfinite(choice["time"].mean) else "never"
        ),
        "planned time": lambda own: f"{own.planned_time:.0f}".replace("inf", "never"),
    },
    "choices",
)


def draw(numbers: Numbers) -> Figure:
    """Draws the loss against the clock."""
    figure, (axes,) = figures.new_figure(7.4, 3.8)
    choices = numbers["choices"][: len(figures.COLORS)]
    for index, choice in enumerate(choices):
        name = label(choice).replace("`", "").replace("_", " ")
        mean = choice["loss"].mean
        band = figures.log_interval(choice["loss"])
        look: dict[str, Any] = {"label": name, "of": len(choices)}
        figures.line(axes, index, numbers["times"], mean, band, **look)
    axes.axhline(TARGET, color="0.3", linewidth=1, linestyle="--")
    axes.set(yscale="log", ylabel="loss above its minimum", xlabel="time")
    axes.locator_params(axis="x", nbins=6)
    figure.legend(loc="outside right upper")
    return figure
