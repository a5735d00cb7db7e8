"""Rounds: parameters out, answers in, until the waiting rule is content."""

import logging
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxwgc.distributed._ray_memory import Memory
from jaxwgc.distributed._ray_places import Place
from jaxwgc.distributed._ray_runtime import check_connected, find_ray
from jaxwgc.distributed._ray_worker import Started, unpack

# A task that never ends is looked at that often.
_LONGEST_WAIT = 1.0
# Bytes of params that travel within a task, which is faster than Ray's object store.
_LARGEST_IN_TASK = 2**16
# Of one worker before it has ever started; more have a reason of their own.
_MAX_DEATHS_AT_START = 3

log = logging.getLogger("jaxwgc.distributed")


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
      aux: what the loss returned besides, with `has_aux`: a pytree; leaves
        (num_parts, ...), zero where losses are NaN. None without.
    """

    messages: np.ndarray
    received: np.ndarray
    times: np.ndarray
    elapsed: float
    losses: np.ndarray
    aux: Any = None


class Patience(NamedTuple):
    """For how many seconds whom is waited for.

    Attributes:
      restart_after: for an answer, before a worker counts as frozen.
      start_within: for an actor to start, with its parts loaded.
      undecodable_after: in a round that cannot be decoded, for a worker that is being
        replaced, since it was lost.
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

    def by_part(self, aux: dict[int, Any]) -> Any:
        """What workers sent besides, (num_held, ...), as leaves (num_parts, ...)."""

        def gathered(*leaves):
            like = np.asarray(leaves[0])
            found = np.zeros((self.num_parts, *like.shape[1:]), like.dtype)
            for worker, leaf in zip(aux, leaves):
                found[self.held[worker]] = leaf
            return found

        return jax.tree.map(gathered, *aux.values()) if aux else None


class _Answers(NamedTuple):
    """Of a round that is under way: see `Round`; aux of each worker as it came."""

    messages: np.ndarray
    losses: np.ndarray
    aux: dict[int, Any]


class Rounds:
    """The coordinator's loop. It runs in one thread, and only inside of a round.

    Attributes:
      is_closed: set by anyone, ends the round that is under way with a RuntimeError.
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
        num_stragglers: int,
        patience: Patience,
        times: list[np.ndarray],
    ):
        self.is_closed = threading.Event()
        self.places = places
        self.times = times
        self.seconds = {"broadcast": 0.0, "transfer": 0.0}
        self._layout = layout
        self._wait = wait
        self._decodes = decodes
        self._num_stragglers = num_stragglers
        self._patience = patience
        shape = (len(places) * layout.per_worker, layout.length)
        self._memory = Memory(shape, layout.dtype)
        self._begun: dict[int | None, float] = {}
        self._when = "at the start"
        self._signature: str | None = None

    def start(self, key_data: np.ndarray) -> None:
        """Makes all actors, and waits until each has loaded its parts and compiled.

        Raises:
          ValueError: where parts of two workers are not alike.
          RuntimeError: where one fails, dies again and again, or has not started in
            time.
        """
        for place in self.places:
            place.fill(key_data)
        end = time.monotonic() + self._patience.start_within
        waiting = list(self.places)
        while waiting:
            self._check_open()
            seconds = end - time.monotonic()
            if seconds < 0:
                raise RuntimeError(
                    f"workers {[place.index for place in waiting]} have not started "
                    f"within {self._patience.start_within} seconds; Ray has "
                    f"{find_ray().available_resources()} left"
                )
            ready = _first_ready(waiting, min(seconds, self._pause()))
            if ready is not None:
                try:
                    self._welcome(ready, ready.take())
                    waiting.remove(ready)
                except Exception as error:
                    self._check_open()
                    if not _is_death(error):
                        _raise_failed_start(ready, error)
                    self._lose(ready, reason(error), error)
                    if ready.num_failures == _MAX_DEATHS_AT_START:
                        _raise_failed_start(ready, error)
            self._refill(key_data)
        by_node: dict[str, list[int]] = {}
        for place in self.places:
            self._is_good(place)
            by_node.setdefault(_where(place), []).append(place.index)
        for node, workers in by_node.items():
            log.info("workers %s are on %s", workers, node)

    def run(self, step: int, leaves: list, key_data: np.ndarray) -> Round:
        """One round: see `RayCluster.compute`."""
        self._check_open()
        layout, places = self._layout, self.places
        num_workers = len(places)
        begin = time.monotonic()
        times = np.full(num_workers, np.inf)
        # Not the step: one that was interrupted may be tried again.
        number = len(self.times)
        self.times.append(times)
        self._begun[number] = begin
        self._when = f"in round {number}"
        answers = _Answers(self._memory.borrow(), np.full(layout.num_parts, np.nan), {})
        # Nobody is waited for twice in a round, but for a while.
        replaced = np.zeros(num_workers, bool)
        order = leaves, key_data, step
        if sum(leaf.nbytes for leaf in leaves) > _LARGEST_IN_TASK:
            order = find_ray().put(order)
        else:
            order = pickle.dumps(order)
        for place in places:
            if place.is_idle:
                place.hand(number, order)
        reading = 0.0
        # A rule is asked again only where there is something new.
        asked, answered, received = np.zeros((3, 0), bool)
        ends: Any = np.inf
        self.seconds["broadcast"] = time.monotonic() - begin

        while True:
            self._check_open()
            now = time.monotonic() - begin
            if not np.array_equal(times, asked):
                received, ends = self._wait(times)
                asked, answered = times.copy(), np.isfinite(times)
            if ends <= np.float32(now):
                # A rule may name whom it expects, whose rows were never written.
                received = np.asarray(received) & answered
                break
            if not any(own.is_computing and not replaced[own.index] for own in places):
                # What comes can only be more of what has come, or a replacement.
                awaited = any(map(self._is_worth_waiting, places))
                if not awaited or self._decodes(answered):
                    received = answered
                    break

            ready = _first_ready(places, min(float(ends) - now, self._pause()))
            if ready is not None:
                start = time.monotonic()
                owed = ready.round
                try:
                    self._receive(ready, number, answers)
                    if owed != number:
                        ready.hand(number, order)
                except Exception as error:
                    self._check_open()
                    self._lose(ready, reason(error), error)
                reading += time.monotonic() - start
            for place in self._silent():
                seconds = time.monotonic() - place.since
                name = "start_within" if place.round is None else "restart_after"
                limit = getattr(self._patience, name)
                self._lose(place, f"silent for {seconds:.1f} s; {name} is {limit:g}")
            for place in places:
                replaced[place.index] |= place.actor is None
            self._refill(key_data)

        owed = {place.round for place in places if place.is_computing} | {number}
        self._begun = {own: self._begun[own] for own in owed if own in self._begun}
        self.seconds["transfer"] = reading
        answers.messages[np.repeat(~received, layout.per_worker)] = 0
        aux = layout.by_part(answers.aux)
        elapsed = time.monotonic() - begin
        return Round(
            answers.messages, received, times.copy(), elapsed, answers.losses, aux
        )

    def missing(self, received: np.ndarray) -> str:
        """Who has not answered, and what is known of the reason."""
        return "; ".join(
            f"worker {place.index}" + (f" ({place.trouble})" if place.trouble else "")
            for place in self.places
            if not received[place.index]
        )

    @property
    def error(self) -> Exception | None:
        """What one of the missing raised, with its traceback."""
        return next((place.error for place in self.places if place.error), None)

    def _check_open(self) -> None:
        if self.is_closed.is_set():
            raise RuntimeError("the RayCluster was closed during a round")
        check_connected()

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
        place.node, place.host = started.node, started.host

    def _receive(self, place: Place, number: int, answers: "_Answers") -> None:
        """Copies an answer, so that nothing holds on to Ray's memory.

        One to a round that is over only leaves its time.
        """
        now, answered = time.monotonic(), place.round
        found = place.take()
        if isinstance(found, Started):
            self._welcome(place, found)
            return
        self._layout.check(found.message)
        if answered == number:
            start = place.index * self._layout.per_worker
            own = answers.messages[start : start + self._layout.per_worker]
            unpack(found.message, own)
            if not is_finite(own):
                # Another process would compute the same from the same data.
                if not place.trouble:
                    place.trouble = "its message is not finite"
                    self._log_loss(place)
                return
            answers.losses[self._layout.held[place.index]] = found.losses
            answers.aux[place.index] = found.aux
            self._is_good(place)
        elif place.away_since is not None:
            # Not looked at, but its process is well.
            self._is_good(place)
        if answered is not None and answered in self._begun:
            self.times[answered][place.index] = now - self._begun[answered]

    def _lose(self, place: Place, trouble: str, error: Exception | None = None) -> None:
        """Gives an actor up, and says so."""
        place.give_up(trouble, error)
        self._log_loss(place)

    def _log_loss(self, place: Place) -> None:
        """One line; and where the worker raised, its traceback for who looks closer."""
        others = np.array([not own.trouble for own in self.places])
        left = self._num_stragglers - int((~others).sum())
        if left > 0:
            spares = f"{left} of {self._num_stragglers} spare workers left"
        elif self._decodes(others):
            spares = "no spare worker is left"
        else:
            spares = "the others do not decode"
        log.warning(
            "worker %d is lost %s: %s; %s",
            place.index,
            self._when,
            place.trouble,
            spares,
        )
        if place.error is not None:
            log.debug("worker %d raised", place.index, exc_info=place.error)

    def _is_good(self, place: Place) -> None:
        """A worker has answered well, and is back if it was away."""
        if place.trouble:
            log.info(
                "worker %d is back %s on %s; it was lost: %s",
                place.index,
                self._when,
                _where(place),
                place.trouble,
            )
        place.succeed()

    def _refill(self, key_data: np.ndarray) -> None:
        """Makes actors where there are none, and a pause is over."""
        for place in self.places:
            if place.actor is None and place.hire_at <= time.monotonic():
                place.fill(key_data)

    def _is_worth_waiting(self, place: Place) -> bool:
        """For who is being replaced, as long as that has not taken too long.

        Since its loss, which may be rounds ago: who never comes back is waited for
        once.
        """
        if not place.is_coming:
            return False
        away = time.monotonic() - (place.away_since or np.inf)
        return away < self._patience.undecodable_after

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
        due += [
            own.away_since + self._patience.undecodable_after
            for own in self.places
            if own.away_since is not None
        ]
        ahead = min((own - now for own in due if own > now), default=_LONGEST_WAIT)
        return min(max(ahead, 0.01), _LONGEST_WAIT)


def is_finite(message: np.ndarray) -> bool:
    """Whether all entries are; their sum says so nearly always, at a lower price."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(message.sum()) or np.isfinite(message).all())


def _where(place: Place) -> str:
    return f"{place.host} (node {place.node[:8]})"


def _is_death(error: Exception) -> bool:
    """Whether a process ended, and not what it was told to do."""
    exceptions = find_ray().exceptions
    return isinstance(error, exceptions.RayError) and not isinstance(
        error, exceptions.RayTaskError
    )


def _raise_failed_start(place: Place, error: Exception) -> NoReturn:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ValueError):
        raise ValueError(f"worker {place.index}: {cause}") from error
    raise RuntimeError(
        f"worker {place.index} failed to start: {reason(error)}"
    ) from error


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
