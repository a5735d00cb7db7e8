"""Timeouts: how long a `RayCluster` waits for a silent worker."""

import dataclasses
import logging

import numpy as np

from jaxwgc import _validation

# Seconds after which a silent worker is replaced, at least and at most, if `answer` is
# None. A machine that starts processes pauses others for up to a second.
FLOOR_SECONDS, CEILING_SECONDS = 2.0, 60.0
# Silence over the slowest recent response, and the number of recent ones per worker.
_MULTIPLE, _NUM_RECENT = 10.0, 20

log = logging.getLogger("jaxwgc.distributed")


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """Seconds that a `RayCluster` waits for a worker.

    Args:
      answer: Seconds without a response to a step, or on request without a finished
        part, after which a worker is replaced; at least 2. None adapts it: 10 times the
        slowest of the last 20 responses of each worker, at least 2 and at most 60
        seconds, and 60 seconds for a worker that has not responded yet. A worker that
        is silent for half of this time is suspected: the round does not wait for it if
        the others decode. Once it responds, it is no longer suspected.
      start: Seconds for a worker to load its parts and to compile.
      replacement: Seconds that a round that cannot be decoded waits for a worker that
        is being replaced, from its loss on. A worker that does not come back in that
        time is not waited for in later rounds either. A rule that ends by the clock,
        such as `deadline`, ends an undecodable round at its own time.

    Raises:
      ValueError: If `answer` is below 2, or another number is not positive.
      TypeError: If one is not a number.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.distributed.Timeouts(answer=5)
      Timeouts(answer=5, start=300.0, replacement=60.0)
    """

    answer: float | None = None
    start: float = 300.0
    replacement: float = 60.0

    def __post_init__(self):
        for name, seconds in vars(self).items():
            if name == "answer" and seconds is None:
                continue
            _validation.check_number(name, seconds, positive=True, traceable=False)
            if name == "answer" and seconds < FLOOR_SECONDS:
                raise ValueError(
                    f"answer must be at least {FLOOR_SECONDS:g} seconds, since a busy "
                    f"machine pauses healthy workers; got {seconds}"
                )


class ResponseLimit:
    """The time after which a silent worker is replaced, from recent responses.

    Attributes:
      seconds: The limit for a worker that has responded before.
    """

    def __init__(self, answer: float | None, num_workers: int):
        self._answer = answer
        self._recent = np.full((num_workers, _NUM_RECENT), np.nan)
        # Seconds as in `_recent`, but silence counts as a response.
        self._own = self._recent.copy()
        self._place = np.zeros(num_workers, int)
        self.seconds = self._logged = CEILING_SECONDS if answer is None else answer

    @property
    def slowest(self) -> float:
        """Seconds of the slowest recent response; 0 if there is none."""
        return float(np.nanmax(self._recent, initial=0.0))

    def median(self, worker: int) -> float:
        """Returns the median of a worker's recent response times; infinity if none."""
        recent = self._recent[worker]
        recent = recent[~np.isnan(recent)]
        return float(np.median(recent)) if len(recent) else np.inf

    def of(self, worker: int) -> float:
        """Returns the limit of a worker."""
        own = self._own[worker]
        if self._answer is not None:
            return self._answer
        if np.isnan(own).all():
            return CEILING_SECONDS
        longer = max(self.seconds, _MULTIPLE * float(np.nanmax(own)))
        return min(longer, CEILING_SECONDS)

    def note(self, worker: int, seconds: float) -> None:
        """Adds a response of a worker; logs the limit if it has changed twofold."""
        place = self._place[worker]
        self._recent[worker, place] = self._own[worker, place] = seconds
        self._place[worker] = (place + 1) % _NUM_RECENT
        self._adapt()

    def note_silence(self, worker: int) -> None:
        """Doubles the limit of a worker until it has responded often again.

        A step that has become longer is not interrupted for ever.
        """
        place = self._place[worker]
        self._own[worker, place] = 2 * self.of(worker) / _MULTIPLE
        self._place[worker] = (place + 1) % _NUM_RECENT

    def resume(self, slowest: float) -> None:
        """Continues from the slowest recent response of an earlier run."""
        if slowest:
            self._recent[:] = self._own[:] = slowest
            self._adapt()

    def _adapt(self) -> None:
        if self._answer is not None:
            return
        limit = np.clip(_MULTIPLE * self.slowest, FLOOR_SECONDS, CEILING_SECONDS)
        self.seconds = float(limit)
        if not 0.5 <= self.seconds / self._logged <= 2:
            self._logged = self.seconds
            log.info(
                "timeouts.answer is now %.3g s; slowest recent response: %.3g s",
                self.seconds,
                self.slowest,
            )
