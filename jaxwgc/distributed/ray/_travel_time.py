"""Estimate of the time that calls and responses travel, without a clock of its own."""

import math


class TravelTime:
    """Estimates response times without the seconds in which the coordinator is busy.

    A busy coordinator reads a response later than the response has arrived. The
    response time is then the worker's own seconds and the shortest travel time so far,
    or the time until the coordinator last found no response, if this is longer.

    All times are from one clock of the coordinator. The worker's own seconds are a
    duration, by the clock of the worker.

    Attributes:
      shortest: Shortest travel time of call and response so far, in seconds; 0 before
        the first measurement.
    """

    def __init__(self):
        self._shortest = math.inf
        self._last_silence = -math.inf

    @property
    def shortest(self) -> float:
        """Shortest travel time so far, in seconds; 0 before the first measurement."""
        return self._shortest if math.isfinite(self._shortest) else 0.0

    def note_silence(self, now: float) -> None:
        """Records that the coordinator has found no response at a time."""
        self._last_silence = now

    def response_seconds(
        self, called: float, read: float, worker_seconds: float, was_waiting: bool
    ) -> float:
        """Returns the response time of a worker, at least the worker's own seconds.

        Args:
          called: Time before the call was sent.
          read: Time at which the coordinator has read the response.
          worker_seconds: Seconds from the receipt of the call to the finished message.
          was_waiting: Whether the coordinator was waiting when the response arrived.
            Such responses measure the travel time.
        """
        # The clocks of two machines may differ slightly in speed.
        travel = max(read - called - worker_seconds, 0.0)
        if was_waiting:
            self._shortest = min(self._shortest, travel)
        else:
            silent = self._last_silence - called - worker_seconds
            travel = min(travel, max(self.shortest, silent))
        return worker_seconds + travel
