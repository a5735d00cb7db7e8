"""Response times in the trace, on simulated clocks and in any order of events.

Times are whole numbers, so that sums of them are exact.
"""

import math
import types
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxwgc.distributed.ray import _actors
from jaxwgc.distributed.ray._events import Call, Launch, Ready
from jaxwgc.distributed.ray._messages import Answer
from jaxwgc.distributed.ray._travel_time import TravelTime
from tests.distributed.simulated import message_layout, single_fleet

DURATION = st.integers(0, 10)


class Message(NamedTuple):
    """A response: when its call was sent, and how long it worked and travelled."""

    called: int
    outward: int
    worked: int
    homeward: int

    @property
    def arrived(self):
        return self.called + self.outward + self.worked + self.homeward


class Look(NamedTuple):
    """A look of the coordinator, which then waits, reads late, and is busy."""

    waits: int
    reads_late: int
    is_busy: int


class Reading(NamedTuple):
    """A response that was read, its response time, and the estimate at that time."""

    message: Message
    read: int
    was_waiting: bool
    seconds: float
    shortest: float


def readings(messages, looks):
    """Yields the responses that a coordinator reads, by a simulated clock."""
    travel_time, now, left = TravelTime(), 0, sorted(messages, key=lambda m: m.arrived)
    for look in looks:
        here = [message for message in left if message.arrived <= now]
        was_waiting = not here
        if was_waiting:
            travel_time.note_silence(now)
            end = now + look.waits
            here = [message for message in left[:1] if message.arrived <= end]
            now = here[0].arrived if here else end
        now += look.reads_late
        for message in here:
            left.remove(message)
            seconds = travel_time.response_seconds(
                called=message.called,
                read=now,
                worker_seconds=message.worked,
                was_waiting=was_waiting,
            )
            yield Reading(message, now, was_waiting, seconds, travel_time.shortest)
        now += look.is_busy


MESSAGES = st.lists(st.builds(Message, DURATION, DURATION, DURATION, DURATION))
LOOKS = st.lists(st.builds(Look, DURATION, DURATION, DURATION))


@given(MESSAGES, LOOKS)
def test_no_response_time_is_below_the_workers_own_seconds(messages, looks):
    for reading in readings(messages, looks):
        assert reading.seconds >= reading.message.worked


@given(MESSAGES, LOOKS)
def test_travel_time_is_not_negative(messages, looks):
    """Nor is a response time longer than from the call to the reading."""
    for reading in readings(messages, looks):
        assert reading.shortest >= 0
        assert reading.seconds <= reading.read - reading.message.called


@given(MESSAGES, LOOKS)
# The first response of all comes while the coordinator is busy.
@example([Message(0, 0, 1, 0)], [Look(0, 0, 10), Look(0, 0, 0)])
def test_response_time_has_none_of_the_callers_busy_time(messages, looks):
    """It is at most the shortest travel time above what it really was."""
    for reading in readings(messages, looks):
        if not reading.was_waiting:
            really = reading.message.arrived - reading.message.called
            travelled = reading.message.worked + reading.shortest
            assert reading.seconds <= max(really, travelled)


def test_travel_time_of_a_busy_coordinator():
    travel_time = TravelTime()
    assert travel_time.shortest == 0
    first = travel_time.response_seconds(0.0, 3.0, 2.0, was_waiting=True)
    assert (first, travel_time.shortest) == (3.0, 1.0)
    assert travel_time.response_seconds(10.0, 99.0, 2.0, was_waiting=False) == 3.0
    # The worker was silent after seven seconds.
    travel_time.note_silence(17.0)
    assert travel_time.response_seconds(10.0, 99.0, 2.0, was_waiting=False) == 7.0
    # A clock that is fast by a millisecond makes no travel time negative.
    assert travel_time.response_seconds(0.0, 2.0, 2.001, was_waiting=True) == 2.001
    assert travel_time.shortest == 0


class SimulatedRay:
    """A worker with a clock: the coordinator is away for a while after each call."""

    def __init__(self, away, travelled, worked):
        self.now, self.due = 0, []
        self.away, self.travelled, self.worked = away, travelled, worked
        self.start = types.SimpleNamespace(remote=self.call)
        self.compute = types.SimpleNamespace(remote=self.call)

    def call(self, *arguments):
        self.due.append(self.now + 2 * self.travelled + self.worked)
        self.now += self.away
        return len(self.due) - 1

    def wait(self, tasks, num_returns=1, timeout=0.0):
        first = min(self.due[task] for task in tasks)
        if timeout:
            self.now = max(self.now, first)
        ready = [task for task in tasks if self.due[task] <= self.now]
        return ready, []

    def get(self, task, timeout):
        if task == 0:
            return Ready(0, None, "", "")
        return Answer(np.zeros((1, 2)), np.zeros(1), None, self.worked)

    def get_runtime_context(self):
        return types.SimpleNamespace(get_node_id=lambda: "elsewhere")


@given(st.lists(st.tuples(DURATION, DURATION, DURATION), min_size=1))
# The worker is done when the coordinator returns, and then nearly done.
@example([(10, 0, 5), (1, 1, 5)])
def test_clock_is_read_before_the_call(steps):
    """A coordinator that loses its processor right after a call."""
    ray = SimulatedRay(0, 0, 0)
    clock = types.SimpleNamespace(monotonic=lambda: ray.now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_actors, "find_ray", lambda: ray)
        patch.setattr(_actors, "time", clock)
        actors = _actors.Actors(lambda worker: ray, 1, lambda: None)
        actors.perform([Launch(0)])
        actors.next_event(math.inf)
        for number, (away, travelled, worked) in enumerate(steps):
            ray.away, ray.travelled, ray.worked = away, travelled, worked
            actors.perform([Call(0, "compute", number)])
            event = actors.next_event(math.inf)
            taken = 2 * travelled + worked
            assert worked <= event.seconds
            if away < taken:
                assert event.seconds == taken


def test_pause_is_counted_once_if_a_round_cannot_begin(monkeypatch):
    """Otherwise, the clock of the engines would run backwards."""
    clock = [0.0]
    simulated = types.SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr(_actors, "time", simulated)
    fleet = single_fleet()
    driver = _actors.Driver(fleet, message_layout(1), lambda worker: None, None)

    def fail(actions):
        raise ArithmeticError("as told")

    monkeypatch.setattr(driver.actors, "perform", fail)
    for _ in range(2):
        clock[0] += 100.0
        with pytest.raises(ArithmeticError):
            driver.run(0, [np.zeros(2)], None)
        assert driver._now() == 0.0
