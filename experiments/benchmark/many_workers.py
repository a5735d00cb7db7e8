"""Ten to ten thousand workers: decoding, bytes that are read, and Monte Carlo."""

import dataclasses
import functools
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr

import jaxwgc
from experiments.benchmark.decoding import numpy_lstsq
from experiments.paper import linear_regression
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Numbers, Once, Study, Trial, timed
from experiments.runner.timing import in_own_process, measure_in_turn, median_seconds
from jaxwgc import codes, stragglers
from jaxwgc.decoders import LeastSquares

DEGREE = 6
NUM_PARTS = (34, 100, 334, 1_000, 3_334)
NUM_MASKS = 128
# Masks on which the slow peers are timed.
FEW_MASKS = 2
LOST_SHARE = 0.2
# Larger codes take minutes with the peers, and gigabytes with least squares.
LARGEST_FOR_PEERS = 7_000
TOLERANCE = 1e-10


def graphs(repeats: int, seed: int, quick: bool) -> Study:
    """Returns microseconds per mask by components and by least squares."""

    def measure(num_parts):
        if num_parts is None:
            # The graph X of the primes 5 and 13, with 6,552 workers.
            code = codes.ramanujan_graph(5, 13)
        else:
            code = codes.edge_graph(jax.random.key(seed), num_parts, DEGREE)
        draws = np.random.default_rng(seed).random((NUM_MASKS, code.num_workers))
        masks = draws >= LOST_SHARE
        few = masks[:FEW_MASKS]
        first = masks[0]
        decode = jax.jit(lambda masks: jaxwgc.decoding(code, masks).weights)
        sparse = csr_array(code.encoding_matrix)
        batch, single, peer = median_seconds(
            repeats,
            lambda: decode(masks),
            lambda: decode(first),
            lambda: [scipy_lsqr(sparse, mask) for mask in few],
        )
        seconds = {
            "batch": batch / NUM_MASKS,
            "single": single,
            "lsqr": peer / FEW_MASKS,
        }
        weights = scipy_lsqr(sparse, first)
        if code.num_workers <= LARGEST_FOR_PEERS:
            # An argument, since XLA would take minutes to multiply constants.
            least_squares = dataclasses.replace(code, decoders=(LeastSquares(),))
            on_device = jax.device_put(least_squares)
            iterate = jax.jit(lambda code, masks: jaxwgc.decoding(code, masks).weights)
            [few_masks] = median_seconds(
                min(repeats, 3), lambda: iterate(on_device, few)
            )
            seconds["least_squares"] = few_masks / FEW_MASKS
            peer = functools.partial(numpy_lstsq, code, first)
            [(weights_of_received, timing)] = measure_in_turn([peer], repeats=1)
            seconds["lstsq"] = timing.median
            weights[first] = weights_of_received
        return {
            "graph": "ramanujan_graph" if num_parts is None else "edge_graph",
            "num_workers": code.num_workers,
            "num_parts": code.num_parts,
            "seconds": seconds,
            "error": error_of(code, first, np.asarray(decode(first))),
            "reference": error_of(code, first, weights),
        }

    sizes = NUM_PARTS[:2] if quick else (*NUM_PARTS, None)

    def cell(name):
        def shown(row):
            if name not in row["seconds"]:
                return "–"
            microseconds = 1e6 * row["seconds"][name]
            if microseconds > 100:
                return f"{microseconds:,.0f}"
            return f"{microseconds:.3g}"

        return shown

    return timed(
        [Once(measure, size) for size in sizes],
        f"Workers on the edges of a graph of degree {DEGREE}, {100 * LOST_SHARE:g}% "
        f"stragglers, float32: microseconds per mask, alone and of {NUM_MASKS}",
        {
            "code": "`{graph}`",
            "workers": "{num_workers:,}",
            "parts": "{num_parts:,}",
            "components, of many": cell("batch"),
            "alone": cell("single"),
            "`LeastSquares`": cell("least_squares"),
            "SciPy `lsqr`, sparse": cell("lsqr"),
            "NumPy `lstsq`": cell("lstsq"),
            "squared error": "{error:.0e}",
            "of `lstsq`": "{reference:.0e}",
        },
        figures={"": draw},
    )


def draw(numbers: Numbers) -> Figure:
    """Draws time by number of workers."""
    figure, (axes,) = new_figure(7, 4.5)
    rows = [row for row in numbers if row["graph"] == "edge_graph"]
    labels = {
        "lstsq": "NumPy lstsq",
        "least_squares": "LeastSquares",
        "lsqr": "SciPy lsqr, sparse",
        "single": "Components, one mask",
        "batch": f"Components, of {NUM_MASKS} masks",
    }
    for index, (name, label) in enumerate(labels.items()):
        measured = [row for row in rows if name in row["seconds"]]
        workers = [row["num_workers"] for row in measured]
        times = [1e6 * row["seconds"][name] for row in measured]
        line(axes, index, workers, times, label=label)
    workers = np.array([row["num_workers"] for row in rows])
    last = 1e6 * rows[-1]["seconds"]["batch"]
    proportional = last * workers / workers[-1]
    label = "proportional to the workers"
    axes.plot(workers, proportional, "--", color="0.6", label=label)
    axes.set(xscale="log", yscale="log", xlabel="workers")
    axes.set_ylabel("microseconds per mask")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scipy_lsqr(matrix: csr_array, mask: np.ndarray) -> np.ndarray:
    """Returns weights by sparse least squares, as without this library."""
    columns = matrix[mask].T
    target = np.ones(columns.shape[0])
    weights = np.zeros(len(mask))
    solved = lsqr(columns, target, atol=TOLERANCE, btol=TOLERANCE)
    weights[mask] = solved[0]
    return weights


def error_of(code: jaxwgc.GradientCode, mask: np.ndarray, weights: np.ndarray) -> float:
    """Returns the squared error in float64."""
    weights = np.where(mask, weights, 0).astype(np.float64)
    return float(np.sum((weights @ code.encoding_matrix - 1) ** 2))


NUM_PARAMETERS = 1_000_000
BYTES_A_NUMBER = 4
# Fraction of stragglers; codes tolerate more, so that clusters do, too.
STRAGGLERS = 0.1
# Workers per cluster. Each cluster has its own code, so that no array grows with the
# square of the number of workers. Its head decodes their messages and forwards one.
CLUSTER = 100


class Layout(NamedTuple):
    """Workers in clusters with a code each; a flat layout has one cluster."""

    name: str
    build: Callable[[int], jaxwgc.GradientCode]
    num_workers: int
    num_clusters: int = 1


def repetition(num_workers: int) -> jaxwgc.GradientCode:
    """Returns a code with each part on a fifth of the workers, at least on two."""
    return codes.fractional_repetition(num_workers, max(num_workers // 5, 2) - 1)


def reed_solomon(num_workers: int) -> jaxwgc.GradientCode:
    """Returns a code that any four fifths of the workers decode."""
    return codes.reed_solomon(num_workers, num_workers, max(num_workers // 5, 2))


CLUSTERED = f"reed_solomon, clusters of {CLUSTER}"
LAYOUTS = [
    *(Layout("reed_solomon", reed_solomon, number) for number in (10, 100, 1_000)),
    *(Layout("fractional_repetition", repetition, n) for n in (10, 100, 1_000)),
    *(Layout(CLUSTERED, reed_solomon, n, n // CLUSTER) for n in (1_000, 10_000)),
]
QUICK = 100


def clusters(repeats: int, seed: int, quick: bool) -> Study:
    """Returns milliseconds and bytes per round for a million parameters."""

    def measure(layout):
        size = layout.num_workers // layout.num_clusters
        start = time.perf_counter()
        code = layout.build(size)
        construction = time.perf_counter() - start
        order = np.random.default_rng(seed).permutation(layout.num_workers)
        received = order >= int(STRAGGLERS * layout.num_workers)
        received = received.reshape(layout.num_clusters, size)
        weights = jax.jit(lambda mask: jaxwgc.decoding(code, mask).weights)
        (decoding,) = median_seconds(repeats, lambda: weights(received))
        error = jax.jit(lambda mask: jaxwgc.decoding(code, mask).error)(received)
        # Complex messages have half as many numbers, of twice the size.
        message = BYTES_A_NUMBER * NUM_PARAMETERS
        read = message * (size - code.num_stragglers)
        is_flat = layout.num_clusters == 1
        return {
            "layout": layout.name,
            "num_workers": layout.num_workers,
            "load": float(np.max(code.loads)) / layout.num_workers,
            "construction": construction,
            "decoding": decoding,
            "error": float(np.sqrt(np.sum(np.asarray(error)) / layout.num_workers)),
            "coordinator": read if is_flat else message * layout.num_clusters,
            "head": 0 if is_flat else read,
        }

    chosen = [layout for layout in LAYOUTS if layout.num_workers <= QUICK or not quick]
    return timed(
        [Once(measure, layout) for layout in chosen],
        f"A round of {NUM_PARAMETERS:,} parameters, {100 * STRAGGLERS:g}% stragglers: "
        "share of the data per worker, and bytes that the coordinator reads",
        {
            "code": "`{layout}`",
            "workers": "{num_workers:,}",
            "data per worker": "{load:.2g}",
            "built in s": "{construction:.2g}",
            "decoded in ms": "{decoding:1e3 .3g}",
            "error": "{error:.0e}",
            "MB read": "{coordinator:1e-6 ,.0f}",
            "MB read by a head": "{head:1e-6 ,.0f}",
        },
    )


PROBABILITY = 0.1
COPIES = 4
TRIALS_AT_ONCE = 50


class Setting(NamedTuple):
    """Numbers of workers, parts of one row, columns, trials and steps per trial."""

    code: str = "stochastic"
    n: int = 10_000
    k: int = 10_000
    p: int = 100
    trials: int = 1_000
    steps: int = 200


SETTINGS = [
    Setting(),
    Setting(n=1_000),
    Setting(k=1_000),
    Setting(p=10),
    Setting(trials=100),
    Setting(n=100_000, k=100_000, trials=100),
    Setting("uncoded"),
    Setting("fractional_repetition"),
    Setting("reed_solomon", trials=10, steps=20),
]
QUICK_SETTING = Setting(n=200, k=200, p=5, trials=20, steps=5)


def trials(repeats: int, seed: int, quick: bool) -> Study:
    """Returns a row per setting; processes of their own show the peak of memory."""
    settings = [QUICK_SETTING] if quick else SETTINGS
    return timed(
        [Once(in_own_process, run, setting, seed) for setting in settings],
        f"Monte Carlo of coded descent; each worker straggles with probability "
        f"{PROBABILITY:g} in each step, clusters of {CLUSTER} workers: all trials, "
        "with compilation",
        {
            "code": "`{code}`",
            "workers n": "{n:,}",
            "parts k": "{k:,}",
            "columns p": "{p:,}",
            "trials": "{trials:,}",
            "steps": "{steps:,}",
            "seconds": "{seconds:.3g}",
            "peak, GiB": "{peak:.2f}",
            "‖θ − θ_ols‖² / ‖θ_ols‖²": "{error:e}",
        },
    )


def run(setting: Setting, seed: int) -> Numbers:
    """Returns seconds with compilation, and peak resident memory in GiB."""
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), 4)
    code = cluster_code(keys[0], setting)
    features = jax.random.normal(keys[1], (setting.k, setting.p))
    responses = features.sum(axis=1) + jax.random.normal(keys[2], (setting.k,))
    solution = jnp.linalg.lstsq(features, responses)[0]
    errors = jaxwgc.monte_carlo(
        lambda key: trial(key, code, setting, features, responses, solution),
        keys[3],
        setting.trials,
        TRIALS_AT_ONCE,
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        **setting._asdict(),
        "seconds": seconds,
        "peak": peak,
        "error": jaxwgc.summarize(errors),
    }


def cluster_code(key: jax.Array, setting: Setting) -> jaxwgc.GradientCode:
    """Returns the code of each cluster."""
    num_parts = setting.k * CLUSTER // setting.n
    if setting.code == "stochastic":
        return codes.stochastic(key, CLUSTER, num_parts, COPIES, PROBABILITY)
    if setting.code == "fractional_repetition":
        return codes.fractional_repetition(CLUSTER, COPIES - 1)
    if setting.code == "reed_solomon":
        return codes.reed_solomon(CLUSTER, num_parts, CLUSTER // 5)
    return codes.uncoded(CLUSTER, num_parts)


def trial(
    key: jax.Array,
    code: jaxwgc.GradientCode,
    setting: Setting,
    features: jax.Array,
    responses: jax.Array,
    solution: jax.Array,
) -> jax.Array:
    """Returns ‖θ - θ_ols‖² / ‖θ_ols‖² after the steps.

    Parts are rows, and decoding weights are weights of rows. So a step is two products
    with all the data for any number of trials.
    """
    model = stragglers.bernoulli(PROBABILITY)
    loads = jnp.ones(setting.n)
    step_size = 0.5 / setting.k

    def step(params, key):
        arrivals, _ = model.sample(key, (), loads)
        received = arrivals.received.reshape(-1, CLUSTER)
        weights = jaxwgc.decoding(code, received).effective_weights.ravel()
        residuals = weights * (features @ params - responses)
        return params - step_size * (residuals @ features), None

    keys = jax.random.split(key, setting.steps)
    params, _ = jax.lax.scan(step, jnp.zeros_like(solution), keys)
    return jnp.sum((params - solution) ** 2) / jnp.sum(solution**2)


TABLE2_RUNS = 2_000


def table2(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the wall time of the four cells of table 2, with compilation."""
    runs = 20 if quick else TABLE2_RUNS

    def measure():
        start = time.perf_counter()
        for compression in linear_regression.COMPRESSIONS:
            cell = Trial(linear_regression.one_run, compression, ("doubled",))
            key = jax.random.key(seed)
            jaxwgc.monte_carlo(cell.run, key, runs, linear_regression.BATCH_SIZE)
        return {"seconds": time.perf_counter() - start}

    return timed(
        [Once(measure)],
        "Table 2, four cells, float64, with compilation",
        {"runs per cell": f"{runs:,}", "seconds": "{seconds:.1f}"},
        x64=True,
    )
