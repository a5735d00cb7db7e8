"""Smoothing and guessing: searches for corrupted messages with dependent errors."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc._some_masks import in_batches
from jaxwgc.coding._errors._evidence import (
    Evidence,
    Sample,
    Signal,
    distances_from,
    find_signal,
    nearest,
    normalized_columns,
    outside,
)

# Number of assumptions tried for each number of windows: 0, 1 or 2 error directions are
# weaker than the noise.
_HIDDEN = 3
# Maximum number of guesses per round, and number tried at a time.
_MOST_GUESSES, _AT_ONCE = 20_000, 256
# A column lies in a space if its distance is below this multiple of the rounding error.
_ROUNDING = 10.0


def find_by_smoothing(
    sample: Sample,
    evidence: Evidence,
    signal: Signal,
    interpolation: tuple[jax.Array, Any, int],
    attempt: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Proposes a set of corrupted messages by spatial smoothing.

    Returns a mask of the set, whether it explains the errors, and whether more attempts
    remain.

    Messages are values of polynomials at points αᵢ. With weights aᵢ that interpolate at
    0, the sums of aᵢ αᵢˡ⁺¹ times message i are zero for l below the number of checks.
    An error in message i adds a geometric sequence in αᵢ. Windows of these sequences,
    side by side, span as many dimensions as there are corrupted messages (spatial
    smoothing).

    Args:
      sample: Projected messages.
      evidence: Evidence without the suspects.
      signal: Signal of the evidence.
      interpolation: From `Decoder.interpolation`.
      attempt: Number of the attempt, from 1; each allows more windows and more
        corrupted messages.
    """
    weights, points, num_coefficients = interpolation
    is_there, norms = evidence.is_used, sample.norms
    rows = jnp.where(is_there[:, None], sample.rows, 0)
    num_sums = len(points) - num_coefficients
    num_checks = is_there.sum() - num_coefficients
    weights = weights / jnp.max(jnp.abs(weights))
    # NumPy points give powers in NumPy, which are rounded only once.
    powers = points ** np.arange(num_sums + 1)[:, None]
    powers = jnp.asarray(powers, rows.dtype)
    sums = product(powers[1:], weights[:, None] * norms[:, None] * rows)
    places = jnp.arange(num_sums)
    sums = jnp.where((places < num_checks)[:, None], sums, 0)
    threshold = signal.threshold * jnp.linalg.norm(weights * norms)
    # The sums are reduced to as many columns as they have dimensions above the noise.
    left, singular, _ = jnp.linalg.svd(sums, full_matrices=False)
    directions = find_signal(left, singular, threshold)
    sums = (directions.basis * directions.singular)[:, : num_sums // 2]

    number, hidden = jnp.divmod(attempt - 1, _HIDDEN)
    number += 2
    size = num_checks - number + 1
    most = (num_sums + 1) // 2
    shifted = places[:, None] + places[:most]
    is_in = (places[:, None] < size) & (places[:most] < number)
    windows = sums[jnp.clip(shifted, 0, num_sums - 1)]
    windows = jnp.where(is_in[:, :, None], windows, 0).reshape(num_sums, -1)
    # The windows are mixed at random, so that few columns span their space.
    key = jax.random.fold_in(sample.key, 2)
    mix = jax.random.normal(key, (windows.shape[1], 2 * num_sums), norms.dtype)
    windows = product(windows, (mix / math.sqrt(2 * num_sums)).astype(sums.dtype))
    left, singular, _ = jnp.linalg.svd(windows, full_matrices=False)
    number_wrong = jnp.sum(singular > threshold * jnp.sqrt(number)) + hidden
    steering = jnp.where(places[:, None] < size, powers[:-1], 0)
    steering /= jnp.sqrt(size.astype(threshold.dtype))
    basis = jnp.where(places < number_wrong, left, 0)
    distances = jnp.where(is_there, distances_from(basis, steering), jnp.inf)
    wrong, _ = nearest(distances, number_wrong)
    largest_number = (num_checks + 1) // 2
    fits = (number_wrong > signal.rank) & (number_wrong < size)
    fits &= 2 * number_wrong <= num_checks + signal.rank
    fits &= number <= largest_number
    is_last = number + (hidden == _HIDDEN - 1) > largest_number
    return wrong, fits, ~is_last


def guesses(num_messages: int, num_checks: int) -> list[np.ndarray]:
    """Returns all sets of 1, 2, … messages, in an array per size, up to a maximum."""
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
            # A column that already lies in the space adds nothing to the basis.
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
