"""Errors of low rank in Reed-Solomon codes: shifted windows raise the rank."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc.coding._errors._general_position import (
    Signal,
    distances_from,
    find_signal,
    nearest,
)

# So many directions of the errors may be weaker than the noise.
_MOST_HIDDEN = 2


def find_by_smoothing(
    key: jax.Array,
    rows: jax.Array,
    norms: jax.Array,
    is_there: jax.Array,
    interpolation: tuple[jax.Array, Any, int],
    signal: Signal,
    explains: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Returns the fewest messages that explain the errors, and if any do.

    Messages are values of polynomials at points αᵢ. With aᵢ the weights that
    interpolate them at 0, the sums of aᵢ αᵢˡ⁺¹ times message i are zero for l below the
    number of checks. An error at i adds its own geometric sequence in αᵢ, and windows
    of these sequences, side by side, have as many directions as there are wrong
    messages (spatial smoothing).

    Args:
      key: PRNG key.
      rows: (num_messages, num_columns), projections of messages over their norms; zero
        where they are missing.
      norms: (num_messages,), by which rows were divided.
      is_there: bool (num_messages,).
      interpolation: of `Decoder.interpolation`.
      signal: Signal of the syndromes.
      explains: says of a mask of messages if errors there can be all.
    """
    weights, points, num_coefficients = interpolation
    num_messages = len(points)
    num_sums = num_messages - num_coefficients
    num_checks = is_there.sum() - num_coefficients
    weights = weights / jnp.max(jnp.abs(weights))
    # In NumPy, if that is where the points are, and so rounded but once.
    powers = points ** np.arange(num_sums + 1)[:, None]
    powers = jnp.asarray(powers, rows.dtype)
    sums = product(powers[1:], weights[:, None] * norms[:, None] * rows)
    powers = powers[:-1]
    is_sum = jnp.arange(num_sums) < num_checks
    sums = jnp.where(is_sum[:, None], sums, 0)
    threshold = signal.threshold * jnp.linalg.norm(weights * norms)
    # As many columns as directions.
    directions = find_signal(sums, threshold)
    sums = (directions.basis * directions.singular)[:, : num_sums // 2]
    places = jnp.arange(num_sums)
    # Mixed at random, few columns span what many do.
    most = (num_sums + 1) // 2, sums.shape[1]
    mix = jax.random.normal(key, (*most, 2 * num_sums), norms.dtype)
    mix = (mix / math.sqrt(2 * num_sums)).astype(sums.dtype)

    def attempt(carry):
        number, _, _ = carry
        size = num_checks - number + 1
        shifted = places[:, None] + places[: most[0]]
        is_in = (places[:, None] < size) & (places[: most[0]] < number)
        windows = sums[jnp.clip(shifted, 0, num_sums - 1)]
        windows = jnp.where(is_in[:, :, None], windows, 0).reshape(num_sums, -1)
        windows = product(windows, mix.reshape(-1, 2 * num_sums))
        left, singular, _ = jnp.linalg.svd(windows, full_matrices=False)
        certain = jnp.sum(singular > threshold * jnp.sqrt(number))
        steering = jnp.where(places[:, None] < size, powers, 0)
        steering /= jnp.sqrt(size.astype(threshold.dtype))
        located, is_found = jnp.zeros(num_messages, bool), jnp.asarray(False)
        for hidden in range(_MOST_HIDDEN + 1):
            number_wrong = certain + hidden
            basis = jnp.where(places < number_wrong, left, 0)
            distances = distances_from(basis, steering)
            distances = jnp.where(is_there, distances, jnp.inf)
            wrong, _ = nearest(distances, number_wrong)
            fits = (number_wrong > signal.rank) & (number_wrong < size)
            fits &= 2 * number_wrong <= num_checks + signal.rank
            fits &= ~is_found & explains(wrong)
            located, is_found = jnp.where(fits, wrong, located), is_found | fits
        return number + 1, located, is_found

    def goes_on(carry):
        number, _, is_found = carry
        return ~is_found & (number <= (num_checks + 1) // 2)

    start = jnp.asarray(2), jnp.zeros(num_messages, bool), jnp.asarray(False)
    _, wrong, is_found = jax.lax.while_loop(goes_on, attempt, start)
    return wrong & is_found, is_found
