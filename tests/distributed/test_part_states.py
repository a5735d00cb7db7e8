"""Statuses of parts in a round on request."""

import re

import numpy as np
import pytest

from jaxwgc.distributed.ray._messages import Taken
from jaxwgc.distributed.ray._part_states import (
    FINISHED,
    OPEN,
    TRANSITIONS,
    PartEvent,
    PartStates,
    PartStatus,
    TransitionError,
)

# The second worker has one part fewer.
PARTS = np.array([[0, 1, 2], [2, 0, 3]])
NUM_PARTS = 3
# Events that lead from LOST to each status.
WAYS = {
    PartStatus.LOST: [],
    PartStatus.HELD: [PartEvent.SEND],
    PartStatus.COMPUTING: [PartEvent.SEND, PartEvent.CLAIM],
    PartStatus.TAKEN: [PartEvent.SEND, PartEvent.TAKE],
    PartStatus.COVERED: [PartEvent.SEND, PartEvent.COVER],
    PartStatus.REPORTED: [PartEvent.SEND, PartEvent.CLAIM, PartEvent.REPORT],
    PartStatus.NOT_FINITE: [PartEvent.SEND, PartEvent.REPORT_NOT_FINITE],
    PartStatus.EXCLUDED: [PartEvent.SEND, PartEvent.EXCLUDE],
}


def states_after(events, position=1):
    """Statuses after events of one part of the first worker."""
    states = PartStates(PARTS, NUM_PARTS)
    for event in events:
        states.apply(event, 0, np.array([position]))
    return states


@pytest.mark.parametrize("event", PartEvent)
@pytest.mark.parametrize("status", WAYS)
def test_only_the_changes_of_the_table_are_made(status, event):
    states = states_after(WAYS[status])
    assert states.status(0, 1) == status
    if status in TRANSITIONS[event]:
        states.apply(event, 0, np.array([1]))
        assert states.status(0, 1) == TRANSITIONS[event][status]
    else:
        why = f"part 1 of worker 0 is {status.name}, which {event.name} cannot change"
        with pytest.raises(TransitionError, match=re.escape(why)):
            states.apply(event, 0, np.array([1]))
        assert states.status(0, 1) == status
    # Other parts keep their statuses.
    assert states.status(0, 0) == states.status(1, 1) == PartStatus.LOST


def test_every_status_is_reached_and_excluded_workers_stay_out():
    reached = {new for changes in TRANSITIONS.values() for new in changes.values()}
    assert reached == {*WAYS}
    changed = {old for changes in TRANSITIONS.values() for old in changes}
    assert {*PartStatus} - changed == {PartStatus.ABSENT, PartStatus.EXCLUDED}
    # A process that ends loses all that it was sent, finished or not.
    assert {*TRANSITIONS[PartEvent.LOSE]} == {*OPEN, *FINISHED}


def test_masks_and_counts_are_derived_from_the_statuses():
    states = PartStates(PARTS, NUM_PARTS)
    assert not states.have_open.any() and not states.have_round.any()
    for worker in range(2):
        states.apply_to_worker(PartEvent.SEND, worker)
    assert states.are([PartStatus.HELD]).tolist() == [[True] * 3, [True, True, False]]
    states.apply(PartEvent.CLAIM, 0, np.array([0, 2]))
    states.apply(PartEvent.TAKE, 1, np.array([1]))
    states.apply(PartEvent.REPORT, 0, np.array([2]))
    states.apply(PartEvent.COVER, 1, np.array([0]))
    assert states.taken(0).tolist() == [Taken.FREE] * 3
    assert states.taken(1).tolist() == [Taken.FINISHED, Taken.COMPUTING]
    computed = states.parts_computed_by(np.array([True, True]))
    assert computed.tolist() == [True, False, False]
    assert not states.parts_computed_by(np.array([False, True])).any()
    assert states.reported_parts().tolist() == [False, False, True]
    assert states.num_finished.tolist() == [1, 0]
    assert states.have_open.tolist() == [True, True]
    states.apply_to_worker(PartEvent.EXCLUDE, 0)
    states.apply_to_worker(PartEvent.LOSE, 1)
    assert states.is_excluded.tolist() == [True, False]
    assert not states.is_reported.any() and not states.have_round.any()
    # An excluded worker is sent nothing, and a lost one is sent the round again.
    for worker in range(2):
        states.apply_to_worker(PartEvent.SEND, worker)
    assert states.have_open.tolist() == [False, True]
