"""Late answers remembered: what stands for the messages that are missing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc import _flat_vectors
from jaxwgc._targets import effective, mixing
from jaxwgc.codes import GradientCode
from jaxwgc.coding._combining import combine
from jaxwgc.coding._decoding import Decoding, share_of
from jaxwgc.coding._messages import encode
from jaxwgc.decoders import Decoder


class Memory(NamedTuple):
    """The newest message of each worker, of whatever step.

    Attributes:
      messages: (num_messages, length), zero of workers that have never answered.
      known: bool (num_messages,), of which there is one.
      underway: (num_messages, length), in simulations what each worker is computing,
        with the parameters of the round in which it began; () elsewhere.
    """

    messages: jax.Array
    known: jax.Array
    underway: Any = ()

    @classmethod
    def empty(cls, code: GradientCode, params: Any, is_simulated: bool) -> "Memory":
        """Returns that before the first round, of gradients like params."""
        partial_gradients = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (code.num_parts, *leaf.shape), leaf.dtype
            ),
            params,
        )
        sent = jax.eval_shape(lambda tree: encode(code, tree), partial_gradients)
        messages = jnp.zeros(sent.shape, sent.dtype)
        known = jnp.zeros(code.num_messages, bool)
        return cls(messages, known, messages.copy() if is_simulated else ())

    def after(self, messages: jax.Array, mask: jax.Array) -> "Memory":
        """Returns it with messages (num_messages, length) in the place of those."""
        messages = messages.astype(self.messages.dtype)
        return self._replace(
            messages=jnp.where(mask[:, None], messages, self.messages),
            known=self.known | mask,
        )

    def stand_in(
        self, decoding: Decoding, decoder: Decoder, messages: jax.Array, params: Any
    ) -> Any:
        """Returns what is to be added to what the answers of a round decode to.

        The sum of (wᵢ - aᵢ) hᵢ, with the decoding weights a of the round and w of all
        workers that have ever answered.

        Args:
          decoding: of one round.
          decoder: that found it.
          messages: (num_messages, length) of the round, for those that answer for the
            first time.
          params: a pytree like the gradient.
        """
        code, latest = decoding.code, self.after(messages, decoding.mask & ~self.known)
        weights = decoder.checked_weights(
            code.encoding_matrix, code.segment_targets, latest.known
        )
        share = share_of(effective(mixing(code.encoding_matrix, weights)), code.target)
        weights = weights / jnp.where(share > 0, share, 1) - decoding.weights
        flat = combine(weights, None, latest.messages, latest.known)
        return _flat_vectors.unravel(flat, params)
