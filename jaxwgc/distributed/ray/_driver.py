"""The loop around a round engine: waits for Ray, and performs actions."""

import pickle
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._actors import Actors
from jaxwgc.distributed.ray._fleet import Fleet
from jaxwgc.distributed.ray._message_round import MessageRound, Verifier
from jaxwgc.distributed.ray._messages import Layout, Memory, Round
from jaxwgc.distributed.ray._request_plan import RequestPlan
from jaxwgc.distributed.ray._request_round import RequestRound
from jaxwgc.distributed.ray._session import check_connected, find_ray
from jaxwgc.distributed.ray._start_up import StartUp

# Seconds between two looks for silent workers.
_POLL_SECONDS = 0.1
# Bytes of params that travel within a task, which is faster than Ray's object store.
_LARGEST_IN_TASK = 2**16


class Driver:
    """Runs round engines on the workers. It works in one thread, and only in a round.

    Args:
      fleet: States of the workers.
      layout: Shapes of their messages.
      launch: Makes the actor of a worker.
      plan: `RequestPlan` of a code with several messages per worker, or None.

    Attributes:
      actors: `Actors` of the workers.
      verifier: `Verifier` of the rounds, or None.
    """

    def __init__(
        self,
        fleet: Fleet,
        layout: Layout,
        launch: Callable[[int], Any],
        plan: RequestPlan | None,
    ):
        self.fleet, self._layout, self._plan = fleet, layout, plan
        # Ends the round that is under way, if it is set by another thread.
        self.is_closed = threading.Event()
        self.actors = Actors(launch, len(fleet.slots), self._check_open)
        self.verifier: Verifier | None = None
        self._memory = Memory(layout.shape, layout.dtype)
        # End of the last round, and seconds between rounds so far.
        self._ended, self._away = time.monotonic(), 0.0

    def start(self) -> None:
        """Starts all workers, and waits until each has loaded its parts and compiled.

        Raises:
          ValueError: If the parts of two workers are not alike.
          RuntimeError: If a worker fails or dies repeatedly, or the start takes longer
            than `timeouts.start`.
        """

        def shown_resources() -> str:
            return str(find_ray().available_resources())

        self._run(StartUp(self.fleet, self._now(), shown_resources))

    def run(
        self, step: int, leaves: list[np.ndarray], key: Any, owner: Any = None
    ) -> Round:
        """Returns one round: see `RayCluster.compute` and `MessageRound`."""
        begin = time.monotonic()
        self._away += begin - self._ended
        order = leaves, key, step
        is_large = sum(leaf.nbytes for leaf in leaves) > _LARGEST_IN_TASK
        order = find_ray().put(order) if is_large else pickle.dumps(order)
        self.actors.order, self.actors.read_seconds = order, 0.0
        given = step, self._now(), self._memory.borrow()
        common, examined = (self.fleet, self._layout), self._examined
        if self._plan is None:
            engine = MessageRound(*common, *given, owner, self.verifier)
        else:
            engine = RequestRound(*common, self._plan, *given, self.verifier)
        self.actors.perform(self.fleet.actions())
        broadcast = time.monotonic() - begin
        this_round, transfer = self._run(engine)
        timings = {"broadcast": broadcast, "transfer": transfer}
        if self.verifier is not None:
            timings["examination"] = self._examined - examined
        elapsed = self._ended - begin
        return this_round._replace(timings=timings, elapsed=elapsed)

    def end(self) -> None:
        """Ends all workers."""
        for worker in range(len(self.fleet.slots)):
            self.actors.end(worker)

    @property
    def _examined(self) -> float:
        """Seconds that verification has taken so far."""
        return 0.0 if self.verifier is None else self.verifier.seconds

    def _now(self) -> float:
        """Returns the time of the engines.

        It stands still between rounds and in verification: there, no response is read,
        and no worker is silent.
        """
        return time.monotonic() - self._away - self._examined

    def _run(self, engine: events.RoundEngine) -> tuple[Any, float]:
        """Returns the result of an engine, and the seconds in which it was read."""
        transfer, examined = 0.0, self._examined
        try:
            while (result := engine.result()) is None:
                self._check_open()
                wait = np.clip(engine.poll_at - self._now(), 0, _POLL_SECONDS)
                event = self.actors.next_event(float(wait))
                if event is not None:
                    start = time.monotonic()
                    self._perform(engine.handle(event, self._now()))
                    transfer += time.monotonic() - start
                if not self.actors.has_events and engine.result() is None:
                    self._perform(engine.poll(self._now()))
        finally:
            self._ended = time.monotonic()
        transfer += self.actors.read_seconds + examined - self._examined
        return result, transfer

    def _perform(self, actions: Any) -> None:
        self.actors.perform(actions)
        for action in actions:
            if isinstance(action, events.Replace) and action.warning:
                # Shown at the call of `compute`.
                warnings.warn(action.warning, stacklevel=6)

    def _check_open(self) -> None:
        if self.is_closed.is_set():
            raise RuntimeError("the RayCluster was closed during a round")
        check_connected()
