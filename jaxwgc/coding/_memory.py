"""Stored messages, which are used in place of missing ones."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._common import flat_vectors
from jaxwgc.codes import GradientCode
from jaxwgc.coding._decode import Arrived
from jaxwgc.coding._decoded_gradients import combine
from jaxwgc.coding._decoding import Decoding
from jaxwgc.coding._messages import encode
from jaxwgc.decoders import Decoder


class Memory(NamedTuple):
    """The newest message of each worker, from any step.

    Attributes:
      messages: (num_messages, length), zero for workers that have never responded.
      known: Whether there is a stored message, bool (num_messages,).
      underway: In simulations the messages that workers are computing, (num_messages,
        length), with the parameters of the round in which they began; () elsewhere.
      code: Checksum of the code, as the key of a dict without arrays; () if the code is
        traced.

    Example:
      Worker 1 has not responded yet:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> aggregate = jaxwgc.decode_aggregate(code, memory=True)
      >>> params = jnp.zeros(2)
      >>> state = aggregate.init(params)
      >>> messages = jaxwgc.encode(code, jnp.ones((3, 2)))
      >>> received = jnp.array([True, False, True])
      >>> _, state = aggregate.update(messages, state, params, received=received)
      >>> state.memory.known, state.memory.messages[0]
      (Array([ True, False,  True], dtype=bool), Array([1., 1.], dtype=float32))
    """

    messages: jax.Array
    known: jax.Array
    underway: jax.Array | tuple[()] = ()
    code: dict[str, tuple[()]] | tuple[()] = ()

    @classmethod
    def empty(cls, code: GradientCode, params: Any, is_simulated: bool) -> "Memory":
        """Returns a memory without messages, for gradients like params."""

        def with_parts(leaf):
            return jax.ShapeDtypeStruct((code.num_parts, *leaf.shape), leaf.dtype)

        gradients = jax.tree.map(with_parts, params)
        sent = jax.eval_shape(functools.partial(encode, code), gradients)
        messages = jnp.zeros(sent.shape, sent.dtype)
        known = jnp.zeros(code.num_messages, bool)
        return cls(
            messages=messages,
            known=known,
            underway=messages.copy() if is_simulated else (),
            code=_checksum_key(code),
        )

    def check(self, code: GradientCode) -> None:
        """Raises ValueError if the messages were stored with another code.

        Nothing is compared if one of the two codes is traced.
        """
        expected = _checksum_key(code)
        if self.code and expected and self.code != expected:
            raise ValueError(
                "state must hold stored messages of the same code; got those of a code "
                f"with checksum {next(iter(self.code))}, and {code} has checksum "
                f"{next(iter(expected))}. Begin with a new state from init"
            )

    def after(self, messages: jax.Array, mask: jax.Array) -> "Memory":
        """Stores the messages of a mask, and returns the new memory.

        Messages with an infinite entry or NaN are not stored, since they would spoil
        all later rounds.
        """
        messages = messages.astype(self.messages.dtype)
        mask = mask & jnp.isfinite(messages).all(axis=1)
        return self._replace(
            messages=jnp.where(mask[:, None], messages, self.messages),
            known=self.known | mask,
        )

    def stand_in(
        self, decoding: Decoding, decoder: Decoder, messages: jax.Array, params: Any
    ) -> Any:
        """Computes the contribution of stored messages to a gradient.

        It is the sum of (wᵢ - aᵢ) hᵢ over stored messages h, with the decoding weights
        a of the round and w of all workers that have ever responded.

        Args:
          decoding: Decoding of one round.
          decoder: Decoder that computed it.
          messages: Messages of the round, (num_messages, length), for workers that
            respond for the first time.
          params: Pytree like the gradient.
        """
        latest = self.after(messages, decoding.mask & ~self.known)
        of_known = Arrived(latest.known).decode(decoding.code, decoder)
        share = of_known.share
        weights = of_known.weights / jnp.where(share > 0, share, 1) - decoding.weights
        flat = combine(weights, None, latest.messages, latest.known)
        return flat_vectors.unravel(flat, params)


def _checksum_key(code: GradientCode) -> dict[str, tuple[()]] | tuple[()]:
    """Returns the checksum of a code, as the structure of a pytree."""
    checksum = code.checksum
    if checksum is None:
        return ()
    return {f"{checksum:08x}": ()}
