"""Sparse least squares and SciPy's, and least squares of a large memory map."""

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax.experimental import sparse
from jax.typing import ArrayLike

from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.tables import table_of
from experiments.runner.timing import measure_in_turn, run_program
from jaxwgc import sketching

# Rows of each matrix; a hundredth of them in a quick run.
NUM_ROWS = 200_000
BUDGET = 10.0
BACKWARD_ERROR = 1e-12
# Solvers stop by estimates of their own: each gets the first that keeps the error.
TOLERANCES = (1e-12, 1e-13, 1e-14)
MAX_ITERATIONS = 2_000
# A function of the tolerance returns the solution and its number of iterations.
Solve = Callable[[float], tuple[ArrayLike, int]]
# A sparse array of SciPy, whose stub lacks products and shapes of two axes.
SparseMatrix = Any
# A memory map in float32, beyond half of a memory of 23 GiB.
MAP_ROWS = 32_000_000
MAP_COLUMNS = 100
MAP_BLOCK = 100_000


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns time and backward error of solvers with one target of accuracy."""
    num_rows = NUM_ROWS // 100 if quick else NUM_ROWS
    title = (
        f"Sparse least squares, float64, to a backward error of {BACKWARD_ERROR:.0e}, "
        "or the least that a solver reaches"
    )

    def matrix_and_shape(row):
        num_rows, num_columns = row["shape"]
        return f"{row['matrix']}, {num_rows:,} × {num_columns:,}"

    columns = {
        "matrix": matrix_and_shape,
        "entries": "{entries:,}",
        "solver": "{solver}",
        "its tolerance": "{tolerance:.0e}",
        "seconds": "{time}",
        "iterations": "{iterations}",
        "backward error": "{error:.1e}",
    }
    cells = [Once(rows, name, num_rows, repeats, seed) for name in MATRICES]
    table = table_of(title, columns, lambda numbers: itertools.chain(*numbers))
    return Study(cells, x64=True, tables={"": table})


def rows(name: str, num_rows: int, repeats: int, seed: int) -> Iterator:
    """Yields a row per solver, all timed in turn."""
    rng = np.random.default_rng(seed)
    matrix: SparseMatrix = scipy.sparse.csr_array(MATRICES[name](rng, num_rows))
    matrix.sum_duplicates()
    target = matrix @ rng.standard_normal(matrix.shape[1])
    noise = rng.standard_normal(len(target))
    target += 0.1 * np.linalg.norm(target) / np.linalg.norm(noise) * noise
    norm = scipy.sparse.linalg.norm(matrix)

    def backward_error(solution: ArrayLike) -> float:
        """Returns Stewart's bound, which `lsqr` and `lsmr` estimate."""
        residual = target - matrix @ np.asarray(solution)
        gradient = np.linalg.norm(matrix.T @ residual)
        return float(gradient / norm / np.linalg.norm(residual))

    solvers = solvers_for(matrix, target, seed)
    runs = []
    tolerances = []
    for solve in solvers.values():
        errors = {}
        for tolerance in TOLERANCES:
            solution, num_iterations = solve(tolerance)
            errors[tolerance] = backward_error(solution)
            is_reached = min(errors.values()) <= BACKWARD_ERROR
            if is_reached or num_iterations >= MAX_ITERATIONS:
                break
        best = min(errors, key=lambda tolerance: errors[tolerance])
        tolerances.append(best)
        runs.append(functools.partial(solve, best))
    timings = measure_in_turn(runs, repeats, BUDGET)
    for solver, tolerance, timing in zip(solvers, tolerances, timings, strict=True):
        (solution, num_iterations), time = timing
        yield {
            "matrix": name,
            "shape": matrix.shape,
            "entries": matrix.nnz,
            "solver": solver,
            "tolerance": tolerance,
            "time": time,
            "iterations": int(num_iterations),
            "error": backward_error(solution),
        }


def solvers_for(
    matrix: SparseMatrix, target: np.ndarray, seed: int
) -> dict[str, Solve]:
    """Returns solvers by name, functions of a tolerance."""
    key = jax.random.key(seed)
    bcoo = sparse.BCOO.from_scipy_sparse(matrix)
    y = jnp.asarray(target)

    def ours(method: str) -> Solve:
        def solve(tolerance: float) -> tuple[ArrayLike, int]:
            solved = sketching.preconditioned(
                key,
                bcoo,
                y,
                method=method,
                tolerance=tolerance,
                max_iterations=MAX_ITERATIONS,
            )
            return solved.solution, int(solved.num_iterations)

        return solve

    def peer(name: str, limit: str) -> Solve:
        def solve(tolerance: float) -> tuple[ArrayLike, int]:
            function = getattr(scipy.sparse.linalg, name)
            limits = {limit: MAX_ITERATIONS}
            solution, _, num_iterations, *_ = function(
                matrix, target, atol=tolerance, btol=tolerance, conlim=0, **limits
            )
            return solution, num_iterations

        return solve

    methods = ("sketch", "columns") if matrix.shape[1] <= 2048 else ("columns",)
    return {
        **{f'`preconditioned`, "{method}"': ours(method) for method in methods},
        "SciPy `lsqr`": peer("lsqr", "iter_lim"),
        "SciPy `lsmr`": peer("lsmr", "maxiter"),
    }


def random_entries(rng: np.random.Generator, num_rows: int) -> SparseMatrix:
    """Returns twenty normal entries per row: well conditioned."""
    num_columns = num_rows // 200
    return scipy.sparse.random_array(
        (num_rows, num_columns),
        density=min(1.0, 20 / num_columns),
        rng=rng,
        data_sampler=lambda size: rng.standard_normal(size),
    )


def graph(rng: np.random.Generator, num_rows: int) -> SparseMatrix:
    """Returns differences of neighbours on a ring, many per edge; one is grounded."""
    num_vertices = num_rows // 200
    ring = np.arange(num_vertices)
    start = rng.integers(num_vertices, size=num_rows - num_vertices)
    first = np.concatenate([ring, start])
    second = (first + 1) % num_vertices
    row = np.tile(np.arange(num_rows), 2)
    data = np.repeat([1.0, -1.0], num_rows)
    pair = np.concatenate([first, second])
    matrix = scipy.sparse.coo_array((data, (row, pair)), (num_rows, num_vertices))
    return matrix.tocsc()[:, 1:]


def categories(rng: np.random.Generator, num_rows: int) -> SparseMatrix:
    """Returns two one-hot factors, with half as many columns as rows."""
    size = num_rows // 4
    first = rng.zipf(1.3, num_rows) % size
    second = size + rng.integers(size, size=num_rows)
    row = np.tile(np.arange(num_rows), 2)
    column = np.concatenate([first, second])
    ones = np.ones(2 * num_rows)
    return scipy.sparse.coo_array((ones, (row, column)), (num_rows, 2 * size))


def banded(rng: np.random.Generator, num_rows: int) -> SparseMatrix:
    """Returns weighted second differences: a beam, of a condition number near 1e5."""
    num_columns = num_rows // 200
    first = np.arange(num_rows) * (num_columns + 2) // num_rows - 2
    column = first[:, None] + np.arange(3)
    data = rng.random((num_rows, 1)) * np.array([1.0, -2.0, 1.0])
    # The ends are held.
    is_inside = (column >= 0) & (column < num_columns)
    row, _ = np.nonzero(is_inside)
    entries = (data[is_inside], (row, column[is_inside]))
    return scipy.sparse.coo_array(entries, (num_rows, num_columns))


def outliers(rng: np.random.Generator, num_rows: int) -> SparseMatrix:
    """Returns a matrix of which some rows are 1e4 times as large as the others."""
    factor = np.ones(num_rows)
    factor[rng.choice(num_rows, num_rows // 1000, replace=False)] = 1e4
    return scipy.sparse.diags_array(factor) @ random_entries(rng, num_rows)


MATRICES: dict[str, Callable[[np.random.Generator, int], SparseMatrix]] = {
    "random": random_entries,
    "graph": graph,
    "one-hot": categories,
    "banded": banded,
    "outlier rows": outliers,
}

PROGRAM = """
import os
import jax
from jaxwgc import sketching

path, num_rows, num_columns, block_rows = sys.argv[1], *map(int, sys.argv[2:])

def read():
    # By the file, so that pages of the map do not count as resident.
    with open(path, "rb", buffering=0) as file:
        buffer = np.empty((block_rows, num_columns + 1), np.float32)
        while size := file.readinto(memoryview(buffer).cast("B")):
            block = buffer[: size // buffer[0].nbytes]
            yield block[:, num_columns].copy()

def mapped():
    # A new map for each block, so that its pages are not kept.
    for start in range(0, num_rows, block_rows):
        rows = np.memmap(path, np.float32, "r", shape=(num_rows, num_columns + 1))
        yield rows[start : start + block_rows, :num_columns]

# Out of the cache of the system, so that reading is from the disk.
with open(path, "rb+") as file:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
start = time.perf_counter()
target = np.concatenate([*read()])
reading = time.perf_counter() - start
start = time.perf_counter()
rows = sketching.Blocks(mapped, num_rows)
solution = sketching.preconditioned(jax.random.key(0), rows, target)
seconds = time.perf_counter() - start
print(json.dumps({
    "mebibytes": peak(),
    "seconds": seconds,
    "seconds_of_reading_once": reading,
    "passes": 1 + int(solution.num_iterations),
    "converged": bool(solution.converged),
    "error": float(np.abs(np.asarray(solution.solution) - 1).max()),
}))
"""


def memory_map(repeats: int, seed: int, quick: bool) -> Study:
    """Returns time and peak memory of least squares of a file.

    One run, which reads the file for minutes.
    """
    num_rows, block_rows = (20_000, 5_000) if quick else (MAP_ROWS, MAP_BLOCK)

    def measure() -> Numbers:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            path = Path(folder) / "rows"
            with path.open("wb") as file:
                for start in range(0, num_rows, block_rows):
                    rng = np.random.default_rng((seed, start))
                    size = min(block_rows, num_rows - start)
                    block = rng.random((size, MAP_COLUMNS + 1), np.float32)
                    # The last column becomes Xθ plus what it held, as noise.
                    block[:, -1] += block[:, :-1].sum(axis=1) - 0.5
                    block.tofile(file)
            return run_program(PROGRAM, path, num_rows, MAP_COLUMNS, block_rows)

    whole = num_rows * (MAP_COLUMNS + 1) * 4 / 2**30
    return timed(
        [Once(measure)],
        f"Least squares of a memory map of {num_rows:,} × {MAP_COLUMNS}, float32, in "
        f"blocks of {block_rows:,} rows",
        {
            "file, GiB": f"{whole:.1f}",
            "peak of the process, MiB": "{mebibytes:.0f}",
            "seconds": "{seconds:.1f}",
            "passes": "{passes}",
            "reading it once, seconds": "{seconds_of_reading_once:.1f}",
            "converged": lambda row: "yes" if row["converged"] else "no",
            "largest error of θ": "{error:.1e}",
        },
    )
