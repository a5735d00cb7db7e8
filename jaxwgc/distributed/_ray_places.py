"""A worker's place in the code, and the actor that fills it for the time being."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from jaxwgc.distributed._ray_runtime import end_process, find_ray
from jaxwgc.distributed._ray_worker import Answer, Started

# Of an answer that is on this machine already.
_SECONDS_TO_READ = 10
# Before the next actor is tried in a place where several in a row have failed.
_LONGEST_PAUSE = 60.0


class Place:
    """One worker, whose actor has at most one task: to start, or to compute.

    Attributes:
      index: of the worker.
      actor: Ray's handle of it; None between two of them.
      task: reference to the answer that it owes; None where it owes none.
      round: number of the one that it computes for; None where it is still starting.
      since: when the task was given.
      away_since: when the first actor was given up after the last good answer; None
        while answers are good.
      pid: of the actor's process, once it has started; None where it runs on another
        machine.
      node: where it runs, Ray's name; "" until it has started for the first time.
      host: the name of that machine.
      trouble: why the last actor was given up, or "".
      error: what it raised, if that is why.
    """

    def __init__(self, index: int, hire: Callable[[int, int], Any]):
        self.index = index
        self._hire = hire
        self._num_hired = 0
        self.num_failures = 0
        self.actor: Any = None
        self.task: Any = None
        self.round: int | None = None
        self.since = 0.0
        self.away_since: float | None = None
        self.hire_at = 0.0
        self.pid: int | None = None
        self.node = self.host = ""
        self.trouble = ""
        self.error: Exception | None = None

    @property
    def is_idle(self) -> bool:
        """Has started, and owes nothing."""
        return self.actor is not None and self.task is None

    @property
    def is_computing(self) -> bool:
        """Owes an answer to some round."""
        return self.task is not None and self.round is not None

    @property
    def is_coming(self) -> bool:
        """Owes an answer or its start, or will be filled again."""
        return self.task is not None or self.actor is None

    def fill(self, key_data: Any) -> None:
        """Makes an actor, which starts in the background."""
        self.actor = self._hire(self.index, self._num_hired)
        self._num_hired += 1
        self._give(self.actor.start.remote(key_data), None)

    def hand(self, number: int, order: Any) -> None:
        """Gives it the parameters of a round: see `Worker.compute`."""
        self._give(self.actor.compute.remote(order), number)

    def take(self) -> Started | Answer:
        """What a task that is ready gave; raises what the worker, or Ray, raised."""
        task, self.task = self.task, None
        return find_ray().get(task, timeout=_SECONDS_TO_READ)

    def succeed(self) -> None:
        """Its actor has answered well."""
        self.num_failures = 0
        self.trouble, self.error, self.away_since = "", None, None

    def give_up(self, trouble: str, error: Exception | None = None) -> None:
        """Ends the actor; another may be made at once, or later after several."""
        self.trouble, self.error = trouble, error
        self.num_failures += 1
        # 0, 1, 3, 7, ... seconds.
        pause = min(2.0 ** min(self.num_failures - 1, 10) - 1, _LONGEST_PAUSE)
        now = time.monotonic()
        self.hire_at = now + pause
        self.away_since = self.away_since or now
        self.end()

    def end(self) -> None:
        """Ends the actor; Ray alone would let a frozen process be for a while."""
        actor, pid = self.actor, self.pid
        self.actor = self.task = self.round = self.pid = None
        # Where Ray is gone already, its own calls would start it anew.
        if actor is not None and find_ray().is_initialized():
            with contextlib.suppress(Exception):
                find_ray().kill(actor, no_restart=True)
        if pid is not None:
            end_process(pid)

    def _give(self, task: Any, number: int | None) -> None:
        self.task, self.round, self.since = task, number, time.monotonic()
