"""Response times in the trace, on simulated clocks and in any order of events.

Times are whole numbers, so that sums of them are exact.
"""

from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from jaxwgc.distributed.ray._actors import TravelTime

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
    travel_time = TravelTime()
    now = 0
    left = sorted(messages, key=lambda m: m.arrived)
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
    """A response time is at most the time from the call to the reading."""
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
