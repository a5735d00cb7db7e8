"""From a hundred workers to ten thousand on the edges of a graph."""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr

import jaxwgc
from experiments.benchmark._peers import numpy_lstsq
from experiments.runner.figures import Figure, new_figure, style
from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.timing import median_seconds
from jaxwgc import codes
from jaxwgc.decoders import LeastSquares

DEGREE = 6
NUM_PARTS = (34, 100, 334, 1_000, 3_334)
# The graph X of the primes 5 and 13, with 6,552 workers.
RAMANUJAN = (5, 13)
QUICK = 100
NUM_MASKS = 128
# Of those on which the slow peers are timed, in turn with the others.
FEW_MASKS = 2
STRAGGLERS = 0.2
# More would take the peers minutes, and least squares gigabytes.
LARGEST_FOR_PEERS = 7_000
TOLERANCE = 1e-10


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Microseconds a mask by components, and by least squares of all kinds."""

    def measure(num_parts):
        if num_parts is None:
            code = codes.ramanujan_graph(*RAMANUJAN)
        else:
            code = codes.edge_graph(jax.random.key(seed), num_parts, DEGREE)
        generator = np.random.default_rng(seed)
        masks = generator.random((NUM_MASKS, code.num_workers)) >= STRAGGLERS
        few = masks[:FEW_MASKS]
        decode = jax.jit(functools.partial(jaxwgc.decoding_weights, code))
        batch, single = median_seconds(
            repeats, lambda: decode(masks), lambda: decode(masks[0])
        )
        sparse = csr_array(code.encoding_matrix)
        seconds = {"batch": batch / NUM_MASKS, "single": single}
        (seconds["lsqr"],) = median_seconds(
            repeats, lambda: [scipy_lsqr(sparse, mask) for mask in few]
        )
        seconds["lsqr"] /= FEW_MASKS
        error = error_of(code, few[0], np.asarray(decode(few[0])))
        reference = error_of(code, few[0], scipy_lsqr(sparse, few[0]))
        if code.num_workers <= LARGEST_FOR_PEERS:
            # An argument, since XLA would take minutes to multiply constants.
            on_device = jax.device_put(
                dataclasses.replace(code, decoders=(LeastSquares(),))
            )
            iterate = jax.jit(jaxwgc.decoding_weights)
            (whole,) = median_seconds(min(repeats, 3), lambda: iterate(on_device, few))
            seconds["least_squares"] = whole / FEW_MASKS
            start = time.perf_counter()
            weights = np.zeros(code.num_workers)
            weights[few[0]] = numpy_lstsq(code, few[0])
            seconds["lstsq"] = time.perf_counter() - start
            reference = error_of(code, few[0], weights)
        return {
            "graph": "ramanujan_graph" if num_parts is None else "edge_graph",
            "num_workers": code.num_workers,
            "num_parts": code.num_parts,
            "seconds": seconds,
            "error": error,
            "reference": reference,
        }

    sizes = [size for size in (*NUM_PARTS, None) if not quick or size and size <= QUICK]
    table = timed(
        [Once(measure, size) for size in sizes],
        f"Workers on the edges of a graph of degree {DEGREE}, {100 * STRAGGLERS:g}% "
        f"stragglers, float32: microseconds a mask, alone and of {NUM_MASKS}",
        show,
    )
    return dataclasses.replace(table, figures={"": draw})


def show(row: Numbers) -> dict[str, str]:
    """A row of the table; the error is that of the first mask."""

    def cell(name):
        if name not in row["seconds"]:
            return "–"
        microseconds = 1e6 * row["seconds"][name]
        return f"{microseconds:,.0f}" if microseconds > 100 else f"{microseconds:.3g}"

    return {
        "code": f"`{row['graph']}`",
        "workers": f"{row['num_workers']:,}",
        "parts": f"{row['num_parts']:,}",
        "components, of many": cell("batch"),
        "alone": cell("single"),
        "`LeastSquares`": cell("least_squares"),
        "SciPy `lsqr`, sparse": cell("lsqr"),
        "NumPy `lstsq`": cell("lstsq"),
        "squared error": f"{row['error']:.0e}",
        "of `lstsq`": f"{row['reference']:.0e}",
    }


def draw(numbers: Numbers) -> Figure:
    """Time by workers, both on scales of powers of ten."""
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
        points = [
            (row["num_workers"], 1e6 * row["seconds"][name])
            for row in rows
            if name in row["seconds"]
        ]
        axes.plot(*zip(*points), label=label, **style(index))
    workers = [row["num_workers"] for row in rows]
    last = 1e6 * rows[-1]["seconds"]["batch"]
    axes.plot(
        workers,
        [last * number / workers[-1] for number in workers],
        "--",
        color="0.6",
        label="in proportion to the workers",
    )
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="microseconds a mask")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scipy_lsqr(matrix: Any, mask: np.ndarray) -> np.ndarray:
    """Sparse least squares, as one would decode without this library."""
    weights = np.zeros(len(mask))
    target = np.ones(matrix.shape[1])
    weights[mask] = lsqr(matrix[mask].T, target, atol=TOLERANCE, btol=TOLERANCE)[0]
    return weights


def error_of(code: jaxwgc.GradientCode, mask: np.ndarray, weights: np.ndarray) -> float:
    """Squared error, in float64."""
    weights = np.where(mask, weights, 0).astype(np.float64)
    return float(np.sum((weights @ code.encoding_matrix - 1) ** 2))
