"""Peeling: parts that are alone in a message, then those alone beside known ones."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import product
from jaxwgc.decoders._decoder import Array, Decoder


class Peeling(Decoder):
    """Parts that are alone in a message, then those alone beside known ones.

    The sum of the k' recovered parts times k / k'. That factor makes up for lost parts
    on average, at the price of a larger error: where few parts are recovered, larger
    than without any gradient. For codes of zeros and ones (before weighting).

    Attributes:
      assignment: bool (num_messages, num_batches), which batches a message is the sum
        of: parts, or as many of them as there are of each that workers hold whole.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3, num_parts=6)
      >>> received = jnp.array([True, False, True])
      >>> jaxwgc.decoding_weights(code, received, jaxwgc.decoders.Peeling)
      Array([1.5, 0. , 1.5], dtype=float32)

    References:
      Horii, Yoshida, Kobayashi, Matsushima, "Distributed stochastic gradient descent
      using LDGM codes", 2019.
    """

    assignment: Array

    needs: ClassVar[str] = "of zeros and ones, such as codes.ldgm"

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        rows, columns = matrix.shape
        given, sizes = self.assignment, {"num_messages": rows, "num_batches": "any"}
        assignment = _validation.as_array("assignment", given, "bools", **sizes)
        is_right = columns % assignment.shape[1] == 0
        rule = f"have batches of equally many of {columns} parts"
        _validation.require(is_right, "assignment", rule, assignment.shape)
        if any(isinstance(array, jax.Array) for array in (assignment, matrix, target)):
            return
        parts = assignment.repeat(columns // assignment.shape[1], axis=1)
        self.check_matrix(np.allclose(matrix, parts * target), matrix)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _peel(mask, self.assignment)


@jax.jit
def _peel(received: jax.Array, assignment: jax.Array) -> jax.Array:
    """Weights that sum the parts which peeling recovers, scaled up for the others.

    In each round, messages with one unknown part give that part; where several give
    the same, their mean. The k' parts recovered in the end are summed exactly and
    scaled by k / k', so that a part lost to chance costs no bias.

    Which parts come in which round is found first, with products of masks only. The
    weights of their sum then follow backwards, from the last round to the first: a
    message that gave a part stands for it, minus its other parts.

    Args:
      received: bool (..., num_messages).
      assignment: bool (num_messages, k), the parts (or batches) that a message sums.

    Returns:
      (..., 1, num_messages) in JAX's default precision.
    """
    dtype = jnp.result_type(float)
    matrix = assignment.astype(dtype)
    num_parts = matrix.shape[1]

    def unfinished(state):
        return state[0]

    def peel(state):
        _, round_number, unknown, part_round, message_round = state
        degree = product(unknown.astype(dtype), matrix.T)
        single = received & (degree == 1)
        recovered_now = unknown & (product(single.astype(dtype), matrix) > 0)
        return (
            recovered_now.any(),
            round_number + 1,
            unknown & ~recovered_now,
            jnp.where(recovered_now, round_number, part_round),
            jnp.where(single, round_number, message_round),
        )

    # Made of the mask, so that under shard_map they vary with the device as it does.
    unknown = jnp.where(received[..., :1], jnp.ones(num_parts, bool), True)
    start = (
        unknown.any(),
        jnp.zeros((), jnp.int32),
        unknown,
        jnp.where(unknown, -1, 0),
        jnp.where(received, -1, -1),
    )
    _, num_rounds, unknown, part_round, message_round = jax.lax.while_loop(
        unfinished, peel, start
    )

    def unpeel(step, carry):
        weights, owed = carry
        round_number = num_rounds - 1 - step
        single = message_round == round_number
        recovered_now = part_round == round_number
        givers = product(single.astype(dtype), matrix)
        share = jnp.where(recovered_now, owed / jnp.where(recovered_now, givers, 1), 0)
        given = jnp.where(single, product(share, matrix.T), 0)
        owed = owed - product(given, matrix)
        return weights + given, owed

    recovered = ~unknown
    weights, _ = jax.lax.fori_loop(
        0,
        num_rounds,
        unpeel,
        (jnp.where(received, jnp.zeros((), dtype), 0), recovered.astype(dtype)),
    )
    num_recovered = recovered.sum(-1, keepdims=True)
    weights = weights * (num_parts / jnp.maximum(num_recovered, 1))
    return weights.astype(dtype)[..., None, :]
