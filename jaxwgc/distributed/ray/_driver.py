"""The driver, which connects the state machine of a round with Ray's actors."""

import pickle
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._actors import Actors
from jaxwgc.distributed.ray._fleet import Fleet, log
from jaxwgc.distributed.ray._interrupts import check_interrupt
from jaxwgc.distributed.ray._launcher import Launcher
from jaxwgc.distributed.ray._messages import ArrayPool, Layout, Round, SentKey
from jaxwgc.distributed.ray._request_plan import RequestPlan
from jaxwgc.distributed.ray._request_round import ExpectedSums, RequestRound
from jaxwgc.distributed.ray._rounds import Engine, MessageRound, RoundStart, StartUp
from jaxwgc.distributed.ray._session import check_connected, find_ray
from jaxwgc.distributed.ray._verification import Verifier

# Polling interval, in seconds, of checks for silent workers.
_POLL_SECONDS = 0.1
# Largest size of params, in bytes, that are sent as an argument of the task. Larger
# params go through Ray's object store, which is slower for small arrays.
_LARGEST_IN_TASK = 2**16


class LoopSeconds(NamedTuple):
    """Seconds that the coordinator spent on responses and verification in a round.

    Attributes:
      transfer: Seconds of reading and handling responses.
      examination: Seconds of verification.
    """

    transfer: float
    examination: float


class Driver:
    """Runs rounds: passes events to a state machine, and performs its actions.

    Args:
      fleet: States of the workers.
      layout: Shapes of their messages.
      launcher: Makes the actors of workers.
      plan: `RequestPlan` of a code with several messages per worker, or None.

    Attributes:
      actors: `Actors` of the workers.
      verifier: `Verifier` of the rounds, or None.
    """

    def __init__(
        self,
        fleet: Fleet,
        layout: Layout,
        launcher: Launcher,
        plan: RequestPlan | None,
    ):
        self.fleet = fleet
        self._layout = layout
        self._plan = plan
        # `close`, in another thread, sets this event to end the current round.
        self.is_closed = threading.Event()
        self.actors = Actors(launcher, len(fleet.slots), self._check_open)
        self.verifier: Verifier | None = None
        self._memory = ArrayPool(layout.shape, layout.dtype)
        self._expected: ExpectedSums | None = None
        # Time at which the last round ended, and total seconds of pauses: between
        # rounds and in verification. `_now` leaves the pauses out.
        self._ended = time.monotonic()
        self._paused = 0.0

    def start(self, step: int) -> None:
        """Starts all workers, and waits until each has loaded its parts and compiled.

        Args:
          step: Step of the first round.

        Raises:
          ValueError: If the parts of two workers are not alike.
          RuntimeError: If a worker fails or dies repeatedly, or the start takes longer
            than `timeouts.start`.
        """
        log.info("starting %d workers", len(self.fleet.slots))
        self.actors.step = step
        self._run(StartUp(self.fleet, self._now()))
        log.info("compiling the decoder")
        self._compile_decoder()

    def _compile_decoder(self) -> None:
        """Compiles the decoder, so that the first round does not wait for it."""
        if self._plan is None:
            self.fleet.rules.decodes(np.ones(len(self.fleet.slots), bool))
        else:
            mask = np.ones(self._plan.support.shape[:2], bool)
            self.fleet.rules.decodes(mask.ravel())
            self._expected = ExpectedSums(self._plan.requests(mask))

    def run(
        self, step: int, leaves: list[np.ndarray], key: SentKey, owner: object = None
    ) -> Round:
        """Runs one round, and returns it.

        See `RayCluster.compute` and `MessageRound`.
        """
        begin = time.monotonic()
        self._paused += begin - self._ended
        # If an error below ends this round, the next one must not add this pause again.
        self._ended = begin
        order = (leaves, key, step)
        num_bytes = sum(leaf.nbytes for leaf in leaves)
        if num_bytes > _LARGEST_IN_TASK:
            self.actors.order = find_ray().put(order)
        else:
            self.actors.order = pickle.dumps(order)
        self.actors.step = step
        self.actors.read_seconds = 0.0
        start = RoundStart(
            step=step,
            now=self._now(),
            messages=self._memory.borrow(),
            is_verified=self.verifier is not None,
        )
        if self._plan is None:
            engine = MessageRound(self.fleet, self._layout, start, owner)
        else:
            assert self._expected is not None
            expected = self._expected.weights
            engine = RequestRound(self.fleet, self._plan, start, expected)
        self.actors.perform(self.fleet.actions())
        broadcast = time.monotonic() - begin
        seconds = self._run(engine)
        timings = {"broadcast": broadcast, "transfer": seconds.transfer}
        if self.verifier is not None:
            timings["examination"] = seconds.examination
        elapsed = self._ended - begin
        assert engine.result is not None
        if isinstance(engine, RequestRound):
            assert self._expected is not None and engine.requests is not None
            self._expected.note(engine.requests)
        return engine.result._replace(timings=timings, elapsed=elapsed)

    def end(self) -> None:
        """Ends all workers, and the spare process."""
        self.actors.end_all()

    def _now(self) -> float:
        """Returns seconds on a clock that stops between rounds and in verification.

        No response is read in these pauses, so they must not count as silence of a
        worker.
        """
        return time.monotonic() - self._paused

    def _run(self, engine: Engine[Any]) -> LoopSeconds:
        """Runs a state machine until it has a result, and returns the time it took."""
        transfer = 0.0
        examination = 0.0
        try:
            while engine.result is None:
                self._check_open()
                check_interrupt()
                if engine.unverified is not None:
                    event, seconds = self._verify(engine.unverified)
                    examination += seconds
                    self._paused += seconds
                else:
                    wait = np.clip(engine.poll_at - self._now(), 0, _POLL_SECONDS)
                    event = self.actors.next_event(float(wait))
                if event is not None:
                    start = time.monotonic()
                    self.actors.perform(engine.handle(event, self._now()))
                    transfer += time.monotonic() - start
                is_open = engine.result is None and engine.unverified is None
                if is_open and not self.actors.pending:
                    self.actors.perform(engine.poll(self._now()))
        finally:
            self._ended = time.monotonic()
        return LoopSeconds(transfer + self.actors.read_seconds, examination)

    def _verify(self, unverified: events.Unverified) -> tuple[events.Verdict, float]:
        """Verifies messages, and returns the verdict and the time in seconds."""
        assert self.verifier is not None
        start = time.monotonic()
        verdict = self.verifier.check(unverified)
        return verdict, time.monotonic() - start

    def _check_open(self) -> None:
        if self.is_closed.is_set():
            raise RuntimeError("the RayCluster was closed during a round")
        check_connected()
