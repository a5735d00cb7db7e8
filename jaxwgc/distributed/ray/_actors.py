"""Ray actors of the workers: calls of their methods, and the resulting events."""

import collections
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._errors import NoResponse, WorkerError, line_of
from jaxwgc.distributed.ray._launcher import MAX_CALLS, Launcher, end_process
from jaxwgc.distributed.ray._messages import WorkerMessage
from jaxwgc.distributed.ray._session import RayActor, RayReference, find_ray


class TravelTime:
    """Estimates response times without the delay that a busy coordinator adds.

    A busy coordinator reads a response later than the response has arrived. The
    response time is then the worker's own seconds and the shortest travel time so far,
    or the time until the coordinator last found no response, if this is longer.

    All times are from one clock of the coordinator. The worker's own seconds are a
    duration, by the clock of the worker.

    Attributes:
      shortest: Shortest travel time of call and response so far, in seconds; 0 before
        the first measurement.
    """

    def __init__(self):
        self._shortest = math.inf
        self._last_silence = -math.inf

    @property
    def shortest(self) -> float:
        """Shortest travel time so far, in seconds; 0 before the first measurement."""
        return self._shortest if math.isfinite(self._shortest) else 0.0

    def note_silence(self, now: float) -> None:
        """Records the time of a check that found no response."""
        self._last_silence = now

    def response_seconds(
        self, called: float, read: float, worker_seconds: float, was_waiting: bool
    ) -> float:
        """Returns a worker's own seconds plus the estimated travel time of a response.

        Args:
          called: Time before the call was sent.
          read: Time at which the coordinator has read the response.
          worker_seconds: Seconds from the receipt of the call to the finished message.
          was_waiting: Whether the coordinator was waiting when the response arrived.
            Such responses measure the travel time.
        """
        # The difference may be slightly negative, because the clocks of two machines
        # may differ in speed.
        travel = max(read - called - worker_seconds, 0.0)
        if was_waiting:
            self._shortest = min(self._shortest, travel)
        else:
            silent = self._last_silence - called - worker_seconds
            travel = min(travel, max(self.shortest, silent))
        return worker_seconds + travel


# Timeout in seconds for reading a response that Ray has brought to this machine.
_SECONDS_TO_READ = 10
# Identifier of the call that starts a worker. Other calls have positive identifiers.
_START_CALL = -1


class _OpenCall(NamedTuple):
    """Call of a worker's method that has not returned.

    Attributes:
      task: Ray's task.
      identifier: Identifier of the call.
      time: Time of the call.
      number: Round of the call; None for the start of a worker.
    """

    task: RayReference
    identifier: int
    time: float
    number: int | None = None


class Actors:
    """Ray actors of all workers: starts them, calls their methods and reads results.

    Args:
      launcher: Makes the actors.
      num_workers: Number of workers.
      check_open: Raises RuntimeError if the cluster was closed or Ray has ended.

    Attributes:
      order: Params, key and step of this round, pickled or in Ray's object store. It
        is the first argument of `compute`.
      step: Step in which processes are launched.
      read_seconds: Seconds spent on reading responses.
      pending: Events that have been read, and not returned by `next_event`.
    """

    def __init__(
        self, launcher: Launcher, num_workers: int, check_open: Callable[[], None]
    ):
        self._launcher = launcher
        self._check_open = check_open
        self._actors: list[RayActor | None] = [None] * num_workers
        self._pids: list[int | None] = [None] * num_workers
        # Calls of each worker that have not returned, oldest first.
        self._calls: list[list[_OpenCall]] = [[] for _ in range(num_workers)]
        # Newest call of each worker with `MAX_CALLS` calls that have not returned. The
        # call is sent as soon as one of them returns.
        self._deferred: dict[int, events.Call] = {}
        self.pending: collections.deque[events.WorkerEvent] = collections.deque()
        self._first_ready: events.Ready | None = None
        self._travel_time = TravelTime()
        self.order: RayReference | bytes | None = None
        self.step = 0
        self.read_seconds = 0.0

    def perform(self, actions: Sequence[events.Action]) -> None:
        """Performs actions: starts actors, ends actors, or calls their methods."""
        for action in actions:
            worker = action.worker
            match action:
                case events.Launch():
                    called = time.monotonic()
                    actor, task = self._launcher.launch(worker, self.step)
                    self._actors[worker] = actor
                    self._calls[worker] = [_OpenCall(task, _START_CALL, called)]
                case events.Replace():
                    self.end(worker)
                    if action.warning:
                        # With this stack level, the warning names the user's line that
                        # calls `compute`.
                        warnings.warn(action.warning, stacklevel=6)
                case _:
                    self._call(action)

    def next_event(self, seconds: float) -> events.WorkerEvent | None:
        """Waits up to `seconds` for the next event; returns None if there is none."""
        for call in list(self._deferred.values()):
            self._call(call)
        if not self.pending:
            newest = {
                calls[-1].task: worker
                for worker, calls in enumerate(self._calls)
                if calls and worker not in self._deferred
            }
            if not newest:
                time.sleep(seconds)
                return None
            ray = find_ray()
            tasks = list(newest)
            now = time.monotonic()
            ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
            was_waiting = not ready
            if was_waiting:
                self._travel_time.note_silence(now)
                ready, _ = ray.wait(tasks, timeout=seconds)
            now = time.monotonic()
            for task in ready:
                self.pending.append(self._event(newest[task], task, now, was_waiting))
            self.read_seconds += time.monotonic() - now
        return self.pending.popleft() if self.pending else None

    def query(
        self, workers: np.ndarray, seconds: float, *arguments: object
    ) -> np.ndarray:
        """Requests projections of the messages of workers; returns one row per worker.

        See `Worker.project`.

        Raises:
          NoResponse: If a worker is lost, raises, or does not respond within `seconds`.
            `pending` then has its `Lost` event.
        """
        ray = find_ray()
        actors = [self._actors[worker] for worker in workers]
        if None in actors:
            raise NoResponse
        tasks = [actor.project.remote(self.order, *arguments) for actor in actors]
        ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
        claims = []
        for worker, task in zip(workers.tolist(), tasks):
            try:
                claims.append(ray.get(task, timeout=0))
            except Exception as error:
                self.pending.append(self._lost(worker, error))
        if len(claims) < len(tasks):
            raise NoResponse
        return np.stack(claims)

    def end_all(self) -> None:
        """Ends the actors of all workers, and the spare process."""
        for worker in range(len(self._actors)):
            self.end(worker)
        self._launcher.end_spare()

    def end(self, worker: int) -> None:
        """Ends a worker's actor, drops its events, and kills its local process."""
        actor = self._actors[worker]
        pid = self._pids[worker]
        self._actors[worker] = None
        self._pids[worker] = None
        self._calls[worker] = []
        self._deferred.pop(worker, None)
        events_of_others = [event for event in self.pending if event.worker != worker]
        self.pending = collections.deque(events_of_others)
        if actor is not None:
            end_process(actor, pid)

    def _are_any_starting(self) -> bool:
        """Returns whether any worker is still being started."""
        newest = [calls[-1] for calls in self._calls if calls]
        return any(call.identifier == _START_CALL for call in newest)

    def _call(self, action: events.Call) -> None:
        """Calls a worker's method; defers the call if `MAX_CALLS` calls are open."""
        worker = action.worker
        calls = self._calls[action.worker]
        if calls:
            tasks = [call.task for call in calls]
            ready, _ = find_ray().wait(tasks, num_returns=len(tasks), timeout=0)
            calls[:] = [call for call in calls if call.task not in ready]
        if len(calls) == MAX_CALLS:
            self._deferred[worker] = action
            return
        self._deferred.pop(worker, None)
        first = self.order if action.method == "compute" else action.number
        method = getattr(self._actors[worker], action.method)
        # The clock is read first, because the worker may finish before this process
        # runs again.
        called = time.monotonic()
        task = method.remote(first, *action.arguments)
        calls.append(_OpenCall(task, action.call, called, action.number))

    def _event(
        self, worker: int, task: RayReference, now: float, was_waiting: bool
    ) -> events.WorkerEvent:
        """Converts the result of a finished task to an event."""
        newest = self._calls[worker][-1]
        since = self._calls[worker][0].time
        self._calls[worker] = []
        try:
            result = find_ray().get(task, timeout=_SECONDS_TO_READ)
        except Exception as error:
            return self._lost(worker, error)._replace(number=newest.number)
        if isinstance(result, events.Ready):
            started = self._started(result)
            if not self._are_any_starting():
                self._launcher.prepare_spare()
            return started
        seconds = now - since
        if isinstance(result, WorkerMessage):
            seconds = self._travel_time.response_seconds(
                called=since,
                read=now,
                worker_seconds=result.seconds,
                was_waiting=was_waiting,
            )
        return events.Response(worker, newest.identifier, result, seconds)

    def _started(self, ready: events.Ready) -> events.WorkerEvent:
        """Returns a `Ready` event for a started worker, or `Lost` if its parts differ.

        The parts of all workers must have equal structure, shapes and dtypes.
        """
        first = self._first_ready or ready
        self._first_ready = first
        if ready.signature != first.signature:
            why = (
                "all parts must have equal structure, shapes and dtypes; "
                f"{ready.origin} has {ready.signature}, and {first.origin} has "
                f"{first.signature}"
            )
            return events.Lost(
                worker=ready.worker,
                trouble=why,
                error=ValueError(why),
                has_died=False,
                ends_training=ready.has_batches,
            )
        is_here = ready.node == find_ray().get_runtime_context().get_node_id()
        pid = ready.pid if is_here else None
        self._pids[ready.worker] = pid
        return ready._replace(pid=pid)

    def _lost(self, worker: int, error: Exception) -> events.Lost:
        """Converts an exception from a worker's method to a `Lost` event."""
        self._check_open()
        exceptions = find_ray().exceptions
        is_of_task = isinstance(error, exceptions.RayTaskError)
        has_died = isinstance(error, exceptions.RayError) and not is_of_task
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, WorkerError):
            return events.Lost(
                worker=worker,
                trouble=cause.reason,
                error=cause,
                has_died=False,
                ends_training=cause.ends_training,
            )
        name = type(cause).__name__
        trouble = f"{name}: {line_of(str(cause))}"
        if name.startswith("Actor"):
            trouble = f"its process died ({name})"
        return events.Lost(
            worker=worker, trouble=trouble, error=error, has_died=has_died
        )
