"""Time and error of leverage scores: exact, approximate, and of a stream of blocks."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import median_seconds
from jaxwgc import sketching

SHAPE, APPROXIMATED_SHAPE = (100_000, 200), (100_000, 1_000)
EPSILONS = (0.5, 0.3)
NUM_ROWS, NUM_COLUMNS, BLOCK_ROWS = 5_000_000, 100, 50_000
RANKS = {"full rank": NUM_COLUMNS, "rank 3/5": NUM_COLUMNS * 3 // 5}

# In a process of its own, whose largest resident set is then that of the scores.
PROGRAM = r"""
import json, pathlib, re, sys, time
import jax, numpy as np
from jaxwgc import sketching

num_rows, num_columns, block_rows, rank, seed = map(int, sys.argv[1:])
mixing = np.random.default_rng(seed).standard_normal((rank, num_columns), np.float32)

def peak():
    # Other than ru_maxrss, this does not remember the process that forked.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

def blocks():
    for start in range(0, num_rows, block_rows):
        rng = np.random.default_rng((seed, start))
        shape = min(block_rows, num_rows - start), rank
        block = rng.standard_normal(shape, np.float32)
        yield block if rank == num_columns else block @ mixing

sketching.leverage_scores(np.eye(3, dtype=np.float32)).block_until_ready()
before = peak()
start = time.perf_counter()
scores = sketching.leverage_scores(sketching.Blocks(blocks, num_rows))
seconds = time.perf_counter() - start
start = time.perf_counter()
for block in blocks():
    pass
drawing = time.perf_counter() - start
print(json.dumps({
    "mebibytes": peak(),
    "mebibytes_before": before,
    "seconds": seconds,
    "seconds_of_drawing_once": drawing,
    "sum_of_scores": float(scores.sum(dtype=np.float64)),
}))
"""


def exact(repeats: int, seed: int, quick: bool) -> Study:
    """Exact scores against NumPy's SVD and the floor of two matrix products."""
    shape = (2_000, 50) if quick else SHAPE

    def show(row):
        floor, ours, peer = row["seconds"].values()
        return {
            "matrix": row["matrix"],
            "dtype": row["dtype"],
            "two products": f"{1e3 * floor:.0f}",
            "jaxwgc": f"{1e3 * ours:.0f}",
            "NumPy SVD": f"{1e3 * peer:.0f}",
            "jaxwgc / products": f"{ours / floor:.2f}",
            "SVD / jaxwgc": f"{peer / ours:.1f}",
            "worst error": f"{row['worst_error']:.1e}",
        }

    title = f"Leverage scores of {shape[0]:,} × {shape[1]}: milliseconds"
    return timed(Once(exact_rows, *shape, repeats, seed, num_rows=4), title, show)


def exact_rows(num_rows: int, num_columns: int, repeats: int, seed: int) -> Iterator:
    """A matrix after the other."""
    rng = np.random.default_rng(seed)
    gaussian = rng.normal(size=(num_rows, num_columns))
    low_rank = rng.normal(size=(num_rows, num_columns * 3 // 4))
    low_rank = low_rank @ rng.normal(size=(num_columns * 3 // 4, num_columns))
    orthogonal = np.linalg.qr(rng.normal(size=(num_columns, num_columns)))[0]
    graded = np.linalg.qr(gaussian)[0] * np.logspace(0, -10, num_columns) @ orthogonal
    for name, matrix, dtype in (
        ("well conditioned", gaussian, np.float64),
        ("rank 3/4", low_rank, np.float64),
        ("condition 1e10", graded, np.float64),
        ("well conditioned", gaussian, np.float32),
    ):
        matrix = matrix.astype(dtype)
        with jax.enable_x64(dtype == np.float64):
            on_device = jnp.asarray(matrix)
            score = jax.jit(sketching.leverage_scores)
            two_products = jax.jit(lambda x, y: (x.T @ x, x @ y))
            floor, ours, peer = median_seconds(
                repeats,
                functools.partial(two_products, on_device, on_device[:num_columns]),
                functools.partial(score, on_device),
                functools.partial(np.linalg.svd, matrix, full_matrices=False),
            )
            scores = np.asarray(score(on_device))
        exactly = matrix.astype(np.float64)
        left, singular, _ = scipy.linalg.svd(exactly, full_matrices=False)
        rank = np.sum(singular > max(matrix.shape) * np.finfo(dtype).eps * singular[0])
        yield {
            "matrix": name,
            "dtype": np.dtype(dtype).name,
            "seconds": {"two_products": floor, "jaxwgc": ours, "numpy_svd": peer},
            "worst_error": np.abs(scores - np.sum(left[:, :rank] ** 2, axis=1)).max(),
        }


def approximate(repeats: int, seed: int, quick: bool) -> Study:
    """Approximate scores beside the exact ones of the library, in float32."""
    shape = (6_000, 100) if quick else APPROXIMATED_SHAPE

    def show(row):
        floor, reference, ours = row["seconds"].values()
        return {
            "matrix": row["matrix"],
            "epsilon": str(row["epsilon"]),
            "two products": f"{1e3 * floor:.0f}",
            "exact": f"{1e3 * reference:.0f}",
            "approximate": f"{1e3 * ours:.0f}",
            "exact / approximate": f"{reference / ours:.1f}",
            "within 1 ± epsilon": f"{100 * row['within_epsilon']:.2f}",
            "within a factor 2": f"{100 * row['within_factor_2']:.2f}",
        }

    title = (
        f"Approximate leverage scores of {shape[0]:,} × {shape[1]:,}, float32: "
        "milliseconds, and percent of rows"
    )
    return timed(Once(approximate_rows, *shape, repeats, seed, num_rows=6), title, show)


def approximate_rows(rows: int, columns: int, repeats: int, seed: int) -> Iterator:
    """For each matrix both accuracies."""
    rng = np.random.default_rng(seed)
    two_products = jax.jit(lambda x, y: (x.T @ x, x @ y))
    scores = jax.jit(sketching.leverage_scores)
    estimate = sketching.approximate_leverage_scores
    estimate = jax.jit(estimate, static_argnames="epsilon")
    key = jax.random.key(seed)
    for name in ("Gaussian", "heavy tails", "rank 3/5"):
        matrix = draw(rng, name, rows, columns)
        functions = [
            functools.partial(two_products, matrix, matrix[:columns]),
            functools.partial(scores, matrix),
            *(functools.partial(estimate, key, matrix, eps) for eps in EPSILONS),
        ]
        floor, reference, *ours = median_seconds(repeats, *functions)
        times = {"two_products": floor, "exact": reference}
        truth = np.asarray(functions[1](), np.float64)
        for epsilon, seconds, function in zip(EPSILONS, ours, functions[2:]):
            quotient = np.asarray(function(), np.float64) / truth
            yield {
                "matrix": name,
                "epsilon": epsilon,
                "seconds": times | {"approximate": seconds},
                "within_epsilon": np.mean(np.abs(quotient - 1) <= epsilon),
                "within_factor_2": np.mean((quotient >= 0.5) & (quotient <= 2)),
            }


def draw(rng: Any, name: str, num_rows: int, num_columns: int) -> jax.Array:
    """A matrix whose scores are alike, of all sizes, or of lower rank."""
    width = num_columns * 3 // 5 if name == "rank 3/5" else num_columns
    matrix = rng.standard_normal((num_rows, width), np.float32)
    if name == "heavy tails":
        # Student's t with two degrees of freedom. With one, a single row is 1e6 times
        # as long as most, and the rest is at the cut-off of the rank in float32.
        matrix /= np.sqrt(rng.standard_exponential((num_rows, 1), np.float32))
    if width < num_columns:
        matrix = matrix @ rng.standard_normal((width, num_columns), np.float32)
    return jnp.asarray(matrix)


def streaming(repeats: int, seed: int, quick: bool) -> Study:
    """The largest resident set of a process that scores blocks drawn on the fly."""
    # One run: memory hardly varies.
    del repeats
    num_rows, block_rows = (20_000, 5_000) if quick else (NUM_ROWS, BLOCK_ROWS)

    def measure(name):
        arguments = num_rows, NUM_COLUMNS, block_rows, RANKS[name], seed
        command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
        return {"matrix": name, **json.loads(subprocess.check_output(command))}

    whole = num_rows * NUM_COLUMNS * 4 / 2**20
    return timed(
        [Once(measure, name) for name in RANKS],
        f"Streaming leverage scores of {num_rows:,} × {NUM_COLUMNS}, float32, in "
        f"blocks of {block_rows:,} rows",
        lambda row: {
            "matrix": row["matrix"],
            "matrix, MiB": f"{whole:,.0f}",
            "peak of the process, MiB": f"{row['mebibytes']:.0f}",
            "JAX alone, MiB": f"{row['mebibytes_before']:.0f}",
            "seconds": f"{row['seconds']:.1f}",
            "of them drawing": f"{2 * row['seconds_of_drawing_once']:.1f}",
            "sum of scores": f"{row['sum_of_scores']:.3f}",
        },
    )
