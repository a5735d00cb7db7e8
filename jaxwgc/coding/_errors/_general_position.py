"""Errors in general position: as many dimensions as corrupted messages (MUSIC)."""

import jax
import jax.numpy as jnp

from jaxwgc.coding._errors._evidence import Evidence, Signal, is_checked, outside

# Minimum ratio of the distance of the next message to that of the last accepted one.
_CONTRAST = 2.0


def normalized_columns(evidence: Evidence) -> tuple[jax.Array, jax.Array]:
    """Returns unit columns of the checks, and which messages take part in a check."""
    norms = evidence.check_norms
    has_check = is_checked(norms)
    columns = evidence.checks / jnp.where(has_check, norms, 1)
    return jnp.where(has_check, columns, 0), has_check


def distances_from(basis: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns distances of unit columns from a subspace."""
    return jnp.linalg.norm(outside(basis, columns), axis=0)


def nearest(distances: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a mask of the `number` nearest columns, and whether the gap is clear."""
    # Counted, since sorting compiles to a larger program. Ties go to the first.
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
    """Returns the messages that explain the errors, and whether the gap is clear.

    Each corrupted message adds its column of the checks to the space that the errors
    span. If the ranks agree, these are exactly the columns in that space.
    """
    columns, has_check = normalized_columns(evidence)
    distances = jnp.where(has_check, distances_from(signal.basis, columns), jnp.inf)
    return nearest(distances, signal.rank)
