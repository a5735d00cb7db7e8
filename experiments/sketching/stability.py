"""Least squares from easy to hopeless: forward, residual and backward errors."""

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

SHAPE, SMALL_SHAPE = (4_000, 50), (400, 10)
NUM_DIFFICULTIES = 21
# Up to the inverse of the rounding unit.
PRECISIONS = {"float64": 1e16, "float32": 1e8}
ROWS_PER_COLUMN = 12
ITERATIONS = 100
PLAIN, SKETCH, GRAM, QR = METHODS = (
    "sketch-and-precondition",
    '`preconditioned`, "sketch"',
    '`preconditioned`, "gram"',
    "Householder QR",
)
NUM_ROWS = NUM_DIFFICULTIES * len(METHODS)
ERRORS = {
    "forward": "forward error ‖θ − θ*‖ / ‖θ*‖",
    "residual": "residual error ‖X(θ − θ*)‖ / ‖y‖",
    "backward": "backward error / ‖X‖",
}


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a precision, of as many problems as difficulties."""
    shape = SHAPE if effort.is_full else SMALL_SHAPE
    return Study(
        {
            "shape": shape,
            "measured": {
                precision: Once(measure, key, shape, precision, num_rows=NUM_ROWS)
                for precision in PRECISIONS
            },
        },
        x64=True,
        tables={"stability": tabulate},
        figures={"stability": draw},
    )


def measure(key, shape, precision) -> Iterator[Numbers]:
    """Every method, at every difficulty."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    for difficulty in np.geomspace(1, PRECISIONS[precision], NUM_DIFFICULTIES):
        matrix, target = problem(rng, shape, difficulty, precision)
        exact = reference(matrix, target)
        for method in METHODS:
            solution, converged = solve(method, key, matrix, target)
            row = {"method": method, "difficulty": difficulty, "converged": converged}
            yield row | errors_of(matrix, target, exact, solution)


def problem(rng, shape, difficulty, precision) -> tuple[np.ndarray, np.ndarray]:
    """Both condition number and residual grow with the difficulty.

    As in Epperly, Meier and Nakatsukasa, "Fast randomized least-squares solvers can be
    just as accurate and stable as classical direct solvers", 2024, section 1: singular
    vectors are uniform, singular values evenly spaced in their logarithm, and the norm
    of the residual is the difficulty times the rounding unit.
    """
    num_rows, num_columns = shape
    left = np.linalg.qr(rng.standard_normal((num_rows, num_columns + 1)))[0]
    right = np.linalg.qr(rng.standard_normal((num_columns, num_columns)))[0]
    values = np.geomspace(1, 1 / difficulty, num_columns)
    matrix = (left[:, :-1] * values) @ right.T
    solution = rng.standard_normal(num_columns)
    unit = np.finfo(precision).eps / 2
    target = matrix @ solution / np.linalg.norm(solution)
    target += difficulty * unit * left[:, -1]
    return matrix.astype(precision), target.astype(precision)


def reference(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """θ* of these very numbers, refined by residuals in extended precision."""
    wide, wide_target = matrix.astype(np.longdouble), target.astype(np.longdouble)
    basis, upper = np.linalg.qr(matrix.astype(float))
    solution = np.zeros(matrix.shape[1], np.longdouble)
    # Of the augmented system, as by Björck: r as well as θ is refined.
    residual = wide_target.copy()
    for _ in range(10):
        first = wide_target - residual - wide @ solution
        second = -(residual @ wide)
        inner = scipy.linalg.solve_triangular(upper, second.astype(float), trans=1)
        part = basis.T @ first.astype(float)
        residual = residual + first - basis @ (part - inner)
        solution = solution + scipy.linalg.solve_triangular(upper, part - inner)
    return solution


def solve(method, key, matrix, target) -> tuple[np.ndarray, bool | None]:
    """θ, and whether the solver says that it has converged."""
    if method == QR:
        # NumPy's is in double precision, whatever it is given.
        factors: Any = scipy.linalg.qr(matrix, mode="economic")
        basis, upper = factors
        return scipy.linalg.solve_triangular(upper, basis.T @ target), None
    size = ROWS_PER_COLUMN * matrix.shape[1]
    if method == PLAIN:
        sketch = sketching.sparse_sign(key, size, len(matrix)) @ matrix
        return plain(matrix, target, np.asarray(sketch)), None
    name = "sketch" if method == SKETCH else "gram"
    solved = sketching.preconditioned(key, matrix, target, size, method=name)
    return np.asarray(solved.solution), bool(solved.converged)


def plain(matrix: np.ndarray, target: np.ndarray, sketch: np.ndarray) -> np.ndarray:
    """LSQR from zero, with R of the sketch as its preconditioner."""
    factors: Any = scipy.linalg.qr(sketch, mode="economic")
    upper = factors[1]
    make_operator: Any = scipy.sparse.linalg.LinearOperator
    operator = make_operator(
        matrix.shape,
        matvec=lambda x: matrix @ scipy.linalg.solve_triangular(upper, x),
        rmatvec=lambda y: scipy.linalg.solve_triangular(upper, matrix.T @ y, trans=1),
        dtype=matrix.dtype,
    )
    solved = scipy.sparse.linalg.lsqr(
        operator, target, atol=0, btol=0, conlim=0, iter_lim=ITERATIONS
    )
    return scipy.linalg.solve_triangular(upper, solved[0].astype(matrix.dtype))


def errors_of(matrix, target, exact, solution) -> dict[str, float]:
    """Forward, residual and backward error, with products in extended precision."""
    wide, wide_solution = matrix.astype(np.longdouble), solution.astype(np.longdouble)
    change = wide_solution - exact
    residual = target - wide @ wide_solution
    _, values, right = np.linalg.svd(matrix.astype(float), full_matrices=False)
    # Karlson and Waldén's estimate, for changes of X.
    gradient = right @ (residual @ wide).astype(float)
    weight = values**2 * np.sum(solution.astype(float) ** 2)
    weight += float(residual @ residual)
    backward = np.linalg.norm(gradient / np.sqrt(weight)) / np.linalg.norm(values)
    forward = np.sqrt(np.sum(change**2) / np.sum(exact**2))
    fit = np.sqrt(np.sum((wide @ change) ** 2)) / np.linalg.norm(target.astype(float))
    errors = map(float, (forward, fit, backward))
    return dict(zip(ERRORS, errors, strict=True))


def tabulate(numbers: Numbers) -> ResultTable:
    """Worst backward errors, in rounding units of the precision."""
    rows, columns = numbers["shape"]

    def show(cell):
        precision, method = cell
        runs = [row for row in numbers["measured"][precision] if row.method == method]
        flags = [row.converged for row in runs if row.converged is not None]
        unit = np.finfo(precision).eps
        errors = [row.backward / unit for row in runs]
        return {
            "precision": precision,
            "method": method,
            "backward error: median": f"{np.median(errors):.2g} eps",
            "worst": f"{max(errors):.2g} eps",
            "converged": f"{sum(flags)} of {len(flags)}" if flags else "",
        }

    return ResultTable.of_records(
        f"{rows:,} × {columns}, {NUM_DIFFICULTIES} difficulties",
        show,
        [(precision, method) for precision in PRECISIONS for method in METHODS],
    )


def draw(numbers: Numbers) -> Figure:
    """A row a precision, a panel an error; hollow: not said to have converged."""
    figure, panels = new_figure(
        11, 6.5, len(ERRORS), len(PRECISIONS), share_x=False, share_y=False
    )
    cells = [(precision, error) for precision in PRECISIONS for error in ERRORS]
    for axes, (precision, error) in zip(panels, cells, strict=True):
        for index, method in enumerate(METHODS):
            runs = [r for r in numbers["measured"][precision] if r.method == method]
            x = np.array([row.difficulty for row in runs])
            y = np.maximum([row[error] for row in runs], np.finfo(precision).eps * 1e-3)
            look: dict[str, Any] = {"linewidth": 1, "markersize": 4}
            line(axes, index, x, y, label=method.replace("`", ""), **look)
            is_open = np.array([row.converged is False for row in runs])
            axes.plot(
                x[is_open], y[is_open], "o", color="white", markersize=2, zorder=3
            )
        axes.set(title=f"{ERRORS[error]}, {precision}", xscale="log", yscale="log")
    for axes in panels[-len(ERRORS) :]:
        axes.set_xlabel("difficulty")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(METHODS))
    return figure
