"""Numerical ranks: cut-offs, and where rounding decides them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# Singular values within this factor of the cut-off make a rank ambiguous.
_CLEAR_FACTOR = 10


class NumericalRank(NamedTuple):
    """The number of directions of a matrix that are more than rounding.

    Attributes:
      rank: int32 scalar.
      is_ambiguous: bool scalar, whether a singular value is within a factor of ten of
        the cut-off, so that rounding or small changes of the data may decide the rank.
        Values below 2 + √min(N, p) / 2 machine epsilons (of the largest) do not count:
        rounding makes as much of a zero.
    """

    rank: Array
    is_ambiguous: Array


def rank_of(singular_values: Array, rcond: ArrayLike) -> NumericalRank:
    """Returns the rank of a matrix with these singular values, the largest first."""
    eps = jnp.finfo(singular_values.dtype).eps
    root = singular_values.shape[0] ** 0.5
    shares = singular_values / jnp.where(singular_values[0] > 0, singular_values[0], 1)
    # In matrices of up to 100,000 rows and of rank 1 to p - 1, a zero became up to
    # 2.4 units with 5 columns and 5 with 50, by a second Gram matrix, or 2 by QR.
    is_near = shares > jnp.maximum(rcond / _CLEAR_FACTOR, (2 + root / 2) * eps)
    return NumericalRank(
        rank=jnp.sum(shares > rcond, dtype=jnp.int32),
        is_ambiguous=jnp.any(is_near & (shares < _CLEAR_FACTOR * rcond)),
    )


def rank_cutoff(shape: tuple[int, ...], dtype: jnp.dtype) -> float:
    """Returns the default cut-off of scores."""
    return 10 * min(shape) ** 0.5 * float(jnp.finfo(dtype).eps)


def solver_cutoff(shape: tuple[int, ...], dtype: jnp.dtype) -> float:
    """Returns the default cut-off of solvers, which keeps all but rounding.

    In rank-deficient matrices of up to half a million rows, the factorisations of
    X and of its sketches gave singular values of up to 5 units in the place of 0. A
    larger cut-off would cost residual where X is not deficient.
    """
    return (4 + min(shape) ** 0.5) * float(jnp.finfo(dtype).eps)
