"""Errors and noise of many masks, on the host: batches of one shape, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._targets import mixing, squared_error
from jaxwgc.codes import GradientCode
from jaxwgc.coding._decoding import find_weights

# Masks that are evaluated in one call.
BATCH = 128


def errors_and_noise(
    code: GradientCode, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decoding errors, and squared noise for messages with noise of their own size.

    Args:
      code: a gradient code, decoded by its first decoder; with no others codes of one
        size share what is compiled.
      masks: bool (number, num_workers).

    Returns:
      Two arrays (number,), in float64.
    """
    found = []
    for start in range(0, len(masks), BATCH):
        batch = masks[start : start + BATCH]
        padding = [(0, BATCH - len(batch)), (0, 0)]
        whole = np.pad(batch, padding, constant_values=True)
        # Also in a function that is being traced, a concrete code has errors.
        with jax.ensure_compile_time_eval():
            values = _evaluate(code, whole)
        found.append(np.array(values, np.float64)[:, : len(batch)])
    errors, noise = np.concatenate(found, axis=1)
    return errors, noise


@jax.jit
def _evaluate(code, masks):
    _, weights = find_weights(code, masks)
    errors = squared_error(code, mixing(code, weights))
    matrix = jnp.asarray(code.encoding_matrix)
    sizes = jnp.sum(matrix.real**2 + matrix.imag**2, axis=1)
    noise = jnp.sum((weights.real**2 + weights.imag**2) * sizes, axis=(-2, -1))
    return errors, noise / code.num_segments
