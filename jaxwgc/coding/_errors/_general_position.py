"""Errors in general position: as many directions as wrong messages (MUSIC)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product
from jaxwgc.coding._errors._checks import UNCHECKED, Syndromes

# Singular values are so many times the rounding of the largest one from the true ones.
_ROUNDINGS = 16.0
# The next message must be at least so many times further from the errors.
_CONTRAST = 2.0


class Signal(NamedTuple):
    """The part of syndromes that is no rounding.

    Attributes:
      basis: (num_checks, num_checks), orthonormal columns, zero beyond the rank.
      singular: (num_checks,), singular values, zero beyond the rank.
      rank: int scalar.
      threshold: Singular value up to which values are noise.
      rounding: Rounding error of the singular values.
    """

    basis: jax.Array
    singular: jax.Array
    rank: jax.Array
    threshold: jax.Array
    rounding: jax.Array


def find_signal(values: jax.Array, threshold: jax.Array) -> Signal:
    """Returns what stands out of values (num_checks, num_columns)."""
    left, singular, _ = jnp.linalg.svd(values, full_matrices=False)
    rounding = _ROUNDINGS * jnp.finfo(singular.dtype).eps * singular[0]
    is_signal = singular > jnp.maximum(threshold, rounding)
    basis = jnp.where(is_signal, left, 0)
    return Signal(basis, singular * is_signal, is_signal.sum(), threshold, rounding)


def normalized_columns(checks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns columns of norm one, and which messages have a check at all."""
    norms = jnp.linalg.norm(checks, axis=0)
    is_checked = norms > UNCHECKED
    return jnp.where(
        is_checked, checks / jnp.where(is_checked, norms, 1), 0
    ), is_checked


def distances_from(basis: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns the norms of what is left of unit columns outside of a subspace."""
    for _ in range(2):
        columns = columns - product(basis, product(basis.T.conj(), columns))
    return jnp.linalg.norm(columns, axis=0)


def nearest(distances: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mask of that many nearest ones, and whether they stand apart."""
    order = jnp.argsort(distances)
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    chosen = ranks < number
    last = jnp.max(jnp.where(chosen, distances, 0))
    following = jnp.min(jnp.where(chosen, jnp.inf, distances))
    return chosen, _CONTRAST * last < following


def find_in_general_position(
    syndromes: Syndromes, signal: Signal
) -> tuple[jax.Array, jax.Array]:
    """Returns the messages that explain the errors, and whether they stand apart.

    Each wrong message adds its own column of the checks to the space that the errors
    span; where their ranks agree, these are the columns that lie in it.
    """
    columns, is_checked = normalized_columns(syndromes.checks)
    distances = jnp.where(is_checked, distances_from(signal.basis, columns), jnp.inf)
    return nearest(distances, signal.rank)
