"""States of all workers, as the coordinator knows them."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._messages import Round
from jaxwgc.distributed.ray._options import Timeouts
from jaxwgc.distributed.ray._response_limit import ResponseLimit
from jaxwgc.distributed.ray._rules import Rules
from jaxwgc.traces._missing_at_end import missing_at_end

# Longest pause, in seconds, before a process that failed several times is launched
# again.
_LONGEST_PAUSE_SECONDS = 60.0
# Number of rounds with corrupted messages after which a worker is replaced.
MAX_CORRUPTED_ROUNDS = 3

log = logging.getLogger("jaxwgc.distributed")


@dataclasses.dataclass(eq=False, repr=False)
class WorkerSlot:
    """State of one worker: its process, newest call and failures.

    Attributes:
      index: Index of the worker.
      state: `"lost"`, `"starting"`, `"idle"` or `"computing"`.
      pid: Process; None if there is none yet, or if it is on another machine.
      node: Ray's name of the machine; "" before the first start.
      host: Name of the machine.
      trouble: Why the worker was lost or is suspected; "" if its last response was
        good.
      error: Exception of the worker if it raised one.
      call: Newest call.
      number: Round of that call.
      owner: Owner of that round: see `MessageRound`.
      since: Time of the first call without a response.
      is_suspected: Whether it has been silent for half of its limit.
      relaunch_at: Time at which the next process is due while it is lost.
      away_since: Time of the first loss since the last good response, or None.
      num_failures: Losses since the last good response.
      num_replaced: Number of processes that were replaced.
      num_corrupted: Rounds in which the messages of this process were corrupted.
      num_seen: On request, reports that have come since it was sent the round.
    """

    index: int
    state: str = "lost"
    pid: int | None = None
    node: str = ""
    host: str = ""
    trouble: str = ""
    error: Exception | None = None
    call: int = -1
    number: int = -1
    owner: object = None
    since: float = 0.0
    is_suspected: bool = False
    relaunch_at: float = -np.inf
    away_since: float | None = None
    num_failures: int = 0
    num_replaced: int = 0
    num_corrupted: int = 0
    num_seen: int = 0

    def __repr__(self) -> str:
        """Returns index, process, node and state of the worker as text."""
        return (
            f"WorkerSlot(index={self.index}, pid={self.pid}, node={self.node[:8]!r}, "
            f"state={self.state!r})"
        )

    @property
    def where(self) -> str:
        """Host name and node of the worker, as text."""
        return f"{self.host} (node {self.node[:8]})"


class Fleet:
    """States of all workers, shared by all rounds, and a queue of actions.

    Attributes:
      slots: One `WorkerSlot` per worker.
      timeouts: `Timeouts` of the cluster.
      limit: `ResponseLimit` of the workers.
      rows: Trace, one row per round: seconds by worker, or by part. NaN stands for a
        message or part that the worker has not finished: it was busy with an earlier
        round, left the part to others, or is still computing.
      rules: `Rules` of the rounds.
      when: Round that is under way, in words.
    """

    def __init__(self, num_workers: int, timeouts: Timeouts, rules: Rules):
        self.timeouts = timeouts
        self.rules = rules
        self.restart(num_workers)
        self.limit = ResponseLimit(timeouts.response, num_workers)
        self.rows: list[np.ndarray] = []
        self.when = "at the start"
        self._actions: list[events.Action] = []
        self._num_calls = 0

    def restart(self, num_workers: int) -> None:
        """Resets the states of all workers, and keeps the trace and the limit."""
        self.slots = [WorkerSlot(index) for index in range(num_workers)]

    def begin(self, step: int, shape: tuple[int, ...]) -> int:
        """Adds a row for a new round to the trace, and returns the round's number."""
        self.when = f"in step {step}"
        seconds = np.full(shape, np.nan)
        seconds[self.are("lost", "starting")] = np.inf
        self.rows.append(seconds)
        return len(self.rows) - 1

    def actions(self) -> list[events.Action]:
        """Returns the actions queued since the last call, and empties the queue."""
        actions = self._actions
        self._actions = []
        return actions

    def are(self, *states: str) -> np.ndarray:
        """Returns which workers are in one of the given states."""
        return np.array([slot.state in states for slot in self.slots])

    @property
    def are_suspected(self) -> np.ndarray:
        """Workers that have been silent for over half of their time limits."""
        return np.array([slot.is_suspected for slot in self.slots])

    def num_losses(self) -> np.ndarray:
        """Returns how often each worker has been lost."""
        return np.array([slot.num_replaced for slot in self.slots])

    def call(self, call: events.Call, now: float, owner: object = None) -> None:
        """Queues a call of a worker; responses to earlier calls are then ignored."""
        slot = self.slots[call.worker]
        if slot.state != "computing":
            slot.since = now
        self._num_calls += 1
        slot.state = "computing"
        slot.call = self._num_calls
        slot.number = call.number
        slot.owner = owner
        self._actions.append(call._replace(call=slot.call))

    def receive(
        self, event: events.Response, now: float, take: Callable[..., None]
    ) -> None:
        """Handles a response if it belongs to the newest call of its worker.

        `take(event, now)` reads the result. If it raises a ValueError, the worker is
        lost.
        """
        slot = self.slots[event.worker]
        if slot.state != "computing" or slot.call != event.call:
            return
        slot.state = "idle"
        if slot.is_suspected and slot.away_since is None:
            self.recover(slot)
        slot.is_suspected = False
        try:
            take(event, now)
        except ValueError as error:
            self.lose(events.Lost(slot.index, f"ValueError: {error}", error), now)

    def ready(self, event: events.Ready) -> None:
        """Records that the process of a worker has started."""
        slot = self.slots[event.worker]
        slot.state = "idle"
        slot.pid = event.pid
        slot.node = event.node
        slot.host = event.host

    def lose(self, event: events.Lost, now: float, warning: str = "") -> None:
        """Marks a worker as lost, ends its process, and schedules a replacement."""
        slot = self.slots[event.worker]
        if slot.state == "lost":
            return
        slot.trouble = event.trouble
        slot.error = event.error
        slot.num_failures += 1
        slot.num_replaced += 1
        slot.num_corrupted = 0
        # Exponential backoff: 0, 1, 3, 7, ... seconds after 1, 2, 3, 4, ... failures.
        pause = 2.0 ** min(slot.num_failures - 1, 10) - 1
        slot.relaunch_at = now + min(pause, _LONGEST_PAUSE_SECONDS)
        if slot.away_since is None:
            slot.away_since = now
        slot.state = "lost"
        slot.pid = None
        slot.is_suspected = False
        mark_lost(self.rows, slot.index)
        self._actions.append(events.Replace(slot.index, warning))
        self._log_loss(slot, "lost")

    def blame(self, slot: WorkerSlot, trouble: str) -> None:
        """Records and logs that a worker's message is not finite.

        The worker stays: another process would compute the same from the same data. The
        newest trouble replaces an earlier one, such as the death of an earlier process.
        """
        if slot.trouble != trouble:
            slot.trouble = trouble
            slot.error = None
            self._log_loss(slot, "lost")

    def blame_corrupted(self, corrupted: np.ndarray, now: float) -> None:
        """Logs workers with corrupted messages, and replaces persistent ones.

        A worker is replaced once its messages were corrupted in `MAX_CORRUPTED_ROUNDS`
        rounds.
        """
        for worker in np.flatnonzero(corrupted).tolist():
            slot = self.slots[worker]
            slot.num_corrupted += 1
            num_rounds = slot.num_corrupted
            name = f"worker {worker} on {slot.where}"
            log.warning(
                "%s is wrong %s: its messages are excluded (%d rounds so far)",
                name,
                self.when,
                num_rounds,
            )
            if num_rounds == MAX_CORRUPTED_ROUNDS:
                why = f"its messages were corrupted in {num_rounds} rounds"
                warning = f"{name} is replaced, since {why}"
                self.lose(events.Lost(worker, trouble=why), now, warning)

    def recover(self, slot: WorkerSlot) -> None:
        """Clears the failures of a worker after a valid response."""
        if slot.trouble:
            back = f"worker {slot.index} is back {self.when} on {slot.where}"
            what = "suspected" if slot.is_suspected else "lost"
            log.info("%s; it was %s: %s", back, what, slot.trouble)
        slot.num_failures = 0
        slot.trouble = ""
        slot.error = None
        slot.away_since = None
        slot.is_suspected = False

    def poll(self, now: float) -> None:
        """Marks silent workers as suspected or lost, and starts due replacements."""
        for slot in self.slots:
            if slot.state == "computing":
                self._poll_computing(slot, now)
            elif slot.state == "starting":
                silent = now - slot.since
                limit = self.timeouts.start
                if silent > limit:
                    trouble = _silence(silent, "start", limit)
                    self.lose(events.Lost(slot.index, trouble), now)
            if slot.state == "lost" and slot.relaunch_at <= now:
                slot.state = "starting"
                slot.since = now
                self._actions.append(events.Launch(slot.index))

    def _poll_computing(self, slot: WorkerSlot, now: float) -> None:
        """Suspects a silent worker after half of its time limit, and then replaces it.

        It is replaced once the whole limit has passed.
        """
        silent = now - slot.since
        limit = self.limit.of(slot.index)
        trouble = _silence(silent, "response", limit)
        if silent > limit:
            self.limit.note_silence(slot.index)
            self.lose(events.Lost(slot.index, trouble), now)
        elif silent > limit / 2 and not slot.is_suspected:
            slot.is_suspected = True
            slot.trouble = trouble
            self._log_loss(slot, "suspected")

    def reason_to_stop(self, mask: np.ndarray, given_up: np.ndarray, now: float) -> str:
        """Returns why a round should not wait any longer, or an empty string.

        A round need not wait if no worker is left to wait for, and either the messages
        in `mask` decode, or no suspect and no replacement is worth waiting for. No
        worker is left if each has responded, is suspected, or is in `given_up`. A
        replacement is waited for from the loss of its worker on, which may be rounds
        ago, for `timeouts.replacement` seconds.
        """
        is_worth_waiting = False
        longest_away = None
        for slot in self.slots:
            if slot.state == "computing" and not given_up[slot.index]:
                if not slot.is_suspected:
                    return ""
                is_worth_waiting = True
            elif slot.state != "idle" and slot.away_since is not None:
                away = now - slot.away_since
                is_worth_waiting |= away < self.timeouts.replacement
                longest_away = max(away, longest_away or 0.0)
        if self.rules.decodes(mask):
            return "its messages decode, and no other worker is expected soon"
        if is_worth_waiting:
            return ""
        if longest_away is None:
            return "all workers have responded or are excluded"
        limit = f"timeouts.replacement is {self.timeouts.replacement:g}"
        return f"a lost worker has been away for {longest_away:.1f} s; {limit}"

    def why_undecodable(self, this_round: Round) -> str:
        """Returns why a round cannot be decoded, and names the missing workers."""
        if this_round.rejected:
            return "its messages contradict each other, or are too few to compare"
        received = np.flatnonzero(this_round.received).tolist()
        missing = []
        for slot in self.slots:
            if slot.index not in received:
                trouble = f" ({slot.trouble})" if slot.trouble else ""
                missing.append(f"worker {slot.index}{trouble}")
        end = f"the round ended after {this_round.elapsed:.3g} s: {this_round.reason}"
        if not missing:
            return (
                "all workers responded, and the residual of their messages is above "
                f"tolerance; {end}"
            )
        senders = f"only workers {received}" if received else "no worker"
        return f"{senders} responded; missing: {'; '.join(missing)}; {end}"

    def _log_loss(self, slot: WorkerSlot, what: str) -> None:
        """Logs a lost or suspected worker in one line; its traceback at level DEBUG."""
        num_stragglers = self.rules.num_stragglers
        num_troubled = sum(bool(other.trouble) for other in self.slots)
        log.warning(
            "worker %d is %s %s: %s; the code tolerates %d more of %d stragglers",
            slot.index,
            what,
            self.when,
            slot.trouble,
            max(0, num_stragglers - num_troubled),
            num_stragglers,
        )
        if slot.error is not None:
            log.debug("worker %d raised", slot.index, exc_info=slot.error)


def _silence(seconds: float, timeout: str, limit: float) -> str:
    """Returns how long a worker has been silent, and its time limit, as text."""
    return f"silent for {seconds:.1f} s; timeouts.{timeout} is {limit:g}"


def mark_lost(rows: Sequence[np.ndarray], worker: int) -> None:
    """Writes infinity for a lost worker into trace rows since its last response."""
    for row in reversed(rows):
        is_gap = np.isnan(row[worker])
        if row is rows[-1] or is_gap.all():
            row[worker] = np.where(is_gap, np.inf, row[worker])
        if not is_gap.all():
            break


def seconds_of_loads(trace: np.ndarray, num_held: np.ndarray) -> np.ndarray:
    """Returns the seconds that each worker takes for all of its own parts.

    On request, parts that a worker left to others count as long as those that it
    finished, on average.

    Args:
      trace: Seconds (rounds, workers), or of each part (rounds, workers, parts).
      num_held: Number of parts of each worker, int (workers,).

    Returns:
      Seconds (rounds, workers): NaN if a worker did not respond, and infinity if it was
      lost before it responded.
    """
    if trace.ndim == 2:
        return trace
    is_finished = np.isfinite(trace)
    num_finished = is_finished.sum(axis=2)
    total = np.sum(trace, axis=2, where=is_finished)
    seconds_of_part = total / np.maximum(num_finished, 1)
    silent = np.where(np.isinf(trace).any(axis=2), np.inf, np.nan)
    return np.where(num_finished > 0, seconds_of_part * num_held, silent)


def filled(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the trace as an array, with NaNs replaced by later seconds of the worker.

    A run of m NaNs becomes the next m seconds of the worker. After the last seconds,
    the first ones follow. Seconds before a run are not repeated: a slow response causes
    a long run, so slow responses would become more frequent than they are.

    NaNs after the last response of a worker stay if the worker has stopped responding.
    Otherwise it is only busy at the end of the trace: see `missing_at_end`.
    """
    table = np.array(rows)
    is_response = np.isfinite(table).reshape(*table.shape[:2], -1).any(axis=2)
    # Every worker may be busy when the last round ends, so missing responses in it are
    # no sign that a worker has stopped.
    end = missing_at_end(is_response[: max(len(table) - 1, 1)])
    has_stopped = end.has_stopped & ~is_response[-1]
    for worker in range(table.shape[1]):
        num_rounds = end.start[worker] if has_stopped[worker] else len(table)
        rows_of_worker = table[:num_rounds, worker]
        seconds = rows_of_worker.ravel()
        measured = seconds[np.isfinite(seconds)]
        if not len(measured):
            continue
        is_gap = np.isnan(seconds)
        num_measured_before = np.isfinite(seconds).cumsum()
        num_gaps = is_gap.cumsum()
        num_gaps_before_run = np.maximum.accumulate(np.where(is_gap, 0, num_gaps))
        # Position of each NaN in its run of NaNs, from 0.
        place_in_run = num_gaps - num_gaps_before_run - 1
        source = num_measured_before + place_in_run
        seconds[is_gap] = measured[source[is_gap] % len(measured)]
        table[:num_rounds, worker] = seconds.reshape(rows_of_worker.shape)
    return table
