"""Iterations of `preconditioned`, by the kind of preconditioner."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._linalg.block_matrix import BlockMatrix
from jaxwgc.sketching._linalg.factors import Factors, factors_of, factors_of_small
from jaxwgc.sketching._linalg.linear_operator import Operator
from jaxwgc.sketching._linalg.matrix import Matrix, RowMatrix
from jaxwgc.sketching._linalg.refinement import Problem, Refinement
from jaxwgc.sketching._linalg.scaled_system import (
    ColumnScaling,
    ScaledSystem,
    column_scaling,
)
from jaxwgc.sketching._linalg.sparse import Sparse
from jaxwgc.sketching._solvers._solution import ScaledSolution


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Preconditioner:
    """Factors of X or of a sketch.

    Attributes:
      factors: The factors, with the rows of a ridge.
      has_all_directions: Whether the factors contain all directions of X above the
        cutoff.
      is_sketched: Whether the factors are computed from a sketch.
    """

    factors: Factors
    has_all_directions: Array
    is_sketched: Static[bool]


def by_columns(problem: Problem, max_iterations: int) -> ScaledSolution:
    """Solves with column scales as the only preconditioner."""
    matrix, target, root_ridge, tolerance = problem
    assert isinstance(matrix, Operator | Sparse)
    scaling = column_scaling(matrix, root_ridge)
    system = ScaledSystem(matrix, scaling, tolerance, root_ridge)
    state = system.solve(system.padded(target), max_iterations)
    return ScaledSolution(
        solution=state.x,
        squared=state.squared,
        iteration=state.monitor.iteration,
        converged=state.monitor.has_converged,
        history=state.monitor.history,
        factors=scaling,
    )


def by_columns_first(
    problem: Problem,
    num_tries: int,
    max_iterations: int,
    solve_by_factors: Callable[[], ScaledSolution],
) -> ScaledSolution:
    """Solves with column scales, or by factors if `num_tries` iterations do not do it.

    With a ridge, X stacked on √ridge I has full rank, unless the ridge is as small as
    the rounding errors of X. In this case, the solution is by factors.
    """
    tried = by_columns(problem, num_tries)
    scaling = tried.factors
    assert isinstance(scaling, ColumnScaling)
    assert problem.root_ridge is not None
    rounding = 100 * jnp.finfo(problem.matrix.dtype).eps * scaling.norm
    has_full_rank = problem.root_ridge * jnp.min(scaling.scale) > rounding
    # Both results have the fields of a result by factors.
    padding = [(0, 0)] * tried.history.ndim
    padding[0] = (0, max_iterations - num_tries)
    padded = tried._replace(
        history=jnp.pad(tried.history, padding, mode="edge"),
        factors=Factors.of_orthonormal_columns(scaling.scale),
    )
    is_enough = jnp.all(tried.converged) & has_full_rank
    return lax.cond(is_enough, lambda: padded, solve_by_factors)


def by_factors(
    problem: Problem,
    embedding: Embedding | None,
    rcond: Array,
    method: str,
    max_iterations: int,
    threshold: float = 0.0,
) -> ScaledSolution:
    """Solves with the factors of X or of its sketch as the preconditioner.

    Args:
      problem: The problem.
      embedding: S, for `method` "sketch".
      rcond: The cutoff of singular values, as a share of the largest.
      method: "gram", "factor" or "sketch".
      max_iterations: The largest number of iterations.
      threshold: See `gram_factors`. Raised to 1e4 machine epsilons, which are enough
        for a preconditioner.
    """
    matrix, target, root_ridge, _ = problem
    if not (method == "factor" and isinstance(matrix, BlockMatrix)):
        preconditioner = preconditioner_of(
            matrix, embedding, rcond, method, root_ridge, threshold
        )
        return refined(problem, preconditioner, max_iterations)
    # One pass over the blocks computes both R and the products with the target.
    small, gradient, squared = matrix.triangle_and_products(target)
    factors = factors_of_small(small.factor, rcond, small.scale, root_ridge)
    preconditioner = Preconditioner(factors, jnp.bool_(True), is_sketched=False)
    return refined(problem, preconditioner, max_iterations, (gradient, squared))


def preconditioner_of(
    matrix: Matrix,
    embedding: Embedding | None,
    rcond: Array,
    method: str,
    root_ridge: Array | None,
    threshold: float = 0.0,
) -> Preconditioner:
    """Computes the factors of X, or of its sketch by the embedding."""
    if method == "sketch":
        assert embedding is not None
        (sketch,) = matrix.sketch(embedding)
        factors = factors_of_small(sketch, rcond, root_ridge=root_ridge)
        probe = factors.null_vector()
        image = jnp.linalg.norm(matrix.mv(factors.scale * probe))
        return Preconditioner(
            factors=factors,
            has_all_directions=factors.has_all_directions(probe, image, rcond),
            is_sketched=True,
        )
    assert isinstance(matrix, RowMatrix)
    least = 1e4 * float(jnp.finfo(matrix.dtype).eps)
    factors = factors_of(matrix, root_ridge, rcond, method, max(threshold, least))
    return Preconditioner(factors, jnp.bool_(True), is_sketched=False)


def refined(
    problem: Problem,
    preconditioner: Preconditioner,
    max_iterations: int,
    target_products: tuple[Array, Array] | None = None,
) -> ScaledSolution:
    """Solves by iterations with a preconditioner.

    Args:
      problem: The problem.
      preconditioner: The preconditioner.
      max_iterations: The largest number of iterations.
      target_products: Xᵀy and ‖y‖², if known.
    """
    factors = preconditioner.factors
    refinement = Refinement(
        problem=problem,
        factors=factors,
        target_products=target_products,
        is_sketched=preconditioner.is_sketched,
    )
    state = refinement.solve(max_iterations)
    is_lowest = refinement.is_lowest(state)
    is_solved = state.is_solved & is_lowest & factors.finite
    return ScaledSolution(
        solution=state.point.x,
        # With a ridge of NaN, θ stays at 0, and the residual is finite.
        squared=jnp.where(factors.finite, state.point.squared, jnp.nan),
        iteration=state.monitor.iteration,
        converged=preconditioner.has_all_directions & is_solved,
        history=state.monitor.history,
        factors=factors,
    )
