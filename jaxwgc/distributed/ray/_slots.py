"""Worker slots: what the coordinator knows of each worker, and how it is started."""

import contextlib
import dataclasses
import operator
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._messages import Layout
from jaxwgc.distributed.ray._part_worker import PartWorker
from jaxwgc.distributed.ray._session import find_ray
from jaxwgc.distributed.ray._worker import Task, Worker, environment

# Of an answer that is on this machine already.
_SECONDS_TO_READ = 10
# Calls without an answer, after which another makes no sense, and how many threads of a
# worker on request wait for a call.
_MAX_CALLS = 4
# Before the next actor is tried in a slot where several in a row have failed.
_LONGEST_PAUSE = 60.0


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """How many seconds a `RayCluster` waits for a worker.

    Args:
      answer: for an answer to a step, or on request for a part, after which a worker
        counts as frozen and is replaced. More than the slowest takes.
      start: for a worker to load its parts and compile.
      replacement: in a round that cannot be decoded, for a worker that is being
        replaced, from its loss on; who does not come back in that time is not waited
        for in later rounds either. A rule that ends by the clock, such as `deadline`,
        ends undecodable rounds, too, at its own time.

    Raises:
      ValueError, TypeError: where one is not positive.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.distributed.Timeouts(answer=5)
      Timeouts(answer=5, start=300.0, replacement=60.0)
    """

    answer: float = 60.0
    start: float = 300.0
    replacement: float = 60.0

    def __post_init__(self):
        for name, seconds in vars(self).items():
            _validation.check_number(name, seconds, positive=True, traceable=False)


class RoundTimes(NamedTuple):
    """Times of a round, and whose it is.

    Attributes:
      begin: when it began.
      times: seconds from there to what came before its end: messages by worker, or
        parts (num_workers, num_turns). Infinity for all else.
      seconds: a row of the trace, of the shape of times: see `_trace`.
      owner: of late messages.
    """

    begin: float
    times: np.ndarray
    seconds: np.ndarray
    owner: Any = None

    @property
    def now(self) -> float:
        """Seconds since the round began."""
        return time.monotonic() - self.begin


class WorkerSlot:
    """One worker, whose actor has at most one task: to start, or to compute.

    Attributes:
      index: of the worker.
      actor: Ray's handle of it; None between two of them.
      task: reference to the answer that it owes; None where it owes none.
      round: the one that it computes for; None where it is still starting.
      num_seen: on request, the reports that have come since it was sent the round.
      relaunch_at: when the next actor is due, where there is none.
      away_since: when the first actor was retired after the last good answer; None
        while answers are good.
      num_failures: actors retired since the last good answer.
      num_replaced: Number of actors that were retired.
      pid: of the actor's process, once it has started; None where it runs on another
        machine.
      node: where it runs, Ray's name; "" until it has started for the first time.
      host: the name of that machine.
      trouble: why the last actor was retired, or "".
      error: what it raised, if that is why.
    """

    def __init__(self, index: int, launch: Callable[[int], Any]):
        self.index = index
        self._launch = launch
        self.num_failures = self.num_replaced = 0
        self.actor: Any = None
        self.task: Any = None
        self.round: RoundTimes | None = None
        # That for the task, and before it those whose place others have taken.
        self._calls: list[tuple[Any, float]] = []
        self.num_seen = 0
        self.relaunch_at = 0.0
        self.away_since: float | None = None
        self.pid: int | None = None
        self.node = self.host = self.trouble = ""
        self.error: Exception | None = None

    def __repr__(self) -> str:
        """Shows where it runs, and what it does."""
        return (
            f"WorkerSlot(index={self.index}, pid={self.pid}, node={self.node[:8]!r}, "
            f"state={self.state!r})"
        )

    @property
    def state(self) -> str:
        """Returns `"lost"`, `"starting"`, `"idle"` or `"computing"`."""
        if self.actor is None:
            return "lost"
        if self.task is None:
            return "idle"
        return "starting" if self.round is None else "computing"

    @property
    def is_idle(self) -> bool:
        """Has started, and owes nothing."""
        return self.state == "idle"

    @property
    def is_computing(self) -> bool:
        """Owes an answer to some round."""
        return self.state == "computing"

    @property
    def since(self) -> float:
        """When the first of the calls that have not returned was made."""
        return self._calls[0][1]

    @property
    def where(self) -> str:
        """Host and node in words."""
        return f"{self.host} (node {self.node[:8]})"

    def launch(self) -> None:
        """Makes an actor, which starts in the background."""
        self.actor = self._launch(self.index)
        self._owe(self.actor.start.remote(), None)

    def submit(self, order: Any, round: RoundTimes) -> None:
        """Sends the parameters of a round: see `Worker.compute`."""
        self._owe(self.actor.compute.remote(order), round)

    def call(self, method: str, round: RoundTimes, *arguments: Any) -> bool:
        """Calls a method of `PartWorker`, in the place of a call that is under way.

        Returns whether it did: not where the worker reacts to none, and hoards them.
        """
        if self._calls:
            tasks = [task for task, _ in self._calls]
            ready, _ = find_ray().wait(tasks, num_returns=len(tasks), timeout=0)
            self._calls = [call for call in self._calls if call[0] not in ready]
        if len(self._calls) == _MAX_CALLS:
            return False
        self._owe(getattr(self.actor, method).remote(*arguments), round)
        return True

    def result(self) -> Any:
        """Returns what a finished task gave; raises what the worker, or Ray, raised."""
        task, self.task, self._calls = self.task, None, []
        return find_ray().get(task, timeout=_SECONDS_TO_READ)

    def recover(self) -> None:
        """Forgets its trouble: the actor has answered well."""
        self.num_failures = 0
        self.trouble, self.error, self.away_since = "", None, None

    def retire(self, trouble: str, error: Exception | None = None) -> None:
        """Ends the actor; another is due at once, or later after several."""
        self.trouble, self.error = trouble, error
        self.num_failures += 1
        self.num_replaced += 1
        # 0, 1, 3, 7, ... seconds.
        pause = min(2.0 ** min(self.num_failures - 1, 10) - 1, _LONGEST_PAUSE)
        now = time.monotonic()
        self.relaunch_at = now + pause
        self.away_since = self.away_since or now
        self.end()

    def end(self) -> None:
        """Ends the actor; Ray alone would let a frozen process be for a while."""
        actor, pid = self.actor, self.pid
        self.actor = self.task = self.round = self.pid = None
        self._calls = []
        # Where Ray is gone already, its own calls would start it anew.
        if actor is not None and find_ray().is_initialized():
            with contextlib.suppress(Exception):
                find_ray().kill(actor, no_restart=True)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def limit(self, timeouts: Timeouts) -> float:
        """Returns how many seconds the task may take."""
        if self.task is None:
            return np.inf
        return timeouts.start if self.round is None else timeouts.answer

    def _owe(self, task: Any, round: RoundTimes | None) -> None:
        self._calls.append((task, time.monotonic()))
        self.task, self.round = task, round


def launcher(
    code: GradientCode,
    layout: Layout,
    task: Task,
    parts: Any,
    options: Mapping[str, Any],
) -> Callable[[int], Any]:
    """Returns a function that makes an actor of a worker."""
    ray = find_ray()
    shared = ray.put(task)
    if parts is not None:
        parts = [
            ray.put(jax.tree.map(operator.itemgetter(part), parts))
            for part in range(code.num_parts)
        ]
    matrix = np.asarray(code.encoding_matrix).reshape(
        code.num_workers, code.messages_per_worker, code.num_parts, -1
    )
    runtime = dict(options.get("runtime_env", {}))
    runtime["env_vars"] = environment(options) | runtime.get("env_vars", {})
    on_request = code.messages_per_worker > 1
    options = {**options, "runtime_env": runtime}
    if on_request:
        options = {"max_concurrency": 2 * _MAX_CALLS, **options}
    kind = PartWorker if on_request else Worker
    actor = ray.remote(max_restarts=0, max_task_retries=0)(kind).options(**options)

    def launch(worker: int) -> Any:
        held = layout.held[worker]
        rows = matrix[worker][:, held].reshape(code.messages_per_worker, -1)
        given = None if parts is None else [parts[part] for part in held]
        return actor.remote(worker, held, rows, given, shared)

    return launch


def is_death(error: Exception) -> bool:
    """Returns whether a process ended, and not what it was told to do."""
    exceptions = find_ray().exceptions
    return isinstance(error, exceptions.RayError) and not isinstance(
        error, exceptions.RayTaskError
    )


def raise_failed_start(slot: WorkerSlot, error: Exception) -> NoReturn:
    is_value = isinstance(getattr(error, "cause", None) or error, ValueError)
    kind = ValueError if is_value else RuntimeError
    raise kind(f"worker {slot.index} failed to start: {reason(error)}") from error


def first_ready(slots: list[WorkerSlot], seconds: float) -> WorkerSlot | None:
    """Returns one of those whose task is done, or None after some seconds."""
    slot_of = {slot.task: slot for slot in slots if slot.task is not None}
    if not slot_of:
        time.sleep(seconds)
        return None
    ready, _ = find_ray().wait(list(slot_of), timeout=seconds)
    return slot_of[ready[0]] if ready else None


def reason(error: Exception) -> str:
    """Returns an error of a worker in one line."""
    cause = getattr(error, "cause", None) or error
    first = (str(cause).strip().splitlines() or [""])[0]
    name = type(cause).__name__
    if name.startswith("Actor"):
        return f"its process died ({name})"
    return f"{name}: {first}"
