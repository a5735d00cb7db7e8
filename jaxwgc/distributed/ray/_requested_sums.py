"""Weighted sums that the coordinator has requested from workers."""

import enum

import numpy as np


class SumStatus(enum.IntEnum):
    """Status of the sum of one worker.

    Attributes:
      NONE: No sum is requested.
      REQUESTED: The worker was sent the newest request, and has not responded.
      RECEIVED: The coordinator has the sum of the newest request.
    """

    NONE = 0
    REQUESTED = 1
    RECEIVED = 2


class RequestedSums:
    """Newest request to each worker, and whether its sum has arrived.

    Args:
      num_workers: Number of workers.
      messages_per_worker: Number of weights of a request.
    """

    def __init__(self, num_workers: int, messages_per_worker: int):
        self._weights = np.zeros((num_workers, messages_per_worker))
        self._statuses = np.full(num_workers, SumStatus.NONE, np.int8)

    def request(self, worker: int, weights: np.ndarray) -> None:
        """Records that a sum is requested, in place of an earlier one."""
        self._weights[worker] = weights
        self._statuses[worker] = SumStatus.REQUESTED

    def receive(self, worker: int) -> None:
        """Records that the sum of the newest request has arrived."""
        self._statuses[worker] = SumStatus.RECEIVED

    def cancel(self, worker: int) -> None:
        """Records that a requested sum will not come; a received sum stays."""
        if self._statuses[worker] == SumStatus.REQUESTED:
            self._statuses[worker] = SumStatus.NONE

    def are_requested(self, weights: np.ndarray) -> np.ndarray:
        """Returns which workers were sent these weights, bool (num_workers,)."""
        is_sent = self._statuses != SumStatus.NONE
        return is_sent & (self._weights == weights).all(1)

    def have_arrived(self, weights: np.ndarray) -> np.ndarray:
        """Returns which workers have sent sums with these weights, (num_workers,)."""
        is_here = self._statuses == SumStatus.RECEIVED
        return is_here & (self._weights == weights).all(1)
