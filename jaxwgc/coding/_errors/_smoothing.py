"""Errors of low rank in Reed-Solomon codes, located by spatial smoothing."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc.coding._errors._evidence import Evidence, Sample, Signal, find_signal
from jaxwgc.coding._errors._general_position import distances_from, nearest

# Number of error directions that may be weaker than the noise: 0, 1 or 2.
_HIDDEN = 3


def find_by_smoothing(
    sample: Sample,
    evidence: Evidence,
    signal: Signal,
    interpolation: tuple[jax.Array, Any, int],
    attempt: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns candidate messages, whether they explain, and whether others remain.

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
    # Reduced to as many columns as there are dimensions.
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
    # Random mixtures, so that few columns span the space.
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
