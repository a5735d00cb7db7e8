"""Workers that do not respond at the end of a trace."""

from typing import NamedTuple

import numpy as np

# A worker has stopped if chance explains its missing responses at the end of a trace
# with less than this probability, corrected for the number of workers (Bonferroni).
_STOPPED_BY_CHANCE = 1e-3


class MissingAtEnd(NamedTuple):
    """Start of each worker's missing responses at the end, and their p-value.

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
        """Which workers have stopped: chance does not explain the missing responses."""
        return self.p_value * len(self.p_value) < _STOPPED_BY_CHANCE


def missing_at_end(is_response: np.ndarray) -> MissingAtEnd:
    """Tests for each worker whether it has stopped responding before the end.

    If each response is missing with probability q, the last k responses are missing
    with probability qᵏ. For q, the test takes the fraction of missing responses before,
    of the worker or of all workers, the larger one.

    Args:
      is_response: Whether there is a response, bool (rounds, workers).
    """
    num_rounds = len(is_response)
    responds = is_response.any(axis=0)
    num_at_end = np.where(responds, is_response[::-1].argmax(axis=0), num_rounds)
    start = num_rounds - num_at_end
    num_missing_before = start - is_response.sum(axis=0)
    # Laplace's rule of succession, so that no fraction is 0.
    own_shares = (num_missing_before + 1) / (start + 2)
    common_share = (num_missing_before.sum() + 1) / (start.sum() + 2)
    p_value = np.maximum(own_shares, common_share) ** num_at_end
    return MissingAtEnd(start=start, p_value=p_value)
