"""Least-squares problems of given condition number and residual, and their errors."""

from typing import NamedTuple

import jax
import numpy as np
import scipy.linalg

SHAPE = (4_000, 50)
SMALL_SHAPE = (400, 10)
# Rows of a sketch per column of X.
ROWS_PER_COLUMN = 12


class LeastSquares(NamedTuple):
    """A matrix X of shape (N, p) and a target y of shape (N,)."""

    matrix: np.ndarray
    target: np.ndarray


def generator(key: jax.Array) -> np.random.Generator:
    """Returns NumPy's generator, seeded by a key."""
    return np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))


def random_problem(
    rng: np.random.Generator,
    shape: tuple[int, int],
    condition: float,
    residual: float,
    precision: str = "float64",
) -> LeastSquares:
    """Draws a problem of given condition number and norm of the residual.

    As in section 1 of the paper: singular vectors are uniform, singular values evenly
    spaced in their logarithm up to 1, and θ is of norm 1.
    """
    num_rows, num_columns = shape
    left, _ = np.linalg.qr(rng.standard_normal((num_rows, num_columns + 1)))
    right, _ = np.linalg.qr(rng.standard_normal((num_columns, num_columns)))
    values = np.geomspace(1, 1 / condition, num_columns)
    matrix = (left[:, :-1] * values) @ right.T
    solution = rng.standard_normal(num_columns)
    target = matrix @ solution / np.linalg.norm(solution) + residual * left[:, -1]
    return LeastSquares(matrix.astype(precision), target.astype(precision))


def reference(problem: LeastSquares) -> np.ndarray:
    """Returns θ* of the rounded numbers, refined in extended precision."""
    wide = problem.matrix.astype(np.longdouble)
    wide_target = problem.target.astype(np.longdouble)
    basis, upper = np.linalg.qr(problem.matrix.astype(float))
    solution = np.zeros(wide.shape[1], np.longdouble)
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


def gradient_norm(problem: LeastSquares, solution: np.ndarray) -> float:
    """Returns ‖Xᵀ(y - Xθ)‖, computed in extended precision."""
    wide = problem.matrix.astype(np.longdouble)
    residual = problem.target - wide @ solution
    return float(np.linalg.norm((residual @ wide).astype(float)))


def backward_error(problem: LeastSquares, solution: np.ndarray) -> float:
    """Returns Karlson and Waldén's estimate for changes of X, relative to ‖X‖."""
    wide = problem.matrix.astype(np.longdouble)
    residual = problem.target - wide @ solution
    _, values, right = np.linalg.svd(problem.matrix.astype(float), full_matrices=False)
    gradient = right @ (residual @ wide).astype(float)
    weight = values**2 * np.sum(solution.astype(float) ** 2)
    weight += float(residual @ residual)
    return float(np.linalg.norm(gradient / np.sqrt(weight)) / np.linalg.norm(values))


def forward_error(exact: np.ndarray, solution: np.ndarray) -> float:
    """Returns ‖θ - θ*‖ / ‖θ*‖."""
    change = solution.astype(np.longdouble) - exact
    return float(np.sqrt(np.sum(change**2) / np.sum(exact**2)))


def residual_error(
    problem: LeastSquares, exact: np.ndarray, solution: np.ndarray
) -> float:
    """Returns ‖X(θ - θ*)‖ / ‖y‖."""
    wide = problem.matrix.astype(np.longdouble)
    image = wide @ (solution.astype(np.longdouble) - exact)
    target_norm = np.linalg.norm(problem.target.astype(float))
    return float(np.sqrt(np.sum(image**2)) / target_norm)
