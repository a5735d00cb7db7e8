"""Decoding of a hundred to ten thousand workers on the edges of a graph."""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr

import jaxwgc
from experiments.benchmark.decoding import numpy_lstsq
from experiments.runner.figures import Figure, line, new_figure
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
# Masks on which the slow peers are timed.
FEW_MASKS = 2
STRAGGLERS = 0.2
# Larger codes take minutes with the peers, and gigabytes with least squares.
LARGEST_FOR_PEERS = 7_000
TOLERANCE = 1e-10


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns microseconds per mask by components and by least squares."""

    def measure(num_parts):
        if num_parts is None:
            code = codes.ramanujan_graph(*RAMANUJAN)
        else:
            code = codes.edge_graph(jax.random.key(seed), num_parts, DEGREE)
        generator = np.random.default_rng(seed)
        masks = generator.random((NUM_MASKS, code.num_workers)) >= STRAGGLERS
        few = masks[:FEW_MASKS]
        decode = jax.jit(functools.partial(jaxwgc.decoding_weights, code))
        sparse = csr_array(code.encoding_matrix)
        batch, single = median_seconds(
            repeats, lambda: decode(masks), lambda: decode(masks[0])
        )
        (peer,) = median_seconds(repeats, lambda: [scipy_lsqr(sparse, m) for m in few])
        seconds = {"batch": batch / NUM_MASKS, "single": single}
        seconds["lsqr"] = peer / FEW_MASKS
        weights = scipy_lsqr(sparse, few[0])
        if code.num_workers <= LARGEST_FOR_PEERS:
            # An argument, since XLA would take minutes to multiply constants.
            least_squares = dataclasses.replace(code, decoders=(LeastSquares(),))
            on_device = jax.device_put(least_squares)
            iterate = jax.jit(jaxwgc.decoding_weights)
            (whole,) = median_seconds(min(repeats, 3), lambda: iterate(on_device, few))
            seconds["least_squares"] = whole / FEW_MASKS
            start = time.perf_counter()
            weights[few[0]] = numpy_lstsq(code, few[0])
            seconds["lstsq"] = time.perf_counter() - start
        return {
            "graph": "ramanujan_graph" if num_parts is None else "edge_graph",
            "num_workers": code.num_workers,
            "num_parts": code.num_parts,
            "seconds": seconds,
            "error": error_of(code, few[0], np.asarray(decode(few[0]))),
            "reference": error_of(code, few[0], weights),
        }

    sizes = [size for size in (*NUM_PARTS, None) if not quick or size and size <= QUICK]

    def cell(name):
        def shown(row):
            microseconds = 1e6 * row["seconds"].get(name, np.nan)
            digits = ",.0f" if microseconds > 100 else ".3g"
            return f"{microseconds:{digits}}" if name in row["seconds"] else "–"

        return shown

    table = timed(
        [Once(measure, size) for size in sizes],
        f"Workers on the edges of a graph of degree {DEGREE}, {100 * STRAGGLERS:g}% "
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
    )
    return dataclasses.replace(table, figures={"": draw})


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
        own = [row for row in rows if name in row["seconds"]]
        times = [1e6 * row["seconds"][name] for row in own]
        line(axes, index, [row["num_workers"] for row in own], times, label=label)
    workers = [row["num_workers"] for row in rows]
    last = 1e6 * rows[-1]["seconds"]["batch"]
    look = {"color": "0.6", "label": "proportional to the workers"}
    axes.plot(workers, last * np.array(workers) / workers[-1], "--", **look)
    axes.set(
        xscale="log", yscale="log", xlabel="workers", ylabel="microseconds per mask"
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scipy_lsqr(matrix: Any, mask: np.ndarray) -> np.ndarray:
    """Returns weights by sparse least squares, as without this library."""
    weights = np.zeros(len(mask))
    target = np.ones(matrix.shape[1])
    weights[mask] = lsqr(matrix[mask].T, target, atol=TOLERANCE, btol=TOLERANCE)[0]
    return weights


def error_of(code: jaxwgc.GradientCode, mask: np.ndarray, weights: np.ndarray) -> float:
    """Returns the squared error in float64."""
    weights = np.where(mask, weights, 0).astype(np.float64)
    return float(np.sum((weights @ code.encoding_matrix - 1) ** 2))
