"""Engine that starts the workers."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._fleet import Fleet

# Deaths of one worker before it has ever started, after which the start fails.
_MAX_DEATHS_AT_START = 3

log = logging.getLogger("jaxwgc.distributed")


class StartUp:
    """Engine that starts all workers, and waits until each is ready."""

    def __init__(self, fleet: Fleet, now: float, shown_resources: Callable[[], str]):
        self._fleet, self._shown_resources = fleet, shown_resources
        self._end = now + fleet.timeouts.start
        self.poll_at = now
        self._is_over = False
        log.info("starting %d workers", len(fleet.slots))

    def handle(self, event: events.Event, now: float) -> Sequence[events.Action]:
        """Raises the error of a worker that cannot start; others are started again."""
        slot = self._fleet.slots[event.worker]
        if isinstance(event, events.Lost):
            self._fleet.lose(event, now)
            if not event.has_died or slot.num_failures == _MAX_DEATHS_AT_START:
                cause = getattr(event.error, "cause", None) or event.error
                kind = ValueError if isinstance(cause, ValueError) else RuntimeError
                raise kind(
                    f"worker {slot.index} failed to start: {event.trouble}"
                ) from event.error
        elif isinstance(event, events.Ready):
            self._fleet.ready(event)
            num_ready = int(self._fleet.are("idle").sum())
            log.info("%d of %d workers are ready", num_ready, len(self._fleet.slots))
        return self._fleet.actions()

    def poll(self, now: float) -> Sequence[events.Action]:
        """Launches processes; raises RuntimeError if the start takes too long."""
        waiting = np.flatnonzero(~self._fleet.are("idle")).tolist()
        if waiting and now > self._end:
            raise RuntimeError(
                f"workers {waiting} have not started within "
                f"{self._fleet.timeouts.start} seconds; Ray has "
                f"{self._shown_resources()} left"
            )
        self._fleet.poll(now)
        if not waiting:
            self._is_over = True
            places: dict[str, list[int]] = {}
            for slot in self._fleet.slots:
                self._fleet.recover(slot)
                places.setdefault(slot.where, []).append(slot.index)
            for where, workers in places.items():
                log.info("workers %s are on %s", workers, where)
        self.poll_at = np.inf
        return self._fleet.actions()

    def result(self) -> bool | None:
        """Returns True once all workers are ready."""
        return self._is_over or None
