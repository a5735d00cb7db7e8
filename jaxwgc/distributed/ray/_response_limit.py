"""Time limits for responses of workers, adapted to recent response times."""

from collections.abc import Sequence

import numpy as np

from jaxwgc.distributed.ray._options import SHORTEST_RESPONSE_SECONDS

# Largest time limit for a response, in seconds. It is also the limit before the first
# response of a worker.
_CEILING_SECONDS = 60.0
# Time limit as a multiple of the slowest recent response, and number of recent
# responses per worker.
_MULTIPLE = 10.0
_NUM_RECENT = 20


class ResponseLimit:
    """Time limits after which silent workers are replaced.

    Attributes:
      seconds: Lower bound of the limits of all workers, in seconds.
    """

    def __init__(self, response: float | None, num_workers: int):
        self._is_fixed = response is not None
        # Recent response times in seconds, oldest first. The second array also contains
        # the entries that `note_silence` adds.
        self._recent = np.full((num_workers, _NUM_RECENT), np.nan)
        self._recent_with_silences = self._recent.copy()
        self._medians = np.full(num_workers, np.inf)
        self.seconds = _CEILING_SECONDS if response is None else response
        self._limits = np.full(num_workers, self.seconds)

    @property
    def slowest(self) -> float:
        """Largest recent response time of all workers, in seconds; 0 if none."""
        return float(np.nanmax(self._recent, initial=0.0))

    def median(self, worker: int) -> float:
        """Returns the median of a worker's recent response times; infinity if none."""
        return float(self._medians[worker])

    def of(self, worker: int) -> float:
        """Returns the time limit of a worker, in seconds."""
        return float(self._limits[worker])

    def note(self, worker: int, *seconds: float) -> None:
        """Records response times of a worker, oldest first, and adapts the limits."""
        _append(self._recent, worker, seconds)
        _append(self._recent_with_silences, worker, seconds)
        recent = self._recent[worker]
        self._medians[worker] = np.median(recent[~np.isnan(recent)])
        self._adapt()

    def note_silence(self, worker: int) -> None:
        """Doubles the limit of a silent worker for its next 20 responses.

        Otherwise, a step that has become longer would be interrupted again and again.
        A fixed limit does not change.
        """
        seconds = 2 * self.of(worker) / _MULTIPLE
        _append(self._recent_with_silences, worker, [seconds])
        self._adapt()

    def resume(self, slowest: float) -> None:
        """Sets all recent response times to the largest one of an earlier run."""
        if slowest:
            self._recent[:] = slowest
            self._recent_with_silences[:] = slowest
            self._medians[:] = slowest
            self._adapt()

    def _adapt(self) -> None:
        """Computes the limits from recent response times, unless limits are fixed."""
        if self._is_fixed:
            return
        limit = _MULTIPLE * self.slowest
        self.seconds = float(
            np.clip(limit, SHORTEST_RESPONSE_SECONDS, _CEILING_SECONDS)
        )
        limits = _MULTIPLE * np.fmax.reduce(self._recent_with_silences, axis=1)
        limits = np.clip(limits, self.seconds, _CEILING_SECONDS)
        # `limits` is NaN for workers that have not responded. These workers get the
        # largest limit.
        self._limits = np.where(np.isnan(limits), _CEILING_SECONDS, limits)


def _append(recent: np.ndarray, worker: int, seconds: Sequence[float]) -> None:
    """Appends response times of a worker, and drops the oldest ones."""
    all_seconds = np.append(recent[worker], seconds)
    recent[worker] = all_seconds[len(seconds) :]
