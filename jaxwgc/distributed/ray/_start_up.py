"""Engine of the start of the workers."""

from collections.abc import Sequence

import numpy as np

from jaxwgc.distributed.ray import _events as events
from jaxwgc.distributed.ray._errors import error_of_user
from jaxwgc.distributed.ray._fleet import log
from jaxwgc.distributed.ray._rounds import Engine

# Number of deaths of a worker, before its first start, after which the start fails.
_MAX_DEATHS_AT_START = 3


class StartUp(Engine[bool]):
    """Engine that starts all workers, and waits until each is ready.

    Its result is True.
    """

    def handle(self, event: events.Event, now: float) -> Sequence[events.Action]:
        """Raises an error if a worker cannot start; restarts dead processes."""
        actions = super().handle(event, now)
        if isinstance(event, events.Lost):
            num_failures = self._fleet.slots[event.worker].num_failures
            if not event.has_died or num_failures == _MAX_DEATHS_AT_START:
                why = f"worker {event.worker} failed to start: {event.trouble}"
                raise error_of_user(why, event.error) from event.error
        return actions

    def _send(self, worker: int, now: float) -> None:
        slots = self._fleet.slots
        num_ready = self._fleet.are("idle").sum()
        text = "%d of %d workers are ready: worker %d on %s"
        log.info(text, num_ready, len(slots), worker, slots[worker].where)

    def _advance(self, now: float) -> None:
        """Raises RuntimeError if the start takes too long."""
        waiting = np.flatnonzero(~self._fleet.are("idle")).tolist()
        limit = self._fleet.timeouts.start
        self.poll_at = np.inf
        if waiting and now - self._begin > limit:
            why = f"workers {waiting} have not started within {limit} seconds"
            raise RuntimeError(f"{why}: `ray status` shows free resources")
        if not waiting:
            self.result = True
            for slot in self._fleet.slots:
                self._fleet.recover(slot)
