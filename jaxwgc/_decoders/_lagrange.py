"""Lagrange interpolation: a closed form for codes evaluated at roots of unity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._decoders._least_squares import relative_miss, replace_poor_weights
from jaxwgc._decoders._product import product

# Moduli are split into a multiple of 1 / 2**10 (in log2), whose sums are exact in
# float32, and a remainder so small that the rounding of its sum does not matter.
_FRACTION_BITS = 10
# Lagrange weights that miss the target by more than this are tried again.
_LAGRANGE_TOLERANCE = 1e-4


def lagrange(received: jax.Array, point_step: int) -> jax.Array:
    """Weights that interpolate a polynomial at 0 from its values at roots of unity.

    a_i = prod_j alpha_j / (alpha_j - alpha_i) over the other workers j that answered.
    With delta = (p_j - p_i) mod n a factor has modulus 1 / (2 sin(pi delta / n)) and
    phase pi (2 delta - n) / (2n): log-moduli add, phases are integers modulo 4n, and
    a batch of masks is one product with fixed tables of shape (n, 3n).

    Args:
      received: bool (..., num_workers).
      point_step: the m of the code's points p_i = m * i mod n.

    Returns:
      Complex (..., 1, num_workers) in JAX's default precision, zero at stragglers.
    """
    num_workers = received.shape[-1]
    dtype = jnp.result_type(float)
    points = point_step * np.arange(num_workers) % num_workers
    difference = (points[:, None] - points) % num_workers
    others = difference != 0
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = -np.log2(modulus, where=others, out=np.zeros_like(modulus))
    coarse = np.round(log_modulus * 2**_FRACTION_BITS)
    remainder = log_modulus - coarse / 2**_FRACTION_BITS
    phase = np.where(others, 2 * difference - num_workers, 0)
    tables = jnp.asarray(np.concatenate([coarse, phase, remainder], 1), dtype)
    sums = product(received.astype(dtype), tables)
    coarse_sum, phase_sum, remainder_sum = jnp.split(sums, 3, axis=-1)

    # Exact integers from here on; sines, cosines and powers come from tables since
    # their arguments in radians would be rounded.
    coarse_sum = coarse_sum.astype(jnp.int32)
    exponent = coarse_sum >> _FRACTION_BITS
    fraction = coarse_sum & (2**_FRACTION_BITS - 1)
    powers = jnp.asarray(
        np.exp2(np.arange(2**_FRACTION_BITS) / 2**_FRACTION_BITS), dtype
    )
    weight_modulus = jnp.ldexp(powers[fraction] * jnp.exp2(remainder_sum), exponent)
    turns = phase_sum.astype(jnp.int32) % (4 * num_workers)
    angles = np.pi * np.arange(4 * num_workers) / (2 * num_workers)
    cosine = jnp.asarray(np.cos(angles), dtype)[turns]
    sine = jnp.asarray(np.sin(angles), dtype)[turns]
    weights = jax.lax.complex(weight_modulus * cosine, weight_modulus * sine)
    return jnp.where(received, weights, 0)[..., None, :]


@functools.partial(jax.jit, static_argnames="point_step")
def lagrange_or_least_squares(
    received: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    num_required: int | jax.Array,
    point_step: int,
) -> jax.Array:
    """Lagrange weights, and least squares for the masks where those fall short.

    These are masks with fewer than `num_required` answers, where interpolation does
    not apply, and those with slack (more answers than parts, or than are required) on
    which Lagrange's weights amplify rounding so much that they miss the target by 1e-4
    of it. Without slack no other weights decode, and Lagrange's are as good as any.
    """
    weights = lagrange(received, point_step)
    miss = relative_miss(weights, matrix, target)
    num_answers = received.sum(-1)
    has_slack = num_answers > jnp.minimum(num_required, matrix.shape[-1])
    amplified = has_slack & ~(miss <= _LAGRANGE_TOLERANCE)
    poor = (num_answers < num_required) | amplified
    return replace_poor_weights(weights, received, poor, matrix, target)
