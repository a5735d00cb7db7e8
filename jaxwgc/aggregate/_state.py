"""States of the aggregators, and their counts of errors."""

from typing import Any, NamedTuple

import jax

from jaxwgc import coding


class ErrorCounts(NamedTuple):
    """Corrupted workers of the last round, and counts over all rounds.

    Attributes:
      wrong: bool (num_workers,), workers with messages that were found corrupted in
        the last round.
      num_wrong: int32 (num_workers,), number of rounds in which each worker was found
        corrupted.
      num_corrected: int32 scalar, number of rounds with at least one corrupted worker.
      num_rejected: int32 scalar, number of rejected rounds: their checks failed without
        an explanation, or a message took part in no check. Nothing is decoded from
        these rounds, and they also count as undecodable.

    Example:
      Worker 4 of 6 sends wrong numbers:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(6, num_stragglers=2)
      >>> aggregate = jaxwgc.decode_aggregate(code, correct_errors=True)
      >>> params = jnp.zeros(3)
      >>> state = aggregate.init(params)
      >>> messages = jaxwgc.encode(code, jnp.ones((6, 3))).at[4].set(9.0)
      >>> received = jnp.ones(6, bool)
      >>> _, state = aggregate.update(messages, state, params, received=received)
      >>> state.errors.num_wrong, int(state.errors.num_rejected)
      (Array([0, 0, 0, 0, 1, 0], dtype=int32), 0)
    """

    wrong: jax.Array
    num_wrong: jax.Array
    num_corrected: jax.Array
    num_rejected: jax.Array

    def after(self, location: coding.ErrorLocation) -> "ErrorCounts":
        """Returns the counts after one more round with these located errors."""
        return ErrorCounts(
            wrong=location.wrong,
            num_wrong=self.num_wrong + location.wrong,
            num_corrected=self.num_corrected + location.wrong.any(),
            num_rejected=self.num_rejected + location.rejected,
        )


class CodedAggregateState(NamedTuple):
    """State of `coded_aggregate` and `decode_aggregate`: last round, counts and keys.

    Attributes:
      key: PRNG key for the next rounds, of the given kind; () if no rounds are
        simulated.
      stragglers: State of the straggler model; () if there is none.
      faults: State of the corruption model; () if there is none.
      received: bool (num_workers,), workers that responded in the last round; for a
        code with several messages per worker, workers that sent all of them. If errors
        are corrected, workers with messages that were decoded.
      elapsed: float scalar, total time of the rounds so far, in the unit of the model
        or of the given times.
      residual: float scalar, norm of aᵀB - target in the last round; the square root
        of `jaxwgc.Decoding.error`. Absolute, whereas `tolerance` is relative.
      num_undecodable: int32 scalar, number of rounds so far with too few responses, or
        with errors that could not be corrected.
      share: float scalar, fraction of the gradient recovered in the last round: 1 if
        the round was decoded exactly, less if whole parts were lost.
      memory: `jaxwgc.coding.Memory` of stored messages; () if there is none.
      errors: `ErrorCounts`; () if errors are not corrected.
      shapes: Shapes of params, as keys in a pytree without arrays. `update` without
        params compares updates with them.

    Example:
      Three rounds, in each of which 3 of 4 workers respond within one unit of time:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> aggregate = jaxwgc.coded_aggregate(
      ...     code, jaxwgc.stragglers.uniform(1), jax.random.key(0)
      ... )
      >>> state = aggregate.init(jnp.zeros(2))
      >>> for _ in range(3):
      ...     gradient, state = aggregate.update(jnp.ones((4, 2)), state)
      >>> int(state.received.sum()), float(state.elapsed), int(state.num_undecodable)
      (3, 3.0, 0)
    """

    key: jax.Array | tuple[()]
    stragglers: Any
    faults: Any
    received: jax.Array
    elapsed: jax.Array
    residual: jax.Array
    num_undecodable: jax.Array
    share: jax.Array
    memory: coding.Memory | tuple[()]
    errors: ErrorCounts | tuple[()]
    shapes: Any
