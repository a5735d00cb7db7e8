"""Factors V and s of X diag(scale) = U diag(s) Vᵀ: from X, XᵀX or sketches."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching._linalg.derivatives import at_most_one, orthonormaliser_of_gram
from jaxwgc.sketching._linalg.gram import column_scale, gram, scaled_gram
from jaxwgc.sketching._linalg.rank import NumericalRank, rank_of
from jaxwgc.sketching._linalg.rows import (
    DenseRows,
    Rows,
    constant,
    ridge_rows,
    sum_with_ridge,
    triangle,
)

# One pass over the Gram matrix loses the square of the condition number. Below this
# ratio of its eigenvalues (a condition number of 100) the loss is at most 1e4 roundings
# and the second pass is skipped.
WELL_CONDITIONED = 1e-4


class Factors(NamedTuple):
    """V and s of X diag(scale) = U diag(s) Vᵀ; constants to `jax.grad`.

    Attributes:
      scale: (p,), powers of two that scale the norms of columns to about 1.
      vectors: V, (p, k), zero in the columns of truncated singular values.
      singular_values: s, (k,), in descending order, zero if truncated.
      rank: The number of nonzero singular values, and whether rounding decides it.
      finite: Whether X is finite.
    """

    scale: Array
    vectors: Array
    singular_values: Array
    rank: NumericalRank
    finite: Array

    @property
    def matrix(self) -> Array:
        """Returns P = V diag(1 / s), (p, k), for which X diag(scale) P = U."""
        return self.vectors / _safe(self.singular_values)

    @property
    def has_null_space(self) -> Array:
        """Returns whether values were truncated, or there are fewer than columns."""
        return jnp.sum(self.singular_values > 0) < self.vectors.shape[0]

    @property
    def norm(self) -> Array:
        """Returns the Frobenius norm of X diag(scale)."""
        return _safe(jnp.linalg.norm(self.singular_values))

    def in_range(self, gradient: Array) -> Array:
        """Returns the part of the residual in the range of X, in the basis X P."""
        return product(self.matrix.T, gradient)

    def null_vector(self, key: Array) -> Array:
        """Draws a vector in the null space of the factored matrix, zero if trivial."""
        draw = jax.random.normal(key, self.scale.shape, self.scale.dtype)
        return jnp.where(self.has_null_space, self.cut_off(draw), 0)

    def cut_off(self, vectors: Array) -> Array:
        """Returns the parts of vectors (p,) or (p, c) in the truncated directions."""
        # Twice, to remove the rounding of the first projection.
        for _ in range(2):
            vectors = vectors - product(self.vectors, product(self.vectors.T, vectors))
        return vectors

    def sees_all(self, probe: Array, image: Array, rcond: Array):
        """Tests whether the sketch has all directions of X above the cutoff.

        The null space of SX contains the null space of X, and all directions of X that
        the sketch misses. A random vector of this space detects missed directions.

        Args:
          probe: Drawn by `null_vector`.
          image: The norm of X diag(scale) `probe`.
          rcond: The cutoff of singular values.
        """
        bound = 2 * rcond * self.singular_values[0] * jnp.linalg.norm(probe)
        return (image <= bound) | ~self.has_null_space

    def row_space(self) -> Array:
        """Returns an orthonormal basis of the rows of X, in the units of X."""

        def basis() -> Array:
            rows = self.vectors / self.scale[:, None]
            # Pivoting keeps the accuracy of rows of all sizes.
            lower, _, order = lax.linalg.lu(rows)
            lower = jnp.tril(lower, -1) + jnp.eye(*rows.shape, dtype=rows.dtype)
            # Truncated columns are zero and last.
            is_kept = self.singular_values > 0
            found = jnp.linalg.qr(jnp.where(is_kept, lower, 0))[0] * is_kept
            return found.at[order].set(found)

        return lax.cond(self.has_null_space, basis, lambda: self.vectors)

    def in_row_space(self, vector: Array, row_space: Array) -> Array:
        """Removes the part of a vector in the null space of X, in the units of X.

        V spans the row space of X diag(scale). The minimum-norm solution in this space
        is not the one in the units of X.
        """
        part = vector
        # Twice, to remove the rounding of the first projection.
        for _ in range(2):
            part = product(row_space, product(row_space.T, part))
        return jnp.where(self.has_null_space, part, vector)

    def direction(self, in_range: Array, row_space: Array) -> Array:
        """Computes the minimum-norm step that removes a residual, in scaled columns."""
        step = scaled(self.scale, product(self.matrix, in_range))
        return scaled(1 / self.scale, self.in_row_space(step, row_space))

    def row_norms(self, rows: Rows, ridge: Array | None = None) -> Any:
        """Computes squared row norms of X P: the (ridge) leverage scores of X."""
        inverse = self.matrix
        if rows.is_on_host:
            return np.clip(rows.norms_of(inverse, self.scale), 0, 1)
        # Derivatives need the Gram matrix, which is computed for them only.
        matrix = rows.sum(scaled_gram, self.scale)
        if ridge is not None:
            matrix += jnp.diag(self.scale * ridge * self.scale)
        inverse = orthonormaliser_of_gram(inverse, self.vectors, matrix)
        scores = at_most_one(rows.norms_of(inverse, self.scale))
        return jnp.where(self.finite, scores, jnp.nan)


def scaled(factors: Array, vectors: Array) -> Array:
    """Returns vectors (p,) or (p, c) times factors (p,)."""
    return (factors * vectors.T).T


def factors_of(
    rows: Rows,
    root: Array | None,
    rcond: ArrayLike,
    method: str = "gram",
    threshold: ArrayLike = WELL_CONDITIONED,
    has_units: bool = True,
) -> Factors:
    """Computes the factors of X stacked on `root` I.

    Args:
      rows: X.
      root: √ridge, or None.
      rcond: The cutoff of singular values, as a share of the largest.
      method: "gram" for a tall X, "qr", or "svd" for an array; for `Blocks` it is "qr".
      threshold: The ratio of eigenvalues above which one Gram matrix is enough.
      has_units: Whether columns are scaled to norms near 1.
    """
    finite, scale = column_scale(rows, root)
    if not has_units:
        scale = jnp.full(scale.shape, jnp.min(scale))
    if method == "gram" and not rows.is_on_host:
        return _of_gram(rows, root, rcond, threshold, finite, scale, has_units)
    if method == "svd":
        small = rows.scaled(scale).matrix  # pyright: ignore
    else:
        small = rows.triangle(scale)
    return factors_of_small(small, rcond, scale, finite, root, has_units=has_units)


@functools.partial(jax.jit, static_argnames="has_units")
def factors_of_small(
    small: Array,
    rcond: ArrayLike,
    scale: ArrayLike = 1.0,
    finite: ArrayLike = True,
    root: Array | None = None,
    *,
    has_units: bool = True,
) -> Factors:
    """Computes factors from R or a sketch of X diag(scale), stacked on `root` I."""
    small = lax.stop_gradient(small)
    if root is not None:
        pulled = ridge_rows(small.shape[1], root) * scale
        small = jnp.concatenate([small, pulled])
    is_finite, first = column_scale(DenseRows(small))
    squares = jnp.sum((small * first) ** 2, axis=0)
    finite = finite & is_finite & jnp.isfinite(squares).all()
    unit, scale = jnp.ones_like(squares), scale * jnp.ones_like(squares)
    if has_units:
        unit = first * _unit(first, squares)
    # Decompositions of NaN are undefined, and differ by backend.
    small = jnp.where(finite, small * unit, 0)
    if small.shape[0] < small.shape[1]:
        basis, upper = jnp.linalg.qr(small.T)
        rotation, values, _ = jnp.linalg.svd(upper)
        vectors = product(basis, rotation)
    else:
        _, values, rotation = jnp.linalg.svd(triangle(small), full_matrices=False)
        vectors = rotation.T
    return _cut_off(scale * unit, vectors, values, rcond, finite)


def _of_gram(
    rows: Rows,
    root: Array | None,
    rcond: ArrayLike,
    threshold: ArrayLike,
    finite: Array,
    scale: Array,
    has_units: bool,
) -> Factors:
    """Computes factors of a tall X from one Gram matrix, or from two if needed.

    The eigenvalues of XᵀX are accurate to eps times the largest only, so that singular
    values below √eps are lost. The second Gram matrix is that of Y = X V (Λ +
    shift)^(-1/2), which has the column space of X. The singular values of Y are at
    least those of X over √eps. So its Gram matrix resolves them down to eps times the
    largest singular value of X.
    """
    rows = constant(rows)
    matrix = sum_with_ridge(rows, root, scaled_gram, scale)
    squares = jnp.diagonal(matrix)
    unit = _unit(scale, squares) if has_units else jnp.ones_like(squares)
    finite &= jnp.isfinite(squares).all()
    # Some BLAS kernels carry a NaN from one matrix of a batch to the next.
    matrix = jnp.where(finite, matrix * unit * unit[:, None], 0)
    eigenvalues, basis = jnp.linalg.eigh(matrix)
    eps = jnp.finfo(matrix.dtype).eps

    def plain() -> tuple[Array, Array]:
        return basis[:, ::-1], jnp.sqrt(jnp.maximum(eigenvalues[::-1], 0))

    def refined() -> tuple[Array, Array]:
        # Just enough to avoid dividing rounding noise by zero: a larger shift would
        # lose resolution. For a zero matrix, any positive number works.
        shift = 4 * eps * eigenvalues[-1]
        shift = jnp.where(shift > 0, shift, 1)
        roots = jnp.sqrt(jnp.maximum(eigenvalues, 0) + shift)
        whitening = basis / roots * unit[:, None]
        inner = sum_with_ridge(rows, root, _whitened_gram, scale, whitening)
        inner = jnp.where(finite, inner, 0)
        inner_values, inner_vectors = jnp.linalg.eigh(inner)
        least = eps * inner_values[-1]
        inner_roots = jnp.sqrt(jnp.maximum(inner_values, least))
        # X V = U K, with K as R in X = QR.
        small = inner_roots[:, None] * inner_vectors.T * roots
        _, values, rotation = jnp.linalg.svd(small)
        return product(basis, rotation.T), values

    is_plain = eigenvalues[0] > jnp.maximum(threshold, rcond**2) * eigenvalues[-1]
    vectors, values = rows.cond(is_plain, plain, refined)
    return _cut_off(scale * unit, vectors, values, rcond, finite)


def _whitened_gram(block: Array, scale: Array, whitening: Array) -> Array:
    return gram(product(block * scale, whitening))


def _unit(scale: Array, squares: Array) -> Array:
    """Computes powers of two that scale columns to norms near 1.

    Their products with `scale` stay normal numbers.
    """
    unit = inverse_power_of_two(jnp.sqrt(squares))
    least = 2 * jnp.finfo(scale.dtype).tiny
    return jnp.maximum(unit, least / jnp.where(scale > 0, scale, 1))


def _cut_off(
    scale: Any, vectors: Array, values: Array, rcond: Any, finite: Any
) -> Factors:
    is_kept = values > rcond * values[0]
    rank = rank_of(values, rcond)
    finite = jnp.asarray(finite)
    factors = Factors(
        scale=scale,
        vectors=jnp.where(is_kept, vectors, 0),
        singular_values=jnp.where(is_kept, values, 0),
        rank=NumericalRank(
            jnp.where(finite, rank.rank, 0), rank.is_ambiguous | ~finite
        ),
        finite=finite,
    )
    return jax.tree.map(lax.stop_gradient, factors)


def _safe(value: Array) -> Array:
    """Replaces values that are not positive by 1, for divisions."""
    return jnp.where(value > 0, value, 1)
