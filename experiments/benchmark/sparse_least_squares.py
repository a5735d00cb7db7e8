"""Sparse least squares beside SciPy's, and a memory map that memory does not hold."""

import functools
import json
import subprocess
import sys
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

from experiments.runner.study import Once, Study, timed
from experiments.runner.tables import ResultTable
from experiments.runner.timing import measure_in_turn
from jaxwgc import sketching

# Rows of each matrix, and a tenth of them where all is small.
NUM_ROWS = 200_000
BUDGET = 10.0
BACKWARD_ERROR = 1e-12
# Solvers stop by estimates of their own: each gets the first that keeps the error.
TOLERANCES = 1e-12, 1e-13, 1e-14
MAX_ITERATIONS = 2_000
# A memory map in float32, beyond half of a memory of 23 GiB.
MAP_ROWS, MAP_COLUMNS, MAP_BLOCK = 32_000_000, 100, 100_000


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Every solver asked for one backward error, and what it gets."""
    num_rows = NUM_ROWS // 100 if quick else NUM_ROWS
    cells = {
        name: Once(functools.partial(rows, make, num_rows, repeats, seed), num_rows=4)
        for name, make in MATRICES.items()
    }

    def lines(numbers: Any) -> Iterator[Any]:
        for name, records in numbers["matrices"].items():
            for row in records:
                yield {"matrix": name, **row}

    def show(row: Any) -> dict[str, str]:
        return {
            "matrix": f"{row['matrix']}, {row['shape'][0]:,} × {row['shape'][1]:,}",
            "entries": f"{row['entries']:,}",
            "solver": row["solver"],
            "its tolerance": f"{row['tolerance']:.0e}",
            "seconds": row["time"].cell(),
            "iterations": str(row["iterations"]),
            "backward error": f"{row['error']:.1e}",
        }

    title = (
        f"Sparse least squares, float64, to a backward error of {BACKWARD_ERROR:.0e}, "
        "or the least that a solver reaches"
    )
    return Study(
        {"matrices": cells},
        x64=True,
        tables={
            "": lambda numbers: ResultTable.of_records(title, show, lines(numbers))
        },
    )


def rows(make: Callable[..., Any], num_rows: int, repeats: int, seed: int) -> Iterator:
    """All solvers in turn."""
    rng = np.random.default_rng(seed)
    matrix: Any = scipy.sparse.csr_array(make(rng, num_rows))
    matrix.sum_duplicates()
    exact = rng.standard_normal(matrix.shape[1])
    target = matrix @ exact
    noise = rng.standard_normal(len(target))
    target += 0.1 * np.linalg.norm(target) / np.linalg.norm(noise) * noise
    norm = scipy.sparse.linalg.norm(matrix)
    ours = sparse.BCOO.from_scipy_sparse(matrix)
    y = jnp.asarray(target)
    key = jax.random.key(seed)

    def solve(method: str) -> Callable[[float], tuple[Any, int]]:
        def run(tolerance: float) -> tuple[Any, Any]:
            solved = sketching.preconditioned(
                key,
                ours,
                y,
                method=method,
                tolerance=tolerance,
                max_iterations=MAX_ITERATIONS,
            )
            return solved.solution, int(solved.num_iterations)

        return run

    def scipy_solver(name: str, limit: str) -> Callable[[float], tuple[Any, int]]:
        def run(tolerance: float) -> tuple[Any, int]:
            solved = getattr(scipy.sparse.linalg, name)(
                matrix,
                target,
                atol=tolerance,
                btol=tolerance,
                conlim=0,
                **{limit: MAX_ITERATIONS},
            )
            return solved[0], solved[2]

        return run

    def backward_error(solution: Any) -> float:
        """Returns Stewart's bound, which `lsqr` and `lsmr` estimate."""
        residual = target - matrix @ np.asarray(solution)
        gradient = np.linalg.norm(matrix.T @ residual)
        return float(gradient / norm / np.linalg.norm(residual))

    solvers = {'`preconditioned`, "columns"': solve("columns")}
    if matrix.shape[1] <= 2048:
        solvers = {'`preconditioned`, "sketch"': solve("sketch"), **solvers}
    solvers["SciPy `lsqr`"] = scipy_solver("lsqr", "iter_lim")
    solvers["SciPy `lsmr`"] = scipy_solver("lsmr", "maxiter")
    tolerances = {}
    for name, run in solvers.items():
        errors = {}
        for tolerance in TOLERANCES:
            solution, num_iterations = run(tolerance)
            errors[tolerance] = backward_error(solution)
            if (
                min(errors.values()) <= BACKWARD_ERROR
                or num_iterations >= MAX_ITERATIONS
            ):
                break
        tolerances[name] = min(errors, key=errors.__getitem__)
    runs = [functools.partial(run, tolerances[name]) for name, run in solvers.items()]
    timings = measure_in_turn(runs, repeats, BUDGET)
    for solver, (result, time) in zip(solvers, timings, strict=True):
        solution, num_iterations = result
        yield {
            "shape": matrix.shape,
            "entries": matrix.nnz,
            "solver": solver,
            "tolerance": tolerances[solver],
            "time": time,
            "iterations": int(num_iterations),
            "error": backward_error(solution),
        }


def random_entries(rng: Any, num_rows: int) -> Any:
    """Twenty a row, normal: nobody needs a preconditioner."""
    num_columns = num_rows // 200
    return scipy.sparse.random_array(
        (num_rows, num_columns),
        density=min(1.0, 20 / num_columns),
        rng=rng,
        data_sampler=lambda size: rng.standard_normal(size),
    )


def graph(rng: Any, num_rows: int) -> Any:
    """Edges of a ring, many times: differences of two vertices, one grounded."""
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


def categories(rng: Any, num_rows: int) -> Any:
    """Two factors, one-hot, with half as many columns as rows: 1e5, few alike."""
    size = num_rows // 4
    columns = [rng.zipf(1.3, num_rows) % size, size + rng.integers(size, size=num_rows)]
    row = np.tile(np.arange(num_rows), 2)
    shape = num_rows, 2 * size
    return scipy.sparse.coo_array(
        (np.ones(2 * num_rows), (row, np.concatenate(columns))), shape
    )


def banded(rng: Any, num_rows: int) -> Any:
    """Second differences of neighbours, weighted: a beam, of a condition near 1e5."""
    num_columns = num_rows // 200
    first = np.arange(num_rows) * (num_columns + 2) // num_rows - 2
    column = first[:, None] + np.arange(3)
    data = rng.random((num_rows, 1)) * np.array([1.0, -2.0, 1.0])
    # The ends are held.
    is_inside = (column >= 0) & (column < num_columns)
    row = np.nonzero(is_inside)[0]
    shape = num_rows, num_columns
    return scipy.sparse.coo_array((data[is_inside], (row, column[is_inside])), shape)


def outliers(rng: Any, num_rows: int) -> Any:
    """Some rows are ten thousand times as large as the others."""
    factor = np.ones(num_rows)
    factor[rng.choice(num_rows, num_rows // 1000, replace=False)] = 1e4
    return scipy.sparse.diags_array(factor) @ random_entries(rng, num_rows)


MATRICES: dict[str, Callable[..., Any]] = {
    "random": random_entries,
    "graph": graph,
    "one-hot": categories,
    "banded": banded,
    "outlier rows": outliers,
}

# In a process of its own, whose largest resident set is then that of the solver.
PROGRAM = r"""
import json, os, pathlib, re, sys, time
import jax, numpy as np
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

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

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
    """Least squares of a file that is larger than half of the memory."""
    # One run: it is minutes of reading.
    del repeats
    num_rows, block_rows = (20_000, 5_000) if quick else (MAP_ROWS, MAP_BLOCK)

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            path = Path(folder) / "rows"
            with path.open("wb") as file:
                for start in range(0, num_rows, block_rows):
                    rng = np.random.default_rng((seed, start))
                    size = min(block_rows, num_rows - start)
                    block = rng.random((size, MAP_COLUMNS + 1), np.float32)
                    # The noise is what stood in the last column.
                    block[:, -1] += block[:, :-1].sum(axis=1) - 0.5
                    block.tofile(file)
            arguments = num_rows, MAP_COLUMNS, block_rows
            command = [sys.executable, "-c", PROGRAM, path, *map(str, arguments)]
            return json.loads(subprocess.check_output(command))

    whole = num_rows * (MAP_COLUMNS + 1) * 4 / 2**30
    return timed(
        [Once(measure)],
        f"Least squares of a memory map of {num_rows:,} × {MAP_COLUMNS}, float32, in "
        f"blocks of {block_rows:,} rows",
        lambda row: {
            "file, GiB": f"{whole:.1f}",
            "peak of the process, MiB": f"{row['mebibytes']:.0f}",
            "seconds": f"{row['seconds']:.1f}",
            "passes": str(row["passes"]),
            "reading it once, seconds": f"{row['seconds_of_reading_once']:.1f}",
            "converged": "yes" if row["converged"] else "no",
            "largest error of θ": f"{row['error']:.1e}",
        },
    )
