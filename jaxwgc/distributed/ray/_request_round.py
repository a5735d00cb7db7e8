"""Engine of a round on request: workers report parts, and are asked for sums."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.coding import Decoding
from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._fleet import Fleet, WorkerSlot
from jaxwgc.distributed.ray._message_round import Verifier
from jaxwgc.distributed.ray._messages import Layout, Report, Round, is_finite, unpack
from jaxwgc.distributed.ray._part_worker import HOLD_SECONDS, turns_left
from jaxwgc.distributed.ray._request_plan import RequestPlan

# A sum that has not come after these seconds, plus so many times the seconds of the
# others, is not waited for if the others have finished its parts by then.
_PATIENCE_SECONDS, _TIMES_OTHERS = 0.5, 2.0
# Seconds between two looks at a round that waits for sums.
_POLL_SECONDS = 0.1

log = logging.getLogger("jaxwgc.distributed")


class RequestRound:
    """Round engine for codes with several messages per worker: see `RoundEngine`.

    Args:
      fleet: Workers.
      layout: Shapes of the messages.
      plan: `RequestPlan` of the code.
      step: Step, for the log.
      now: Time at which the round begins.
      sums: Memory for the sums, (num_workers, length).
      verifier: Verifier of the sums, or None.

    Attributes:
      requests: (num_workers, messages_per_worker), weights of the sums that workers are
        asked for; None while they compute.
    """

    def __init__(
        self,
        fleet: Fleet,
        layout: Layout,
        plan: RequestPlan,
        step: int,
        now: float,
        sums: np.ndarray,
        verifier: Verifier | None = None,
    ):
        self._fleet, self._layout, self._plan = fleet, layout, plan
        self._begin, self._verifier = now, verifier
        is_held = plan.is_held
        self.number = fleet.begin(step, is_held.shape)
        self.messages = sums
        self.times = np.full(is_held.shape, np.inf)
        # Newest request to each worker, and that of the sum which is here.
        self._asked = np.full(plan.support.shape[:2], np.nan)
        self._answered = self._asked.copy()
        # Turns with available gradients, and turns that a worker has reported.
        self._done = np.zeros(is_held.shape, bool)
        self._reported = ~is_held
        # What each worker was told of its parts: see `turns_left`.
        self._taken = np.zeros(is_held.shape, np.int8)
        # Parts that each worker computes before its next report, by what it was told.
        self._claims = np.zeros((len(is_held), plan.code.num_parts + 1), bool)
        # Workers without parts that count in this round.
        self._is_out = np.zeros(len(is_held), bool)
        self._losses_before = self._losses_known = fleet.num_losses()
        # Loss and aux of the finished turns of each worker.
        self._values: dict[tuple[int, int], tuple[float, Any]] = {}
        self._ends: float | None = None
        self.requests: np.ndarray | None = None
        self._mask = np.zeros(plan.support.shape[:2], bool)
        self._asked_at = self._answered_at = now
        self._wrong: np.ndarray | None = None
        self._result: Round | None = None
        self.poll_at = now
        workers = np.flatnonzero(fleet.are("idle", "computing")).tolist()
        for worker in workers:
            # All are told of the claims of all.
            self._claim_parts(worker)
        for worker in workers:
            self._send(worker, now)

    def handle(self, event: events.Event, now: float) -> Sequence[events.Action]:
        """Returns the actions that an event causes."""
        match event:
            case events.Ready():
                self._fleet.ready(event)
                self._send(event.worker, now)
            case events.Lost():
                self._fleet.lose(event, now)
            case events.PartsDone():
                self._fleet.receive(event, now, self._take_reports)
            case events.Sum():
                self._fleet.receive(event, now, self._take_sum)
        # A worker that was asked for a sum is listened to if one is missing.
        if self.requests is None and self._fleet.slots[event.worker].state == "idle":
            self._listen(event.worker, now)
        return self._advance(now)

    def poll(self, now: float) -> Sequence[events.Action]:
        """Returns the actions that the passing of time causes."""
        self._fleet.poll(now)
        return self._advance(now)

    def result(self) -> Round | None:
        """Returns the round once it is over, None before."""
        return self._result

    def _advance(self, now: float) -> Sequence[events.Action]:
        """Asks for sums, or ends the round, if it is time; returns all actions."""
        self._forget_lost(now)
        if self.requests is None and self._is_over(now):
            self._mask = self._plan.mask(self._done)
            self.requests = self._plan.requests(self._mask)
            self._asked_at = self._answered_at = now
        if self.requests is not None:
            missing = self._missing
            for worker in np.flatnonzero(missing):
                request = self.requests[worker]
                state = self._fleet.slots[worker].state
                is_new = np.any(self._asked[worker] != request)
                if state == "idle" or (is_new and state == "computing"):
                    self._fleet.call(
                        events.Request(int(worker), self.number, request), now
                    )
                    self._asked[worker] = request
            if missing.any():
                self._decode_without(missing, now)
            elif self._is_right(now):
                self._finish(now)
        is_asked = self.requests is not None
        self.poll_at = now + _POLL_SECONDS if is_asked else self._end(self._done)
        return self._fleet.actions()

    @property
    def _missing(self) -> np.ndarray:
        """Workers that were asked and have not sent their sum, bool (num_workers,)."""
        assert self.requests is not None
        return self.requests.any(1) & (self._answered != self.requests).any(1)

    @property
    def _replaced(self) -> np.ndarray:
        """Workers that were lost in this round, bool (num_workers,)."""
        return self._fleet.num_losses() > self._losses_before

    def _send(self, worker: int, now: float) -> None:
        """Sends the parameters to a worker that has anything to do."""
        if self._plan.is_held[worker].any():
            slot = self._fleet.slots[worker]
            seen, slot.num_seen = slot.num_seen, 0
            taken = self._claim_parts(worker)
            arguments = self.number, taken, seen
            self._fleet.call(events.Send(worker, self.number, arguments), now)

    def _listen(self, worker: int, now: float) -> None:
        """Requests the worker's next reports, unless all of its parts are done."""
        if not self._reported[worker].all():
            seen = self._fleet.slots[worker].num_seen
            taken = self._claim_parts(worker)
            call = events.Listen(worker, self.number, seen, taken)
            self._fleet.call(call, now)

    def _listen_to_idle(self, now: float) -> None:
        for slot in self._fleet.slots:
            if slot.state == "idle" and slot.number == self.number:
                self._listen(slot.index, now)

    def _claim_parts(self, worker: int) -> np.ndarray:
        """Returns which parts of a worker others have finished, or are at.

        Also records the parts that the worker claims until its next report: the part
        that it has begun by what it was told before, and at least another. Workers that
        are less than half as fast, or suspected, keep no part from it.
        """
        done, taken = self._reported[worker], self._taken[worker]
        begun = turns_left(taken, done)[:1]
        begun = begun[taken[begun] == 0]
        if self._plan.may_skip:
            numbers = (self._reported & self._plan.is_held).sum(1)
            is_heard = 2 * numbers >= numbers[worker]
            is_heard &= [not slot.is_suspected for slot in self._fleet.slots]
            is_heard[worker] = False
            status = np.zeros(self._plan.code.num_parts + 1, np.int8)
            status[self._claims[is_heard].any(0)] = 1
            status[self._plan.parts[self._done]] = 2
            taken[:] = status[self._plan.parts[worker]]
        free = turns_left(taken, done)
        free = free[taken[free] == 0]
        turns = np.concatenate([begun, np.setdiff1d(free, begun, True)])
        seconds = max(self._fleet.limit.median(worker), 1e-6)
        num_parts = int(np.clip(HOLD_SECONDS / seconds, 2, self._plan.report_size))
        turns = turns[:num_parts]
        self._claims[worker] = False
        self._claims[worker, self._plan.parts[worker, turns]] = True
        return taken[: int(self._plan.is_held[worker].sum())].copy()

    def _is_over(self, now: float) -> bool:
        """Returns whether no more parts are waited for."""
        if self._end(self._done) <= now:
            return True
        mask = self._plan.mask(self._done).ravel()
        return self._fleet.is_hopeless(mask, self._replaced | self._is_out, now)

    def _end(self, done: np.ndarray) -> float:
        """Returns the time at which the waiting rule ends the round."""
        if done is not self._done or self._ends is None:
            rules, times = self._fleet.rules, np.where(done, self.times, np.inf)
            seen = self._plan.seen_times(times, rules.sees_workers)
            ends = self._begin + rules.ends(seen)
            if done is not self._done:
                return ends
            self._ends = ends
        return self._ends

    def _decode_without(self, missing: np.ndarray, now: float) -> None:
        """Asks anew if sums are overdue and the others have finished their parts."""
        seconds_of_others = self._answered_at - self._asked_at
        patience = _PATIENCE_SECONDS + _TIMES_OTHERS * seconds_of_others
        if now - self._asked_at < patience:
            return
        # The workers that have sent their sums go on.
        self._listen_to_idle(now)
        done = self._done & ~missing[:, None]
        is_over = done.any() and self._end(done) <= now
        if is_over or self._fleet.rules.decodes(self._plan.mask(done).ravel()):
            workers = np.flatnonzero(missing).tolist()
            log.info("sums of %s are done without %s", workers, self._fleet.when)
            self._is_out |= missing
            self._done, self.requests, self._ends = done, None, None

    def _take_reports(self, event: events.PartsDone, now: float) -> None:
        slot = self._fleet.slots[event.worker]
        slot.num_seen += len(event.reports)
        for report in event.reports:
            self._note(slot, report, now)

    def _note(self, slot: WorkerSlot, report: Report, now: float) -> None:
        """Notes a finished part; one of an earlier round leaves its seconds only."""
        worker, turn = slot.index, report.turn
        is_known = 0 <= report.number <= self.number
        is_known &= 0 <= turn < self._plan.is_held.shape[1]
        if not (is_known and self._plan.is_held[worker, turn]):
            place = worker, turn, report.number
            log.warning("worker %d reports turn %d of trace row %d: dropped", *place)
            return
        self._fleet.rows[report.number][worker, turn] = report.seconds
        self._fleet.limit.note(worker, report.seconds)
        if report.number != self.number or self._reported[worker, turn]:
            return
        self._reported[worker, turn] = True
        self.times[worker, turn] = now - self._begin
        if not report.is_finite:
            self._fleet.blame(slot, "its message is not finite")
            return
        if slot.away_since is not None and not self._replaced[worker]:
            self._fleet.recover(slot)
        if self._is_out[worker]:
            return
        self._values[worker, turn] = report.loss, report.aux
        self._done[worker, turn] = True
        self._ends = None

    def _take_sum(self, event: events.Sum, now: float) -> None:
        """Copies a sum, so that nothing refers to Ray's memory."""
        worker = event.worker
        slot = self._fleet.slots[worker]
        if event.vector is None:
            raise ValueError("it does not know the round of the request")
        self._layout.check(event.vector)
        self._fleet.limit.note(worker, event.seconds)
        message = self.messages[worker : worker + 1]
        unpack(event.vector, message)
        if is_finite(message):
            self._answered[worker] = self._asked[worker]
            self._answered_at = now
            self._fleet.recover(slot)
        else:
            self._fleet.blame(slot, "its sum is not finite")
            self._is_out[worker] = True
            self._reopen(worker, now)

    def _forget_lost(self, now: float) -> None:
        """Reopens the parts of workers that were lost since the last call."""
        num_losses = self._fleet.num_losses()
        for worker in np.flatnonzero(num_losses > self._losses_known):
            self._reported[worker] = ~self._plan.is_held[worker]
            self._reopen(int(worker), now)
        self._losses_known = num_losses

    def _reopen(self, worker: int, now: float) -> None:
        """Reopens the finished parts of a worker, unless its sum has arrived."""
        was_missing = self.requests is not None and self._missing[worker]
        self._done[worker], self._asked[worker] = False, np.nan
        if was_missing:
            self.requests = None
        if self.requests is None:
            self._ends = None
            self._listen_to_idle(now)

    def _is_right(self, now: float) -> bool:
        """Has the sums verified once; returns whether they can be used."""
        if self._verifier is None or self._wrong is not None:
            return True
        assert self.requests is not None
        self._wrong = self._verifier.check(self).wrong
        self._is_out |= self._wrong
        self._done[self._wrong] = False
        if self._wrong.any():
            # The others finish the parts of these workers, if the rule lets them.
            self.requests = self._ends = None
            self._listen_to_idle(now)
        self._fleet.blame_corrupted(self._wrong, now)
        self._forget_lost(now)
        return not self._wrong.any()

    def _finish(self, now: float) -> None:
        """Stops the workers, and makes the result."""
        for slot in self._fleet.slots:
            if slot.state == "computing" and slot.number == self.number:
                self._fleet.call(events.Stop(slot.index, self.number), now)
        assert self.requests is not None
        received = self.requests.any(1)
        self.messages[~received] = 0
        losses, by_part = np.full(self._plan.code.num_parts, np.nan), []
        for (worker, turn), (loss, aux) in self._values.items():
            part = self._plan.parts[worker, turn]
            is_wrong = self._wrong is not None and self._wrong[worker]
            if np.isnan(losses[part]) and not is_wrong:
                losses[part] = loss
                aux = jax.tree.map(lambda leaf: leaf[None], aux)
                by_part.append((np.array([part]), aux))
        mask = jnp.asarray(self._mask.ravel())
        weights = jnp.asarray(self.requests.reshape(1, -1))
        self._result = Round(
            self.messages,
            received,
            self.times,
            now - self._begin,
            losses,
            self._layout.by_part(by_part),
            timings={},
            decoding=Decoding(self._plan.code, mask, weights),
            wrong=self._wrong,
        )
