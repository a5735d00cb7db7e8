"""Statuses of parts in a round on request, and the events that change them.

Each part of each worker has one status. `TRANSITIONS` lists the events that change a
status, and `PartStates.apply` rejects all other changes. All other information on the
parts of a round is derived from the statuses.

```text
  LOST ──SEND──► HELD ─┬──────────────────────┐
                       ├─CLAIM──► COMPUTING ──┤
                       ├─TAKE───► TAKEN ──────┼─REPORT────────────► REPORTED
                       └─COVER──► COVERED ────┴─REPORT_NOT_FINITE─► NOT_FINITE
```

RELEASE leads back to HELD, LOSE to LOST, and EXCLUDE to EXCLUDED, which is final. A
worker may report a part that it was not expected to compute: if it has no other parts
left, it computes parts that other workers have taken or finished.
"""

import enum
import functools
from collections.abc import Iterable

import numpy as np

from jaxwgc.distributed.ray._messages import Taken


class PartStatus(enum.IntEnum):
    """Status of a part of one worker, as the coordinator sees it.

    Attributes:
      ABSENT: The worker has fewer parts than others, and none at this position.
      LOST: No running process of the worker has the parameters of the round.
      HELD: The worker has not finished the part, and nothing else is known.
      COMPUTING: The worker is expected to compute the part before its next report.
      TAKEN: Another worker is computing the part, and this worker was told so.
      COVERED: Another worker has finished the part, and this worker was told so.
      REPORTED: The worker has finished the part, and its sums can contain the gradient.
      NOT_FINITE: The worker has finished the part, and the gradient is not finite.
      EXCLUDED: The worker is excluded from the rest of the round.
    """

    ABSENT = 0
    LOST = 1
    HELD = 2
    COMPUTING = 3
    TAKEN = 4
    COVERED = 5
    REPORTED = 6
    NOT_FINITE = 7
    EXCLUDED = 8


class PartEvent(enum.Enum):
    """Event that changes the status of a part of one worker.

    Attributes:
      SEND: The worker is sent the parameters of the round.
      CLAIM: The worker is expected to compute the part before its next report.
      RELEASE: A claim, or what the worker was told of others, is out of date.
      TAKE: The worker is told that another worker is computing the part.
      COVER: The worker is told that another worker has finished the part.
      REPORT: The worker reports a finite gradient.
      REPORT_NOT_FINITE: The worker reports a gradient that is not finite.
      LOSE: The process of the worker has ended, with all of its gradients.
      EXCLUDE: The sum of the worker is overdue, not finite, or corrupted.
    """

    SEND = enum.auto()
    CLAIM = enum.auto()
    RELEASE = enum.auto()
    TAKE = enum.auto()
    COVER = enum.auto()
    REPORT = enum.auto()
    REPORT_NOT_FINITE = enum.auto()
    LOSE = enum.auto()
    EXCLUDE = enum.auto()


# Statuses of parts that a running process has not finished.
OPEN = (
    PartStatus.HELD,
    PartStatus.COMPUTING,
    PartStatus.TAKEN,
    PartStatus.COVERED,
)
# Statuses of parts that a running process has finished.
FINISHED = (PartStatus.REPORTED, PartStatus.NOT_FINITE)
# Statuses in which further reports of a part are ignored.
SETTLED = (*FINISHED, PartStatus.EXCLUDED)

# New status of a part, by event and old status. Other combinations raise
# `TransitionError`.
TRANSITIONS: dict[PartEvent, dict[PartStatus, PartStatus]] = {
    PartEvent.SEND: {PartStatus.LOST: PartStatus.HELD},
    PartEvent.CLAIM: {PartStatus.HELD: PartStatus.COMPUTING},
    PartEvent.RELEASE: {
        PartStatus.COMPUTING: PartStatus.HELD,
        PartStatus.TAKEN: PartStatus.HELD,
        PartStatus.COVERED: PartStatus.HELD,
    },
    PartEvent.TAKE: {PartStatus.HELD: PartStatus.TAKEN},
    PartEvent.COVER: {PartStatus.HELD: PartStatus.COVERED},
    PartEvent.REPORT: dict.fromkeys(OPEN, PartStatus.REPORTED),
    PartEvent.REPORT_NOT_FINITE: dict.fromkeys(OPEN, PartStatus.NOT_FINITE),
    PartEvent.LOSE: dict.fromkeys((*OPEN, *FINISHED), PartStatus.LOST),
    PartEvent.EXCLUDE: dict.fromkeys(
        (PartStatus.LOST, *OPEN, *FINISHED), PartStatus.EXCLUDED
    ),
}


class TransitionError(AssertionError):
    """Raised if an event cannot change the status of a part: a bug in jaxwgc."""


class PartStates:
    """Statuses of the parts of all workers in one round.

    A position counts the parts of one worker, in the order in which the worker
    computes them. At first, all parts are LOST.

    Args:
      parts: int (num_workers, num_positions), index of the part at each position;
        `num_parts` if the worker has fewer parts.
      num_parts: Number of parts of the code.
    """

    def __init__(self, parts: np.ndarray, num_parts: int):
        self._parts = parts
        self._num_parts = num_parts
        is_present = parts < num_parts
        statuses = np.where(is_present, PartStatus.LOST, PartStatus.ABSENT)
        self._statuses = statuses.astype(np.int8)

    def apply(self, event: PartEvent, worker: int, positions: np.ndarray) -> None:
        """Changes the statuses of a worker's parts, given by position, after an event.

        Raises:
          TransitionError: If the event cannot change the status of one of the parts.
        """
        transitions = TRANSITIONS[event]
        for position in positions.tolist():
            status = PartStatus(self._statuses[worker, position])
            if status not in transitions:
                raise TransitionError(
                    f"part {self._parts[worker, position]} of worker {worker} is "
                    f"{status.name}, which {event.name} cannot change"
                )
            self._statuses[worker, position] = transitions[status]

    def apply_to_worker(self, event: PartEvent, worker: int) -> None:
        """Applies an event to every part of a worker that the event can change."""
        self.apply(event, worker, self.positions(worker, TRANSITIONS[event]))

    def status(self, worker: int, position: int) -> PartStatus:
        """Returns the status of one part of a worker, given by position."""
        return PartStatus(self._statuses[worker, position])

    def positions(self, worker: int, statuses: Iterable[PartStatus]) -> np.ndarray:
        """Returns the positions of a worker's parts with one of the given statuses."""
        is_among = _mask_of(tuple(statuses))[self._statuses[worker]]
        return np.flatnonzero(is_among)

    def are(self, statuses: Iterable[PartStatus]) -> np.ndarray:
        """Returns which parts of each worker have one of the given statuses."""
        return _mask_of(tuple(statuses))[self._statuses]

    @property
    def is_reported(self) -> np.ndarray:
        """Mask of each worker's reported parts, which its sums can contain."""
        return self.are([PartStatus.REPORTED])

    @property
    def have_open(self) -> np.ndarray:
        """Mask of the workers that are running and have unfinished parts."""
        return self.are(OPEN).any(1)

    @property
    def have_round(self) -> np.ndarray:
        """Mask of workers that take part in the round: neither lost nor excluded."""
        return self.are(TRANSITIONS[PartEvent.LOSE]).any(1)

    @property
    def is_excluded(self) -> np.ndarray:
        """Mask of the workers that are excluded from the rest of the round."""
        return self.are([PartStatus.EXCLUDED]).any(1)

    @property
    def num_finished(self) -> np.ndarray:
        """Number of parts that each worker has finished."""
        return self.are(FINISHED).sum(1)

    @property
    def num_claimed(self) -> np.ndarray:
        """Number of parts that each worker is to compute before its next report."""
        return self.are([PartStatus.COMPUTING]).sum(1)

    def reported_parts(self) -> np.ndarray:
        """Returns which parts have been reported by at least one worker."""
        return self._parts_among(self.is_reported)

    def parts_computed_by(self, workers: np.ndarray) -> np.ndarray:
        """Returns which parts at least one of the given workers is computing.

        Args:
          workers: Mask of the given workers, bool (num_workers,).
        """
        return self._parts_among(self.are([PartStatus.COMPUTING]) & workers[:, None])

    def _parts_among(self, positions: np.ndarray) -> np.ndarray:
        """Converts a mask (num_workers, num_positions) to a mask of parts."""
        is_included = np.zeros(self._num_parts, bool)
        is_included[self._parts[positions]] = True
        return is_included

    def taken(self, worker: int) -> np.ndarray:
        """Returns a `Taken` for each part of a worker, to be sent to the worker."""
        taken = np.full(self._parts.shape[1], Taken.FREE, np.int8)
        taken[self.positions(worker, [PartStatus.TAKEN])] = Taken.COMPUTING
        taken[self.positions(worker, [PartStatus.COVERED])] = Taken.FINISHED
        is_present = self._parts[worker] < self._num_parts
        return taken[is_present]


@functools.cache
def _mask_of(statuses: tuple[PartStatus, ...]) -> np.ndarray:
    """Returns a bool for each `PartStatus`: whether it is among given statuses."""
    return np.isin(list(PartStatus), statuses)
