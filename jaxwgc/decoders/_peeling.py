"""Peeling: iterative decoding of messages with one unknown part."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import product, varying_with
from jaxwgc.decoders._decoder import Array, Decoder


class Peeling(Decoder):
    """Decodes by peeling: a message with one unknown part gives the sum of this part.

    The result is the sum of the k' recovered parts times k / k'. This factor makes it
    unbiased, but increases the error: if few parts are recovered, the error exceeds
    that of a zero gradient. For codes of zeros and ones (before weighting).

    Attributes:
      assignment: Batches that each message sums, bool (num_messages, num_batches).
        Batches are parts, or groups of equally many parts that are always held
        together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3, num_parts=6)
      >>> received = jnp.array([True, False, True])
      >>> jaxwgc.decoding(code, received, jaxwgc.decoders.Peeling).weights
      Array([[1.5, 0. , 1.5]], dtype=float32)

    References:
      Horii, Yoshida, Kobayashi, Matsushima, "Distributed stochastic gradient descent
      using LDGM codes", 2019.
    """

    assignment: Array

    needs: ClassVar[str] = "of zeros and ones, such as codes.ldgm"

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        array_validation.as_array(
            "assignment",
            self.assignment,
            "bools",
            num_messages=len(matrix),
            num_batches="any",
        )

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _peel(mask, self.assignment)


@jax.jit
def _peel(received: jax.Array, assignment: jax.Array) -> jax.Array:
    """Computes weights of the sum of recovered parts, scaled up for the lost parts.

    In each round, a message with one unknown part gives that part; if several messages
    give it, their mean is taken. The k' recovered parts are summed and scaled by
    k / k', so that lost parts cause no bias.

    First the round of each part is found, with products of masks only. The weights
    then follow backwards, from the last round to the first: a message that gave a part
    stands for it, minus its other parts.

    Args:
      received: bool (..., num_messages).
      assignment: Parts (or batches) that each message sums, bool (num_messages, k).

    Returns:
      (..., 1, num_messages) in JAX's default precision.
    """
    dtype = jnp.result_type(float)
    matrix = assignment.astype(dtype)
    num_parts = matrix.shape[1]

    def peel(state):
        _, round_number, unknown, part_round, message_round = state
        degree = product(unknown.astype(dtype), matrix.T)
        single = received & (degree == 1)
        recovered_now = unknown & (product(single.astype(dtype), matrix) > 0)
        part_round = jnp.where(recovered_now, round_number, part_round)
        message_round = jnp.where(single, round_number, message_round)
        unknown = unknown & ~recovered_now
        return recovered_now.any(), round_number + 1, unknown, part_round, message_round

    unknown = varying_with(received[..., :1], jnp.ones(num_parts, bool))
    start = (
        unknown.any(),
        jnp.int32(0),
        unknown,
        jnp.where(unknown, -1, 0),
        varying_with(received, -1),
    )

    def is_unfinished(state):
        has_recovered, *_ = state
        return has_recovered

    _, num_rounds, unknown, part_round, message_round = jax.lax.while_loop(
        is_unfinished, peel, start
    )

    def unpeel(step, carry):
        weights, owed = carry
        round_number = num_rounds - 1 - step
        single = message_round == round_number
        recovered_now = part_round == round_number
        givers = product(single.astype(dtype), matrix)
        share = jnp.where(recovered_now, owed / jnp.where(recovered_now, givers, 1), 0)
        added = jnp.where(single, product(share, matrix.T), 0)
        owed = owed - product(added, matrix)
        return weights + added, owed

    recovered = ~unknown
    no_weights = jnp.where(received, jnp.zeros((), dtype), 0)
    weights, _ = jax.lax.fori_loop(
        0, num_rounds, unpeel, (no_weights, recovered.astype(dtype))
    )
    num_recovered = recovered.sum(-1, keepdims=True)
    weights = weights * (num_parts / jnp.maximum(num_recovered, 1))
    return weights.astype(dtype)[..., None, :]
