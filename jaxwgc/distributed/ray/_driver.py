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
from jaxwgc.distributed.ray._request_round import RequestPlan, RequestRound
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

    def start(self) -> None:
        """Starts all workers, and waits until each has loaded its parts and compiled.

        Raises:
          ValueError: If the parts of two workers are not alike.
          RuntimeError: If a worker fails or dies repeatedly, or the start takes longer
            than `timeouts.start`.
        """

        def shown_resources() -> str:
            return str(find_ray().available_resources())

        self._run(
            StartUp(self.fleet, time.monotonic(), shown_resources), {"transfer": 0.0}
        )

    def run(
        self, step: int, leaves: list[np.ndarray], key: Any, owner: Any = None
    ) -> Round:
        """Returns one round: see `RayCluster.compute` and `MessageRound`."""
        begin, timings = time.monotonic(), {"transfer": 0.0}
        order = leaves, key, step
        is_large = sum(leaf.nbytes for leaf in leaves) > _LARGEST_IN_TASK
        order = find_ray().put(order) if is_large else pickle.dumps(order)
        self.actors.order = order
        given = step, begin, self._memory.borrow()
        common = self.fleet, self._layout
        if self._plan is None:
            engine = MessageRound(*common, *given, owner, self.verifier)
        else:
            engine = RequestRound(*common, self._plan, *given, self.verifier)
        self.actors.perform(self.fleet.actions())
        timings["broadcast"] = time.monotonic() - begin
        self.actors.read_seconds = 0.0
        this_round = self._run(engine, timings)
        timings["transfer"] += self.actors.read_seconds
        if self.verifier is not None:
            timings["examination"] = self.verifier.seconds
            timings["transfer"] -= self.verifier.seconds
        return this_round._replace(timings=timings)

    def end(self) -> None:
        """Ends all workers."""
        for worker in range(len(self.fleet.slots)):
            self.actors.end(worker)

    def _run(self, engine: Any, timings: dict[str, float]) -> Any:
        while (result := engine.result()) is None:
            self._check_open()
            seconds = engine.poll_at - time.monotonic()
            event = self.actors.next_event(float(np.clip(seconds, 0, _POLL_SECONDS)))
            if event is not None:
                start = time.monotonic()
                self._perform(engine.handle(event, start))
                timings["transfer"] += time.monotonic() - start
            if not self.actors.has_events and engine.result() is None:
                self._perform(engine.poll(time.monotonic()))
        return result

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
