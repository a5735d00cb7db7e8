"""Waiting, coding and asynchronous rules on the same delays: loss against time."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxwgc
from experiments.delays.against_the_clock import signed_rows, solve
from experiments.delays.traces import read_traces, simulated
from experiments.delays.when_coding_pays import SERVERLESS
from experiments.paper.mnist import load_digits
from experiments.runner import figures
from experiments.runner.study import Numbers, Once, Study, command
from experiments.runner.tables import ResultTable
from jaxwgc import asynchronous, codes, stragglers

# Images are averaged to 7 × 7 pixels, of four by four each.
PIXELS = 7
NUM_ROWS = 960
# Rows per batch, if each computation draws a batch from all data.
BATCH_ROWS = 8
NUM_HIDDEN = 8
# Condition number of logistic regression, and ridge of the network.
CONDITION = 50.0
NETWORK_RIDGE = 1e-4
# Workers of laws; traces have their own numbers.
NUM_WORKERS = 16
LAWS: dict[str, stragglers.DelayModel] = {
    "serverless": SERVERLESS,
    "shifted exponential": stragglers.shifted_exponential(shift=1.0, rate=1.0),
    "Pareto": stragglers.pareto(scale=1.0, shape=1.5),
}
# Length of a race, in median times of a computation.
LENGTH = 200.0
# Relative time at which the figure shows methods that do not reach the target.
NEVER = 20.0


class Kind(NamedTuple):
    """Model, data, and relative loss to reach.

    Attributes:
        title: Name in tables and figures.
        is_network: Whether the model is a small network, or logistic regression.
        is_sorted: Whether workers own parts that are sorted by digit, or draw from all.
        target: Loss relative to the start, above the minimum of logistic regression.
    """

    title: str
    is_network: bool
    is_sorted: bool
    target: float


KINDS = {
    "logistic_equal": Kind("logistic regression, equal data", False, False, 0.05),
    "logistic_sorted": Kind("logistic regression, sorted parts", False, True, 0.01),
    "network_equal": Kind("network, equal data", True, False, 0.4),
    "network_sorted": Kind("network, sorted parts", True, True, 0.3),
}
# Step sizes, in units of one over the largest curvature of logistic regression.
STEP_SIZES = np.geomspace(1 / 512, 4, 20)


# Methods that are alike, the simplest first. The summary shows the faster of a group.
GROUPS = {
    "wait for all": ("wait for all",),
    "ignore stragglers": ("ignore a quarter", "ignore half"),
    "stored messages": ("stored messages",),
    "code, 2 copies": ("code, 2 copies",),
    "on request, 2 copies": ("on request, 2 copies",),
    "every arrival": ("every arrival", "delay-adaptive", "Ringmaster"),
    "Rescaled": ("Rescaled",),
    "collect, then step": ("Rennala", "FedBuff"),
    "Ringleader": ("Ringleader",),
}


def methods_of(num_workers: int) -> dict[str, Any]:
    """Returns methods by name, the simplest first."""
    uncoded = codes.uncoded(num_workers)
    all_workers = stragglers.fastest(num_workers)
    three_quarters = stragglers.fastest(-(-3 * num_workers // 4))
    half = stragglers.fastest(num_workers // 2)
    repetition = codes.fractional_repetition(num_workers, num_stragglers=1)
    replicated = codes.replicated(num_workers, copies=2)
    until_decodable = stragglers.until_decodable
    synchronous = asynchronous.synchronous
    return {
        "wait for all": synchronous(uncoded, all_workers),
        "ignore a quarter": synchronous(uncoded, three_quarters),
        "ignore half": synchronous(uncoded, half),
        "stored messages": synchronous(
            uncoded, three_quarters, late="busy", memory=True
        ),
        "code, 2 copies": synchronous(repetition, until_decodable),
        "on request, 2 copies": synchronous(replicated, until_decodable),
        "every arrival": asynchronous.every_arrival(),
        "delay-adaptive": asynchronous.delay_adaptive(),
        "Ringmaster": asynchronous.ringmaster(threshold=2 * num_workers, stops=True),
        "Rescaled": asynchronous.rescaled(),
        "Rennala": asynchronous.rennala(size=num_workers),
        "FedBuff": asynchronous.fedbuff(size=num_workers // 2),
        "Ringleader": asynchronous.ringleader(),
    }


@command("asynchronous", "Races of waiting, coding and asynchronous rules")
def asynchronous_methods(runs: int = 20, quick: bool = False, seed: int = 0) -> Study:
    """Races methods that wait, code or go asynchronous, on measured and random delays.

    Args:
        runs: Seeds of each race.
        quick: Race on one trace and one law, with 2 seeds.
    """
    traces = read_traces()
    delays = {name: stragglers.empirical(times) for name, times in traces.items()}
    delays |= LAWS
    if quick:
        runs = 2
        delays = {name: delays[name] for name in ("one_slow_seconds", "Pareto")}
    key = jax.random.key(seed)
    kinds = []
    for kind in KINDS.values():
        rows = []
        for name, delay in delays.items():
            num_workers = traces[name].shape[1] if name in traces else NUM_WORKERS
            cell = Once(race, kind, delay, num_workers, runs, key)
            rows.append({"delays": name, "num_workers": num_workers, "": cell})
        kinds.append({"title": kind.title, "target": kind.target, "rows": rows})
    tables = {"": summary}
    for index, name in enumerate(KINDS):
        tables[name] = functools.partial(tabulate, index)
    return Study({"kinds": kinds}, runs=runs, tables=tables, figures={"": draw})


def race(
    kind: Kind,
    delay: stragglers.DelayModel,
    num_workers: int,
    runs: int,
    key: jax.Array,
) -> Numbers:
    """Returns times to the target by method, in median times of a computation."""
    delay_key, start_key, race_key = jax.random.split(key, 3)
    [times] = simulated(delay, num_workers, 1000, delay_key[None])
    unit = float(np.median(times))
    task = Task.of(kind, num_workers, start_key)
    results = jaxwgc.race(
        methods_of(num_workers),
        task.problem,
        delay,
        race_key,
        seconds=LENGTH * unit,
        step_sizes=task.scale * STEP_SIZES,
        targets=(kind.target,),
        solution=task.solution,
        num_seeds=runs,
    )
    # Programs of all races together need more memory maps than Linux allows a process.
    jax.clear_caches()
    rows = []
    for index, (name, reached) in enumerate(results.times_to(kind.target).items()):
        low, median, high = np.quantile(
            reached / unit, [0.25, 0.5, 0.75], method="nearest"
        )
        rows.append(
            {
                "name": name,
                "time": median,
                "low": low,
                "high": high,
                "step_size": results.step_sizes[index] / task.scale,
                "updates": np.median(results.num_updates[index]),
            }
        )
    return {"unit": unit, "methods": rows}


def times_of(kind: Numbers) -> np.ndarray:
    """Returns median times to the target, (delays, methods)."""
    rows = []
    for row in kind["rows"]:
        rows.append([method["time"] for method in row["methods"]])
    return np.array(rows, float)


def relative_times(kind: Numbers) -> dict[str, np.ndarray]:
    """Returns times of each group over those of the fastest method, (delays,).

    Infinity if the group does not reach the target.
    """
    times = times_of(kind)
    names = [method["name"] for method in kind["rows"][0]["methods"]]
    best = times.min(axis=1)
    relative = {}
    for group, members in GROUPS.items():
        places = [names.index(name) for name in members]
        fastest = times[:, places].min(axis=1)
        never = np.full_like(fastest, np.inf)
        relative[group] = np.divide(
            fastest, best, out=never, where=np.isfinite(fastest)
        )
    return relative


def summary(numbers: Numbers) -> ResultTable:
    """Returns a table of times relative to the fastest method, over all delays."""
    kinds = numbers["kinds"]
    relative = [relative_times(kind) for kind in kinds]
    rows = []
    for group in GROUPS:
        cells = [factors(times[group]) for times in relative]
        rows.append([group, *cells])
    title = (
        "Time to the target over that of the fastest method on the same delays: median "
        f"of {len(kinds[0]['rows'])} delay models / the largest (number of models on "
        "which a method is within 10% of the fastest)"
    )
    return ResultTable(title, ["method", *(kind["title"] for kind in kinds)], rows)


def factors(times: np.ndarray) -> str:
    """Returns the median and the largest of relative times, and how many are near 1."""
    median = np.quantile(times, 0.5, method="nearest")
    num_near = np.sum(times < 1.1)
    return f"{factor(median)} / {factor(times.max())} ({num_near})"


def factor(value: float) -> str:
    """Returns a number, or that a target is never reached."""
    return f"{value:.1f}" if np.isfinite(value) else "never"


def tabulate(index: int, numbers: Numbers) -> ResultTable:
    """Returns a table of the times of all methods and delays."""
    kind = numbers["kinds"][index]
    times = times_of(kind)
    best = times.min(axis=1)
    names = [method["name"] for method in kind["rows"][0]["methods"]]
    rows = []
    for place, name in enumerate(names):
        cells = []
        for time, fastest in zip(times[:, place], best, strict=True):
            text = f"{time:.0f}" if np.isfinite(time) else "–"
            cells.append(f"**{text}**" if time == fastest < np.inf else text)
        rows.append([name, *cells])
    heads = [f"{row['delays']}, n = {row['num_workers']}" for row in kind["rows"]]
    title = (
        f"{kind['title'].capitalize()}: time until the loss falls to "
        f"{kind['target']:.0%} of the start, in median times of a computation; median "
        f"of seeds. – if not within {LENGTH:.0f}"
    )
    return ResultTable(title, ["method", *heads], rows)


def draw(numbers: Numbers) -> Figure:
    """Draws times relative to the fastest method, a point for each delay model."""
    kinds = numbers["kinds"]
    figure, panels = figures.new_figure(9.0, 6.4, columns=2, rows=2)
    places = np.arange(len(GROUPS))
    for axes, kind in zip(panels, kinds, strict=True):
        relative = relative_times(kind)
        times = np.array([*relative.values()])
        axes.axhspan(NEVER / 1.25, NEVER * 1.25, color="0.93")
        for index, row in enumerate(kind["rows"]):
            look = figures.style(index)
            axes.plot(
                places + (index - 4) * 0.07,
                np.minimum(times[:, index], NEVER),
                **look | {"linestyle": "none"},
                label=row["delays"].replace("_", " "),
            )
        axes.set(title=kind["title"], yscale="log", ylim=(0.9, NEVER * 1.25))
        axes.set_xticks(places, [*GROUPS], rotation=35, ha="right")
        axes.set_yticks([1, 2, 4, 8, NEVER], ["1", "2", "4", "8", "never"])
        axes.minorticks_off()
    for axes in panels[::2]:
        axes.set_ylabel("time over the fastest's")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


@functools.cache
def digits(is_sorted: bool) -> np.ndarray:
    """Returns signed rows of averaged images, see `signed_rows`."""
    training, _ = load_digits()
    images = np.asarray(training.images, float)[:NUM_ROWS]
    size = images.shape[1] // PIXELS**2
    side = round(size**0.5)
    blocks = images.reshape(-1, PIXELS, side, PIXELS, side).mean(axis=(2, 4))
    labels = np.asarray(training.labels)[:NUM_ROWS]
    return signed_rows(blocks.reshape(NUM_ROWS, -1), labels, is_sorted)


def logistic_loss(params: jax.Array, part: dict[str, jax.Array]) -> jax.Array:
    """Returns the loss of the rows of a part, with a ridge."""
    losses = jax.nn.softplus(-part["rows"] @ params)
    ridges = part["ridge"] / 2 * jnp.sum(params**2)
    return jnp.sum(losses + ridges)


def network_loss(params: dict[str, jax.Array], part: dict[str, jax.Array]) -> jax.Array:
    """Returns the loss of the rows of a part; the network is odd, as are its rows."""
    hidden = jnp.tanh(part["rows"] @ params["hidden"])
    losses = jax.nn.softplus(-hidden @ params["output"])
    squares = sum(jnp.sum(leaf**2) for leaf in params.values())
    return jnp.sum(losses + part["ridge"] / 2 * squares)


class Task(NamedTuple):
    """A problem with its solution, and the unit of its step sizes."""

    problem: asynchronous.Problem
    solution: jax.Array | None
    scale: float

    @classmethod
    def of(cls, kind: Kind, num_workers: int, key: jax.Array) -> "Task":
        """Returns a problem of digits for a number of workers."""
        rows = digits(kind.is_sorted)
        num_features = rows.shape[1]
        num_parts = num_workers if kind.is_sorted else NUM_ROWS // BATCH_ROWS
        batches = rows.reshape(num_parts, -1, num_features)
        curvature = float(np.linalg.eigvalsh(rows.T @ rows / NUM_ROWS)[-1]) / 4
        if kind.is_network:
            loss = network_loss
            ridge = NETWORK_RIDGE
            start = network(num_features, key)
            solution = None
        else:
            loss = logistic_loss
            ridge = curvature / (CONDITION - 1)
            start = jnp.zeros(num_features)
            solution = jnp.asarray(solve(rows, ridge).x, jnp.float32)
        problem = asynchronous.Problem(
            loss=loss,
            parts={
                "rows": jnp.asarray(batches, jnp.float32),
                "ridge": jnp.full(batches.shape[:2], ridge, jnp.float32),
            },
            start=start,
            num_workers=num_workers,
            draws="own" if kind.is_sorted else "one of all",
        )
        return cls(problem, solution, 1 / (NUM_ROWS * (curvature + ridge)))


def network(num_features: int, key: jax.Array) -> dict[str, jax.Array]:
    """Draws the parameters of a network with a hidden layer."""
    hidden_key, output_key = jax.random.split(key)
    hidden = jax.random.normal(hidden_key, (num_features, NUM_HIDDEN))
    output = jax.random.normal(output_key, (NUM_HIDDEN,))
    return {"hidden": hidden / num_features**0.5, "output": output / NUM_HIDDEN**0.5}
