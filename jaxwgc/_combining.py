"""Weights applied: to the messages of workers, or directly to partial gradients.

Both give the same decoded gradient to rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxwgc import _messages, _validation
from jaxwgc._decoders import product
from jaxwgc.codes import GradientCode

# Below this the imaginary part of the effective weights is rounding, not leakage.
_LEAK_TOLERANCE = 1e-3


def combine_messages(
    code: GradientCode,
    weights: jax.Array,
    messages: jax.Array,
    received: jax.Array,
    like: Any,
) -> Any:
    """The sum over the received messages i of a_i message_i, as a pytree like `like`.

    Args:
      code: the code of the messages.
      weights: decoding weights a (..., num_workers).
      messages: (..., num_workers, length); those not received may hold anything.
      received: bool (..., num_workers).
      like: a pytree with the shapes and dtypes of the gradient.
    """
    messages = jnp.where(received[..., None], messages, 0)
    weights = weights.astype(messages.dtype)
    if not code.is_complex:
        return _messages.unravel(
            product(weights[..., None, :], messages)[..., 0, :], like
        )
    rows = jnp.stack([messages.real, messages.imag], axis=-2)
    rows = rows.reshape(*rows.shape[:-3], 2 * code.num_workers, rows.shape[-1])
    mixer = _messages.real_form(weights[..., None, :])
    mixer = mixer.reshape(*mixer.shape[:-4], 2, 2 * code.num_workers)
    flat = _messages.whole(product(mixer, rows), _messages.raveled_size(like))
    return _messages.unravel(flat, like)


def combine_partials(
    code: GradientCode,
    mixing: jax.Array,
    weighted_sum: Callable[[jax.Array], Any],
) -> Any:
    """What `combine_messages` gives, from weighted sums of the partial gradients.

    A complex code packs the halves (u, v) of a gradient as u + iv. Effective weights
    with an imaginary part, so those of a round with too many stragglers, therefore turn
    a share Im(c) of each half into the other: u loses v's, v gains u's.

    Args:
      code: a gradient code.
      mixing: c = a^T B (num_parts,), complex for a complex code.
      weighted_sum: real weights c (num_parts,) to the pytree sum over j of c_j g_j.
    """
    own = weighted_sum(mixing.real)
    if not code.is_complex:
        return own

    def add_leak():
        flat = _messages.ravel(own)
        leak = _messages.halves(_messages.ravel(weighted_sum(mixing.imag)))
        leak = jnp.stack([-leak[1], leak[0]])
        return _messages.unravel(flat + _messages.whole(leak, flat.size), own)

    leaks = _in_any_lane(jnp.any(jnp.abs(mixing.imag) > _LEAK_TOLERANCE))
    if not _validation.is_traced(leaks):
        # Outside of jit, lax.cond would compile its new functions at every call.
        return add_leak() if leaks else own
    return jax.lax.cond(leaks, add_leak, lambda: own)


@custom_vmap
def _in_any_lane(condition: jax.Array) -> jax.Array:
    """`condition`, reduced by `or` over every axis of an enclosing vmap.

    A condition that differs from lane to lane would turn `lax.cond` into a select
    that always runs both branches.
    """
    return condition


@_in_any_lane.def_vmap
def _in_any_lane_vmap(axis_size, in_batched, condition):
    del axis_size, in_batched
    return _in_any_lane(condition.any(axis=0)), False
