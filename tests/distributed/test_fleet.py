"""States of workers between rounds: suspicion, losses, pauses and replacements."""

import numpy as np
import pytest

from jaxwgc.distributed.ray._events import Call, Launch, Lost, Ready, Replace, Response
from jaxwgc.distributed.ray._fleet import MAX_CORRUPTED_ROUNDS
from tests.distributed.simulated import message_fleet

NOTHING = object()


def ready_fleet(**timeouts):
    """All workers are idle, and the first round has begun."""
    fleet = message_fleet(**timeouts)
    for slot in fleet.slots:
        fleet.ready(Ready(slot.index, None, "node", "host"))
    fleet.begin(0, (5,))
    return fleet


def respond(fleet, worker, now):
    """The newest call of a worker returns with a message that is no good message."""
    event = Response(worker, fleet.slots[worker].call, NOTHING, 0.1)
    taken = []
    fleet.receive(event, now, lambda event, now: taken.append(event.worker))
    return taken


def launches(fleet):
    return [own.worker for own in fleet.actions() if isinstance(own, Launch)]


def test_pauses_before_launches_grow_with_failures_in_a_row():
    """They are 0, 1, 3 and 7 seconds."""
    fleet = ready_fleet()
    now = 10.0
    for pause in (0.0, 1.0, 3.0, 7.0):
        fleet.lose(Lost(2, "its process died"), now)
        fleet.actions()
        if pause:
            fleet.poll(now + pause - 0.01)
            assert launches(fleet) == []
        fleet.poll(now + pause)
        assert launches(fleet) == [2]
        fleet.ready(Ready(2, None, "node", "host"))
        now += 100


def test_pauses_are_at_most_a_minute():
    fleet = ready_fleet()
    for number in range(12):
        fleet.lose(Lost(2, "its process died"), 0.0)
        fleet.ready(Ready(2, None, "node", "host"))
        assert fleet.slots[2].relaunch_at == min(2.0**number - 1, 60.0)


def test_good_response_ends_the_pauses():
    """The next loss is the first one again, however often the worker was replaced."""
    fleet = ready_fleet()
    for _ in range(3):
        fleet.lose(Lost(2, "its process died"), 0.0)
        fleet.ready(Ready(2, None, "node", "host"))
    fleet.recover(fleet.slots[2])
    fleet.lose(Lost(2, "its process died"), 50.0)
    assert fleet.slots[2].relaunch_at == 50.0
    assert fleet.slots[2].num_replaced == 4
    assert fleet.num_losses().tolist() == [0, 0, 4, 0, 0]


def test_away_since_the_first_of_several_losses():
    fleet = ready_fleet()
    for now in (5.0, 8.0):
        fleet.lose(Lost(2, "its process died"), now)
        fleet.ready(Ready(2, None, "node", "host"))
    assert fleet.slots[2].away_since == 5.0


def test_replacement_that_responds_is_not_suspected():
    """Though only a good message shows that it is well."""
    fleet = ready_fleet(response=10.0)
    fleet.lose(Lost(2, "its process died"), 0.0)
    fleet.ready(Ready(2, None, "node", "host"))
    fleet.call(Call(2, "compute", 0), 1.0)
    fleet.poll(6.1)
    assert fleet.slots[2].is_suspected
    assert respond(fleet, 2, 6.2) == [2]
    assert not fleet.slots[2].is_suspected
    assert fleet.slots[2].away_since == 0.0


def test_silence_counts_from_the_first_call_without_a_response():
    fleet = ready_fleet(response=10.0)
    fleet.call(Call(2, "compute", 0), 1.0)
    fleet.call(Call(2, "compute", 1), 4.0)
    fleet.poll(10.9)
    assert fleet.slots[2].state == "computing"
    fleet.poll(11.1)
    assert fleet.num_losses().tolist() == [0, 0, 1, 0, 0]


def test_silence_ends_with_a_response():
    fleet = ready_fleet(response=10.0)
    fleet.call(Call(2, "compute", 0), 1.0)
    respond(fleet, 2, 9.0)
    fleet.call(Call(2, "compute", 1), 9.0)
    fleet.poll(18.9)
    assert fleet.slots[2].state == "computing"


def test_response_to_an_earlier_call_is_ignored():
    fleet = ready_fleet()
    fleet.call(Call(2, "compute", 0), 1.0)
    [earlier] = fleet.actions()
    fleet.call(Call(2, "compute", 1), 2.0)
    event = Response(2, earlier.call, NOTHING, 0.1)
    fleet.receive(event, 3.0, lambda event, now: pytest.fail("it is taken"))
    assert fleet.slots[2].state == "computing"
    assert respond(fleet, 2, 3.0) == [2]


def test_start_that_takes_too_long_is_a_loss():
    fleet = ready_fleet(start=30.0)
    fleet.lose(Lost(2, "its process died"), 0.0)
    fleet.poll(0.0)
    fleet.actions()
    fleet.poll(29.0)
    assert fleet.slots[2].state == "starting"
    fleet.poll(31.0)
    assert fleet.slots[2].state == "lost"
    assert "timeouts.start is 30" in fleet.slots[2].trouble
    assert fleet.actions() == [Replace(2)]


def test_worker_is_replaced_after_three_corrupted_rounds():
    fleet = ready_fleet()
    corrupted = np.arange(5) == 2
    for _ in range(MAX_CORRUPTED_ROUNDS - 1):
        fleet.blame_corrupted(corrupted, 0.0)
        assert fleet.actions() == []
    fleet.blame_corrupted(corrupted, 0.0)
    [replaced] = fleet.actions()
    assert replaced.worker == 2
    assert "is replaced, since its messages were corrupted in 3 rounds" in (
        replaced.warning
    )
    assert [slot.state for slot in fleet.slots] == ["idle"] * 2 + ["lost"] + [
        "idle"
    ] * 2


def test_corrupted_rounds_of_two_workers_are_counted_apart():
    fleet = ready_fleet()
    for worker in (1, 2, 1, 2):
        fleet.blame_corrupted(np.arange(5) == worker, 0.0)
    assert fleet.actions() == []
    assert [slot.num_corrupted for slot in fleet.slots] == [0, 2, 2, 0, 0]


def test_lost_and_starting_workers_are_infinite_in_the_trace():
    fleet = ready_fleet()
    fleet.lose(Lost(1, "its process died"), 0.0)
    fleet.lose(Lost(2, "its process died"), 0.0)
    fleet.slots[2].state = "starting"
    number = fleet.begin(1, (5,))
    assert number == 1
    assert np.isinf(fleet.rows[1]).tolist() == [False, True, True, False, False]
    assert np.isnan(fleet.rows[1]).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("is_same", [False, True])
def test_trouble_is_logged_once(caplog, is_same):
    fleet = ready_fleet()
    fleet.blame(fleet.slots[2], "its message is not finite")
    second = "its message is not finite" if is_same else "its sum is not finite"
    fleet.blame(fleet.slots[2], second)
    assert len(caplog.messages) == (1 if is_same else 2)
    assert fleet.slots[2].state == "idle"
