"""Weights applied: to the messages of workers, or directly to partial gradients.

Both give the same decoded gradient to rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxwgc import _dtypes, _messages, _validation, _weights
from jaxwgc._decoders import in_any_lane, product, rounding
from jaxwgc.codes import GradientCode


def combine_messages(
    code: GradientCode,
    weights: jax.Array,
    messages: jax.Array,
    mask: jax.Array,
    like: Any,
) -> Any:
    """The sum over the received messages i of a_i message_i, as a pytree like `like`.

    Args:
      code: the code of the messages.
      weights: decoding weights a (..., num_segments, num_messages).
      messages: (..., num_messages, length); those not received may hold anything.
      mask: bool (..., num_messages), the messages that were received.
      like: a pytree with the shapes and dtypes of the gradient.
    """
    messages = jnp.where(mask[..., None], _dtypes.promoted(messages), 0)
    weights = weights.astype(messages.dtype)
    if code.is_complex:
        pairs = jnp.stack([messages.real, messages.imag], axis=-2)
        rows = 2 * code.num_messages
        messages = pairs.reshape(*pairs.shape[:-3], rows, pairs.shape[-1])
        mixer = _messages.real_form(weights)
        weights = mixer.reshape(*mixer.shape[:-4], 2 * code.num_segments, rows)
    size = _messages.raveled_size(like)
    return _messages.unravel(_messages.whole(product(weights, messages), size), like)


def combine_partials(
    code: GradientCode,
    mixing: jax.Array,
    weighted_sum: Callable[[jax.Array], Any],
) -> Any:
    """What `combine_messages` gives, from weighted sums of the partial gradients.

    A complex code packs the halves (u, v) of a gradient as u + iv. Effective weights
    with an imaginary part, so those of a round with too many stragglers, therefore turn
    a share Im(c) of each half into the other: u loses v's, v gains u's. In the same
    way the segments of a code with segments leak into each other in such a round.

    Args:
      code: a gradient code.
      mixing: a^T B (num_segments, num_parts, num_segments), see `_weights.mixing`.
      weighted_sum: real weights c (num_parts,) to the pytree sum over j of c_j g_j.
    """
    own = weighted_sum(_weights.effective(mixing))
    segments = code.num_segments
    if segments == 1 and not code.is_complex:
        return own
    leakage = _weights.leakage(mixing)

    def segments_of_sums(weights):
        """Segment u: the sum over v of segment v of the sum with weights (u, :, v)."""
        weights = jnp.moveaxis(weights, 1, -1).reshape(segments**2, code.num_parts)
        sums = jax.vmap(lambda own: _messages.ravel(weighted_sum(own)))(weights)
        pairs = 2 if code.is_complex else 1
        rows = _messages.blocks(sums, segments * pairs)
        rows = rows.reshape(segments, segments, segments, pairs, rows.shape[-1])
        return jnp.trace(rows, axis1=1, axis2=2)

    def add_leak():
        flat = _messages.ravel(own)
        leak = jnp.zeros(())
        if segments > 1:
            leak = segments_of_sums(leakage.real)
        if code.is_complex:
            turned = segments_of_sums(leakage.imag)
            leak = leak + jnp.stack([-turned[:, 1], turned[:, 0]], axis=1)
        leak = leak.reshape(math.prod(leak.shape[:2]), leak.shape[2])
        return _messages.unravel(flat + _messages.whole(leak, flat.size), own)

    largest = rounding(leakage.dtype) * _weights.target_scale(code)
    leaks = in_any_lane(jnp.any(jnp.abs(leakage) > largest))
    if not _validation.is_traced(leaks):
        # Outside of jit, lax.cond would compile its new functions at every call.
        return add_leak() if leaks else own
    return jax.lax.cond(leaks, add_leak, lambda: own)
