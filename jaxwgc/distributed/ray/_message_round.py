"""Engine of a round in which each worker sends one message."""

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._fleet import Fleet
from jaxwgc.distributed.ray._messages import (
    Answer,
    Layout,
    PartValues,
    is_finite,
    unpack,
)
from jaxwgc.distributed.ray._rounds import RoundEngine, RoundStart


class MessageRound(RoundEngine):
    """Round engine for codes with one message per worker.

    Args:
      fleet: Workers.
      layout: Shapes of the messages.
      start: `RoundStart` of the round.
      owner: Late messages of earlier rounds of this owner are kept. None keeps none.
    """

    def __init__(
        self, fleet: Fleet, layout: Layout, start: RoundStart, owner: object = None
    ):
        super().__init__(fleet, layout, start, (len(fleet.slots),))
        self._owner = owner
        self.late = np.zeros(len(fleet.slots), bool)
        for worker in np.flatnonzero(fleet.are("idle")):
            self._send(int(worker), start.now)

    @property
    def received(self) -> np.ndarray:
        """Workers that have responded in this round, bool (num_workers,)."""
        return np.isfinite(self.times)

    def _send(self, worker: int, now: float) -> None:
        # If a worker is lost after its response, its message is here, and it is not
        # called again.
        if not self.received[worker]:
            call = events.Call(worker, "compute", self.number)
            self._fleet.call(call, now, self._owner)

    def _advance(self, now: float) -> None:
        if self._ends is None:
            self._ends = self._begin + self._fleet.rules.ends(self.times)
        self.poll_at = self._ends
        # The round does not wait again for a worker that was lost in it. It waits
        # `timeouts.replacement` seconds for the replacement.
        self._reason = self._reason_to_stop(self.received, self._replaced, now)
        if self._reason:
            self.messages[~(self.received | self.late)] = 0
            if self._is_verified:
                self._await_verdict(self.received)
            else:
                self._finish(self.received, now)

    def _judge(self, verdict: events.Verdict, now: float) -> None:
        self.messages[~(verdict.right | self.late)] = 0
        self._finish(verdict.right, now)

    def _finish(self, received: np.ndarray, now: float) -> None:
        """Sets the result."""
        late = None if self._owner is None else self.late
        self._conclude(received, now, late=late)

    def _take(self, event: events.Response, now: float) -> None:
        """Copies a message, so that nothing refers to Ray's memory.

        The message of an earlier round leaves its response time, and is kept for its
        owner. The worker goes on with this round.
        """
        worker = event.worker
        answer = event.result
        assert isinstance(answer, Answer)
        slot = self._fleet.slots[worker]
        is_mine = slot.number == self.number
        self._check(answer.message)
        self._fleet.limit.note(worker, event.seconds)
        message = self.messages[worker : worker + 1]
        if is_mine or slot.owner is self._owner is not None:
            unpack(answer.message, message)
            self.late[worker] = not is_mine and is_finite(message)
        if is_mine:
            self._digests.check(worker, self._layout.held[worker], answer.digests)
        if is_mine and not is_finite(message):
            self._fleet.blame(slot, self._layout.not_finite("message"))
            return
        if is_mine or slot.away_since is not None:
            # A late message is not decoded. It shows that the process works.
            self._fleet.recover(slot)
        self._fleet.rows[slot.number][worker] = event.seconds
        if is_mine:
            self._values[worker, 0] = PartValues(
                parts=self._layout.held[worker],
                losses=answer.losses,
                aux=answer.aux,
            )
            self.times[worker] = now - self._begin
            self._ends = None
        else:
            self._send(worker, now)
