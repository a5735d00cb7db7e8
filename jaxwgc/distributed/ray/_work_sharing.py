"""Division of parts among the workers that hold them, in a round on request."""

import numpy as np

from jaxwgc.distributed.ray._fleet import Fleet
from jaxwgc.distributed.ray._messages import HOLD_SECONDS
from jaxwgc.distributed.ray._part_states import PartEvent, PartStates, PartStatus
from jaxwgc.distributed.ray._request_plan import RequestPlan


class WorkSharing:
    """Claims parts for workers, and marks the parts that they leave to others.

    A worker claims the parts that it is expected to compute before its next report. It
    leaves parts to its helpers: workers that are at least half as fast, and are not
    suspected.

    Args:
      plan: `RequestPlan` of the code.
      parts: Statuses of the parts of the round, which are changed.
      fleet: Workers.
    """

    def __init__(self, plan: RequestPlan, parts: PartStates, fleet: Fleet):
        self._plan = plan
        self._parts = parts
        self._fleet = fleet

    def update(self, worker: int, *, has_begun: bool) -> None:
        """Updates the open parts of a worker, before it is told of others.

        Args:
          worker: Index of the worker.
          has_begun: Whether the worker is computing. It then keeps the part that it has
            begun: the first part that no other worker had when it was told last.
        """
        parts = self._parts
        num_claims = self._num_claims(worker)
        unfinished = parts.turns(worker, [PartStatus.HELD, PartStatus.COMPUTING])
        begun = unfinished[:1]
        parts.apply_to_worker(PartEvent.RELEASE, worker)
        if self._plan.may_skip:
            parts.apply(PartEvent.COVER, worker, self._finished_by_others(worker))
        if has_begun:
            free = parts.turns(worker, [PartStatus.HELD])
            parts.apply(PartEvent.CLAIM, worker, np.intersect1d(begun, free))
            num_claims -= len(begun)
        if self._plan.may_skip:
            parts.apply(PartEvent.TAKE, worker, self._taken_by_helpers(worker))
        free = parts.turns(worker, [PartStatus.HELD])
        parts.apply(PartEvent.CLAIM, worker, free[:num_claims])

    def _finished_by_others(self, worker: int) -> np.ndarray:
        """Returns the free turns of a worker that other workers have finished."""
        turns = self._parts.turns(worker, [PartStatus.HELD])
        is_reported = self._parts.reported_parts()
        return turns[is_reported[self._plan.parts[worker, turns]]]

    def _taken_by_helpers(self, worker: int) -> np.ndarray:
        """Returns the free turns of a worker that its helpers are computing."""
        turns = self._parts.turns(worker, [PartStatus.HELD])
        is_computed = self._parts.parts_computed_by(self._helpers(worker))
        return turns[is_computed[self._plan.parts[worker, turns]]]

    def _helpers(self, worker: int) -> np.ndarray:
        """Returns the helpers of a worker, bool (num_workers,)."""
        num_finished = self._parts.num_finished
        is_fast_enough = 2 * num_finished >= num_finished[worker]
        is_suspected = np.array([slot.is_suspected for slot in self._fleet.slots])
        is_helper = is_fast_enough & ~is_suspected
        is_helper[worker] = False
        return is_helper

    def _num_claims(self, worker: int) -> int:
        """Returns how many parts a worker is expected to compute between reports.

        At least two: the part that it has begun, and another.
        """
        seconds = max(self._fleet.limit.median(worker), 1e-6)
        return int(np.clip(HOLD_SECONDS / seconds, 2, self._plan.report_size))
