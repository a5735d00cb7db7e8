"""Singular values and right singular vectors of matrices with scaled columns.

They are s and V of X diag(scale) = U diag(s) Vᵀ.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common.arrays import product
from jaxwgc.sketching._linalg.matrix import Dense, RowMatrix, gram_of_block
from jaxwgc.sketching._linalg.rows import (
    column_scale,
    diagonal,
    gram,
    safe,
    scaled,
    triangle,
    unit_scale,
)

# Singular values within this factor of the cutoff make a rank ambiguous.
_CLEAR_FACTOR = 10

# Ratio of the smallest to the largest eigenvalue of XᵀX, above which one Gram matrix is
# accurate enough. The condition number of X is then below 100. Rounding errors grow
# with its square, and so are at most about 1e4 machine epsilons.
WELL_CONDITIONED = 1e-4


class NumericalRank(NamedTuple):
    """The numerical rank of a matrix, and whether the rank is ambiguous.

    The rank is ambiguous if a singular value is close to the cutoff. See
    `numerical_rank`.
    """

    rank: Array
    is_ambiguous: Array


def rank_cutoff(shape: tuple[int, ...], dtype: np.dtype) -> float:
    """Returns the default relative cutoff of singular values, `rcond`, for scores."""
    return 10 * min(shape) ** 0.5 * float(jnp.finfo(dtype).eps)


def solver_cutoff(shape: tuple[int, ...], dtype: np.dtype) -> float:
    """Returns the default relative cutoff of singular values, `rcond`, for solvers.

    The cutoff is just above rounding errors. In rank-deficient matrices of up to half a
    million rows, the factorisations of X and of its sketches gave singular values of up
    to 5 machine epsilons instead of 0. A larger cutoff would increase the residual if X
    has full rank.
    """
    return (4 + min(shape) ** 0.5) * float(jnp.finfo(dtype).eps)


def root_of(ridge: Array | None) -> Array | None:
    """Computes √ridge without derivatives, or returns None if there is no ridge."""
    return None if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))


class Factors(NamedTuple):
    """Singular values and right singular vectors of a matrix with scaled columns.

    They are s and V of X diag(scale) = U diag(s) Vᵀ, constant for `jax.grad`.

    Attributes:
      scale: (p,), powers of two that scale the norms of columns to about 1.
      vectors: V, (p, k), zero in the columns of truncated singular values.
      singular_values: s, (k,), in descending order, zero if truncated.
      inverse: P = V diag(1 / s), (p, k), for which X diag(scale) P = U.
      rank: The number of nonzero singular values, and whether it is ambiguous.
      finite: Whether X is finite.
    """

    scale: Array
    vectors: Array
    singular_values: Array
    inverse: Array
    rank: NumericalRank
    finite: Array

    @classmethod
    def of_orthonormal_columns(cls, scale: Array) -> Self:
        """Returns factors s = 1 and V = I of a matrix with orthonormal scaled columns.

        As a preconditioner of any X, these factors only scale the columns.
        """
        ones = jnp.ones_like(scale)
        identity = jnp.diag(ones)
        return cls(
            scale=scale,
            vectors=identity,
            singular_values=ones,
            inverse=identity,
            rank=NumericalRank(jnp.int32(len(scale)), jnp.bool_(False)),
            finite=jnp.bool_(True),
        )

    @property
    def has_null_space(self) -> Array:
        """Returns whether the rank is less than the number of columns."""
        return self.rank.rank < self.vectors.shape[0]

    @property
    def norm(self) -> Array:
        """Returns the Frobenius norm of the scaled matrix, or 1 if it is zero."""
        return safe(jnp.linalg.norm(self.singular_values))

    def null_vector(self) -> Array:
        """Returns a vector in the factored matrix's null space; zero for full rank.

        The vector is the projection of a normal random vector with a fixed seed, which
        is independent of the random numbers of sketches.
        """
        draw = np.random.default_rng(0).standard_normal(self.scale.shape)
        draw = jnp.asarray(draw, self.scale.dtype)
        return jnp.where(self.has_null_space, self.truncated_part(draw), 0)

    def truncated_part(self, vectors: Array) -> Array:
        """Projects vectors onto the orthogonal complement of kept singular vectors."""

        def project(_: Array, part: Array) -> Array:
            return part - product(self.vectors, product(self.vectors.T, part))

        return _twice(project, vectors)

    def has_all_directions(self, probe: Array, image: Array, rcond: Array) -> Array:
        """Tests whether the factored sketch has kept the row space of the matrix X.

        Directions with singular values of X below the cutoff do not count. The null
        space of a sketch SX contains the null space of X, and all directions of X that
        the sketch has lost. A random vector of this space detects lost directions.

        Args:
          probe: The `null_vector`.
          image: The norm of X diag(scale) `probe`.
          rcond: The cutoff of singular values.
        """
        bound = 2 * rcond * self.singular_values[0] * jnp.linalg.norm(probe)
        return (image <= bound) | ~self.has_null_space

    @jax.jit
    def row_space(self) -> Array:
        """Computes an orthonormal basis of the unscaled matrix's row space."""

        def basis() -> Array:
            rows = self.vectors / self.scale[:, None]
            # The columns of L in a pivoted LU factorisation span the row space. L is
            # well-conditioned, and accurate even if `rows` differ very much in size.
            lower, _, order = lax.linalg.lu(rows)
            lower = jnp.tril(lower, -1) + jnp.eye(*rows.shape, dtype=rows.dtype)
            # Truncated columns are zero and last. Their columns of L are not in the row
            # space.
            is_kept = self.singular_values > 0
            basis_in_order, _ = jnp.linalg.qr(jnp.where(is_kept, lower, 0))
            # A product with a permutation matrix undoes the pivoting. The product
            # compiles faster than a sort.
            is_place = jnp.arange(len(order))[:, None] == order
            return product(is_place.astype(rows.dtype), basis_in_order * is_kept)

        return lax.cond(self.has_null_space, basis, lambda: self.vectors)

    def in_row_space(self, vector: Array, row_space: Array) -> Array:
        """Projects a vector onto the row space of the unscaled matrix.

        A least-squares solution θ becomes the one of minimum norm. V spans the row
        space of X diag(scale), so that solutions from V minimise ‖θ / scale‖ instead.
        """

        def project(_: Array, part: Array) -> Array:
            return product(row_space, product(row_space.T, part))

        part = _twice(project, vector)
        return jnp.where(self.has_null_space, part, vector)

    def direction(self, in_range: Array, row_space: Array) -> Array:
        """Computes the step of scaled parameters that changes the fit by U `in_range`.

        Scaled parameters are θ / scale, and the fit is Xθ. The step of θ has minimum
        norm.
        """
        step = scaled(self.scale, product(self.inverse, in_range))
        return scaled(1 / self.scale, self.in_row_space(step, row_space))


def _twice(project: Callable[[Array, Array], Array], vectors: Array) -> Array:
    """Applies a projection twice. The second time removes rounding errors of the first.

    A loop compiles the projection once.
    """
    return lax.fori_loop(0, 2, project, vectors)


def factors_of(
    matrix: RowMatrix,
    root_ridge: Array | None,
    rcond: ArrayLike,
    method: str = "gram",
    threshold: ArrayLike = WELL_CONDITIONED,
) -> Factors:
    """Computes the `Factors` of a matrix that is stacked on the rows of a ridge.

    The factored matrix is X stacked on `root_ridge` I.

    Args:
      matrix: X.
      root_ridge: √ridge, or None.
      rcond: The cutoff of singular values, as a share of the largest.
      method: "gram" for a tall X, or "auto" for "gram" where it is at least as fast.
        Any other method is a QR factorisation, as for a streamed matrix, which is then
        read once.
      threshold: The ratio of eigenvalues above which one Gram matrix is enough.
    """
    num_rows, num_columns = matrix.shape
    is_gram = method == "gram"
    if method == "auto":
        is_gram = num_rows >= 4 * num_columns or not isinstance(matrix, Dense)
    if is_gram and not matrix.is_streamed:
        return gram_factors(matrix, root_ridge, rcond, threshold)
    matrix = lax.stop_gradient(matrix)
    # A streamed matrix keeps scales of 1: its QR factorisation is accurate even if
    # columns have very different norms.
    scale: Array | float = 1.0
    if isinstance(matrix, Dense):
        scale = column_scale(matrix.column_maxima(), root_ridge)
        matrix = matrix.scaled(scale)
    return factors_of_small(matrix.triangle(), rcond, scale, root_ridge)


@jax.jit
def factors_of_small(
    small: Array,
    rcond: ArrayLike,
    scale: Array | float = 1.0,
    root_ridge: Array | None = None,
) -> Factors:
    """Computes the `Factors` of a small matrix that is stacked on the rows of a ridge.

    The factored matrix is X stacked on `root_ridge` I.

    Args:
      small: R of a QR factorisation of X diag(scale), or a sketch of X diag(scale).
      rcond: The cutoff of singular values, as a share of the largest.
      scale: The scales by which columns of `small` have been multiplied.
      root_ridge: √ridge, or None.
    """
    return factors_of_unit_columns(unit_columns(small, scale, root_ridge), rcond)


class UnitColumns(NamedTuple):
    """A small matrix with columns scaled to norms near 1.

    Attributes:
      array: The matrix, or zeros if it is not finite.
      scale: (p,), powers of two.
      finite: Whether the matrix is finite.
    """

    array: Array
    scale: Array
    finite: Array


def unit_columns(
    small: Array, scale: Array | float = 1.0, root_ridge: Array | None = None
) -> UnitColumns:
    """Appends the rows of a ridge, and scales columns to norms near 1.

    See `factors_of_small` for the arguments.
    """
    small = lax.stop_gradient(small)
    if root_ridge is not None:
        ridge_rows = root_ridge * jnp.eye(small.shape[1], dtype=root_ridge.dtype)
        small = jnp.concatenate([small, ridge_rows * scale])
    first = column_scale(jnp.max(jnp.abs(small), axis=0))
    squares = jnp.sum((small * first) ** 2, axis=0)
    finite = jnp.isfinite(squares).all()
    unit = first * unit_scale(first, squares)
    # A matrix that is not finite becomes zero, since decompositions of NaN differ by
    # backend.
    array = jnp.where(finite, small * unit, 0)
    return UnitColumns(array, scale * unit, finite)


def factors_of_unit_columns(columns: UnitColumns, rcond: ArrayLike) -> Factors:
    """Computes `Factors` of scaled columns by QR and a singular value decomposition."""
    array, scale, finite = columns
    if array.shape[0] > array.shape[1]:
        array = triangle(array)
    _, values, rotation = jnp.linalg.svd(array, full_matrices=False)
    return _truncated(scale, rotation.T, values, rcond, finite)


def gram_factors(
    matrix: RowMatrix,
    root_ridge: Array | None,
    rcond: ArrayLike,
    threshold: ArrayLike = WELL_CONDITIONED,
    *,
    has_units: bool = True,
) -> Factors:
    """Computes the `Factors` of a tall matrix from one or two Gram matrices.

    The eigenvalues of XᵀX are accurate to eps times the largest only, so that singular
    values below √eps are lost. The second Gram matrix is YᵀY for Y = X V (Λ +
    shift)^(-1/2), which has the column space of X. With all values relative to the
    largest one, the shift is 4 eps. So a small singular value σ of X becomes about σ /
    (2 √eps) in Y, and YᵀY resolves singular values of X down to about eps.

    Args:
      matrix: X.
      root_ridge: √ridge, or None. Rows `root_ridge` I count as rows of X.
      rcond: The cutoff of singular values, as a share of the largest.
      threshold: The ratio of eigenvalues above which one Gram matrix is enough.
      has_units: Whether columns are scaled to norms near 1. Otherwise, all columns
        share one scale.
    """
    matrix = lax.stop_gradient(matrix)
    scale = column_scale(matrix.column_maxima(), root_ridge)
    if not has_units:
        scale = jnp.full(scale.shape, jnp.min(scale))
    first_gram = matrix.sum_rows(gram_of_block, scale)
    if root_ridge is not None:
        first_gram += jnp.diag((root_ridge * scale) ** 2)
    squares = diagonal(first_gram)
    unit = unit_scale(scale, squares) if has_units else jnp.ones_like(squares)
    finite = jnp.isfinite(squares).all()
    # A matrix that is not finite becomes zero, since some BLAS kernels carry NaN from
    # one matrix of a batch to the next.
    first_gram = jnp.where(finite, first_gram * unit * unit[:, None], 0)
    eigenvalues, basis = jnp.linalg.eigh(first_gram)
    eps = jnp.finfo(matrix.dtype).eps

    def plain() -> tuple[Array, Array]:
        return basis[:, ::-1], jnp.sqrt(jnp.maximum(eigenvalues[::-1], 0))

    def refined() -> tuple[Array, Array]:
        # The shift keeps divisors away from zero if eigenvalues are only rounding
        # errors. A larger shift would lose small singular values. For a zero matrix,
        # any positive shift works.
        shift = 4 * eps * eigenvalues[-1]
        shift = jnp.where(shift > 0, shift, 1)
        roots = jnp.sqrt(jnp.maximum(eigenvalues, 0) + shift)
        whitening = basis / roots * unit[:, None]
        second_gram = matrix.sum_rows(gram_of_block, scale, whitening)
        if root_ridge is not None:
            second_gram += gram((root_ridge * scale)[:, None] * whitening)
        second_gram = jnp.where(finite, second_gram, 0)
        inner_values, inner_vectors = jnp.linalg.eigh(second_gram)
        inner_roots = jnp.sqrt(jnp.maximum(inner_values, eps * inner_values[-1]))
        # `small` is K in X V = U K for U with orthonormal columns, as R in X = QR. So K
        # has the singular values of X.
        small = inner_roots[:, None] * inner_vectors.T * roots
        _, values, rotation = jnp.linalg.svd(small)
        return product(basis, rotation.T), values

    is_plain = eigenvalues[0] > jnp.maximum(threshold, rcond**2) * eigenvalues[-1]
    vectors, values = lax.cond(is_plain, plain, refined)
    return _truncated(scale * unit, vectors, values, rcond, finite)


def _truncated(
    scale: Array, vectors: Array, values: Array, rcond: ArrayLike, finite: Array
) -> Factors:
    """Returns `Factors` in which singular values up to the cutoff are set to zero."""
    shares = values / safe(values[0])
    is_kept = shares > rcond
    kept_vectors = jnp.where(is_kept, vectors, 0)
    kept_values = jnp.where(is_kept, values, 0)
    eps = jnp.finfo(values.dtype).eps
    root = values.shape[0] ** 0.5
    # Singular values below (2 + √p / 2) machine epsilons count as rounding errors of
    # zero, not as ambiguous. This bound was measured in matrices of up to 100,000 rows
    # and rank 1 to p - 1. With a second Gram matrix, zeros became up to 2.4 machine
    # epsilons for p = 5, and up to 5 for p = 50. With QR, zeros became up to 2.
    is_near = shares > jnp.maximum(rcond / _CLEAR_FACTOR, (2 + root / 2) * eps)
    is_near &= shares < _CLEAR_FACTOR * rcond
    # If X is not finite, all values are zero. The rank is then 0 and ambiguous.
    rank = NumericalRank(
        rank=jnp.sum(is_kept, dtype=jnp.int32),
        is_ambiguous=jnp.any(is_near) | ~finite,
    )
    factors = Factors(
        scale=scale,
        vectors=kept_vectors,
        singular_values=kept_values,
        inverse=kept_vectors / safe(kept_values),
        rank=rank,
        finite=finite,
    )
    return lax.stop_gradient(factors)
