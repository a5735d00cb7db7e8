"""The coordinator: parameters out, answers in, until the waiting rule is content."""

import collections
import dataclasses
import logging
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.distributed.ray._messages import Layout, Memory, Round, is_finite, unpack
from jaxwgc.distributed.ray._session import check_connected, find_ray
from jaxwgc.distributed.ray._slots import (
    RoundTimes,
    Timeouts,
    WorkerSlot,
    first_ready,
    is_death,
    raise_failed_start,
    reason,
)
from jaxwgc.distributed.ray._trace import mark_lost

# Seconds after which a loop that waits looks for what is overdue.
PAUSE = 0.1
# Bytes of params that travel within a task, which is faster than Ray's object store.
_LARGEST_IN_TASK = 2**16
# Of one worker before it has ever started; more have a reason of their own.
_MAX_DEATHS_AT_START = 3
# Seconds that it takes at most to find a message that is there.
_AT_ONCE = 2e-3

log = logging.getLogger("jaxwgc.distributed")


class Verdict(NamedTuple):
    """The judgement of the messages of a round.

    Attributes:
      right: bool (num_workers,), whose messages are to be decoded.
      wrong: bool (num_workers,), whose are wrong.
      refused: whether some are, and it cannot be said whose, or none can be checked.
    """

    right: np.ndarray
    wrong: np.ndarray
    refused: bool


class Answers(NamedTuple):
    """Answers of a round that is under way, see `Round`; losses and aux by worker."""

    messages: np.ndarray
    losses: dict[int, np.ndarray]
    aux: dict[int, Any]
    late: np.ndarray


@dataclasses.dataclass(eq=False)
class Coordinator:
    """The coordinator's loop. It runs in one thread, and only inside of a round.

    Attributes:
      slots: of the workers.
      layout: of their answers.
      ends: the waiting rule: of times so far, when the round ends; infinity if never.
      decodes: whether a mask of messages does.
      num_stragglers: how many the code can do without.
      timeouts: see there.
      times: rows of the trace: see `_trace`.
    """

    slots: list[WorkerSlot]
    layout: Layout
    ends: Callable[[np.ndarray], float]
    decodes: Callable[[np.ndarray], bool]
    num_stragglers: int
    timeouts: Timeouts
    times: list[np.ndarray]

    def __post_init__(self):
        # Set by anyone, ends the round that is under way.
        self.is_closed = threading.Event()
        self._memory = Memory(self.layout.shape, self.layout.dtype)
        self._when = "at the start"
        # When the coordinator began to look for a message, when none was there for the
        # last time, and the shortest time that one was on its way.
        self._looked, self._empty, self._transport = 0.0, 0.0, np.inf
        self._signature: str | None = None

    def start(self) -> None:
        """Makes all actors, and waits until each has loaded its parts and compiled.

        Raises:
          ValueError: where parts of two workers are not alike.
          RuntimeError: where one fails, dies again and again, or has not started in
            time.
        """
        log.info("starting %d workers", len(self.slots))
        self._relaunch()
        end = time.monotonic() + self.timeouts.start
        while waiting := [slot for slot in self.slots if not slot.node]:
            self._check_open()
            if time.monotonic() > end:
                raise RuntimeError(
                    f"workers {[slot.index for slot in waiting]} have not started "
                    f"within {self.timeouts.start} seconds; Ray has "
                    f"{find_ray().available_resources()} left"
                )
            slot = first_ready(waiting, PAUSE)
            if slot is not None:
                error = self._attempt(self._welcome, slot)
                is_last = slot.num_failures == _MAX_DEATHS_AT_START
                if error is not None and (is_last or not is_death(error)):
                    raise_failed_start(slot, error)
                num_ready = sum(bool(slot.node) for slot in self.slots)
                log.info("%d of %d workers are ready", num_ready, len(self.slots))
            self._relaunch()
        workers = collections.defaultdict(list)
        for slot in self.slots:
            self._recover(slot)
            workers[slot.where].append(slot.index)
        for where, indices in workers.items():
            log.info("workers %s are on %s", indices, where)

    def run(
        self, step: int, leaves: list[np.ndarray], key: Any, owner: Any = None
    ) -> Round:
        """Returns one round: see `RayCluster.compute`.

        Late answers to earlier rounds of the same owner are among its messages; None
        has none.
        """
        num_workers = len(self.slots)
        this = self._begin(step, (num_workers,), owner)
        late = np.zeros(num_workers, bool)
        answers = Answers(self._memory.borrow(), {}, {}, late)
        # Nobody is waited for twice in a round, but for a while.
        replaced = np.zeros(num_workers, bool)
        order = packed_order(leaves, key, step)
        for slot in self.slots:
            if slot.is_idle:
                slot.submit(order, this)
        timings = {"broadcast": this.now, "transfer": 0.0}

        while True:
            self._check_open()
            seconds = self._seconds_until_over(this)
            if seconds == 0 or self._is_hopeless(np.isfinite(this.times), replaced):
                break
            self._looked = time.monotonic()
            slot = first_ready(self.slots, seconds)
            if slot is None:
                self._empty = time.monotonic()
            else:
                start = time.monotonic()
                self._attempt(self._receive, slot, this, answers, order)
                timings["transfer"] += time.monotonic() - start
            self._retire_silent()
            replaced |= [slot.actor is None for slot in self.slots]
            self._relaunch()

        received = np.isfinite(this.times)
        answers.messages[~(received | late)] = 0
        start = time.monotonic()
        verdict = self._examine(answers, received, order)
        if verdict is not None:
            received = verdict.right
            answers.messages[~(received | late)] = 0
            timings["examination"] = time.monotonic() - start
        losses, aux = self._by_part(answers, verdict)
        return Round(
            answers.messages,
            received,
            this.times,
            this.now,
            losses,
            aux,
            timings,
            late=None if owner is None else late,
            wrong=None if verdict is None else verdict.wrong,
            refused=verdict is not None and verdict.refused,
        )

    def _begin(
        self, step: int, shape: tuple[int, ...], owner: Any = None
    ) -> RoundTimes:
        """Returns the times of a round that begins now, and adds a row to the trace."""
        self._when = f"in step {step}"
        seconds = np.full(shape, np.nan)
        seconds[[slot.state in ("lost", "starting") for slot in self.slots]] = np.inf
        self.times.append(seconds)
        return RoundTimes(time.monotonic(), np.full(shape, np.inf), seconds, owner)

    def missing(self, received: np.ndarray) -> str:
        """Returns who has not answered, and what is known of the reason."""
        return "; ".join(
            f"worker {slot.index}" + (f" ({slot.trouble})" if slot.trouble else "")
            for slot in self.slots
            if not received[slot.index]
        )

    def _examine(
        self, answers: Answers, received: np.ndarray, order: Any
    ) -> Verdict | None:
        """Returns whose messages are right; None where all are taken to be."""
        return None

    def _by_part(
        self, answers: Answers, verdict: Verdict | None
    ) -> tuple[np.ndarray, Any]:
        """Returns losses and aux of all parts, from those who are not wrong."""
        held, aux = self.layout.held, []
        losses = np.full(self.layout.num_parts, np.nan)
        for worker, values in answers.losses.items():
            if verdict is None or not verdict.wrong[worker]:
                losses[held[worker]] = values
                aux.append((held[worker], answers.aux[worker]))
        return losses, self.layout.by_part(aux)

    def _check_open(self) -> None:
        if self.is_closed.is_set():
            raise RuntimeError("the RayCluster was closed during a round")
        check_connected()

    def _seconds_until_over(self, this: RoundTimes) -> float:
        """Returns how long to wait for an answer: 0 once the rule is content."""
        return float(np.clip(self.ends(this.times) - this.now, 0.0, PAUSE))

    def _is_hopeless(self, mask: np.ndarray, replaced: np.ndarray) -> bool:
        """Returns whether only more of what has come, or replacements, can come.

        `mask` is of the messages that have.
        """
        if any(slot.is_computing and not replaced[slot.index] for slot in self.slots):
            return False
        is_worth_it = any(map(self._is_worth_waiting, self.slots))
        return not is_worth_it or self.decodes(mask)

    def _is_worth_waiting(self, slot: WorkerSlot) -> bool:
        """Returns whether a replacement is due that has not taken too long.

        Since its loss, which may be rounds ago: who never comes back is waited for
        once.
        """
        if slot.is_idle or slot.away_since is None:
            return False
        return time.monotonic() - slot.away_since < self.timeouts.replacement

    def _welcome(self, slot: WorkerSlot) -> None:
        """An actor is ready, if its parts are like those of the others."""
        started = slot.result()
        self._signature = self._signature or started.signature
        if started.signature != self._signature:
            raise ValueError(
                f"parts must be alike; got {started.signature}, and {self._signature} "
                "on another worker"
            )
        is_here = started.node == find_ray().get_runtime_context().get_node_id()
        slot.pid = started.pid if is_here else None
        slot.node, slot.host = started.node, started.host

    def _attempt(
        self, act: Callable, slot: WorkerSlot, *arguments: Any
    ) -> Exception | None:
        """Retires a worker, and returns the error, where it fails."""
        try:
            act(slot, *arguments)
        except Exception as error:
            self._check_open()
            self._retire(slot, reason(error), error)
            return error

    def _receive(
        self, slot: WorkerSlot, this: RoundTimes, answers: Answers, order: Any
    ) -> None:
        """Copies an answer, so that nothing holds on to Ray's memory.

        One to a round that is over leaves its time, and is kept as a late one for its
        owner alone; the worker goes on with this round.
        """
        now, answered = time.monotonic(), slot.round
        since = slot.since
        if answered is None:
            self._welcome(slot)
            slot.submit(order, this)
            return
        answer = slot.result()
        self.layout.check(answer.message)
        message = answers.messages[slot.index : slot.index + 1]
        if answered is not this and answered.owner is this.owner is not None:
            unpack(answer.message, message)
            answers.late[slot.index] = is_finite(message)
        if answered is this:
            unpack(answer.message, message)
            answers.late[slot.index] = False
            if not is_finite(message):
                # Another process would compute the same from the same data.
                if not slot.trouble:
                    slot.trouble = "its message is not finite"
                    self._log_loss(slot)
                return
            answers.losses[slot.index] = answer.losses
            answers.aux[slot.index] = answer.aux
        if answered is this or slot.away_since is not None:
            # A late answer is not looked at, but the process that sent it is well.
            self._recover(slot)
        seconds = now - since
        if now - self._looked > _AT_ONCE:
            self._empty = now
            self._transport = min(self._transport, seconds - answer.seconds)
        else:
            # It had come before, while the coordinator did something else.
            way = self._transport if np.isfinite(self._transport) else 0.0
            seconds = np.clip(answer.seconds + way, self._empty - since, seconds)
        answered.seconds[slot.index] = seconds
        if answered is this:
            this.times[slot.index] = now - this.begin
        else:
            slot.submit(order, this)

    def _retire(
        self, slot: WorkerSlot, trouble: str, error: Exception | None = None
    ) -> None:
        slot.retire(trouble, error)
        mark_lost(self.times, slot.index)
        self._log_loss(slot)

    def _retire_silent(self) -> None:
        """Those whose answer is overdue, and has not come in the meantime either."""
        for slot in self.slots:
            if slot.task is None:
                continue
            silent = time.monotonic() - slot.since
            if silent > slot.limit(self.timeouts) and first_ready([slot], 0) is None:
                name = "start" if slot.round is None else "answer"
                limit = f"timeouts.{name} is {slot.limit(self.timeouts):g}"
                self._retire(slot, f"silent for {silent:.1f} s; {limit}")

    def _log_loss(self, slot: WorkerSlot) -> None:
        """One line; and where the worker raised, its traceback for who looks closer."""
        others = np.array([not each.trouble for each in self.slots])
        left = self.num_stragglers - int((~others).sum())
        if left > 0:
            spares = f"{left} of {self.num_stragglers} spare workers left"
        elif self._decodes_from(others):
            spares = "no spare worker is left"
        else:
            spares = "the others do not decode"
        lost = f"worker {slot.index} is lost {self._when}"
        log.warning("%s: %s; %s", lost, slot.trouble, spares)
        if slot.error is not None:
            log.debug("worker %d raised", slot.index, exc_info=slot.error)

    def _decodes_from(self, workers: np.ndarray) -> bool:
        """Returns whether all that those workers could send would be enough."""
        return self.decodes(workers)

    def _recover(self, slot: WorkerSlot) -> None:
        """A worker has answered well, and is back if it was away."""
        if slot.trouble:
            back = f"worker {slot.index} is back {self._when} on {slot.where}"
            log.info("%s; it was lost: %s", back, slot.trouble)
        slot.recover()

    def _relaunch(self) -> None:
        """Makes actors where there are none, and a pause is over."""
        for slot in self.slots:
            if slot.actor is None and slot.relaunch_at <= time.monotonic():
                slot.launch()


def packed_order(leaves: list[np.ndarray], key: Any, step: int) -> Any:
    """Returns what workers are sent of a round, once for all of them."""
    order = leaves, key, step
    is_large = sum(leaf.nbytes for leaf in leaves) > _LARGEST_IN_TASK
    return find_ray().put(order) if is_large else pickle.dumps(order)
