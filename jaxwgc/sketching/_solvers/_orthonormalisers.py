"""Matrices P such that X P has orthonormal columns, or nearly so."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import product
from jaxwgc.sketching._gram import Gram, equilibrated
from jaxwgc.sketching._operators import (
    LinearOperator,
    Matrix,
    SparseMatrix,
    times,
)
from jaxwgc.sketching._row_blocks import DenseRows, RidgedRows, ridge_rows
from jaxwgc.sketching._scores._numerical_rank import NumericalRank, rank_of
from jaxwgc.sketching._scores._unequal_rows import count_seeing, is_lost, may_be_lost

# At a time in a QR factorisation.
_BLOCK_ROWS = 256
# The estimate of a square is off by a factor of a hundred once in a billion times.
_NUM_NULL_VECTORS = 8


class Orthonormaliser(NamedTuple):
    """V and s of X diag(scale) = U diag(s) Vᵀ, found from X, its Gram matrix or sketch.

    Attributes:
      scale: (p,), powers of two that bring the norms of columns next to 1.
      vectors: V, (p, k), zero in the columns of the singular values that are cut off.
      singular_values: s, (k,), in descending order, zero where they are cut off.
      rank: how many are not, and whether rounding decides it.
    """

    scale: jax.Array
    vectors: jax.Array
    singular_values: jax.Array
    rank: NumericalRank

    @property
    def matrix(self) -> jax.Array:
        """Returns P = V diag(1 / s), (p, k), for which X diag(scale) P = U."""
        return self.vectors / _safe(self.singular_values)

    @property
    def has_null_space(self) -> jax.Array:
        """Returns whether values were cut off, or there are fewer than columns."""
        return jnp.sum(self.singular_values > 0) < self.vectors.shape[0]

    @property
    def norm(self) -> jax.Array:
        """Returns the Frobenius norm of X diag(scale)."""
        return _safe(jnp.linalg.norm(self.singular_values))

    def in_range(self, gradient: jax.Array) -> jax.Array:
        """Returns the part of the residual in the range of X, in the basis X P."""
        return product(gradient, self.matrix)

    def direction(self, in_range: jax.Array) -> jax.Array:
        """Returns the step that takes this part off, if X P is orthonormal."""
        return product(self.matrix, in_range)

    def shortest_direction(self, in_range: jax.Array) -> jax.Array:
        """Returns the `direction` without its part in the null space of X."""
        return self.shortest(self.scale * self.direction(in_range)) / self.scale

    def backward_error(
        self, solution: jax.Array, in_range: jax.Array, squared: jax.Array
    ) -> jax.Array:
        """Returns Karlson and Waldén's estimate of it, as a share of the norm of X."""
        values = self.singular_values
        weight = values**2 * jnp.sum(solution**2) + squared
        return jnp.linalg.norm(values * in_range / jnp.sqrt(_safe(weight))) / self.norm

    def null_vector(self, key: jax.Array) -> jax.Array:
        """Draws a vector of the null space of what was factored."""
        return self.cut_off(jax.random.normal(key, self.scale.shape, self.scale.dtype))

    def cut_off(self, vectors: Any) -> jax.Array:
        """Returns the parts (..., p) of vectors that were cut off."""
        # Twice, so that rounding in the first leaves nothing of V behind.
        for _ in range(2):
            kept = product(product(vectors, self.vectors), self.vectors.T)
            vectors = vectors - kept
        return vectors

    def is_complete(
        self, matrix: Matrix, key: jax.Array, rcond: jax.Array
    ) -> jax.Array:
        """Returns whether all directions of X, but those below the cut-off, were seen.

        A direction of X that a sketch misses is in the null space of SX, as is one that
        X does not have. A random vector of that space tells which.
        """
        probe = self.null_vector(key)
        bound = 2 * rcond * self.singular_values[0] * jnp.linalg.norm(probe)
        is_null = jnp.linalg.norm(times(matrix, self.scale * probe)) <= bound
        return is_null | ~self.has_null_space

    def beside(
        self, matrix: Matrix, rcond: jax.Array | float
    ) -> tuple["Orthonormaliser", jax.Array]:
        """Returns the same, and whether heavy rows of X hide others.

        Beside one of 1e8, all that rows of 1 have is cut off as rounding in float32;
        the rank is then ambiguous. Rows of an operator are not looked at.
        """
        if isinstance(matrix, LinearOperator):
            return self, jnp.bool_(False)
        if isinstance(matrix, SparseMatrix):
            lost = lax.cond(
                may_be_lost(self.vectors, rcond),
                lambda: self._count_seeing(matrix) > 0,
                lambda: jnp.bool_(False),
            )
        else:
            rows = DenseRows(matrix)
            lost = is_lost(rows, lambda rows: rows * self.scale, self.vectors, rcond)
        is_ambiguous = self.rank.is_ambiguous | lost
        rank = self.rank._replace(is_ambiguous=is_ambiguous)
        return self._replace(rank=rank), lost

    def _count_seeing(self, matrix: SparseMatrix) -> jax.Array:
        """Counts rows in directions that were cut off, in time of the entries.

        Their squares there are estimated by some random directions.
        """
        keys = jax.random.split(jax.random.key(0), _NUM_NULL_VECTORS)
        vectors = jax.vmap(self.null_vector)(keys) * self.scale
        images = jax.vmap(matrix.matvec)(vectors).T / _NUM_NULL_VECTORS**0.5
        return count_seeing(matrix.row_norms(self.scale)[:, None], images)

    def shortest(self, solution: jax.Array) -> jax.Array:
        """Returns a solution without its part in the null space of X.

        V spans the row space of X diag(scale), in which the shortest solution is not
        the shortest one in the units of X.
        """
        is_kept = self.singular_values > 0

        def project(solution: jax.Array) -> jax.Array:
            rows = self.vectors / self.scale[:, None]
            # Pivoting keeps rows of all sizes as accurate as they are.
            lower, _, order = lax.linalg.lu(rows)
            lower = jnp.tril(lower, -1) + jnp.eye(*rows.shape, dtype=rows.dtype)
            # Cut-off columns are zero and last.
            basis = jnp.linalg.qr(jnp.where(is_kept, lower, 0))[0] * is_kept
            basis = basis.at[order].set(basis)
            # Twice, so that rounding in the first leaves no null space behind.
            for _ in range(2):
                solution = product(basis, product(solution, basis))
            return solution

        return lax.cond(self.has_null_space, project, lambda x: x, solution)


class ColumnScaling(NamedTuple):
    """The scales of columns alone, in the place of an `Orthonormaliser`.

    For matrices with so many columns that one could not be factored.

    Attributes:
      scale: (p,), powers of two that bring the norms of columns next to 1.
      norm: the Frobenius norm of X diag(scale), with the rows of a ridge.
    """

    scale: jax.Array
    norm: jax.Array
    rank = None

    def direction(self, in_range: jax.Array) -> jax.Array:
        """Returns the step of steepest descent, which is the gradient.

        It vanishes with the part in the range of X, and adds no null space.
        """
        return in_range

    in_range = shortest_direction = direction

    def cut_off(self, vectors: Any) -> jax.Array:
        """Returns zeros: nothing is cut off."""
        return jnp.zeros_like(vectors)

    def backward_error(
        self, solution: jax.Array, in_range: jax.Array, squared: jax.Array
    ) -> jax.Array:
        """Returns the smaller one of two bounds on it, as a share of the norm of X.

        Changes of X by r rᵀX / rᵀr and by r θᵀ / θᵀθ each make θ exact.
        """
        residual = jnp.sqrt(squared)
        by_gradient = jnp.linalg.norm(in_range) / _safe(residual)
        length = jnp.linalg.norm(solution)
        by_residual = residual / _safe(length)
        by_residual = jnp.where((length > 0) | (residual == 0), by_residual, jnp.inf)
        return jnp.minimum(by_gradient, by_residual) / _safe(self.norm)


def _safe(value: jax.Array) -> jax.Array:
    """Returns what may be divided by."""
    return jnp.where(value > 0, value, 1)


def from_factors(
    matrix: jax.Array, ridge: jax.Array | None, rcond: jax.typing.ArrayLike
) -> Orthonormaliser:
    """Orthonormalises by a factorisation of X or of a sketch of it.

    A ridge adds the rows √ridge I.
    """
    if ridge is not None:
        pulled = ridge_rows(matrix.shape[1], jnp.sqrt(ridge))
        matrix = jnp.concatenate([matrix, pulled])
    _, matrix, scale, unit = equilibrated(matrix)
    scale = scale * unit
    if matrix.shape[0] < matrix.shape[1]:
        basis, upper = jnp.linalg.qr(matrix.T)
        rotation, values, _ = jnp.linalg.svd(upper)
        vectors = product(basis, rotation)
    else:
        _, values, rotation = jnp.linalg.svd(_triangle(matrix))
        vectors = rotation.T
    return _cut_off(scale, vectors, values, rcond)


def _triangle(matrix: jax.Array) -> jax.Array:
    """Returns R of QR, block by block where there are many rows.

    The rounding of one long sum over all of them would hide small singular values.
    """
    num_rows, num_columns = matrix.shape
    size = max(_BLOCK_ROWS, 4 * num_columns)
    num_blocks = num_rows // size
    if num_blocks < 2:
        return jnp.linalg.qr(matrix, mode="r")
    blocks = matrix[: num_blocks * size].reshape(num_blocks, size, num_columns)
    triangles = jnp.linalg.qr(blocks, mode="r").reshape(-1, num_columns)
    return _triangle(jnp.concatenate([triangles, matrix[num_blocks * size :]]))


def from_gram(
    matrix: jax.Array, ridge: jax.Array | None, rcond: jax.Array
) -> Orthonormaliser:
    """Orthonormalises by the Gram matrix of a tall X, and one of X P if needed."""
    rows = DenseRows(matrix)
    rows = rows if ridge is None else RidgedRows(rows, ridge)
    gram = Gram.equilibrated(rows)
    # Decompositions of NaN may do anything, and differ by backend.
    identity = jnp.eye(rows.num_columns, dtype=matrix.dtype)
    gram = gram._replace(matrix=jnp.where(gram.finite, gram.matrix, identity))
    eigenvalues, basis = gram.decomposed()
    eps = jnp.finfo(matrix.dtype).eps

    def plain(_: None) -> tuple[jax.Array, jax.Array]:
        return basis[:, ::-1], jnp.sqrt(eigenvalues[::-1])

    def refined(_: None) -> tuple[jax.Array, jax.Array]:
        small = gram.refined(eigenvalues, basis).small()
        values, rotation = jnp.linalg.svd(small)[1:]
        return product(basis, rotation.T), values

    # The error of P in one pass, eps times the ratio of eigenvalues, is the factor by
    # which an iteration then shrinks the error of the solution.
    threshold = jnp.maximum(1e4 * eps, rcond**2)
    is_plain = eigenvalues[0] > threshold * eigenvalues[-1]
    vectors, values = lax.cond(is_plain, plain, refined, None)
    return _cut_off(gram.scale * gram.unit, vectors, values, rcond)


def _cut_off(
    scale: jax.Array, vectors: jax.Array, values: jax.Array, rcond: jax.typing.ArrayLike
) -> Orthonormaliser:
    is_kept = values > rcond * values[0]
    return Orthonormaliser(
        scale=scale,
        vectors=jnp.where(is_kept, vectors, 0),
        singular_values=jnp.where(is_kept, values, 0),
        rank=rank_of(values, rcond),
    )
