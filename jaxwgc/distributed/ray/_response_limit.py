"""Time limits of silent workers, from recent responses."""

from collections.abc import Sequence

import numpy as np

from jaxwgc.distributed.ray._options import SHORTEST_RESPONSE_SECONDS

# Longest time limit, in seconds, for a silent worker. It is also the limit before the
# first response of a worker.
_CEILING_SECONDS = 60.0
# Time limit as a multiple of the slowest recent response, and number of recent
# responses per worker.
_MULTIPLE = 10.0
_NUM_RECENT = 20


class ResponseLimit:
    """Time limits after which silent workers are replaced.

    Attributes:
      seconds: The limit for a worker that has responded before.
    """

    def __init__(self, response: float | None, num_workers: int):
        self._is_fixed = response is not None
        # Seconds of recent responses, oldest first. The second array also counts
        # silences as responses.
        self._recent = np.full((num_workers, _NUM_RECENT), np.nan)
        self._recent_with_silences = self._recent.copy()
        self._medians = np.full(num_workers, np.inf)
        self.seconds = _CEILING_SECONDS if response is None else response
        self._limits = np.full(num_workers, self.seconds)

    @property
    def slowest(self) -> float:
        """Seconds of the slowest recent response; 0 if there is none."""
        return float(np.nanmax(self._recent, initial=0.0))

    def median(self, worker: int) -> float:
        """Returns the median of a worker's recent response times; infinity if none."""
        return float(self._medians[worker])

    def of(self, worker: int) -> float:
        """Returns the time limit of a worker, in seconds."""
        return float(self._limits[worker])

    def note(self, worker: int, *seconds: float) -> None:
        """Records response times, oldest first."""
        _append(self._recent, worker, seconds)
        _append(self._recent_with_silences, worker, seconds)
        recent = self._recent[worker]
        self._medians[worker] = np.median(recent[~np.isnan(recent)])
        self._adapt()

    def note_silence(self, worker: int) -> None:
        """Doubles the limit of a worker until it has often responded.

        A step that has become longer is not interrupted for ever.
        """
        seconds = 2 * self.of(worker) / _MULTIPLE
        _append(self._recent_with_silences, worker, [seconds])
        self._adapt()

    def resume(self, slowest: float) -> None:
        """Continues from the slowest response of an earlier run."""
        if slowest:
            self._recent[:] = slowest
            self._recent_with_silences[:] = slowest
            self._medians[:] = slowest
            self._adapt()

    def _adapt(self) -> None:
        """Computes the limits from the recent responses, unless they are fixed."""
        if self._is_fixed:
            return
        limit = _MULTIPLE * self.slowest
        self.seconds = float(
            np.clip(limit, SHORTEST_RESPONSE_SECONDS, _CEILING_SECONDS)
        )
        limits = _MULTIPLE * np.fmax.reduce(self._recent_with_silences, axis=1)
        limits = np.clip(limits, self.seconds, _CEILING_SECONDS)
        # Limits computed here are NaN for workers without a response. They keep the
        # longest limit.
        self._limits = np.where(np.isnan(limits), _CEILING_SECONDS, limits)


def _append(recent: np.ndarray, worker: int, seconds: Sequence[float]) -> None:
    """Stores the newest response times of a worker."""
    all_seconds = np.append(recent[worker], seconds)
    recent[worker] = all_seconds[len(seconds) :]
