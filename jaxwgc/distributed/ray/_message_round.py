"""Engine of a round in which each worker sends one message."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._fleet import Fleet
from jaxwgc.distributed.ray._messages import Layout, Round, is_finite, unpack


class Verdict(NamedTuple):
    """Result of the verification of a round.

    Attributes:
      right: bool (num_workers,), workers with messages to decode.
      wrong: bool (num_workers,), workers with corrupted messages.
      rejected: Whether messages are corrupted and the workers cannot be told, or no
        message can be checked.
    """

    right: np.ndarray
    wrong: np.ndarray
    rejected: bool


class Verifier(Protocol):
    """Finds corrupted messages of a round.

    Attributes:
      seconds: Seconds that all checks have taken so far.
    """

    seconds: float

    def check(self, this_round: Any) -> Verdict:
        """Returns the verdict on a `MessageRound` or `RequestRound`."""
        ...


class MessageRound:
    """Round engine for codes with one message per worker: see `RoundEngine`.

    Args:
      fleet: Workers.
      layout: Shapes of the messages.
      step: Step, for the log.
      now: Time at which the round begins.
      messages: Memory for the messages, (num_workers, length).
      owner: Late messages of earlier rounds of this owner are kept. None keeps none.
      verifier: Verifier of the messages, or None.
    """

    def __init__(
        self,
        fleet: Fleet,
        layout: Layout,
        step: int,
        now: float,
        messages: np.ndarray,
        owner: Any = None,
        verifier: Verifier | None = None,
    ):
        num_workers = len(fleet.slots)
        self._fleet, self._layout = fleet, layout
        self._begin, self._owner, self._verifier = now, owner, verifier
        self.number = fleet.begin(step, (num_workers,))
        self.messages = messages
        self.times = np.full(num_workers, np.inf)
        self.late = np.zeros(num_workers, bool)
        self._losses_before = fleet.num_losses()
        self._losses: dict[int, np.ndarray] = {}
        self._aux: dict[int, Any] = {}
        self._ends: float | None = None
        self._result: Round | None = None
        self.poll_at = now
        for worker in np.flatnonzero(fleet.are("idle")):
            self._send(int(worker), now)

    @property
    def received(self) -> np.ndarray:
        """Workers that have responded in this round, bool (num_workers,)."""
        return np.isfinite(self.times)

    def handle(self, event: events.Event, now: float) -> Sequence[events.Action]:
        """Returns the actions that an event causes."""
        match event:
            case events.Ready():
                self._fleet.ready(event)
                # The message of a worker that was lost after its response is here.
                if not self.received[event.worker]:
                    self._send(event.worker, now)
            case events.Lost():
                self._fleet.lose(event, now)
            case events.Message():
                self._fleet.receive(event, now, self._take)
        return self._advance(now)

    def poll(self, now: float) -> Sequence[events.Action]:
        """Returns the actions that the passing of time causes."""
        self._fleet.poll(now)
        return self._advance(now)

    def result(self) -> Round | None:
        """Returns the round once it is over, None before."""
        return self._result

    def _advance(self, now: float) -> Sequence[events.Action]:
        """Ends the round if it is over; returns all actions that are due."""
        if self._ends is None:
            self._ends = self._begin + self._fleet.rules.ends(self.times)
        # A worker is waited for once in a round, and its replacement for a while.
        replaced = self._fleet.num_losses() > self._losses_before
        is_over = self._ends <= now
        if is_over or self._fleet.is_hopeless(self.received, replaced, now):
            self._finish(now)
        self.poll_at = self._ends
        return self._fleet.actions()

    def _send(self, worker: int, now: float) -> None:
        self._fleet.call(events.Send(worker, self.number), now, self._owner)

    def _take(self, event: events.Message, now: float) -> None:
        """Copies a message, so that nothing refers to Ray's memory.

        The message of an earlier round leaves its response time, and is kept for its
        owner. The worker goes on with this round.
        """
        worker, answer = event.worker, event.answer
        slot = self._fleet.slots[worker]
        is_mine = slot.number == self.number
        self._layout.check(answer.message)
        self._fleet.limit.note(worker, event.seconds)
        message = self.messages[worker : worker + 1]
        if is_mine or slot.owner is self._owner is not None:
            unpack(answer.message, message)
            self.late[worker] = not is_mine and is_finite(message)
        if is_mine and not is_finite(message):
            self._fleet.blame(slot, "its message is not finite")
            return
        if is_mine or slot.away_since is not None:
            # A late message is not decoded, but the process that sent it is well.
            self._fleet.recover(slot)
        self._fleet.rows[slot.number][worker] = event.seconds
        if is_mine:
            self._losses[worker], self._aux[worker] = answer.losses, answer.aux
            self.times[worker], self._ends = now - self._begin, None
        else:
            self._send(worker, now)

    def _finish(self, now: float) -> None:
        """Has the messages verified, and makes the result."""
        received, wrong, rejected = self.received, None, False
        self.messages[~(received | self.late)] = 0
        if self._verifier is not None:
            received, wrong, rejected = self._verifier.check(self)
            self._fleet.blame_corrupted(wrong, now)
            self.messages[~(received | self.late)] = 0
        losses, aux = np.full(self._layout.num_parts, np.nan), []
        for worker, values in self._losses.items():
            if wrong is None or not wrong[worker]:
                held = self._layout.held[worker]
                losses[held] = values
                aux.append((held, self._aux[worker]))
        self._result = Round(
            self.messages,
            received,
            self.times,
            now - self._begin,
            losses,
            self._layout.by_part(aux),
            timings={},
            late=None if self._owner is None else self.late,
            wrong=wrong,
            refused=rejected,
        )
