"""Forward, residual and backward errors of least squares by difficulty."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from jaxwgc import sketching

SHAPE = (4_000, 50)
SMALL_SHAPE = (400, 10)
NUM_DIFFICULTIES = 21
# Largest difficulty: about the inverse of machine epsilon.
PRECISIONS = {"float64": 1e16, "float32": 1e8}
ROWS_PER_COLUMN = 12
ITERATIONS = 100
PLAIN = "sketch-and-precondition"
SKETCH = '`preconditioned`, "sketch"'
GRAM = '`preconditioned`, "gram"'
QR = "Householder QR"
METHODS = (PLAIN, SKETCH, GRAM, QR)
ERRORS = {
    "forward": "forward error ‖θ − θ*‖ / ‖θ*‖",
    "residual": "residual error ‖X(θ − θ*)‖ / ‖y‖",
    "backward": "backward error / ‖X‖",
}


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per precision, with a problem per difficulty."""
    shape = SHAPE if effort.is_full else SMALL_SHAPE
    return Study(
        {
            "shape": shape,
            "measured": {
                precision: Once(measure, key, shape, precision)
                for precision in PRECISIONS
            },
        },
        x64=True,
        tables={"stability": tabulate},
        figures={"stability": draw},
    )


def measure(
    key: jax.Array, shape: tuple[int, int], precision: str
) -> Iterator[Numbers]:
    """Yields errors of every method at every difficulty."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    for difficulty in np.geomspace(1, PRECISIONS[precision], NUM_DIFFICULTIES):
        matrix, target = problem(rng, shape, difficulty, precision)
        exact = reference(matrix, target)
        for method in METHODS:
            solution, converged = solve(method, key, matrix, target)
            yield {
                "method": method,
                "difficulty": difficulty,
                "converged": converged,
                **errors_of(matrix, target, exact, solution),
            }


def problem(
    rng: np.random.Generator,
    shape: tuple[int, int],
    difficulty: float,
    precision: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a problem whose condition number and residual grow with the difficulty.

    As in Epperly, Meier and Nakatsukasa, "Fast randomized least-squares solvers can be
    just as accurate and stable as classical direct solvers", 2024, section 1: singular
    vectors are uniform, singular values evenly spaced in their logarithm, and the norm
    of the residual is the difficulty times half of machine epsilon.
    """
    num_rows, num_columns = shape
    left, _ = np.linalg.qr(rng.standard_normal((num_rows, num_columns + 1)))
    right, _ = np.linalg.qr(rng.standard_normal((num_columns, num_columns)))
    values = np.geomspace(1, 1 / difficulty, num_columns)
    matrix = (left[:, :-1] * values) @ right.T
    solution = rng.standard_normal(num_columns)
    unit = np.finfo(precision).eps / 2
    target = matrix @ solution / np.linalg.norm(solution)
    target += difficulty * unit * left[:, -1]
    return matrix.astype(precision), target.astype(precision)


def reference(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns θ* of the rounded numbers, refined in extended precision."""
    wide = matrix.astype(np.longdouble)
    wide_target = target.astype(np.longdouble)
    basis, upper = np.linalg.qr(matrix.astype(float))
    solution = np.zeros(matrix.shape[1], np.longdouble)
    # Björck refines the augmented system: the residual as well as θ.
    residual = wide_target.copy()
    for _ in range(10):
        first = wide_target - residual - wide @ solution
        second = -(residual @ wide)
        inner = scipy.linalg.solve_triangular(upper, second.astype(float), trans=1)
        difference = basis.T @ first.astype(float) - inner
        residual = residual + first - basis @ difference
        solution = solution + scipy.linalg.solve_triangular(upper, difference)
    return solution


def economic_qr(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns Q and R in the precision of the matrix, unlike NumPy."""
    # The stub of SciPy knows only the factors with pivots.
    factors: Any = scipy.linalg.qr(matrix, mode="economic")
    basis, upper = factors
    return basis, upper


def solve(
    method: str, key: jax.Array, matrix: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, bool | None]:
    """Returns θ, and whether the solver reports convergence."""
    if method == QR:
        basis, upper = economic_qr(matrix)
        return scipy.linalg.solve_triangular(upper, basis.T @ target), None
    size = ROWS_PER_COLUMN * matrix.shape[1]
    if method == PLAIN:
        sketch = sketching.sparse_sign(key, size, len(matrix)) @ matrix
        return plain(matrix, target, np.asarray(sketch)), None
    name = "sketch" if method == SKETCH else "gram"
    solved = sketching.preconditioned(key, matrix, target, size, method=name)
    return np.asarray(solved.solution), bool(solved.converged)


def plain(matrix: np.ndarray, target: np.ndarray, sketch: np.ndarray) -> np.ndarray:
    """Returns θ by LSQR from zero, with R of the sketch as its preconditioner."""
    _, upper = economic_qr(sketch)

    def product(x):
        return matrix @ scipy.linalg.solve_triangular(upper, x)

    def transposed_product(y):
        return scipy.linalg.solve_triangular(upper, matrix.T @ y, trans=1)

    # The stub of SciPy does not know the arguments.
    make_operator: Any = scipy.sparse.linalg.LinearOperator
    operator = make_operator(
        matrix.shape, matvec=product, rmatvec=transposed_product, dtype=matrix.dtype
    )
    preconditioned, *_ = scipy.sparse.linalg.lsqr(
        operator, target, atol=0.0, btol=0.0, conlim=0.0, iter_lim=ITERATIONS
    )
    return scipy.linalg.solve_triangular(upper, preconditioned.astype(matrix.dtype))


def errors_of(
    matrix: np.ndarray, target: np.ndarray, exact: np.ndarray, solution: np.ndarray
) -> dict[str, float]:
    """Returns forward, residual and backward error from extended precision."""
    wide = matrix.astype(np.longdouble)
    wide_solution = solution.astype(np.longdouble)
    change = wide_solution - exact
    residual = target - wide @ wide_solution
    _, values, right = np.linalg.svd(matrix.astype(float), full_matrices=False)
    # Karlson and Waldén's estimate, for changes of X.
    gradient = right @ (residual @ wide).astype(float)
    weight = values**2 * np.sum(solution.astype(float) ** 2)
    weight += float(residual @ residual)
    backward = np.linalg.norm(gradient / np.sqrt(weight)) / np.linalg.norm(values)
    forward = np.sqrt(np.sum(change**2) / np.sum(exact**2))
    residual_change = np.sqrt(np.sum((wide @ change) ** 2))
    return {
        "forward": float(forward),
        "residual": float(residual_change / np.linalg.norm(target.astype(float))),
        "backward": float(backward),
    }


def rows_of(numbers: Numbers, precision: str, method: str) -> list[Numbers]:
    """Returns the measured problems of a precision and a method."""
    return [row for row in numbers["measured"][precision] if row.method == method]


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns backward errors in units of machine epsilon of the precision."""
    num_rows, num_columns = numbers["shape"]
    table = ResultTable(
        f"{num_rows:,} × {num_columns}, {NUM_DIFFICULTIES} difficulties",
        ["precision", "method", "backward error: median", "worst", "converged"],
    )
    for precision, method in itertools.product(PRECISIONS, METHODS):
        runs = rows_of(numbers, precision, method)
        errors = [run.backward / np.finfo(precision).eps for run in runs]
        median = f"{np.median(errors):.2g} eps"
        worst = f"{max(errors):.2g} eps"
        flags = [run.converged for run in runs if run.converged is not None]
        converged = f"{sum(flags)} of {len(flags)}" if flags else ""
        table.rows.append([precision, method, median, worst, converged])
    return table


def draw(numbers: Numbers) -> Figure:
    """Draws a panel per precision and error; hollow: no convergence reported."""
    figure, panels = new_figure(
        11, 6.5, len(ERRORS), len(PRECISIONS), sharex=False, sharey=False
    )
    cells = itertools.product(PRECISIONS, ERRORS)
    for axes, (precision, error) in zip(panels, cells, strict=True):
        for index, method in enumerate(METHODS):
            runs = rows_of(numbers, precision, method)
            difficulties = np.array([run.difficulty for run in runs])
            # Zeros have no place on the axis.
            lowest = np.finfo(precision).eps * 1e-3
            errors = np.maximum([run[error] for run in runs], lowest)
            line(
                axes,
                index,
                difficulties,
                errors,
                label=method.replace("`", ""),
                linewidth=1,
                markersize=4,
            )
            is_hollow = np.array([run.converged is False for run in runs])
            axes.plot(
                difficulties[is_hollow],
                errors[is_hollow],
                "o",
                color="white",
                markersize=2,
                zorder=3,
            )
        axes.set(title=f"{ERRORS[error]}, {precision}", xscale="log", yscale="log")
    for axes in panels[-len(ERRORS) :]:
        axes.set_xlabel("difficulty")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(METHODS))
    return figure
