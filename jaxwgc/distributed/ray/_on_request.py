"""Rounds on request: workers say what they have finished, and are asked for sums."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.codes import GradientCode
from jaxwgc.coding import Decoding
from jaxwgc.distributed.ray._coordinator import PAUSE, Coordinator, log, packed_order
from jaxwgc.distributed.ray._messages import Report, Round, is_finite, unpack
from jaxwgc.distributed.ray._part_worker import turns_left
from jaxwgc.distributed.ray._slots import RoundTimes, WorkerSlot, first_ready

# A sum that has not come after that many seconds, and as many times what the others
# took, is done without, if the others have its parts by then.
_PATIENCE, _TIMES_OTHERS = 0.5, 2.0


class PartRound:
    """A round that is under way.

    Attributes:
      this: when it began, and when each part was finished, (num_workers, num_turns).
      number: of the round.
      order: what workers are sent.
      sums: (num_workers, length), from those who have answered.
      asked: (num_workers, messages_per_worker), the newest request to each.
      answered: likewise, that of the sum which is here.
      done: bool (num_workers, num_turns), parts whose gradients can be asked for.
      reported: bool, likewise, of which a worker has told.
      taken: int (num_workers, num_turns), the newest that each was told: see
        `turns_left`.
      claims: (num_workers, 2), the parts that each is at, and does next by that.
      is_out: bool (num_workers,), whose parts count no more in this round.
      replaced: bool (num_workers,), who was lost in this round.
      losses: float (num_parts,), NaN where not known.
      aux: of parts.
      ends: when the rule ends it, unless more is finished; None: it has to be asked.
      requests: (num_workers, messages_per_worker), what is asked for; None before.
      mask: bool, likewise, the messages that were there then.
      asked_at: when that was.
      answered_at: when the last sum came.
      wrong: bool (num_workers,), who was found wrong; None: nobody has looked.
      examination: seconds that it took to look.
    """

    def __init__(
        self, coordinator: "OnRequest", this: RoundTimes, number: int, order: Any
    ):
        num_workers, num_turns = this.times.shape
        self.this, self.number, self.order = this, number, order
        self.sums = coordinator.borrow()
        self.asked = np.full((num_workers, coordinator.support.shape[1]), np.nan)
        self.answered = self.asked.copy()
        self.done = np.zeros((num_workers, num_turns), bool)
        self.reported = ~coordinator.is_held
        self.taken = np.zeros((num_workers, num_turns), np.int8)
        self.claims = np.full((num_workers, 2), coordinator.code.num_parts)
        self.is_out = np.zeros(num_workers, bool)
        self.replaced = np.zeros(num_workers, bool)
        self.losses = np.full(coordinator.layout.num_parts, np.nan)
        self.aux: list[tuple[np.ndarray, Any]] = []
        self.ends: float | None = None
        self.requests: np.ndarray | None = None
        self.mask: np.ndarray | None = None
        self.asked_at = self.answered_at = 0.0
        self.wrong: np.ndarray | None = None
        self.examination = 0.0

    @property
    def missing(self) -> np.ndarray:
        """Bool (num_workers,), who was asked and has not answered."""
        assert self.requests is not None
        return self.requests.any(1) & (self.answered != self.requests).any(1)


@dataclasses.dataclass(eq=False)
class OnRequest(Coordinator):
    """A coordinator of a code of several messages a worker: see there.

    Attributes:
      ends: sees the time of each message, (num_messages,); or with `sees_workers` of
        all parts of each worker.
      code: a real code of one segment.
      find_weights: of a mask of messages, the decoding weights (1, num_messages).
      sees_workers: see `ends`.
    """

    code: GradientCode
    find_weights: Callable[[np.ndarray], Any]
    sees_workers: bool

    def __post_init__(self):
        super().__post_init__()
        code = self.code
        loads = np.asarray(code.parts_per_worker)
        self.is_held = np.arange(max(1, loads.max())) < loads[:, None]
        # Which part is computed at which turn; one that there is not, where none is.
        self._parts = np.full(self.is_held.shape, code.num_parts)
        shape = code.num_workers, code.messages_per_worker
        rows = np.asarray(code.encoding_matrix).reshape(*shape, -1) != 0
        # Which turns a message is made of.
        self.support = np.zeros((*shape, self.is_held.shape[1]), bool)
        for worker, load in enumerate(loads):
            held = self.layout.held[worker][:load]
            self._parts[worker, :load] = held
            self.support[worker, :, :load] = rows[worker][:, held]
        # Then nobody need compute what others have finished.
        self._may_skip = self.support.sum(2).max() <= 1
        self._round: PartRound | None = None

    def borrow(self) -> np.ndarray:
        """Returns memory for the sums of a round."""
        return self._memory.borrow()

    def run(
        self, step: int, leaves: list[np.ndarray], key: Any, owner: Any = None
    ) -> Round:
        """Returns one round: see `RayCluster.compute`."""
        number, this = len(self.times), self._begin(step, self.is_held.shape)
        round = PartRound(self, this, number, packed_order(leaves, key, step))
        self._round = round
        for slot in self.slots:
            if slot.is_idle or slot.is_computing:
                self._send(slot, round)
        timings = {"broadcast": this.now, "transfer": 0.0}
        try:
            while not (self._is_complete(round) and self._is_right(round)):
                slot = first_ready(self.slots, self._seconds(round))
                if slot is not None:
                    start = time.monotonic()
                    self._attempt(self._take, slot, round)
                    timings["transfer"] += time.monotonic() - start
                self._retire_silent()
                self._relaunch()
        finally:
            self._round = None
        for slot in self.slots:
            if slot.round is this and slot.is_computing:
                slot.call("stop", this, round.number)
        assert round.requests is not None and round.mask is not None
        received = round.requests.any(1)
        round.sums[~received] = 0
        weights = jnp.asarray(round.requests.reshape(1, -1))
        if round.wrong is not None:
            timings["examination"] = round.examination
        return Round(
            round.sums,
            received,
            this.times,
            this.now,
            round.losses,
            self.layout.by_part(round.aux),
            timings,
            Decoding(self.code, jnp.asarray(round.mask.ravel()), weights),
            wrong=round.wrong,
        )

    def _is_right(self, round: PartRound) -> bool:
        """Returns whether sums that are there are to be used: without audits, all."""
        return True

    def _send(self, slot: WorkerSlot, round: PartRound) -> None:
        """The parameters, to who has anything to do."""
        if self.is_held[slot.index].any():
            seen, slot.num_seen = slot.num_seen, 0
            taken = self._take_turns(slot.index, round)
            slot.call("compute", round.this, round.order, round.number, taken, seen)

    def _listen(self, slot: WorkerSlot, round: PartRound) -> None:
        """For the next report, if there is one to come."""
        if not round.reported[slot.index].all():
            taken = self._take_turns(slot.index, round)
            slot.call("report", round.this, round.number, slot.num_seen, taken)

    def _listen_to_idle(self, round: PartRound) -> None:
        for slot in self.slots:
            if slot.is_idle and slot.round is round.this:
                self._listen(slot, round)

    def _take_turns(self, worker: int, round: PartRound) -> np.ndarray:
        """Returns what others have finished of the parts of a worker, or are at.

        And notes what it does itself until it is told again: the part which it has
        begun by what it was told before, and another. Who is less than half as fast
        keeps none from it.
        """
        done, taken = round.reported[worker], round.taken[worker]
        begun = turns_left(taken, done)[:1]
        begun = begun[taken[begun] == 0]
        if self._may_skip:
            numbers = (round.reported & self.is_held).sum(1)
            is_heard = 2 * numbers >= numbers[worker]
            is_heard[worker] = False
            status = np.zeros(self.layout.num_parts + 1, np.int8)
            status[round.claims[is_heard]] = 1
            status[self._parts[round.done]] = 2
            taken[:] = status[self._parts[worker]]
        free = turns_left(taken, done)
        free = free[taken[free] == 0]
        turns = np.concatenate([begun, np.setdiff1d(free, begun, True)])[:2]
        round.claims[worker] = self.code.num_parts
        round.claims[worker, : len(turns)] = self._parts[worker, turns]
        return taken[: int(self.is_held[worker].sum())]

    def _is_complete(self, round: PartRound) -> bool:
        """Asks for sums once the round is over; returns whether all are there."""
        self._check_open()
        if round.requests is None:
            gone = round.replaced | round.is_out
            if self._seconds(round) == 0 or self._is_hopeless(
                self._mask(round.done).ravel(), gone
            ):
                self._ask(round)
        if round.requests is None:
            return False
        missing = round.missing
        for worker in np.flatnonzero(missing):
            slot, request = self.slots[worker], round.requests[worker]
            if slot.is_idle or np.any(round.asked[worker] != request):
                if slot.call("answer", round.this, round.number, request):
                    round.asked[worker] = request
        if missing.any():
            self._do_without(missing, round)
        return not missing.any()

    def _seconds(self, round: PartRound) -> float:
        """Returns how long to wait for reports, or for sums."""
        if round.requests is not None:
            return PAUSE
        if round.ends is None:
            round.ends = self._end(round.done, round)
        return float(np.clip(round.ends - round.this.now, 0.0, PAUSE))

    def _end(self, done: np.ndarray, round: PartRound) -> float:
        """Asks the rule."""
        times = np.where(done, round.this.times, np.inf)
        if self.sees_workers:
            return self.ends(np.where(self.is_held, times, 0.0).max(1))
        return self.ends(np.where(self.support, times[:, None], 0.0).max(2).ravel())

    def _mask(self, done: np.ndarray) -> np.ndarray:
        """Returns the messages that are there, (num_workers, messages_per_worker)."""
        return ~(self.support & ~done[:, None]).any(2)

    def _ask(self, round: PartRound) -> None:
        """One finisher a part, or what else the decoder says: for one sum of each."""
        round.mask = self._mask(round.done)
        weights = np.asarray(self.find_weights(round.mask.ravel()))
        round.requests = np.where(
            self.support.any(2), weights.reshape(round.mask.shape), 0
        )
        round.asked_at = round.answered_at = time.monotonic()

    def _do_without(self, missing: np.ndarray, round: PartRound) -> None:
        """Asks anew where sums are overdue, and the others have finished all of it."""
        now, taken = time.monotonic(), round.answered_at - round.asked_at
        if now - round.asked_at < _PATIENCE + _TIMES_OTHERS * taken:
            return
        # From those who have sent theirs.
        self._listen_to_idle(round)
        done = round.done & ~missing[:, None]
        is_over = done.any() and self._end(done, round) <= round.this.now
        if is_over or self.decodes(self._mask(done).ravel()):
            log.info(
                "sums of workers %s are done without %s",
                np.flatnonzero(missing).tolist(),
                self._when,
            )
            round.is_out |= missing
            round.done, round.requests, round.ends = done, None, None

    def _take(self, slot: WorkerSlot, round: PartRound) -> None:
        """Reads reports, or a sum, whose memory is Ray's."""
        if slot.round is None:
            self._welcome(slot)
            self._send(slot, round)
            return
        result = slot.result()
        if slot.round is not round.this:
            self._send(slot, round)
            return
        if result is None:
            raise RuntimeError("it does not know the round that it was asked for")
        if isinstance(result, np.ndarray):
            self._take_sum(slot, result, round)
        else:
            slot.num_seen += len(result)
            for report in result:
                self._note(slot, report, round)
        # Who was asked goes on, and is listened to only where a sum is missing.
        if round.requests is None and slot.is_idle:
            self._listen(slot, round)

    def _take_sum(self, slot: WorkerSlot, wire: np.ndarray, round: PartRound) -> None:
        worker = slot.index
        self.layout.check(wire)
        message = round.sums[worker : worker + 1]
        unpack(wire, message)
        if is_finite(message):
            round.answered[worker] = round.asked[worker]
            round.answered_at = time.monotonic()
            self._recover(slot)
        else:
            self._blame(slot, "its sum is not finite")
            round.is_out[worker] = True
            self._reopen(worker, round)

    def _note(self, slot: WorkerSlot, report: Report, round: PartRound) -> None:
        """Notes a finished part; one of an earlier round leaves its seconds only."""
        worker, turn = slot.index, report.turn
        is_known = 0 <= report.number <= round.number
        is_known &= 0 <= turn < self.is_held.shape[1]
        if not (is_known and self.is_held[worker, turn]):
            place = worker, turn, report.number
            log.warning("worker %d reports turn %d of trace row %d: dropped", *place)
            return
        self.times[report.number][worker, turn] = report.seconds
        if report.number != round.number or round.reported[worker, turn]:
            return
        round.reported[worker, turn] = True
        round.this.times[worker, turn] = round.this.now
        if not report.is_finite:
            self._blame(slot, "its message is not finite")
            return
        if slot.away_since is not None and not round.replaced[worker]:
            self._recover(slot)
        if round.is_out[worker]:
            return
        part = self._parts[worker, turn]
        if np.isnan(round.losses[part]):
            round.losses[part] = report.loss
            aux = jax.tree.map(lambda leaf: leaf[None], report.aux)
            round.aux.append((np.array([part]), aux))
        round.done[worker, turn] = True
        round.ends = None

    def _blame(self, slot: WorkerSlot, trouble: str) -> None:
        """Said once; another process would compute the same from the same data."""
        if not slot.trouble:
            slot.trouble = trouble
            self._log_loss(slot)

    def _retire(
        self, slot: WorkerSlot, trouble: str, error: Exception | None = None
    ) -> None:
        super()._retire(slot, trouble, error)
        if self._round is not None:
            self._round.replaced[slot.index] = True
            self._round.reported[slot.index] = ~self.is_held[slot.index]
            self._reopen(slot.index, self._round)

    def _reopen(self, worker: int, round: PartRound) -> None:
        """Reopens a lost worker's finished parts, but for a sum that has arrived."""
        was_missing = round.requests is not None and round.missing[worker]
        round.done[worker], round.asked[worker] = False, np.nan
        if was_missing:
            round.requests = round.ends = None
        elif round.requests is None:
            round.ends = None
        if round.requests is None:
            self._listen_to_idle(round)

    def _decodes_from(self, workers: np.ndarray) -> bool:
        return self.decodes(workers.repeat(self.code.messages_per_worker))
