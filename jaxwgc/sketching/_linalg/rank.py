"""Numerical ranks, cutoffs of singular values, and ambiguous ranks."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# Singular values within this factor of the cutoff make a rank ambiguous.
_CLEAR_FACTOR = 10


class NumericalRank(NamedTuple):
    """The numerical rank of a matrix, and whether it is ambiguous.

    Attributes:
      rank: int32 scalar.
      is_ambiguous: bool scalar, whether a singular value is within a factor of ten of
        the cutoff. Rounding or small changes of the data may then decide the rank.
        Values below 2 + √min(N, p) / 2 machine epsilons (of the largest) do not count:
        rounding turns zeros into such values.
    """

    rank: Array
    is_ambiguous: Array


def rank_of(singular_values: Array, rcond: ArrayLike) -> NumericalRank:
    """Computes the rank of a matrix from its singular values in descending order."""
    eps = jnp.finfo(singular_values.dtype).eps
    root = singular_values.shape[0] ** 0.5
    shares = singular_values / jnp.where(singular_values[0] > 0, singular_values[0], 1)
    # In matrices of up to 100,000 rows and of rank 1 to p - 1, zero singular values
    # became up to 2.4 machine epsilons with 5 columns and 5 with 50, by a second Gram
    # matrix, or 2 by QR.
    is_near = shares > jnp.maximum(rcond / _CLEAR_FACTOR, (2 + root / 2) * eps)
    return NumericalRank(
        rank=jnp.sum(shares > rcond, dtype=jnp.int32),
        is_ambiguous=jnp.any(is_near & (shares < _CLEAR_FACTOR * rcond)),
    )


def rank_cutoff(shape: tuple[int, ...], dtype: jnp.dtype) -> float:
    """Returns the default cutoff of scores."""
    return 10 * min(shape) ** 0.5 * float(jnp.finfo(dtype).eps)


def solver_cutoff(shape: tuple[int, ...], dtype: jnp.dtype) -> float:
    """Returns the default cutoff of solvers, which truncates rounding alone.

    In rank-deficient matrices of up to half a million rows, the factorisations of X and
    of its sketches gave singular values of up to 5 machine epsilons instead of 0. A
    larger cutoff would increase the residual if X has full rank.
    """
    return (4 + min(shape) ** 0.5) * float(jnp.finfo(dtype).eps)
