"""Errors in general position: as many directions as wrong messages (MUSIC)."""

import jax
import jax.numpy as jnp

from jaxwgc.coding._errors._evidence import Evidence, Signal, is_checked, outside

# The next message must be at least so many times further from the errors.
_CONTRAST = 2.0


def normalized_columns(evidence: Evidence) -> tuple[jax.Array, jax.Array]:
    """Returns columns of the checks of norm one, and which messages have a check."""
    norms = evidence.check_norms
    has_check = is_checked(norms)
    columns = evidence.checks / jnp.where(has_check, norms, 1)
    return jnp.where(has_check, columns, 0), has_check


def distances_from(basis: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns the norms of what is left of unit columns outside of a subspace."""
    return jnp.linalg.norm(outside(basis, columns), axis=0)


def nearest(distances: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mask of that many nearest ones, and whether they stand apart."""
    # Counted, since sorting is a larger program. Of equal ones, the first is nearer.
    places = jnp.arange(len(distances))
    is_nearer = distances < distances[:, None]
    is_nearer |= (distances == distances[:, None]) & (places < places[:, None])
    ranks = is_nearer.sum(1)
    chosen = ranks < number
    last = jnp.max(jnp.where(chosen, distances, 0))
    following = jnp.min(jnp.where(chosen, jnp.inf, distances))
    return chosen, _CONTRAST * last < following


def find_in_general_position(
    evidence: Evidence, signal: Signal
) -> tuple[jax.Array, jax.Array]:
    """Returns the messages that explain the errors, and whether they stand apart.

    Each wrong message adds its own column of the checks to the space that the errors
    span; where their ranks agree, these are the columns that lie in it.
    """
    columns, has_check = normalized_columns(evidence)
    distances = jnp.where(has_check, distances_from(signal.basis, columns), jnp.inf)
    return nearest(distances, signal.rank)
