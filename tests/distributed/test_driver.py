"""The driver of rounds, and the lines that it logs, on a Ray that is simulated."""

import contextlib
import math
import signal
import types

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxwgc.distributed.ray import _actors, _driver, _launcher, _session, _verification
from jaxwgc.distributed.ray._events import Call, Launch, Verdict
from jaxwgc.distributed.ray._interrupts import noticed_interrupts
from jaxwgc.distributed.ray._worker import read_order
from tests.distributed.simulated import (
    SimulatedLauncher,
    SimulatedRay,
    message_layout,
    single_fleet,
)

DURATION = st.integers(0, 10)


@contextlib.contextmanager
def simulated(**seconds):
    """Yields a simulated Ray, and its clock is that of the driver."""
    ray = SimulatedRay(**seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_actors, "find_ray", lambda: ray)
        patch.setattr(_session, "find_ray", lambda: ray)
        patch.setattr(_actors, "time", ray)
        patch.setattr(_driver, "time", ray)
        patch.setattr(_driver, "find_ray", lambda: ray)
        patch.setattr(_verification, "find_ray", lambda: ray)
        yield ray


def make_driver(launcher):
    return _driver.Driver(single_fleet(), message_layout(1), launcher, None)


@given(st.lists(st.tuples(DURATION, DURATION, DURATION), min_size=1))
# The worker is done when the coordinator returns, and then nearly done.
@example([(10, 0, 5), (1, 1, 5)])
def test_clock_is_read_before_the_call(steps):
    """A coordinator that loses its processor right after a call."""
    with simulated() as ray:
        actors = _actors.Actors(SimulatedLauncher(ray), 1, lambda: None)
        actors.perform([Launch(0)])
        actors.next_event(math.inf)
        for number, (away, travelled, worked) in enumerate(steps):
            ray.away = away
            ray.travelled = travelled
            ray.worked = worked
            actors.perform([Call(0, "compute", number)])
            event = actors.next_event(math.inf)
            taken = 2 * travelled + worked
            assert worked <= event.seconds
            if away < taken:
                assert event.seconds == taken


def test_response_time_counts_from_the_oldest_call_without_a_response():
    """The worker has two calls, of which the second comes three seconds later."""
    with simulated(worked=5) as ray:
        actors = _actors.Actors(SimulatedLauncher(ray), 1, lambda: None)
        actors.perform([Launch(0)])
        actors.next_event(math.inf)
        actors.perform([Call(0, "compute", 0)])
        begin = ray.now
        ray.now += 3
        actors.perform([Call(0, "compute", 1)])
        event = actors.next_event(math.inf)
        assert event.seconds == ray.now - begin == 8


def test_deferred_call_is_forgotten_with_its_worker():
    """A worker has at most four calls without a response; the fifth is deferred."""
    with simulated(worked=5) as ray:
        actors = _actors.Actors(SimulatedLauncher(ray), 1, lambda: None)
        actors.perform([Launch(0)])
        actors.next_event(math.inf)
        for number in range(_launcher.MAX_CALLS + 1):
            actors.perform([Call(0, "compute", number)])
        num_calls = len(ray.due)
        actors.end(0)
        assert actors.next_event(0.0) is None
        # One call started the worker.
        assert len(ray.due) == num_calls == 1 + _launcher.MAX_CALLS


def test_deferred_call_follows_the_first_response():
    with simulated(worked=5) as ray:
        actors = _actors.Actors(SimulatedLauncher(ray), 1, lambda: None)
        actors.perform([Launch(0)])
        actors.next_event(math.inf)
        for number in range(_launcher.MAX_CALLS + 2):
            actors.perform([Call(0, "compute", number, call=number)])
        ray.now += 5
        event = actors.next_event(math.inf)
        assert event.call == _launcher.MAX_CALLS + 1


def test_seconds_of_a_verification_are_no_time_of_the_engines():
    """No worker is silent while its messages are verified."""
    with simulated() as ray:
        driver = make_driver(SimulatedLauncher(ray))
        driver.start(0)

        def check(this_round):
            ray.now += 100
            everyone = np.ones(1, bool)
            return Verdict(everyone, ~everyone, False)

        driver.verifier = types.SimpleNamespace(check=check)
        this_round = driver.run(0, [np.zeros(2)], None)
        assert this_round.timings["examination"] == 100
        begin = driver._now()
        driver.run(1, [np.zeros(2)], None)
        assert driver._now() == begin


def test_seconds_of_calls_are_broadcast_and_transfer(monkeypatch):
    """The coordinator takes two seconds to begin the round, and to handle its event."""
    with simulated() as ray:
        driver = make_driver(SimulatedLauncher(ray))
        driver.start(0)
        perform = driver.actors.perform

        def perform_slowly(actions):
            ray.now += 2
            perform(actions)

        monkeypatch.setattr(driver.actors, "perform", perform_slowly)
        this_round = driver.run(0, [np.zeros(2)], None)
        assert this_round.timings == {"broadcast": 2, "transfer": 2}


def test_pause_is_counted_once_if_a_round_cannot_begin(monkeypatch):
    """Otherwise, the clock of the engines would run backwards."""
    with simulated() as ray:
        driver = make_driver(SimulatedLauncher(ray))

        def fail(actions):
            raise ArithmeticError("as told")

        monkeypatch.setattr(driver.actors, "perform", fail)
        for _ in range(2):
            ray.now += 100
            with pytest.raises(ArithmeticError):
                driver.run(0, [np.zeros(2)], None)
            assert driver._now() == 0


@pytest.mark.parametrize(("length", "is_large"), [(2, False), (10_000, True)])
def test_order_of_a_query_is_that_of_the_round(length, is_large):
    """Large parameters are in Ray's object store, and the order is a reference."""
    params = np.arange(length, dtype=float)
    with simulated() as ray:
        ray.put = lambda value: ("reference", value)
        ray.get = lambda order: order[1]
        driver = make_driver(SimulatedLauncher(ray))
        workers = _verification.WorkersOfRound(driver.actors, driver.fleet)
        # Such a round has its order, and ends at once.
        with pytest.raises(RuntimeError, match="closed during a round"):
            driver.is_closed.set()
            driver.run(7, [params], "key")
        assert (driver.actors.order[0] == "reference") is is_large
        [leaf], key, step = read_order(workers.order())
    np.testing.assert_array_equal(leaf, params)
    assert (key, step) == ("key", 7)


def test_start_says_what_it_does(caplog):
    """Before the workers are there, and before the first round."""
    caplog.set_level("INFO", "jaxwgc.distributed")
    decoded = []

    with simulated() as ray:
        driver = make_driver(SimulatedLauncher(ray))

        def decodes(mask):
            decoded.append((mask.tolist(), caplog.messages[-1]))
            return True

        driver.fleet.rules = driver.fleet.rules._replace(decodes=decodes)
        driver.start(0)
        assert driver.run(0, [np.zeros(2)], None).received.all()
    assert caplog.messages == [
        "starting 1 workers",
        "1 of 1 workers are ready: worker 0 on  (node )",
        "compiling the decoder",
    ]
    assert decoded[0] == ([True], "compiling the decoder")


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (None, "starting Ray on this machine"),
        ("auto", "connecting to Ray at head:6379"),
    ],
)
def test_connection_is_announced(monkeypatch, caplog, address, line):
    """Before Ray starts, which takes seconds."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(_session, "check_address", lambda address: None)
    caplog.set_level("INFO", "jaxwgc.distributed")
    seen = []
    ray = types.SimpleNamespace(
        init=lambda **settings: seen.extend(caplog.messages), shutdown=lambda: None
    )
    with contextlib.ExitStack() as stack:
        _session._connect(ray, address, stack)
    assert seen == [line]


def test_interrupt_that_is_lost_in_the_start_ends_it(interruptible):
    """Python drops it if it comes in a callback of a fork, as Ray does for a start."""
    num_polls = []

    class InterruptedLauncher(SimulatedLauncher):
        def launch(self, worker, step):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return super().launch(worker, step)

    with simulated() as ray:
        driver = make_driver(InterruptedLauncher(ray))
        next_event = driver.actors.next_event
        driver.actors.next_event = lambda seconds: (
            num_polls.append(seconds) or next_event(seconds)
        )
        with noticed_interrupts(), pytest.raises(KeyboardInterrupt):
            driver.start(0)
    # The first poll comes before the worker is launched.
    assert len(num_polls) == 1
