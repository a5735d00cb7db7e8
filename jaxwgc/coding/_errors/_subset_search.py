"""Errors of low rank, located by guessing some of the corrupted messages."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._some_masks import in_batches
from jaxwgc.coding._errors._evidence import Evidence, Signal, outside
from jaxwgc.coding._errors._general_position import (
    distances_from,
    nearest,
    normalized_columns,
)

# Maximum number of guesses per round, and number tried at a time.
_MOST_GUESSES, _AT_ONCE = 20_000, 256
# Bound of the distance of a column in a space, as a multiple of the rounding error.
_ROUNDING = 10.0


def guesses(num_messages: int, num_checks: int) -> list[np.ndarray]:
    """Returns, for 1, 2, … guessed messages, all sets of them, up to the maximum."""
    by_size: list[np.ndarray] = []
    total = 0
    for size in range(1, num_checks // 2):
        total += math.comb(num_messages, size)
        if total > _MOST_GUESSES:
            break
        sets = itertools.combinations(range(num_messages), size)
        by_size.append(np.array(list(sets)).reshape(-1, size))
    return by_size


def find_by_guessing(evidence: Evidence, signal: Signal) -> tuple[jax.Array, jax.Array]:
    """Finds the smallest set of messages that explains the errors, if it is unique.

    If b corrupted messages have errors of μ dimensions, b - μ of them are guessed.
    Together with the guessed columns, the error space then contains all others. All
    sets of a size are tried before larger ones, up to b = (checks + μ - 1) / 2.
    """
    columns, has_check = normalized_columns(evidence)
    num_checks, num_messages = columns.shape
    limit = _ROUNDING * signal.threshold / signal.weakest
    columns = outside(signal.basis, columns)

    def explained(guess):
        basis = jnp.zeros((num_checks, 0), columns.dtype)
        for index in range(len(guess)):
            column = outside(basis, columns[:, guess[index]])
            norm = jnp.linalg.norm(column)
            # Columns that are already in the space need not be guessed.
            column = jnp.where(norm > limit, column / jnp.where(norm > 0, norm, 1), 0)
            basis = jnp.concatenate([basis, column[:, None]], 1)
        distances = jnp.where(has_check, distances_from(basis, columns), jnp.inf)
        distances = distances.at[guess].set(0)
        wrong, stands_apart = nearest(distances, signal.rank + len(guess))
        furthest = jnp.max(jnp.where(wrong, distances, 0))
        is_new = jnp.all(jnp.linalg.norm(basis, axis=0) > 0) & has_check[guess].all()
        return wrong, stands_apart & is_new & (furthest < limit)

    best = jnp.zeros(num_messages, bool)
    is_found = is_unique = jnp.zeros((), bool)
    for sets in guesses(num_messages, num_checks):
        size = sets.shape[1]
        wrong, fits = in_batches(jax.vmap(explained), jnp.asarray(sets), _AT_ONCE)
        in_bounds = 2 * (signal.rank + size) <= evidence.num_left + signal.rank - 1
        fits &= in_bounds & ~is_found
        first = wrong[jnp.argmax(fits)]
        best = jnp.where(fits.any(), first, best)
        same = jnp.all((wrong == first) | ~fits[:, None])
        is_unique = jnp.where(fits.any(), same, is_unique)
        is_found |= fits.any()
    return best, is_found & is_unique
