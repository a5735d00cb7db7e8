"""Decoding by one copy of each part, for messages of one part each."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import product
from jaxwgc._pytrees import Static
from jaxwgc._targets import target_scale
from jaxwgc.decoders._decoder import Array, Decoder


class OneCopy(Decoder):
    """Sums one copy of each part: weights are 0 or 1.

    Parts are assigned one after the other. Each is taken from the worker with the
    fewest parts so far among those that have finished it. Parts with a single copy
    count from the start. Only parts that no worker has finished are lost.

    Attributes:
      copies: Messages that are copies of each part, int (num_parts, num_copies); the
        first wins in a tie.
      num_workers: n; each worker has equally many adjacent messages.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.replicated(2, copies=2)
      >>> code.decoders[0].copies
      array([[0, 3],
             [2, 1]])
      >>> jaxwgc.decoding_weights(code, finished=jnp.array([1, 2]))
      Array([1., 0., 1., 0.], dtype=float32)

    References:
      New in this library.
    """

    copies: Array
    num_workers: Static[int]

    needs: ClassVar[str] = "with one part per message, such as codes.replicated"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        num_messages, num_parts = matrix.shape
        sizes = {"num_parts": num_parts, "num_copies": "any"}
        copies = _validation.as_array("copies", self.copies, "integers", **sizes)
        number = _validation.check_int("num_workers", self.num_workers, 1)
        self.check_matrix(num_messages % number == 0, matrix)
        if any(isinstance(array, jax.Array) for array in (copies, matrix, target)):
            return
        expected = np.zeros_like(matrix)
        if np.all((copies >= 0) & (copies < num_messages)):
            expected[copies, np.arange(num_parts)[:, None]] = target[0][:, None]
        self.check_matrix(np.all(expected == matrix), matrix)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _lightest(mask, jnp.asarray(self.copies), self.num_workers)

    def decodes(
        self,
        matrix: Array,
        target: Array,
        mask: jax.Array,
        tolerance: jax.typing.ArrayLike,
    ) -> jax.Array:
        lost = ~mask[..., self.copies].any(-1)
        sizes = (jnp.asarray(target[0]) / target_scale(target)) ** 2
        return product(lost.astype(sizes.dtype), sizes) <= tolerance**2 * sizes.sum()


@functools.partial(jax.jit, static_argnames="num_workers")
def _lightest(mask, copies, num_workers):
    dtype = jnp.result_type(float)
    num_parts, num_copies = copies.shape
    num_messages = mask.shape[-1]
    # Copy and part of each message, for the inverse map; nothing for empty messages.
    places = jnp.full(num_messages, copies.size)
    places = places.at[copies].set(jnp.arange(copies.size).reshape(copies.shape))

    def by_message(by_copy):
        flat = by_copy.reshape(*mask.shape[:-1], copies.size)
        return jnp.take(flat, places, axis=-1, mode="fill", fill_value=0)

    is_there = mask[..., copies]
    is_alone = is_there & (is_there.sum(-1, keepdims=True) == 1)
    per_worker = num_messages // num_workers
    burdens = by_message(is_alone.astype(jnp.int32))
    burdens = burdens.reshape(*mask.shape[:-1], num_workers, per_worker).sum(-1)

    def choose(burdens, part):
        workers, is_there, is_alone = part
        candidates = jnp.where(is_there, burdens[..., workers], num_messages)
        lightest = jnp.argmin(candidates, axis=-1, keepdims=True)
        chosen = is_there & (jnp.arange(num_copies) == lightest)
        return burdens.at[..., workers].add(chosen & ~is_alone), chosen

    by_part = (
        copies // per_worker,
        *(jnp.moveaxis(by_copy, -2, 0) for by_copy in (is_there, is_alone)),
    )
    chosen = jnp.moveaxis(jax.lax.scan(choose, burdens, by_part)[1], 0, -2)
    return by_message(chosen.astype(dtype))[..., None, :]
