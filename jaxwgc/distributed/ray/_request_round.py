"""State machine of a round in which workers send sums on request.

A round has two phases. Workers first compute parts and report them, until the waiting
rule ends this phase. The coordinator then collects one weighted sum from each worker
that the decoding needs. If a sum does not come, the first phase continues.

The coordinator tells each worker which sum it expects to request. The worker sends this
sum with the last report of its parts. If the decoding needs exactly this sum, it is not
requested again.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxwgc.coding import Decoding
from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._fleet import Fleet, log
from jaxwgc.distributed.ray._messages import (
    HOLD_SECONDS,
    PartValues,
    Progress,
    Report,
    is_finite,
    unpack,
)
from jaxwgc.distributed.ray._part_states import (
    SETTLED,
    PartEvent,
    PartStates,
    PartStatus,
)
from jaxwgc.distributed.ray._request_plan import RequestPlan
from jaxwgc.distributed.ray._rounds import RoundEngine, RoundStart

# Lower bound of times in denominators, in seconds: a measured time may be 0.
_SHORTEST_SECONDS = 1e-6


class WorkSharing:
    """Decides which parts each worker claims, and which it leaves to other workers.

    A worker claims the parts that it is expected to compute before its next report. It
    leaves parts to its helpers: workers that are at least half as fast, and are not
    suspected.

    Args:
      plan: `RequestPlan` of the code.
      parts: `PartStates` of the round. `update` changes them.
      fleet: Workers.
      times: Seconds from the start of the round to each report, (num_workers,
        num_positions); infinity if there is none. The round changes this array.
    """

    def __init__(
        self, plan: RequestPlan, parts: PartStates, fleet: Fleet, times: np.ndarray
    ):
        self._plan = plan
        self._parts = parts
        self._fleet = fleet
        self._times = times

    def update(self, worker: int, elapsed: float, *, has_begun: bool) -> None:
        """Updates which parts a worker claims, and which it leaves to others.

        Args:
          worker: Index of the worker.
          elapsed: Seconds since the start of the round.
          has_begun: Whether the worker is computing. It then keeps the part that it has
            begun: the first part that was free when the worker was last called.
        """
        parts = self._parts
        num_claims = self._num_claims(worker)
        unfinished = parts.positions(worker, [PartStatus.HELD, PartStatus.COMPUTING])
        begun = unfinished[:1]
        parts.apply_to_worker(PartEvent.RELEASE, worker)
        if self._plan.may_skip:
            finished = self._held_among(worker, parts.reported_parts())
            parts.apply(PartEvent.COVER, worker, finished)
        if has_begun:
            free = parts.positions(worker, [PartStatus.HELD])
            parts.apply(PartEvent.CLAIM, worker, np.intersect1d(begun, free))
            num_claims -= len(begun)
        if self._plan.may_skip:
            computed = parts.parts_computed_by(self._helpers(worker, elapsed))
            parts.apply(PartEvent.TAKE, worker, self._held_among(worker, computed))
        free = parts.positions(worker, [PartStatus.HELD])
        parts.apply(PartEvent.CLAIM, worker, free[:num_claims])

    def _held_among(self, worker: int, is_included: np.ndarray) -> np.ndarray:
        """Returns the positions of a worker's HELD parts that a mask includes."""
        positions = self._parts.positions(worker, [PartStatus.HELD])
        return positions[is_included[self._plan.parts[worker, positions]]]

    def _helpers(self, worker: int, elapsed: float) -> np.ndarray:
        """Returns a mask of the workers to which a worker may leave its parts.

        These workers are at least half as fast, and not suspected. Claimed parts count
        as finished, because a worker reports several parts together.
        """
        num_expected = self._parts.num_finished + self._parts.num_claimed
        is_fast_enough = 2 * num_expected >= self._rate(worker) * elapsed
        is_helper = is_fast_enough & ~self._fleet.are_suspected
        is_helper[worker] = False
        return is_helper

    def _rate(self, worker: int) -> float:
        """Returns a worker's highest rate in the round so far, in parts per second."""
        times = np.sort(self._times[worker])
        num_reported = np.arange(len(times)) + 1
        return float(np.max(num_reported / np.maximum(times, _SHORTEST_SECONDS)))

    def _num_claims(self, worker: int) -> int:
        """Estimates how many parts a worker will finish before its next report.

        At least two parts, the begun one and another, and at most `report_size`.
        """
        seconds = max(self._fleet.limit.median(worker), _SHORTEST_SECONDS)
        return int(np.clip(HOLD_SECONDS / seconds, 2, self._plan.report_size))


# Time limit for a requested sum if the round can end without it: `_PATIENCE_SECONDS`,
# plus `_TIMES_OTHERS` times the seconds from the requests to the newest other sum.
_PATIENCE_SECONDS = 0.5
_TIMES_OTHERS = 2.0
# Polling interval in seconds while a round waits for sums.
_POLL_SECONDS = 0.1


@dataclasses.dataclass(eq=False)
class _RequestedSum:
    """Sum that was requested from a worker, or that it sent without a request.

    Attributes:
      weights: Weights of the request, (messages_per_worker,).
      has_arrived: Whether the coordinator has the sum.
    """

    weights: np.ndarray
    has_arrived: bool = False


class ExpectedSums:
    """Predicts the weights of the sums that the next round will request.

    If the last two rounds requested equal sums from a worker, the next round is
    expected to request this sum, too. Otherwise it is expected to request the sum of a
    round in which all messages are finished.

    Args:
      usual: Requests of a round in which all messages are finished, (num_workers,
        messages_per_worker).

    Attributes:
      weights: Expected requests, (num_workers, messages_per_worker).
    """

    def __init__(self, usual: np.ndarray):
        self._usual = usual
        self._newest = usual
        self.weights = usual

    def note(self, requests: np.ndarray) -> None:
        """Records the requests of a round, and updates the expected ones."""
        is_same = (requests == self._newest).all(axis=1, keepdims=True)
        self.weights = np.where(is_same, requests, self._usual)
        self._newest = requests


class RequestRound(RoundEngine):
    """State machine of a round on request.

    Args:
      fleet: Workers.
      plan: `RequestPlan` of the code.
      start: `RoundStart` of the round; its `messages` are memory for the sums.
      expected: `ExpectedSums.weights`.

    Attributes:
      requests: Weights of the requested sums, (num_workers, messages_per_worker); None
        in the first phase.
    """

    def __init__(
        self, fleet: Fleet, plan: RequestPlan, start: RoundStart, expected: np.ndarray
    ):
        super().__init__(fleet, plan.layout, start, plan.parts.shape)
        self._plan = plan
        self._expected = expected
        self._parts = PartStates(plan.parts, plan.code.num_parts)
        self._sharing = WorkSharing(plan, self._parts, fleet, self.times)
        num_workers, messages_per_worker, _ = plan.support.shape
        # Newest request to each worker, or its expected sum. It is removed if the
        # worker is lost or excluded before the sum arrives.
        self._sums: dict[int, _RequestedSum] = {}
        self.requests: np.ndarray | None = None
        # Time until which each worker rests, after it has sent its expected sum and
        # left its other parts to other workers. A worker of half the speed can send its
        # sum in this time.
        self._rest_until = np.full(num_workers, -np.inf)
        # Mask of the messages that were finished at the end of the first phase. The
        # requested sums contain these messages only.
        self._mask = np.zeros((num_workers, messages_per_worker), bool)
        # Time of the newest requests, and of the newest sum that arrived after them.
        self._requested_at = start.now
        self._newest_sum_at = start.now
        workers = np.flatnonzero(fleet.are("idle", "computing")).tolist()
        # All claims are recorded before the first call, because each call tells its
        # worker which parts other workers have claimed.
        for worker in workers:
            self._parts.apply_to_worker(PartEvent.SEND, worker)
            self._sharing.update(worker, elapsed=0.0, has_begun=False)
        for worker in workers:
            self._call_compute(worker, start.now)

    @property
    def _missing(self) -> np.ndarray:
        """Mask of the workers that have not sent their requested sum."""
        assert self.requests is not None
        missing = self.requests.any(1)
        for worker, requested in self._sums.items():
            if requested.has_arrived and self._is_requested(worker):
                missing[worker] = False
        return missing

    def _is_requested(self, worker: int) -> bool:
        """Returns whether a worker's sum was requested, or sent without a request."""
        assert self.requests is not None
        requested = self._sums.get(worker)
        return requested is not None and np.array_equal(
            requested.weights, self.requests[worker]
        )

    def _send(self, worker: int, now: float) -> None:
        self._parts.apply_to_worker(PartEvent.SEND, worker)
        self._call_compute(worker, now)

    def _advance(self, now: float) -> None:
        """Records losses, and requests reports or sums, or ends the round."""
        self._note_losses()
        if self.requests is None:
            self._request_reports(now)
            self._end_first_phase(now)
        if self.requests is not None:
            self._collect_sums(now)

    # First phase: workers compute parts and report finished ones.

    def _call_compute(self, worker: int, now: float) -> None:
        """Calls `compute` of a worker if it has unfinished parts in this round."""
        if not self._parts.have_open[worker]:
            return
        self._sharing.update(worker, now - self._begin, has_begun=False)
        slot = self._fleet.slots[worker]
        call = events.Call(
            worker=worker,
            method="compute",
            number=self.number,
            arguments=(
                self.number,
                self._parts.taken(worker),
                slot.num_seen,
                self._expected[worker],
            ),
        )
        slot.num_seen = 0
        self._fleet.call(call, now)

    def _request_reports(self, now: float) -> None:
        """Requests reports from idle workers that have unfinished parts.

        A worker that rests is not called: see `_rest_until`.
        """
        are_due = self._have_no_call & (self._rest_until <= now)
        for worker in np.flatnonzero(are_due).tolist():
            self._sharing.update(worker, now - self._begin, has_begun=True)
            num_seen = self._fleet.slots[worker].num_seen
            call = events.Call(
                worker=worker,
                method="report",
                number=self.number,
                arguments=(num_seen, self._parts.taken(worker)),
            )
            self._fleet.call(call, now)

    @property
    def _have_no_call(self) -> np.ndarray:
        """Mask of the idle workers that have unfinished parts."""
        return self._fleet.are("idle") & self._parts.have_open

    def _end_first_phase(self, now: float) -> None:
        """Computes which sums to request if the round need not wait any longer."""
        is_reported = self._parts.is_reported
        if self._ends is None:
            self._ends = self._end_time(is_reported)
        self.poll_at = self._ends
        resting = self._have_no_call
        if self._ends > now and resting.any():
            # The next poll is due when a resting worker can continue, at the latest.
            self.poll_at = min(self._ends, self._rest_until[resting].min())
            return
        self._mask = self._plan.mask(is_reported)
        given_up = self._replaced | self._parts.is_excluded
        self._reason = self._reason_to_stop(self._mask.ravel(), given_up, now)
        if self._reason:
            self.requests = self._plan.requests(self._mask)
            self._requested_at = now
            self._newest_sum_at = now

    def _end_time(self, is_reported: np.ndarray) -> float:
        """Returns the time at which the waiting rule ends the first phase.

        Args:
          is_reported: bool (num_workers, num_positions), reported parts.
        """
        rules = self._fleet.rules
        times = np.where(is_reported, self.times, np.inf)
        times = self._plan.seen_times(times, rules.sees_workers)
        return self._begin + rules.ends(times)

    # Second phase: the coordinator collects the sums of the workers.

    def _collect_sums(self, now: float) -> None:
        """Requests missing sums, or has all sums verified, or ends the round.

        If a worker is excluded, the first phase continues at once.
        """
        self.poll_at = now + _POLL_SECONDS
        missing = self._missing
        if missing.any():
            self._request_sums(missing, now)
            self._exclude_overdue(missing, now)
        elif self._is_verified and self._verdict is None:
            assert self.requests is not None
            self._await_verdict(self.requests.any(1), self.requests)
        else:
            self._finish(now)

    def _request_sums(self, missing: np.ndarray, now: float) -> None:
        """Requests missing sums, except those that workers are computing already."""
        assert self.requests is not None
        for worker in np.flatnonzero(missing).tolist():
            state = self._fleet.slots[worker].state
            is_new = not self._is_requested(worker)
            if state == "idle" or (is_new and state == "computing"):
                request = self.requests[worker]
                call = events.Call(
                    worker=worker,
                    method="send_sum",
                    number=self.number,
                    arguments=(request,),
                )
                self._fleet.call(call, now)
                self._sums[worker] = _RequestedSum(request)

    def _exclude_overdue(self, missing: np.ndarray, now: float) -> None:
        """Excludes workers with overdue sums if the round can end without them."""
        seconds_of_others = self._newest_sum_at - self._requested_at
        patience = _PATIENCE_SECONDS + _TIMES_OTHERS * seconds_of_others
        if now - self._requested_at < patience:
            return
        # Workers that have sent their sums compute their other parts, which may replace
        # the overdue sums.
        self._request_reports(now)
        is_reported = self._parts.is_reported & ~missing[:, None]
        is_over = is_reported.any() and self._end_time(is_reported) <= now
        mask = self._plan.mask(is_reported).ravel()
        if is_over or self._fleet.rules.decodes(mask):
            workers = np.flatnonzero(missing).tolist()
            log.info("sums of %s are done without %s", workers, self._fleet.when)
            for worker in workers:
                self._withdraw(PartEvent.EXCLUDE, worker)
            self.poll_at = now

    def _judge(self, verdict: events.Verdict, now: float) -> None:
        """Excludes corrupted workers; the first phase continues if there are any."""
        for worker in np.flatnonzero(verdict.wrong).tolist():
            self._withdraw(PartEvent.EXCLUDE, worker)
        if verdict.wrong.any():
            self.requests = None

    def _finish(self, now: float) -> None:
        """Stops the workers, and sets the result of the round."""
        assert self.requests is not None
        for slot in self._fleet.slots:
            if slot.state == "computing" and slot.number == self.number:
                call = events.Call(slot.index, "stop", self.number)
                self._fleet.call(call, now)
        received = self.requests.any(1)
        self.messages[~received] = 0
        decoding = Decoding(
            code=self._plan.code,
            mask=jnp.asarray(self._mask.ravel()),
            weights=jnp.asarray(self.requests.reshape(1, -1)),
        )
        self._conclude(received, now, decoding=decoding)

    # Responses and losses, in both phases.

    def _take(self, event: events.Response, now: float) -> None:
        worker = event.worker
        match event.result:
            case Progress():
                reports = event.result.reports
                self._fleet.slots[worker].num_seen += len(reports)
                if reports:
                    seconds = [report.seconds for report in reports]
                    self._fleet.limit.note(worker, *seconds)
                for report in reports:
                    self._take_report(worker, report, now)
                if event.result.expected_sum is not None and self.requests is None:
                    self._take_expected_sum(worker, event.result.expected_sum, now)
            case np.ndarray():
                self._fleet.limit.note(worker, event.seconds)
                self._take_sum(worker, event.result, now)

    def _take_report(self, worker: int, report: Report, now: float) -> None:
        """Records a finished part; for a part of an earlier round, only its seconds."""
        position = report.position
        self._fleet.rows[report.number][worker, position] = report.seconds
        if report.number != self.number:
            return
        if report.digest is not None:
            part = self._plan.parts[worker, [position]]
            self._digests.check(worker, part, [report.digest])
        if self._parts.status(worker, position) in SETTLED:
            return
        slot = self._fleet.slots[worker]
        self.times[worker, position] = now - self._begin
        if not report.is_finite:
            self._parts.apply(PartEvent.REPORT_NOT_FINITE, worker, np.array([position]))
            part = int(self._plan.parts[worker, position])
            self._fleet.blame(slot, self._layout.not_finite("message", [part]))
            return
        self._parts.apply(PartEvent.REPORT, worker, np.array([position]))
        self._ends = None
        self._values[worker, position] = PartValues(
            parts=self._plan.parts[worker, [position]],
            losses=report.loss,
            aux=report.aux,
        )
        if slot.away_since is not None and not self._replaced[worker]:
            self._fleet.recover(slot)

    def _take_expected_sum(self, worker: int, wire: np.ndarray, now: float) -> None:
        """Stores a sum that came without a request, and updates the worker's claims."""
        self._check(wire)
        message = self.messages[worker : worker + 1]
        unpack(wire, message)
        if is_finite(message):
            self._sums[worker] = _RequestedSum(self._expected[worker], has_arrived=True)
        else:
            # This sum is not finite, and has overwritten an earlier sum of the worker.
            self._sums.pop(worker, None)
        elapsed = now - self._begin
        self._sharing.update(worker, elapsed, has_begun=False)
        if not self._parts.num_claimed[worker]:
            self._rest_until[worker] = now + min(elapsed, HOLD_SECONDS)

    def _take_sum(self, worker: int, wire: np.ndarray, now: float) -> None:
        """Stores a requested sum, or excludes the worker if the sum is not finite."""
        slot = self._fleet.slots[worker]
        self._check(wire)
        message = self.messages[worker : worker + 1]
        unpack(wire, message)
        if is_finite(message):
            requested = self._sums.get(worker)
            # `requested` is None if the worker was excluded before its overdue sum
            # arrived.
            if requested is not None:
                requested.has_arrived = True
            self._newest_sum_at = now
            self._fleet.recover(slot)
        else:
            self._fleet.blame(slot, self._layout.not_finite("sum"))
            self._withdraw(PartEvent.EXCLUDE, worker)

    def _note_losses(self) -> None:
        """Withdraws the parts of workers that no longer have a running process."""
        is_running = self._fleet.are("idle", "computing")
        for worker in np.flatnonzero(self._parts.have_round & ~is_running).tolist():
            self._withdraw(PartEvent.LOSE, worker)

    def _withdraw(self, event: PartEvent, worker: int) -> None:
        """Marks all parts of a worker as lost or excluded.

        If the worker's requested sum is missing, the first phase continues. A sum that
        arrived before a loss still counts.
        """
        if self.requests is not None and self._missing[worker]:
            self.requests = None
        if worker in self._sums and not self._sums[worker].has_arrived:
            del self._sums[worker]
        self._parts.apply_to_worker(event, worker)
        self._ends = None
