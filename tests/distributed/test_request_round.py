"""Rounds on request, as events and actions."""

import jax
import numpy as np
import pytest

from jaxwgc import codes
from jaxwgc.distributed import Timeouts
from jaxwgc.distributed.ray._events import Response
from jaxwgc.distributed.ray._fleet import Fleet
from jaxwgc.distributed.ray._messages import Layout, Progress, Report, Taken
from jaxwgc.distributed.ray._part_states import PartEvent, PartStates, PartStatus
from jaxwgc.distributed.ray._part_worker import positions_left
from jaxwgc.distributed.ray._request_plan import RequestPlan
from jaxwgc.distributed.ray._request_round import RequestRound, WorkSharing
from jaxwgc.distributed.ray._rounds import RoundStart
from tests.distributed.simulated import (
    PLAN,
    USUAL,
    Verifier,
    World,
    is_call,
    request_fleet,
)


def by_worker(*seconds):
    """Seconds of a part; a sum takes a hundredth."""

    def seconds_of(worker, action):
        return 0.01 if is_call(action, "send_sum") else seconds[worker]

    return seconds_of


def check(result):
    """The sums are what the decoding says."""
    weights = np.asarray(result.decoding.effective_weights)
    np.testing.assert_array_equal(weights, 1.0)
    np.testing.assert_array_equal(result.messages.sum(0), [36, 255])


def test_a_helper_does_one_part_of_a_slow_worker():
    """Owner and helper meet: worker 0 does one part for worker 1, which is slow."""
    world = World(request_fleet(), on_request=True)
    result = world.run(by_worker(1.0, 2.5, 1.0, 1.0))
    check(result)
    assert result.decoding.requests.tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
    ]
    assert 3.0 <= result.elapsed < 3.1
    np.testing.assert_array_equal(result.losses, np.arange(1, 9))
    assert result.times[0].tolist() == [1, 2, 3, np.inf]
    methods = [getattr(action, "method", "") for action in world.log]
    assert [methods.count(method) for method in ("compute", "send_sum")] == [4, 4]
    # Each report is followed by a call for the next, unless sums are asked for.
    listens = [action for action in world.log if is_call(action, "report")]
    assert [(listen.worker, listen.arguments[0]) for listen in listens][:3] == [
        (0, 1),
        (2, 1),
        (3, 1),
    ]


def requested(world):
    """Workers from which a sum was requested."""
    return [action.worker for action in world.log if is_call(action, "send_sum")]


def test_sums_of_own_parts_come_without_a_request():
    world = World(request_fleet(), on_request=True, usual=USUAL)
    result = world.run(by_worker(1.0, 1.0, 1.0, 1.0))
    check(result)
    assert result.elapsed == 2.0
    methods = [getattr(action, "method", "") for action in world.log]
    assert [methods.count(method) for method in ("send_sum", "stop")] == [0, 0]


def test_sums_that_two_rounds_requested_are_expected():
    """Worker 1 is slow in all rounds, and worker 0 does its second part."""
    world = World(request_fleet(), on_request=True, usual=USUAL)
    seconds = by_worker(1.0, 2.5, 1.0, 1.0)
    check(world.run(seconds))
    assert requested(world) == [0, 1]
    check(world.run(seconds, 1))
    assert requested(world) == [0, 1, 0, 1]
    check(world.run(seconds, 2))
    assert requested(world) == [0, 1, 0, 1]


def test_a_sum_that_is_not_finite_needs_other_workers():
    """The parts of worker 1 are finite, but not their sum, which is requested again."""
    world = World(request_fleet(), on_request=True, usual=USUAL)
    world.begin()
    world.respond(1)
    world.compute(1)
    world.respond(1, num_parts=0, is_finite=False)
    for worker in (0, 2, 3):
        world.respond(worker, num_parts=2)
    assert requested(world) == [1]
    world.respond(1, is_finite=False)
    result = world.finish()
    check(result)
    assert not result.received[1]


def test_a_sum_that_is_not_finite_replaces_no_earlier_sum():
    """The sum of worker 0 has arrived, and its replacement sends another one."""
    world = World(request_fleet(), on_request=True, usual=USUAL)
    world.begin()
    world.respond(0, num_parts=2)
    world.poll(5.0)
    world.respond(0, is_finite=False)
    world.compute(0, num_parts=2)
    world.respond(0, is_finite=False)
    result = world.finish()
    assert np.isfinite(result.messages).all()
    check(result)


def test_a_worker_rests_after_its_expected_sum():
    """Others may be half as fast: it is called again after the same time."""
    world = World(request_fleet(), on_request=True, usual=USUAL)
    world.begin()
    world.now += 0.01
    for worker in (0, 2, 3):
        world.respond(worker, num_parts=2)
    world.poll(0.009)
    assert world.calls[0] is None
    assert world.engine.poll_at == pytest.approx(0.02)
    world.poll(0.002)
    assert is_call(world.calls[0], "report")
    assert world.calls[0].arguments[1].tolist()[2:] == [Taken.FREE] * 2


def test_two_helpers_share_the_work_of_a_slow_worker():
    """There are three copies and four parts per worker; the first finishes none."""
    code = codes.replicated(4, num_parts=16, copies=3)
    layout = Layout.of(code, jax.ShapeDtypeStruct((2,), np.float32), None)
    plan = RequestPlan.of(code, layout, code.choose_decoder())
    rules = request_fleet().rules._replace(
        ends=lambda times: np.inf, decodes=lambda mask: False
    )
    fleet = Fleet(4, Timeouts(), rules)
    for slot in fleet.slots:
        slot.state = "idle"
    start = RoundStart(step=0, now=0.0, messages=np.zeros((4, 2), np.float32))
    engine = RequestRound(fleet, plan, start, np.zeros(plan.support.shape[:2]))
    newest = {send.worker: send.call for send in fleet.actions()}

    def report(worker, positions, now):
        """Returns the part that the worker does next."""
        reports = [
            Report(0, position, 1.0, None, True, now / 4) for position in positions
        ]
        event = Response(worker, newest[worker], Progress(reports), now)
        [listen] = engine.handle(event, now)
        newest[worker] = listen.call
        done = np.arange(12) <= max(positions, default=-1)
        return layout.held[worker][positions_left(listen.arguments[1], done)[0]]

    # The first may still be half as fast, so its parts 3, 2, 1 and 0 are left to it.
    assert [report(worker, range(4), 1.0) for worker in (1, 3, 2)] == [11, 3, 3]
    # Now it is slow. Two others hold its parts: one does 2 and 1, the other 0.
    assert [report(worker, [4], 3.0) for worker in (3, 2)] == [2, 0]
    # Its own part comes before all that it could help with, and is left to it.
    assert report(0, [], 3.0) == 0


def test_a_second_report_of_a_part_with_another_batch_is_an_error():
    """Such as that of a replacement, which computes the part again."""
    fleet = request_fleet()
    code = codes.replicated(4, num_parts=8, copies=2)
    layout = Layout.of(code, jax.ShapeDtypeStruct((2,), np.float32), None)
    plan = RequestPlan.of(code, layout, code.choose_decoder())
    for slot in fleet.slots:
        slot.state = "idle"
    start = RoundStart(step=0, now=0.0, messages=np.zeros((4, 2), np.float32))
    engine = RequestRound(fleet, plan, start, np.zeros(plan.support.shape[:2]))
    call = next(send.call for send in fleet.actions() if send.worker == 1)

    def report(batch_digest):
        taken = Report(0, 0, 1.0, None, True, 0.1, batch_digest)
        return engine.handle(Response(1, call, Progress([taken]), 0.1), 1.0)

    [listen] = report(b"digest a")
    call = listen.call
    with pytest.raises(RuntimeError, match="worker 1 and its replacement have"):
        report(b"digest b")


def test_rule_that_sees_workers():
    """It ends the round once two workers have finished all of their parts."""
    fleet = request_fleet()
    fleet.rules = fleet.rules._replace(
        ends=lambda times: np.sort(times)[1], sees_workers=True
    )
    world = World(fleet, on_request=True)
    result = world.run(by_worker(1.0, 2.0, 1.5, 3.0))
    assert 6.0 <= result.elapsed < 6.1
    assert np.isfinite(result.times).sum(1).tolist() == [4, 3, 4, 1]


@pytest.mark.parametrize(("dies", "seconds"), [(True, 4.2), (False, 5.2)])
def test_lost_between_report_and_sum(dies, seconds):
    """The helpers of worker 1 go on, and have its parts after four seconds."""
    world = World(request_fleet(), on_request=True)

    def seconds_of(worker, action):
        if is_call(action, "send_sum"):
            if worker == 1 and dies:
                world.lose(1)
            return np.inf if worker == 1 else 0.01
        return 1.0

    result = world.run(seconds_of)
    check(result)
    assert not result.received[1]
    assert 4.0 <= result.elapsed < seconds
    # A worker is asked again only if its request has changed.
    asked = [action.worker for action in world.log if is_call(action, "send_sum")]
    assert asked.count(2) == 1


def test_overdue_sum_is_left_out_after_a_deadline():
    """The others would need two more seconds for the two parts of worker 1."""
    fleet = request_fleet()
    fleet.rules = fleet.rules._replace(ends=lambda times: 2.1)
    world = World(fleet, on_request=True)

    def seconds_of(worker, action):
        if is_call(action, "send_sum"):
            return np.inf if worker == 1 else 0.01
        return 1.0

    result = world.run(seconds_of)
    assert 2.6 <= result.elapsed < 3.0
    assert result.received.tolist() == [True, False, True, True]
    assert np.asarray(result.decoding.effective_weights).sum() == 6


def test_reports_of_earlier_rounds_leave_their_seconds():
    world = World(request_fleet(), on_request=True)
    world.run(by_worker(1.0, 1.0, 1.0, 1.0))
    world.workers[0].reports.append(Report(0, 3, 1.0, None, True, 0.75))
    check(world.run(by_worker(1.0, 1.0, 1.0, 1.0), 1))
    assert world.fleet.rows[0][0, 3] == 0.75
    assert world.fleet.rows[0][0, :2].tolist() == [1.0, 1.0]


def told(world, worker):
    """Messages to a worker about its parts after its response."""
    world.respond(worker, num_parts=0)
    return world.calls[worker].arguments[1].tolist()


def test_parts_of_a_lost_worker_are_free_again():
    """Worker 0 helps worker 1 with its last two parts."""
    world = World(request_fleet(), on_request=True)
    world.begin()
    assert told(world, 0)[2:] == [Taken.COMPUTING] * 2
    world.respond(1, num_parts=2)
    assert told(world, 0)[2:] == [Taken.FINISHED] * 2
    world.lose(1)
    assert told(world, 0) == [Taken.FREE] * 4
    world.poll()
    world.respond(1)
    assert told(world, 0)[2:] == [Taken.COMPUTING] * 2
    world.lose(1)
    assert told(world, 0) == [Taken.FREE] * 4


def test_replacement_is_asked_again():
    """The sum is that of the parts that the lost process had reported."""
    world = World(request_fleet(), on_request=True)
    world.begin()
    for worker in range(4):
        world.respond(worker, num_parts=2)
    for worker in (0, 2, 3):
        world.respond(worker)
    assert is_call(world.calls[1], "send_sum")
    world.lose(1)
    world.poll()
    world.respond(1)
    world.respond(1, num_parts=2)
    assert is_call(world.calls[1], "send_sum")
    world.respond(1)
    check(world.engine.result)


def test_late_and_repeated_reports_do_not_count():
    """A part counts once, and only in the round in which it was computed."""
    world = World(request_fleet(), on_request=True)
    world.begin()
    world.compute(0, num_parts=2)
    world.respond(1, num_parts=2)
    world.finish()
    world.begin(1)
    world.workers[0].reports[:0] = [Report(0, 3, np.nan, None, True, 0.25)]
    world.now += 1.0
    world.respond(0, num_parts=1)
    states = world.engine._parts
    assert states.positions(0, [PartStatus.REPORTED]).tolist() == [0]
    assert world.fleet.rows[0][0, 3] == 0.25
    world.workers[0].reports += world.workers[0].reports
    world.now += 1.0
    world.respond(0, num_parts=0)
    assert states.positions(0, [PartStatus.REPORTED]).tolist() == [0]
    assert world.engine.times[0].tolist() == [1.0, np.inf, np.inf, np.inf]


def test_excluded_workers_are_sent_nothing_more_in_their_round():
    """Worker 1 sends NaN as a sum, and its replacement waits for the next round."""
    world = World(request_fleet(), on_request=True)
    world.begin()
    for worker in range(4):
        world.respond(worker, num_parts=2)
    world.respond(1, is_finite=False)
    assert world.calls[1] is None
    world.lose(1)
    world.poll()
    world.respond(1)
    assert world.calls[1] is None and world.fleet.slots[1].state == "idle"
    result = world.finish()
    check(result)
    assert not result.received[1]
    world.begin(1)
    assert is_call(world.calls[1], "compute")
    check(world.finish())


def test_parts_of_a_corrupted_worker_are_finished_by_the_others():
    world = World(request_fleet(), on_request=True)
    for step in range(2):
        result = world.run(by_worker(1.0, 1.0, 1.0, 1.0), step, verifier=Verifier())
        check(result)
        assert result.wrong.tolist() == [False, step == 0, False, False]
        assert result.received[1] == (step == 1)


def test_parts_that_become_longer_are_finished():
    """Longer than the limit for all workers, which doubles with each replacement."""
    world = World(request_fleet(), on_request=True)
    world.run(by_worker(0.01, 0.01, 0.01, 0.01))
    assert world.fleet.limit.seconds == 2.0
    check(world.run(by_worker(3.0, 3.0, 3.0, 3.0), 1))


@pytest.mark.parametrize("is_suspected", [False, True])
def test_parts_are_not_left_to_a_suspected_helper(is_suspected):
    """Worker 1 computes its own parts, which worker 0 would compute after its own."""
    fleet = request_fleet()
    parts = PartStates(PLAN.parts, PLAN.code.num_parts)
    sharing = WorkSharing(PLAN, parts, fleet, np.full((4, 4), np.inf))
    for worker in (0, 1):
        parts.apply_to_worker(PartEvent.SEND, worker)
    sharing.update(1, 0.0, has_begun=False)
    fleet.slots[1].is_suspected = is_suspected
    sharing.update(0, 0.0, has_begun=False)
    of_others = Taken.FREE if is_suspected else Taken.COMPUTING
    assert parts.taken(0).tolist() == [Taken.FREE] * 2 + [of_others] * 2
