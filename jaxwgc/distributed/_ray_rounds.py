"""Rounds: parameters out, answers in, until the waiting rule is content."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwgc.distributed._ray_memory import Memory
from jaxwgc.distributed._ray_places import Place
from jaxwgc.distributed._ray_runtime import find_ray
from jaxwgc.distributed._ray_worker import Started, unpack

# A task that never ends is looked at that often.
_LONGEST_WAIT = 1.0


class Round(NamedTuple):
    """What a cluster gave for one set of parameters.

    Attributes:
      messages: (num_messages, length), zero where not received.
      received: bool (num_workers,), whose messages are to be decoded.
      times: float (num_workers,), seconds from the start of the round to each answer;
        infinity where there was none before its end.
      elapsed: seconds that the round took.
      losses: float (num_parts,), of each part; NaN where no worker answered that holds
        it.
    """

    messages: np.ndarray
    received: np.ndarray
    times: np.ndarray
    elapsed: float
    losses: np.ndarray


class Patience(NamedTuple):
    """For how many seconds whom is waited for.

    Attributes:
      restart_after: for an answer, before a worker counts as frozen.
      start_within: for an actor to start, with its parts loaded.
      undecodable_after: in a round that cannot be decoded, for workers that are being
        replaced.
    """

    restart_after: float
    start_within: float
    undecodable_after: float


class Layout(NamedTuple):
    """What an answer must look like.

    Attributes:
      held: the parts of each worker.
      num_parts: of all workers.
      per_worker: messages of each.
      length: of a message.
      dtype: of a message as it is decoded.
      wire: shape and dtype of the messages of a worker on their way.
    """

    held: Sequence[np.ndarray]
    num_parts: int
    per_worker: int
    length: int
    dtype: np.dtype
    wire: jax.ShapeDtypeStruct

    def check(self, wire: Any) -> None:
        """ValueError where the messages of a worker are of another kind."""
        if np.shape(wire) != self.wire.shape:
            raise ValueError(
                f"its message has shape {np.shape(wire)}, not {self.wire.shape}"
            )
        if wire.dtype != self.wire.dtype:
            raise ValueError(f"its message is of {wire.dtype}, not {self.wire.dtype}")


class Rounds:
    """The coordinator's loop. It runs in one thread, and only inside of a round.

    Attributes:
      times: a row a round, seconds from its start to the answer of each worker, also
        to those that came after its end; infinity where there was none.
      seconds: what the last round spent on the broadcast and on reading answers.
    """

    def __init__(
        self,
        places: list[Place],
        layout: Layout,
        wait: Callable[[np.ndarray], tuple[Any, Any]],
        decodes: Callable[[np.ndarray], bool],
        patience: Patience,
        times: list[np.ndarray],
    ):
        self.places = places
        self.times = times
        self.seconds = {"broadcast": 0.0, "transfer": 0.0}
        self._layout = layout
        self._wait = wait
        self._decodes = decodes
        self._patience = patience
        shape = (len(places) * layout.per_worker, layout.length)
        self._memory = Memory(shape, layout.dtype)
        self._begun: dict[int | None, float] = {}
        self._signature: str | None = None

    def start(self, key_data: np.ndarray) -> None:
        """Makes all actors, and waits until each has loaded its parts and compiled.

        Raises:
          ValueError: where parts of two workers are not alike.
          RuntimeError: where one fails, or has not started in time.
        """
        for place in self.places:
            place.fill(key_data)
        end = time.monotonic() + self._patience.start_within
        waiting = list(self.places)
        while waiting:
            ready = _first_ready(waiting, end - time.monotonic())
            if ready is None:
                raise RuntimeError(
                    f"workers {[place.index for place in waiting]} have not started "
                    f"within {self._patience.start_within} seconds; Ray has "
                    f"{find_ray().available_resources()} left"
                )
            waiting.remove(ready)
            try:
                self._welcome(ready, ready.take())
            except Exception as error:
                cause = getattr(error, "cause", None) or error
                if isinstance(cause, ValueError):
                    message = f"worker {ready.index}: {cause}"
                    raise ValueError(message) from error
                raise RuntimeError(
                    f"worker {ready.index} failed to start: {reason(error)}"
                ) from error

    def run(self, step: int, leaves: list, key_data: np.ndarray) -> Round:
        """One round: see `RayCluster.compute`."""
        layout, places = self._layout, self.places
        num_workers = len(places)
        begin = time.monotonic()
        times = np.full(num_workers, np.inf)
        # Not the step: one that was interrupted may be tried again.
        number = len(self.times)
        self.times.append(times)
        self._begun[number] = begin
        messages = self._memory.borrow()
        losses = np.full(layout.num_parts, np.nan)
        # Nobody is waited for twice in a round.
        replaced = np.zeros(num_workers, bool)
        params = find_ray().put(leaves)
        for place in places:
            if place.is_idle:
                place.hand(number, params, key_data, step)
        reading, hopeless_since = 0.0, None
        self.seconds["broadcast"] = time.monotonic() - begin

        while True:
            now = time.monotonic() - begin
            received, ends = self._wait(times)
            if ends <= np.float32(now):
                break
            answered = np.isfinite(times)
            if any(own.is_computing and not replaced[own.index] for own in places):
                hopeless_since = None
            else:
                # What comes can only be more of what has come, or a replacement.
                if hopeless_since is None:
                    hopeless_since = now
                waited = now - hopeless_since > self._patience.undecodable_after
                over = waited or not any(own.is_coming for own in places)
                if over or self._decodes(answered):
                    received = answered
                    break

            ready = _first_ready(places, min(float(ends) - now, self._pause()))
            if ready is not None:
                start = time.monotonic()
                owed = ready.round
                try:
                    self._receive(ready, number, messages, losses)
                    if owed != number:
                        ready.hand(number, params, key_data, step)
                except Exception as error:
                    ready.give_up(reason(error))
                reading += time.monotonic() - start
            for place in self._silent():
                place.give_up(
                    f"silent for {time.monotonic() - place.since:.1f} seconds"
                )
            for place in places:
                replaced[place.index] |= place.actor is None
                if place.actor is None and place.hire_at <= time.monotonic():
                    place.fill(key_data)

        owed = {place.round for place in places if place.is_computing} | {number}
        self._begun = {own: self._begun[own] for own in owed if own in self._begun}
        self.seconds["transfer"] = reading
        received = np.asarray(received)
        messages[np.repeat(~received, layout.per_worker)] = 0
        elapsed = time.monotonic() - begin
        return Round(messages, received, times.copy(), elapsed, losses)

    def missing(self, received: np.ndarray) -> str:
        """Who has not answered, and what is known of the reason."""
        return "; ".join(
            f"worker {place.index}" + (f" ({place.trouble})" if place.trouble else "")
            for place in self.places
            if not received[place.index]
        )

    def _welcome(self, place: Place, started: Any) -> None:
        """An actor is ready, if its parts are like those of the others."""
        if self._signature is None:
            self._signature = started.signature
        if started.signature != self._signature:
            raise ValueError(
                f"parts must be alike; got {started.signature}, and {self._signature} "
                "on another worker"
            )
        is_here = started.node == find_ray().get_runtime_context().get_node_id()
        place.pid = started.pid if is_here else None

    def _receive(
        self, place: Place, number: int, messages: np.ndarray, losses: np.ndarray
    ) -> None:
        """Copies an answer, so that nothing holds on to Ray's memory.

        One to a round that is over only leaves its time.
        """
        now, answered = time.monotonic(), place.round
        found = place.take()
        if isinstance(found, Started):
            self._welcome(place, found)
            return
        self._layout.check(found.message)
        # A late one goes there for now, too, to be looked at.
        start = place.index * self._layout.per_worker
        own = messages[start : start + self._layout.per_worker]
        unpack(found.message, own)
        if not _is_finite(own):
            # Another process would compute the same from the same data.
            place.trouble = "its message is not finite"
            return
        if answered == number:
            losses[self._layout.held[place.index]] = found.losses
        place.succeed()
        if answered is not None and answered in self._begun:
            self.times[answered][place.index] = now - self._begun[answered]

    def _limit(self, place: Place) -> float:
        if place.task is None:
            return np.inf
        own = self._patience
        return own.start_within if place.round is None else own.restart_after

    def _silent(self) -> list[Place]:
        """Those whose answer is overdue, and has not come in the meantime either."""
        now = time.monotonic()
        late = [own for own in self.places if now - own.since > self._limit(own)]
        return [place for place in late if _first_ready([place], 0) is None]

    def _pause(self) -> float:
        """Seconds until something is due other than an answer."""
        now = time.monotonic()
        due = [own.since + self._limit(own) for own in self.places]
        due += [own.hire_at for own in self.places if own.actor is None]
        return float(np.clip(min(due) - now, 0.01, _LONGEST_WAIT))


def _is_finite(message: np.ndarray) -> bool:
    """Whether all entries are; their sum says so nearly always, at a lower price."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(message.sum()) or np.isfinite(message).all())


def _first_ready(places: list[Place], seconds: float) -> Place | None:
    """One of those whose task is done, or None after some seconds."""
    owing = [place for place in places if place.task is not None]
    seconds = max(seconds, 0)
    if not owing:
        time.sleep(seconds)
        return None
    ready, _ = find_ray().wait([own.task for own in owing], timeout=seconds)
    return next((own for own in owing if own.task in ready), None)


def reason(error: Exception) -> str:
    """An error of a worker in one line."""
    cause = getattr(error, "cause", None) or error
    first = (str(cause).strip().splitlines() or [""])[0]
    name = type(cause).__name__
    if name.startswith("Actor"):
        return f"its process died ({name})"
    return f"{name}: {first}"
