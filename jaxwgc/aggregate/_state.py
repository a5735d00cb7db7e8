"""State of the aggregators."""

from typing import Any, NamedTuple

import jax

from jaxwgc import coding


class ErrorCounts(NamedTuple):
    """Corrupted workers of the last round, and counts of them so far.

    Attributes:
      wrong: bool (num_workers,), workers with messages that were found corrupted in
        the last round.
      num_wrong: int32 (num_workers,), number of rounds in which each worker was found
        corrupted.
      num_corrected: int32 scalar, number of rounds with at least one corrupted worker.
      num_rejected: int32 scalar, number of rejected rounds: their checks failed without
        an explanation, or a message took part in no check. Nothing is decoded from
        these rounds, and they also count as undecodable.
    """

    wrong: jax.Array
    num_wrong: jax.Array
    num_corrected: jax.Array
    num_rejected: jax.Array

    def after(self, location: coding.ErrorLocation) -> "ErrorCounts":
        """Returns the counts after a round."""
        return ErrorCounts(
            wrong=location.wrong,
            num_wrong=self.num_wrong + location.wrong,
            num_corrected=self.num_corrected + location.wrong.any(),
            num_rejected=self.num_rejected + location.rejected,
        )


class CodedAggregateState(NamedTuple):
    """State of `coded_aggregate` and of `decode_aggregate`.

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
        of `jaxwgc.decoding_error`. Absolute, whereas `tolerance` is relative.
      num_undecodable: int32 scalar, number of rounds so far with too few responses, or
        with errors that could not be corrected.
      share: float scalar, fraction of the gradient recovered in the last round: 1 if
        the round was decoded exactly, less if whole parts were lost.
      memory: `jaxwgc.coding.Memory` of stored messages; () if there is none.
      errors: `ErrorCounts`; () if errors are not corrected.
      shapes: Shapes of params, as keys in a pytree without arrays. `update` without
        params compares updates with them.
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
