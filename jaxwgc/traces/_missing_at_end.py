"""Workers that do not respond at the end of a trace."""

from typing import NamedTuple

import numpy as np

# Probability, over all workers, below which chance does not explain missing responses
# at the end of a trace. The worker has then stopped.
_STOPPED_BY_CHANCE = 1e-3


class MissingAtEnd(NamedTuple):
    """Rounds after the last response of each worker.

    Attributes:
      start: First round after the last response, int (workers,); 0 without a response,
        and the number of rounds if the last round has one.
      p_value: Probability that chance loses all responses since then, (workers,); not
        corrected for the number of workers.
    """

    start: np.ndarray
    p_value: np.ndarray

    @property
    def has_stopped(self) -> np.ndarray:
        """Workers whose last responses are not missing by chance."""
        return self.p_value * len(self.p_value) < _STOPPED_BY_CHANCE


def missing_at_end(is_response: np.ndarray) -> MissingAtEnd:
    """Tests whether workers have stopped responding.

    If responses are lost by chance, the last ones are missing with the share of missing
    responses before to the power of their number. The share is that of the worker or of
    all workers, the larger one.

    Args:
      is_response: Whether there is a response, bool (rounds, workers).
    """
    num_rounds = len(is_response)
    responds = is_response.any(axis=0)
    num_at_end = np.where(responds, is_response[::-1].argmax(axis=0), num_rounds)
    start = num_rounds - num_at_end
    num_missing_before = start - is_response.sum(axis=0)
    # One more missing response avoids a share of 0.
    own_shares = (num_missing_before + 1) / (start + 2)
    common_share = (num_missing_before.sum() + 1) / (start.sum() + 2)
    p_value = np.maximum(own_shares, common_share) ** num_at_end
    return MissingAtEnd(start=start, p_value=p_value)
