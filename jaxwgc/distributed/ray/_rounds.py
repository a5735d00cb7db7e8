"""State machines of rounds, and of the start of the workers."""

import abc
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from jaxwgc.coding import Decoding
from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._digests import BatchDigests
from jaxwgc.distributed.ray._errors import error_of_user
from jaxwgc.distributed.ray._fleet import Fleet, log, seconds_of_loads
from jaxwgc.distributed.ray._messages import (
    LateTime,
    Layout,
    PartValues,
    Round,
    WorkerMessage,
    is_finite,
    unpack,
)


class RoundStart(NamedTuple):
    """Arguments of a `RoundEngine` that differ between rounds.

    Attributes:
      step: Number of the step, for the log.
      now: Time at which the round begins.
      messages: Memory for the messages, (num_workers, length).
      is_verified: Whether messages are verified before they are decoded.
    """

    step: int
    now: float
    messages: np.ndarray
    is_verified: bool = False


# Type of `Engine.result`.
Result = TypeVar("Result")


class Engine(abc.ABC, Generic[Result]):
    """Base class of state machines: of a round, or of the start of the workers.

    All times are from the clock of the caller. The caller performs all actions before
    it passes the next event. If messages are `unverified`, the next event is the
    verdict on them.

    The caller passes all events that have arrived before it calls `poll`. Otherwise
    `poll` would treat a worker as silent although its response has arrived.

    Args:
      fleet: Workers.
      now: Time at which the engine begins.

    Attributes:
      poll_at: Time at which `poll` should be called at the latest.
      result: Result of the engine; None until it has ended.
      unverified: Messages that wait for a verdict, or None.
    """

    def __init__(self, fleet: Fleet, now: float):
        self._fleet = fleet
        self._begin = now
        self.poll_at = now
        self.result: Result | None = None
        self.unverified: events.Unverified | None = None

    def handle(self, event: events.Event, now: float) -> Sequence[events.Action]:
        """Handles an event, and returns the actions that it causes."""
        self._note(event, now)
        if self.result is None and self.unverified is None:
            self._advance(now)
        return self._fleet.actions()

    def poll(self, now: float) -> Sequence[events.Action]:
        """Advances to the time `now`, and returns the actions that are due."""
        self._fleet.poll(now)
        if self.result is None and self.unverified is None:
            self._advance(now)
        return self._fleet.actions()

    def _note(self, event: events.Event, now: float) -> None:
        """Gives work to a worker that has started, or records a lost worker."""
        match event:
            case events.Ready():
                self._fleet.ready(event)
                self._send(event.worker, now)
            case events.Lost():
                self._fleet.lose(event, now)

    @abc.abstractmethod
    def _send(self, worker: int, now: float) -> None:
        """Gives work to a worker after the start of its process."""

    @abc.abstractmethod
    def _advance(self, now: float) -> None:
        """Performs what is due at a time, and sets `poll_at` and perhaps `result`."""


class RoundEngine(Engine[Round]):
    """Base class of the state machines of rounds.

    Args:
      fleet: Workers.
      layout: Shapes of the messages.
      start: `RoundStart` of the round.
      shape: Shape of the times of responses, (num_workers, ...).

    Attributes:
      number: Number of the round: its row in the trace.
      messages: Messages of the workers, (num_workers, length).
      times: Seconds from the beginning to each response; infinity if there is none.
    """

    def __init__(
        self, fleet: Fleet, layout: Layout, start: RoundStart, shape: tuple[int, ...]
    ):
        super().__init__(fleet, start.now)
        self._layout = layout
        self._is_verified = start.is_verified
        self.messages = start.messages
        self.number = fleet.begin(start.step, shape)
        self.times = np.full(shape, np.inf)
        self._losses_before = fleet.num_losses()
        self._digests = BatchDigests(fleet.when)
        # Losses and auxiliary outputs in the responses, by worker and position of a
        # part in the worker's list. The position is 0 with one message per worker.
        self._values: dict[tuple[int, int], PartValues] = {}
        # Time at which the waiting rule ends the round. None if it must be computed
        # again.
        self._ends: float | None = None
        # Reason to end the round, in words. Empty while the round waits.
        self._reason = ""
        self._verdict: events.Verdict | None = None
        self._late_times: list[LateTime] = []

    def _note(self, event: events.Event, now: float) -> None:
        match event:
            case events.Response():
                self._fleet.receive(event, now, self._take)
            case events.Verdict():
                self.unverified = None
                self._verdict = event
                self._fleet.blame_corrupted(event.wrong, now)
                self._judge(event, now)
            case events.Lost() if self._ends_training(event):
                # The worker is lost, so that it is replaced if the user catches this
                # error and computes another round.
                self._fleet.lose(event, now)
                why = (
                    f"worker {event.worker} failed {self._fleet.when}: {event.trouble}"
                )
                raise error_of_user(why, event.error) from event.error
            case _:
                super()._note(event, now)

    @abc.abstractmethod
    def _take(self, event: events.Response, now: float) -> None:
        """Handles the response to the newest call of a worker."""

    @abc.abstractmethod
    def _judge(self, verdict: events.Verdict, now: float) -> None:
        """Handles the result of the verification."""

    def _await_verdict(
        self, received: np.ndarray, requests: np.ndarray | None = None
    ) -> None:
        """Sets `unverified`: the round halts until its messages are verified."""
        self.unverified = events.Unverified(
            number=self.number,
            when=self._fleet.when,
            messages=self.messages,
            received=received,
            requests=requests,
        )

    def _ends_training(self, event: events.Lost) -> bool:
        """Returns whether a worker was lost because of an error in the user's data.

        Errors in calls of earlier rounds do not count: these rounds have already raised
        another error.
        """
        return event.ends_training and event.number in (None, self.number)

    @property
    def _replaced(self) -> np.ndarray:
        """Mask of the workers that were lost in this round."""
        return self._fleet.num_losses() > self._losses_before

    def _reason_to_stop(
        self, mask: np.ndarray, given_up: np.ndarray, now: float
    ) -> str:
        """Returns why the round should not wait any longer, or an empty string."""
        assert self._ends is not None
        if self._ends <= now:
            return "the waiting rule ended it"
        return self._fleet.reason_to_stop(mask, given_up, now)

    def _check(self, wire: np.ndarray) -> None:
        """Raises ValueError if a message has a wrong shape."""
        expected = (1, self.messages.shape[1])
        if np.iscomplexobj(self.messages):
            # A complex message is sent as real and imaginary parts.
            expected = (*expected, 2)
        if wire.shape != expected:
            raise ValueError(f"its message has shape {wire.shape}, not {expected}")

    def _conclude(
        self,
        received: np.ndarray,
        now: float,
        *,
        decoding: Decoding | None = None,
        late: np.ndarray | None = None,
    ) -> None:
        """Sets `result` to the `Round` of the messages so far."""
        wrong = None
        is_rejected = False
        if self._verdict is not None:
            wrong = self._verdict.wrong
            is_rejected = self._verdict.rejected
        values = self._layout.by_part(
            values
            for (worker, _), values in self._values.items()
            if wrong is None or not wrong[worker]
        )
        row = self._fleet.rows[self.number]
        (seconds,) = seconds_of_loads(row[None], self._layout.num_held)
        self.result = Round(
            messages=self.messages,
            received=received,
            times=self.times,
            seconds=np.where(np.isfinite(seconds), seconds, np.nan),
            elapsed=now - self._begin,
            known=values.known,
            losses=values.losses,
            aux=values.aux,
            timings={},
            decoding=decoding,
            late=late,
            wrong=wrong,
            rejected=is_rejected,
            reason=self._reason,
            late_times=tuple(self._late_times),
        )


# Number of deaths of a worker's process at which the start of a cluster fails.
_MAX_DEATHS_AT_START = 3


class StartUp(Engine[bool]):
    """State machine that starts all workers.

    Its result is True.
    """

    def handle(self, event: events.Event, now: float) -> Sequence[events.Action]:
        """Handles an event; raises an error if a worker cannot start.

        A process that has died is started again, but the third death is an error.
        """
        actions = super().handle(event, now)
        if isinstance(event, events.Lost):
            num_failures = self._fleet.slots[event.worker].num_failures
            if not event.has_died or num_failures == _MAX_DEATHS_AT_START:
                why = f"worker {event.worker} failed to start: {event.trouble}"
                raise error_of_user(why, event.error) from event.error
        return actions

    def _send(self, worker: int, now: float) -> None:
        slots = self._fleet.slots
        num_ready = self._fleet.are("idle").sum()
        text = "%d of %d workers are ready: worker %d on %s"
        log.info(text, num_ready, len(slots), worker, slots[worker].where)

    def _advance(self, now: float) -> None:
        """Sets the result if all workers are ready; raises an error after a timeout."""
        waiting = np.flatnonzero(~self._fleet.are("idle")).tolist()
        limit = self._fleet.timeouts.start
        self.poll_at = np.inf
        if waiting and now - self._begin > limit:
            why = f"workers {waiting} have not started within {limit} seconds"
            raise RuntimeError(f"{why}: run `ray status` to see free resources")
        if not waiting:
            self.result = True
            for slot in self._fleet.slots:
                self._fleet.recover(slot)


class MessageRound(RoundEngine):
    """State machine of rounds with one message per worker.

    Args:
      fleet: Workers.
      layout: Shapes of the messages.
      start: `RoundStart` of the round.
      owner: Late messages of earlier rounds with the same owner are stored. None stores
        no late messages.
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
        """Mask of the workers that have responded in this round."""
        return np.isfinite(self.times)

    def _send(self, worker: int, now: float) -> None:
        # A worker that was lost after its response is not called again, because its
        # message has arrived.
        if not self.received[worker]:
            call = events.Call(worker, "compute", self.number)
            self._fleet.call(call, now, self._owner)

    def _advance(self, now: float) -> None:
        if self._ends is None:
            self._ends = self._begin + self._fleet.rules.ends(self.times)
        self.poll_at = self._ends
        # If a worker was lost in this round, the round waits for its replacement only
        # while the messages do not decode, for at most `timeouts.replacement` seconds.
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
        """Sets the result, with the late messages if they are stored."""
        late = None if self._owner is None else self.late
        self._conclude(received, now, late=late)

    def _take(self, event: events.Response, now: float) -> None:
        """Stores a worker's message, or records the response time of a late message.

        A late message is stored only if its round had the same owner as this round. Its
        worker is then called for this round.
        """
        worker = event.worker
        received = event.result
        assert isinstance(received, WorkerMessage)
        slot = self._fleet.slots[worker]
        is_mine = slot.number == self.number
        self._check(received.message)
        self._fleet.limit.note(worker, event.seconds)
        message = self.messages[worker : worker + 1]
        if is_mine or slot.owner is self._owner is not None:
            unpack(received.message, message)
            self.late[worker] = not is_mine and is_finite(message)
        if is_mine:
            self._digests.check(worker, self._layout.held[worker], received.digests)
        if is_mine and not is_finite(message):
            trouble = self._layout.not_finite("message", received.not_finite)
            self._fleet.blame(slot, trouble)
            return
        if is_mine or slot.away_since is not None:
            # Late messages are not decoded, but show that the process works again.
            self._fleet.recover(slot)
        self._fleet.rows[slot.number][worker] = event.seconds
        if is_mine:
            self._values[worker, 0] = PartValues(
                parts=self._layout.held[worker],
                losses=received.losses,
                aux=received.aux,
            )
            self.times[worker] = now - self._begin
            self._ends = None
        else:
            late = LateTime(worker, self.number - slot.number, event.seconds)
            self._late_times.append(late)
            self._send(worker, now)
