"""Iterations of `preconditioned`, by the kind of preconditioner."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._linalg.factors import (
    Factors,
    NumericalRank,
    factors_of,
    factors_of_small,
)
from jaxwgc.sketching._linalg.kinds import sketched
from jaxwgc.sketching._linalg.refinement import Refinement
from jaxwgc.sketching._linalg.scaled_system import ScaledSystem, column_scaling


class Problem(NamedTuple):
    """Least squares of X stacked on `root` I.

    Attributes:
      rows: X, constant for `jax.grad`.
      target: y in units of its size.
      root: √ridge, or None.
      tolerance: Tolerance of the backward error.
    """

    rows: Any
    target: Array
    root: Array | None
    tolerance: Array


class Found(NamedTuple):
    """Result of iterations: θ / scale, and the fields of `Solution`.

    Attributes:
      squared: Squared norm of the residual.
      factors: The `Factors` or `ColumnScaling` that preconditioned them.
    """

    solution: Array
    squared: Array
    iteration: Array
    converged: Array
    history: Array
    factors: Any


def by_columns(problem: Problem, max_iterations: int) -> Found:
    """Solves with column scales as the only preconditioner."""
    rows, target, root, tolerance = problem
    scaling = column_scaling(rows, root)
    system = ScaledSystem(rows, scaling, tolerance, root)
    state = system.solve(system.padded(target), max_iterations)
    return Found(
        solution=state.x,
        squared=state.squared,
        iteration=state.monitor.iteration,
        converged=state.monitor.has_converged,
        history=state.monitor.history,
        factors=scaling,
    )


def tried_columns(
    problem: Problem, num_tries: int, max_iterations: int
) -> tuple[Found, Array]:
    """Solves as `by_columns`, and returns whether no factors are needed.

    The result has the form of `by_factors`. A ridge gives every X full rank, unless it
    is lost in the rounding of X.
    """
    found = by_columns(problem, num_tries)
    scaling = found.factors
    num_columns = problem.rows.shape[1]
    dtype = problem.rows.dtype
    least = 100 * jnp.finfo(dtype).eps * scaling.norm
    assert problem.root is not None
    has_full_rank = problem.root * jnp.min(scaling.scale) > least
    ones = jnp.ones(num_columns, dtype)
    rank = NumericalRank(jnp.int32(num_columns), jnp.bool_(False))
    factors = Factors(scaling.scale, jnp.diag(ones), ones, rank, jnp.bool_(True))
    padding = [(0, max_iterations - num_tries)] + [(0, 0)] * (found.history.ndim - 1)
    history = jnp.pad(found.history, padding, mode="edge")
    is_enough = jnp.all(found.converged) & has_full_rank
    return found._replace(history=history, factors=factors), is_enough


def by_factors(
    problem: Problem,
    embedding: Embedding | None,
    rcond: Array,
    method: str,
    max_iterations: int,
) -> Found:
    """Solves with the factors of X or of its sketch as the preconditioner."""
    rows, target, root, tolerance = problem
    converged = jnp.bool_(True)
    at_zero = None
    if embedding is None and rows.is_on_host:
        # The pass over X for R also gives Xᵀy and yᵀy.
        small, pulled, squared = rows.triangle_and_products(target)
        at_zero = pulled, squared
        factors = factors_of_small(small, rcond, root=root)
    elif embedding is None:
        threshold = 1e4 * jnp.finfo(rows.dtype).eps
        way = "gram" if method == "gram" else "qr"
        factors = factors_of(rows, root, rcond, way, threshold)
    else:
        (small,) = sketched(rows, embedding)
        factors = factors_of_small(small, rcond, root=root)
        probe = factors.null_vector()
        image = rows.length(factors.scale * probe)
        converged = factors.sees_all(probe, image, rcond)
    refinement = Refinement(rows, factors, tolerance, target, root, at_zero=at_zero)
    state = refinement.solve(max_iterations)
    is_lowest = refinement.is_lowest(state, embedding is not None)
    converged &= state.is_solved & is_lowest
    return Found(
        solution=state.point.x,
        squared=state.point.squared,
        iteration=state.monitor.iteration,
        converged=converged,
        history=state.monitor.history,
        factors=factors,
    )
