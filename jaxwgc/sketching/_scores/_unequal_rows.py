"""Rows that outweigh others beyond the precision, and directions that only these see.

Beside a row of 1e8, rows of 1 are rounding in float32, as far as singular values can
tell. But rounding is relative to the row: a direction to which the heavy row has no
more than that is seen by the light ones as well as if they were alone, as it is by QR
with sorted rows and pivoted columns: Cox and Higham, "Stability of Householder QR
factorization for weighted least squares problems", 1998.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import product
from jaxwgc.sketching._checks import rank_cutoff
from jaxwgc.sketching._gram import WELL_CONDITIONED, Gram, gram
from jaxwgc.sketching._row_blocks import Rows


def is_lost(
    rows: Rows,
    scaled: Callable[[jax.Array], jax.Array],
    row_basis: jax.Array,
    rcond: jax.Array | float,
    num_seeing: jax.typing.ArrayLike = jnp.inf,
) -> jax.Array:
    """Returns whether a row lies in directions that were cut off as rounding.

    Of an `rcond` above the default, that is what was asked for. Never of rows that are
    not finite.

    Args:
      rows: those of X.
      scaled: brings a block of them to the units of `row_basis`.
      row_basis: (p, min(N, p)), orthonormal columns, and zeros for what was cut off.
      rcond: the cut-off.
      num_seeing: how many rows see what was cut off; infinity where nobody has counted.
    """
    may_be = may_be_lost(row_basis, rcond)
    num_seeing = jnp.asarray(num_seeing, row_basis.dtype)

    def look() -> jax.Array:
        def count(block: jax.Array) -> jax.Array:
            block = lax.stop_gradient(scaled(block))
            kept = product(product(block, row_basis), row_basis.T)
            return count_seeing(block, block - kept)

        return rows.sum(count)

    is_open = may_be & jnp.isinf(num_seeing)
    return may_be & (lax.cond(is_open, look, lambda: num_seeing) > 0)


def may_be_lost(row_basis: jax.Array, rcond: jax.Array | float) -> jax.Array:
    """Returns whether directions were cut off, and by rounding."""
    rank = jnp.sum(jnp.any(row_basis != 0, axis=0))
    is_by_rounding = rcond <= rank_cutoff(row_basis.shape, row_basis.dtype)
    return (rank < min(row_basis.shape)) & is_by_rounding


def count_seeing(rows: jax.Array, image: jax.Array) -> jax.Array:
    """Counts rows whose image is larger than rounding makes it.

    A quarter of the digits is between that and what a direction of many has of a row.
    """
    share = float(jnp.finfo(rows.dtype).eps) ** 0.25
    is_seen = jnp.sum(image**2, axis=1) > share**2 * jnp.sum(rows**2, axis=1)
    return jnp.sum(is_seen, dtype=rows.dtype)


class _Levels(NamedTuple):
    """Orthonormal directions, ever lighter ones.

    Attributes:
      directions: (p, p), the columns.
      starts: (p,), the first direction of the level of each.
      number: how many are settled, of those that are seen by a row.
    """

    directions: jax.Array
    starts: jax.Array
    number: jax.Array


def levelled(known: Gram, is_wanted: jax.Array) -> Gram:
    """Returns the Gram matrix in directions ordered by the rows that see them.

    Level by level: the directions that a Gram matrix shows well are settled, and what
    rows have to the others is set to zero where it is rounding of the row. As units of
    columns do not matter, levels may be far apart. Of no use where it is not wanted.
    """
    num_columns = known.rows.num_columns
    index = jnp.arange(num_columns)

    def settle(state: tuple[_Levels, jax.Array]) -> tuple[_Levels, jax.Array]:
        levels, _ = state
        number = levels.number
        is_open = index >= number

        def gram_in(directions: jax.Array) -> jax.Array:
            tried = _Levels(directions, levels.starts, jnp.int32(num_columns))
            return _LevelledRows(known, tried).sum(
                lambda block: gram(jnp.where(is_open, lax.stop_gradient(block), 0))
            )

        matrix = gram_in(levels.directions)
        total = jnp.trace(matrix)
        # Settled directions get the smallest eigenvalues, and so come last.
        eigenvalues, vectors = jnp.linalg.eigh(
            matrix - jnp.diag(jnp.where(is_open, 0, total))
        )
        eigenvalues = jnp.roll(eigenvalues[::-1], number)
        turned = product(levels.directions, jnp.roll(vectors[:, ::-1], number, axis=1))
        directions = jnp.where(is_open & (total > 0), turned, levels.directions)
        is_new = is_open & (eigenvalues > WELL_CONDITIONED * eigenvalues[number])
        number += jnp.sum(is_new, dtype=jnp.int32)
        # The other eigenvectors contain more of the new ones than rounding: remove it.
        matrix = gram_in(directions)
        shares = matrix / jnp.diagonal(matrix)[:, None]
        shares = jnp.where(is_new[:, None] & (index >= number), shares, 0)
        directions -= product(directions, shares)
        starts = jnp.where(index >= number, number, levels.starts)
        return _Levels(directions, starts, number), total > 0

    start = _Levels(
        directions=jnp.eye(num_columns, dtype=known.matrix.dtype),
        starts=jnp.zeros(num_columns, jnp.int32),
        number=jnp.int32(0),
    )
    levels, _ = lax.while_loop(
        lambda state: state[1] & (state[0].number < num_columns),
        settle,
        (start, is_wanted),
    )
    return Gram.equilibrated(_LevelledRows(known, levels))


class _LevelledRows:
    """Rows in these directions, without what is rounding of the row."""

    def __init__(self, known: Gram, levels: _Levels):
        self._known = known
        self._levels = levels
        self.num_columns = known.rows.num_columns
        self.dtype = known.rows.dtype

    def largest(self) -> jax.Array:
        # Columns have been equilibrated.
        return jnp.ones(self.num_columns, self.dtype)

    def sum(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return self._known.rows.sum(lambda block: function(self._of(block)))

    def map(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return self._known.rows.map(lambda block: function(self._of(block)))

    def _of(self, block: jax.Array) -> jax.Array:
        directions, starts, number = self._levels
        values = product(self._known.scaled(block), directions)
        squares = lax.stop_gradient(values) ** 2
        index = jnp.arange(self.num_columns)
        # For the sums of squares over each level and those after it.
        is_after = (index[:, None] >= starts).astype(self.dtype)
        cutoff = rank_cutoff((self.num_columns,), self.dtype)
        bounds = cutoff**2 * jnp.sum(squares, axis=1, keepdims=True)
        is_noise = (product(squares, is_after) <= bounds) | (index >= number)
        # Zero, but with the derivative of what it was.
        return values - lax.stop_gradient(jnp.where(is_noise, values, 0))
