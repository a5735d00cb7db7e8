"""Engine of a round in which workers report parts and send sums on request."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.codes import GradientCode
from jaxwgc.coding import Decoding
from jaxwgc.decoders import Decoder
from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._fleet import Fleet, log
from jaxwgc.distributed.ray._messages import Layout, Report, is_finite, unpack
from jaxwgc.distributed.ray._rounds import RoundEngine
from jaxwgc.distributed.ray._worker import HOLD_SECONDS, turns_left

# The wait for a sum ends after these seconds, plus this multiple of the time that other
# sums took, if other workers have then finished its parts.
_PATIENCE_SECONDS = 0.5
_TIMES_OTHERS = 2.0
# Polling interval in seconds while a round waits for sums.
_POLL_SECONDS = 0.1


class RequestPlan(NamedTuple):
    """Turns, messages and sums of a code with several messages per worker.

    A turn is the place of a part among those of a worker.

    Attributes:
      code: Real code of one segment.
      layout: Shapes of the sums.
      find_weights: Maps a mask of messages to decoding weights (1, num_messages).
      parts: int (num_workers, num_turns), part of each turn; num_parts if none.
      is_held: bool (num_workers, num_turns), turns that there are.
      support: bool (num_workers, messages_per_worker, num_turns), turns that a message
        is made of.
      may_skip: Whether workers need not compute parts that others have finished.
    """

    code: GradientCode
    layout: Layout
    find_weights: Callable[[np.ndarray], Any]
    parts: np.ndarray
    is_held: np.ndarray
    support: np.ndarray
    may_skip: bool

    @property
    def report_size(self) -> int:
        """Number of parts that a worker reports at once, if all are equally fast."""
        return -(-self.code.num_parts // self.code.num_workers)

    @classmethod
    def of(cls, code: GradientCode, layout: Layout, decoder: Decoder) -> "RequestPlan":
        """Returns the plan of a code."""
        find_weights = jax.jit(
            lambda mask: decoder.checked_weights(
                code.encoding_matrix, code.segment_targets, mask
            )
        )
        loads = np.asarray(code.parts_per_worker)
        parts = np.full((code.num_workers, max(1, loads.max())), code.num_parts)
        rows = np.asarray(code.encoding_matrix) != 0
        rows = rows.reshape(code.num_workers, code.messages_per_worker, -1)
        support = np.zeros((*rows.shape[:2], parts.shape[1]), bool)
        for worker, load in enumerate(loads):
            held = layout.held[worker][:load]
            parts[worker, :load] = held
            support[worker, :, :load] = rows[worker][:, held]
        is_held = parts < code.num_parts
        may_skip = support.sum(2).max() <= 1
        return cls(code, layout, find_weights, parts, is_held, support, may_skip)

    def mask(self, done: np.ndarray) -> np.ndarray:
        """Returns a mask of finished messages, (num_workers, messages_per_worker)."""
        return ~(self.support & ~done[:, None]).any(2)

    def requests(self, mask: np.ndarray) -> np.ndarray:
        """Returns weights of each worker's sum, (num_workers, messages_per_worker)."""
        weights = np.asarray(self.find_weights(mask.ravel())).reshape(mask.shape)
        return np.where(self.support.any(2), weights, 0)

    def seen_times(self, times: np.ndarray, sees_workers: bool) -> np.ndarray:
        """Converts times of parts to the times that the waiting rule takes."""
        if sees_workers:
            return np.where(self.is_held, times, 0.0).max(1)
        return np.where(self.support, times[:, None], 0.0).max(2).ravel()


class RequestRound(RoundEngine):
    """Round engine for codes with several messages per worker.

    Args:
      fleet: Workers.
      plan: `RequestPlan` of the code.
      step: Step, for the log.
      now: Time at which the round begins.
      sums: Memory for the sums, (num_workers, length).

    Attributes:
      requests: (num_workers, messages_per_worker), weights of the sums that workers are
        asked for; None while they compute.
    """

    def __init__(
        self, fleet: Fleet, plan: RequestPlan, step: int, now: float, sums: np.ndarray
    ):
        super().__init__(fleet, now)
        self._plan = plan
        is_held = plan.is_held
        self._open(plan.layout, step, sums, is_held.shape)
        # Newest request to each worker, and the request to which its received sum
        # responds.
        self._asked = np.full(plan.support.shape[:2], np.nan)
        self._answered = self._asked.copy()
        # Turns with available gradients, and turns that a worker has reported.
        self._done = np.zeros(is_held.shape, bool)
        self._reported = ~is_held
        # State of the parts of each worker, as the worker was last told: see
        # `turns_left`.
        self._taken = np.zeros(is_held.shape, np.int8)
        # Parts that each worker is expected to compute before its next report.
        self._claims = np.zeros((len(is_held), plan.code.num_parts + 1), bool)
        # Workers that are excluded from this round.
        self._is_out = np.zeros(len(is_held), bool)
        self._losses_known = self._losses_before
        self.requests: np.ndarray | None = None
        self._asked_at = self._answered_at = now
        self._wrong: np.ndarray | None = None
        workers = np.flatnonzero(fleet.are("idle", "computing")).tolist()
        for worker in workers:
            # All claims are recorded before the first call, so that each worker is told
            # all of them.
            self._claim_parts(worker)
        for worker in workers:
            self._send(worker, now)

    def _advance(self, now: float) -> None:
        """Requests sums, or ends the round, if the time has come."""
        self._forget_lost()
        if self.requests is None:
            self._listen(now)
            if self._ends is None:
                self._ends = self._end(self._done)
            self.poll_at = self._ends
            self._mask = self._plan.mask(self._done)
            given_up = self._replaced | self._is_out
            self._reason = self._reason_to_stop(self._mask.ravel(), given_up, now)
            if self._reason:
                self.requests = self._plan.requests(self._mask)
                self._asked_at = self._answered_at = now
        if self.requests is not None:
            if (missing := self._missing).any():
                self._request(missing, now)
            elif self._is_right(now):
                self._finish(now)
            # If parts have been reopened, the next poll is due at once.
            self.poll_at = now if self.requests is None else now + _POLL_SECONDS

    @property
    def _missing(self) -> np.ndarray:
        """Workers that have not sent their requested sum, bool (num_workers,)."""
        assert self.requests is not None
        return self.requests.any(1) & (self._answered != self.requests).any(1)

    def _send(self, worker: int, now: float) -> None:
        """Sends the parameters to a worker, if it holds any parts."""
        if self._plan.is_held[worker].any():
            slot = self._fleet.slots[worker]
            num_seen = slot.num_seen
            slot.num_seen = 0
            arguments = self.number, self._claim_parts(worker), num_seen
            call = events.Call(worker, "compute", self.number, arguments)
            self._fleet.call(call, now)

    def _listen(self, now: float) -> None:
        """Requests the next reports of idle workers that have parts left."""
        for slot in self._fleet.slots:
            if slot.state == "idle" and not self._reported[slot.index].all():
                arguments = slot.num_seen, self._claim_parts(slot.index)
                call = events.Call(slot.index, "report", self.number, arguments)
                self._fleet.call(call, now)

    def _claim_parts(self, worker: int) -> np.ndarray:
        """Returns which parts of a worker others have finished or are computing.

        Also records the parts that the worker claims until its next report: the part
        that it has begun by what it was told before, and at least another. Workers that
        are less than half as fast, or suspected, keep no part from it.
        """
        plan = self._plan
        done = self._reported[worker]
        taken = self._taken[worker]
        begun = turns_left(taken, done)[:1]
        begun = begun[taken[begun] == 0]
        if plan.may_skip:
            numbers = (self._reported & plan.is_held).sum(1)
            is_heard = 2 * numbers >= numbers[worker]
            is_heard &= [not slot.is_suspected for slot in self._fleet.slots]
            is_heard[worker] = False
            status = np.zeros(plan.code.num_parts + 1, np.int8)
            status[self._claims[is_heard].any(0)] = 1
            status[plan.parts[self._done]] = 2
            taken[:] = status[plan.parts[worker]]
        free = turns_left(taken, done)
        free = free[taken[free] == 0]
        turns = np.concatenate([begun, np.setdiff1d(free, begun, True)])
        seconds = max(self._fleet.limit.median(worker), 1e-6)
        num_parts = int(np.clip(HOLD_SECONDS / seconds, 2, plan.report_size))
        self._claims[worker] = False
        self._claims[worker, plan.parts[worker, turns[:num_parts]]] = True
        return taken[: int(plan.is_held[worker].sum())].copy()

    def _end(self, done: np.ndarray) -> float:
        """Returns the time at which the waiting rule ends the round."""
        rules = self._fleet.rules
        times = np.where(done, self.times, np.inf)
        times = self._plan.seen_times(times, rules.sees_workers)
        return self._begin + rules.ends(times)

    def _request(self, missing: np.ndarray, now: float) -> None:
        """Requests missing sums, and skips overdue ones if the others suffice."""
        assert self.requests is not None
        for worker in np.flatnonzero(missing).tolist():
            request = self.requests[worker]
            state = self._fleet.slots[worker].state
            is_new = np.any(self._asked[worker] != request)
            if state == "idle" or (is_new and state == "computing"):
                call = events.Call(worker, "answer", self.number, (request,))
                self._fleet.call(call, now)
                self._asked[worker] = request
        seconds_of_others = self._answered_at - self._asked_at
        patience = _PATIENCE_SECONDS + _TIMES_OTHERS * seconds_of_others
        if now - self._asked_at < patience:
            return
        # Workers that have sent their sums continue with their other parts.
        self._listen(now)
        done = self._done & ~missing[:, None]
        is_over = done.any() and self._end(done) <= now
        if is_over or self._fleet.rules.decodes(self._plan.mask(done).ravel()):
            workers = np.flatnonzero(missing).tolist()
            log.info("sums of %s are done without %s", workers, self._fleet.when)
            self._is_out |= missing
            self._done = done
            self.requests = None
            self._ends = None

    def _take(self, event: events.Response, now: float) -> None:
        if isinstance(event.result, list):
            self._fleet.slots[event.worker].num_seen += len(event.result)
            for report in event.result:
                self._take_report(event.worker, report, now)
        else:
            self._take_sum(event, now)

    def _take_report(self, worker: int, report: Report, now: float) -> None:
        """Records a finished part; of a part of an earlier round only the seconds."""
        slot = self._fleet.slots[worker]
        turn = report.turn
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
        if not self._is_out[worker]:
            part = self._plan.parts[worker, [turn]]
            self._values[worker, turn] = part, report.loss, report.aux
            self._done[worker, turn] = True
            self._ends = None

    def _take_sum(self, event: events.Response, now: float) -> None:
        """Copies a sum, so that nothing refers to Ray's memory."""
        worker = event.worker
        slot = self._fleet.slots[event.worker]
        assert isinstance(event.result, np.ndarray)
        self._check(event.result)
        self._fleet.limit.note(worker, event.seconds)
        message = self.messages[worker : worker + 1]
        unpack(event.result, message)
        if is_finite(message):
            self._answered[worker] = self._asked[worker]
            self._answered_at = now
            self._fleet.recover(slot)
        else:
            self._fleet.blame(slot, "its sum is not finite")
            self._is_out[worker] = True
            self._reopen(worker)

    def _forget_lost(self) -> None:
        """Reopens the parts of workers that were lost since the last call."""
        num_losses = self._fleet.num_losses()
        for worker in np.flatnonzero(num_losses > self._losses_known):
            self._reported[worker] = ~self._plan.is_held[worker]
            self._reopen(int(worker))
        self._losses_known = num_losses

    def _reopen(self, worker: int) -> None:
        """Reopens the finished parts of a worker, unless its sum has arrived."""
        if self.requests is not None and self._missing[worker]:
            self.requests = None
        self._done[worker] = False
        self._asked[worker] = np.nan
        self._ends = None

    def _is_right(self, now: float) -> bool:
        """Verifies the sums once, and returns whether they can be used."""
        if self._fleet.verifier is None or self._wrong is not None:
            return True
        self._wrong = wrong = self._fleet.verifier.check(self).wrong
        self._fleet.blame_corrupted(wrong, now)
        self._is_out |= wrong
        self._done[wrong] = False
        if wrong.any():
            # Other workers finish the parts of these workers, if the waiting rule
            # permits.
            self.requests = self._ends = None
        return not wrong.any()

    def _finish(self, now: float) -> None:
        """Stops the workers, and sets the result."""
        assert self.requests is not None
        for slot in self._fleet.slots:
            if slot.state == "computing" and slot.number == self.number:
                call = events.Call(slot.index, "stop", self.number)
                self._fleet.call(call, now)
        received = self.requests.any(1)
        self.messages[~received] = 0
        mask = jnp.asarray(self._mask.ravel())
        weights = jnp.asarray(self.requests.reshape(1, -1))
        decoding = Decoding(self._plan.code, mask, weights)
        self._conclude(received, self._wrong, now, decoding=decoding)
