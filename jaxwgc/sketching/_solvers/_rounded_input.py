"""Least-squares problems given in float64 whose condition float32 cannot carry."""

from typing import Any

import numpy as np

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._solvers._solution import Solution


def mind_rounding(
    solution: Solution, matrix: Any, target: Any, ridge: Any = 0.0
) -> Solution:
    """Returns the solution, with a flag that knows of rounding to float32.

    Without 64-bit mode a matrix of float64 is computed with in float32, where more
    directions are cut off. `converged` becomes False where that makes the residual
    longer than solvers promise, as float64 sees it on the host. Under `jax.jit` JAX
    rounds before anybody can look.
    """
    rank = None if solution.rank is None else solution.rank.rank
    is_host = isinstance(matrix, np.ndarray | list | tuple)
    if not is_host or rank is None or _validation.is_traced(target, ridge, rank):
        return solution
    matrix, dtype = np.asarray(matrix), solution.solution.dtype
    num_kept = int(np.max(rank))
    if matrix.dtype == dtype or num_kept == min(matrix.shape):
        return solution
    if np.array_equal(matrix, matrix.astype(dtype)):
        return solution
    arrays = np.asarray(matrix, float), np.asarray(target, float)
    excess, size = _excess(*arrays, float(ridge), num_kept)
    # As the flags of solvers have it, of the norm of y.
    is_carried = excess <= float(np.finfo(dtype).eps) ** 0.5 / 8 * size
    return solution._replace(converged=solution.converged & is_carried)


def _excess(
    matrix: np.ndarray, target: np.ndarray, ridge: float, num_kept: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much longer than the least a residual is, and the norm of y.

    The residual of so many directions of X, those of the largest singular values.
    """
    num_columns = matrix.shape[1]
    norms = np.linalg.norm(matrix, axis=0)
    norms = np.where(norms > 0, norms, 1)
    pulled = np.diag(ridge**0.5 / norms)
    columns = np.concatenate([matrix / norms, pulled])
    targets = target.reshape(len(target), -1)
    targets = np.pad(targets, [(0, num_columns), (0, 0)])
    # R has all that is needed of both, and is small.
    triangle = np.linalg.qr(np.hstack([columns, targets]), mode="r")
    left, values, _ = np.linalg.svd(triangle[:, :num_columns], full_matrices=False)
    targets = triangle[:, num_columns:]
    parts = (left.T @ targets) ** 2
    # Those that float64 has not either are no loss.
    is_there = values > _checks.solver_cutoff(matrix.shape, values.dtype) * values[0]
    squared = np.sum(targets**2, axis=0)
    lost = np.sum(parts[num_kept:] * is_there[num_kept:, None], axis=0)
    longer = np.sqrt(np.maximum(squared - np.sum(parts[:num_kept], axis=0), lost))
    shorter = np.sqrt(np.maximum(longer**2 - lost, 0))
    shape = target.shape[1:]
    return (longer - shorter).reshape(shape), np.sqrt(squared).reshape(shape)
