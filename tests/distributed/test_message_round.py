"""Rounds of one message per worker, as events and actions."""

import re
import types

import jax
import numpy as np
import pytest

from jaxwgc import codes
from jaxwgc.distributed.ray._events import Lost, Replace, Response, Verdict
from jaxwgc.distributed.ray._fleet import filled, mark_lost, seconds_of_loads
from jaxwgc.distributed.ray._messages import Layout, WorkerMessage
from jaxwgc.distributed.ray._rounds import MessageRound, RoundStart, StartUp
from jaxwgc.reports import straggler_report
from tests.distributed.simulated import (
    Verifier,
    World,
    is_call,
    message_fleet,
    message_layout,
    single_fleet,
)


def by_worker(*seconds):
    return lambda worker, action: seconds[worker]


def test_two_of_five_messages_end_a_round_and_idle_workers_begin_the_next():
    """Two of five messages end a round; the next begins with the idle workers."""
    world = World(message_fleet())
    world.begin(step=0)
    sends = [action for action in world.log if is_call(action, "compute")]
    assert [(send.worker, send.number) for send in sends] == [(w, 0) for w in range(5)]
    world.now = 0.2
    world.respond(3)
    assert world.engine.result is None
    # A response to no call, and one to a call that has returned.
    late = WorkerMessage(np.zeros((1, 2), np.float32), np.ones(1), None, 0.1)
    for call in (sends[3].call, 999):
        assert world.engine.handle(Response(3, call, late, 0.1), 0.3) == []
    # A message of another shape, whose worker is replaced.
    bad = late._replace(message=np.zeros((1, 3), np.float32))
    event = Response(4, sends[4].call, bad, 0.1)
    assert world.engine.handle(event, 0.3) == [Replace(4)]
    assert "its message has shape (1, 3), not (1, 2)" in world.fleet.slots[4].trouble
    world.now = 0.4
    world.respond(0)
    result = world.engine.result
    assert result.received.tolist() == [True, False, False, True, False]
    assert result.times[[0, 3]].tolist() == [0.4, 0.2]
    assert result.messages[:, 0].tolist() == [1, 0, 0, 4, 0]
    world.log.clear()
    world.begin(step=1)
    assert [(send.worker, send.number) for send in world.log] == [(0, 1), (3, 1)]


def test_seconds_of_late_responses_are_told_in_the_round_in_which_they_come():
    """Two of five workers decode; worker 2 finishes round 0 in round 3."""
    world = World(message_fleet())
    world.begin()
    world.respond(0, seconds=0.5)
    world.respond(1, seconds=0.25)
    first = world.engine.result
    np.testing.assert_array_equal(first.seconds, [0.5, 0.25] + 3 * [np.nan])
    assert first.late_times == ()
    for step in (1, 2, 3):
        world.begin(step=step)
        if step == 3:
            world.respond(2, seconds=7.0)
        world.respond(0, seconds=0.5)
        world.respond(1, seconds=0.25)
    result = world.engine.result
    [late] = result.late_times
    assert late == (2, 3, 7.0)
    assert np.isnan(result.seconds[2])
    assert world.fleet.rows[0][2] == 7.0
    # It was busy in the rounds between.
    assert np.isnan([row[2] for row in world.fleet.rows[1:]]).all()


def test_seconds_of_own_parts():
    """On request, finished parts stand for those that a worker left to others."""
    nan = np.nan
    inf = np.inf
    held = np.array([2, 3, 2, 2])
    rows = [
        np.array([[1.0, nan, nan], [1.0, 2.0, 3.0], [nan, nan, nan], [inf, inf, nan]]),
        np.array([[2.0, 4.0, nan], [nan, nan, 3.0], [inf, 1.0, nan], [nan, nan, nan]]),
    ]
    expected = [[2.0, 6.0, nan, inf], [6.0, 9.0, 2.0, nan]]
    np.testing.assert_array_equal(seconds_of_loads(np.array(rows), held), expected)
    messages = [np.array([1.0, nan]), np.array([inf, 2.0])]
    found = seconds_of_loads(np.array(messages), np.array([2, 3]))
    np.testing.assert_array_equal(found, messages)


def test_copies_of_a_part_with_different_batches_are_an_error():
    """Workers 0 and 1 hold part 0, and workers 2 and 3 part 1."""
    fleet = message_fleet()
    for slot in fleet.slots:
        slot.state = "idle"
    held = [np.array([worker // 2]) for worker in range(5)]
    layout = message_layout(5)._replace(held=held, num_parts=3)
    start = RoundStart(step=7, now=0.0, messages=np.zeros((5, 2), np.float32))
    engine = MessageRound(fleet, layout, start)
    calls = {send.worker: send.call for send in fleet.actions()}

    def respond(worker, batch_digest):
        message = np.ones((1, 2), np.float32)
        sent = WorkerMessage(message, np.ones(1), None, 0.1, [batch_digest])
        engine.handle(Response(worker, calls[worker], sent, 0.1), 1.0)

    respond(2, b"digest a")
    respond(0, b"digest b")
    why = "workers 0 and 1 have different batches of part 0 in step 7"
    with pytest.raises(RuntimeError, match=why):
        respond(1, b"digest a")


def test_losses_and_returns_are_a_line_each(caplog):
    """One worker raises, one is killed and one is frozen; each comes back."""
    world = World(message_fleet(response=60.0))
    world.run(by_worker(1.0, 1.1, 0.5, 0.5, 0.6))
    caplog.set_level("INFO", "jaxwgc.distributed")
    world.begin(step=1)
    error = ArithmeticError("as told")
    world.lose(0, "ArithmeticError: as told", error)
    world.lose(1)
    world.respond(3)
    world.respond(4)

    def seconds(worker, action):
        return np.inf if (worker, getattr(action, "number", 0)) == (2, 3) else 0.5

    for step in range(2, 200):
        world.run(seconds, step)
    messages = [text.replace(" (node elsewher)", "") for text in caplog.messages]
    raised = "ArithmeticError: as told"
    killed = "its process died"
    left = "the code tolerates 2 more of 3 stragglers"
    left_after_both = "the code tolerates 1 more of 3 stragglers"
    assert messages[:4] == [
        f"worker 0 is lost in step 1: {raised}; {left}",
        f"worker 1 is lost in step 1: {killed}; {left_after_both}",
        f"worker 0 is back in step 2 on host0; it was lost: {raised}",
        f"worker 1 is back in step 3 on host1; it was lost: {killed}",
    ]
    frozen = r"silent for {}\.\d s; timeouts.response is 60"
    suspected, lost, back = messages[4:]
    pattern = rf"worker 2 is suspected in step \d+: {frozen.format(30)}; {left}"
    assert re.fullmatch(pattern, suspected)
    pattern = rf"worker 2 is lost in step \d+: {frozen.format(60)}; {left}"
    assert re.fullmatch(pattern, lost)
    pattern = rf"worker 2 is back .* on host2; it was lost: {frozen.format(60)}"
    assert re.fullmatch(pattern, back)


def test_suspects_are_not_waited_for_and_come_back(caplog):
    """The rule waits for all. The limit of 0.1 s responses is 2 s; one takes 1.5 s."""
    world = World(message_fleet(ends=lambda times: times.max()))
    world.run(by_worker(*[0.1] * 5))
    caplog.set_level("INFO", "jaxwgc.distributed")
    result = world.run(by_worker(0.1, 0.1, 0.1, 0.1, 1.5), 1)
    assert result.received.tolist() == [True] * 4 + [False]
    assert 1.0 <= result.elapsed <= 1.2
    assert world.fleet.slots[4].is_suspected
    for step in range(2, 8):
        result = world.run(by_worker(*[0.1] * 5), step)
    assert result.received.all()
    assert not any(isinstance(action, Replace) for action in world.log)
    back = "worker 4 is back in step 5 .*it was suspected: silent for 1."
    assert re.search(back, caplog.text)
    assert world.fleet.rows[1][4] == 1.5


def test_lost_workers_are_counted_and_waited_for_once(caplog):
    """The pause begins at the loss, and responses of others do not shorten it."""
    world = World(message_fleet(response=60.0, replacement=8.0))
    world.run(by_worker(*[0.1] * 5))

    def seconds(worker, action):
        return np.inf if worker < 4 else 5.0

    world.begin(1)
    for worker in range(4):
        world.lose(worker)
    left = [text.split("; ")[-1] for text in caplog.messages]
    assert left == [
        f"the code tolerates {number} more of 3 stragglers" for number in (2, 1, 0, 0)
    ]
    world.fleet.actions()
    world.calls[:4] = [None] * 4
    result = world.run(seconds, 2)
    assert 5.0 <= result.elapsed <= 8.2
    assert world.run(seconds, 3).elapsed <= 8.2
    for step in range(4, 7):
        assert world.run(seconds, step).elapsed <= 5.2


def test_deaths_at_the_start():
    """Two are made up for; a third, or an error of the worker, is raised."""
    fleet = message_fleet()
    engine = StartUp(fleet, 0.0)
    engine.poll(0.0)
    for now in (1.0, 2.0):
        engine.handle(Lost(1, "its process died"), now)
        engine.poll(now + 1.5)
    with pytest.raises(RuntimeError, match="worker 1 failed to start: its process di"):
        engine.handle(Lost(1, "its process died"), 5.0)
    with pytest.raises(ValueError, match="worker 2 failed to start: not alike"):
        engine.handle(Lost(2, "not alike", ValueError(), has_died=False), 5.0)
    with pytest.raises(RuntimeError, match=r"\[0, 1, 2, 3, 4\] have not started"):
        engine.poll(301.0)


def test_rule_of_the_clock_ends_a_round_in_time():
    """After 2.5 seconds, of which no message tells; two come before."""
    world = World(message_fleet(ends=lambda times: 2.5))
    result = world.run(by_worker(1, 2, 3, 4, 5))
    assert result.elapsed == 2.5
    assert result.received.tolist() == [True, True, False, False, False]
    assert result.messages.tolist() == [[1, 1], [2, 2], [0, 0], [0, 0], [0, 0]]


def test_late_messages_are_kept_for_their_owner():
    """The third of five messages arrives a second into the next round."""
    world = World(message_fleet())
    owner = object()
    for step in range(2):
        result = world.run(by_worker(1, 2, 3, 4, 5), step, owner)
    assert result.received.tolist() == [True, True, False, False, False]
    assert result.late.tolist() == [False, False, True, False, False]
    assert result.messages[:, 0].tolist() == [11, 12, 3, 0, 0]
    result = world.run(by_worker(1, 2, 3, 4, 5), 2, object())
    assert not result.late.any()
    assert result.messages[:, 0].tolist() == [21, 22, 0, 0, 0]
    # All are timed.
    np.testing.assert_array_equal(world.fleet.rows[0][:4], [1, 2, 3, 4])


def test_corrupted_messages_are_left_out():
    world = World(message_fleet(ends=lambda times: times.max()))
    result = world.run(by_worker(*[0.1] * 5), verifier=Verifier())
    assert result.received.tolist() == [True, False, True, True, True]
    assert result.wrong.tolist() == [False, True, False, False, False]
    assert not result.messages[1].any()
    assert np.isnan(result.losses[1])


def test_corrupted_rounds_are_counted_anew_for_a_replacement():
    """Two of the first process, whose death has another reason, and then three."""

    def check(this_round):
        wrong = this_round.received & (np.arange(5) == 1)
        return Verdict(this_round.received & ~wrong, wrong, False)

    world = World(message_fleet(ends=lambda times: times.max()))
    verifier = types.SimpleNamespace(check=check)
    seconds = by_worker(*[0.1] * 5)

    def run_until_wrong():
        for _ in range(20):
            if world.run(seconds, verifier=verifier).wrong[1]:
                return
        raise AssertionError("worker 1 does not respond")

    def warnings():
        replaced = [own for own in world.log if isinstance(own, Replace)]
        return [own.warning for own in replaced if own.warning]

    run_until_wrong()
    run_until_wrong()
    world.begin(verifier=verifier)
    world.lose(1)
    world.finish()
    run_until_wrong()
    run_until_wrong()
    assert not warnings()
    run_until_wrong()
    [warning] = warnings()
    assert "its messages were corrupted in 3 rounds" in warning


def test_a_rejected_round_has_no_messages():
    nobody = np.zeros(5, bool)
    verdict = Verdict(nobody, nobody, True)
    verifier = types.SimpleNamespace(check=lambda this_round: verdict)
    world = World(message_fleet())
    result = world.run(by_worker(*[0.1] * 5), verifier=verifier)
    assert result.rejected and not result.received.any() and not result.messages.any()
    why = "its messages contradict each other, or are too few to compare"
    assert world.fleet.why_undecodable(result) == why


def test_rows_of_the_trace():
    nan = np.nan
    inf = np.inf
    rows = [[1, nan], [nan, 2], [nan, inf], [3, nan], [nan, 4]]
    expected = [[1, 2], [3, 2], [1, inf], [3, 4], [1, 4]]
    assert filled(np.array(rows)).tolist() == expected
    # The worker finished a part in the second of three rounds.
    rows = [np.array([parts]) for parts in ([nan, nan], [1.0, nan], [nan, nan])]
    mark_lost(rows, 0)
    np.testing.assert_array_equal(rows, [[[nan, nan]], [[1, nan]], [[inf, inf]]])


def test_worker_that_has_stopped_has_no_times_of_its_own_past():
    """Worker 0 is busy in every other round, also at the end; worker 2 returns."""
    rows = np.arange(1.0, 181).reshape(60, 3)
    rows[1::2, 0] = np.nan
    rows[30:, 1] = np.nan
    rows[30:-1, 2] = np.nan
    trace = filled(rows)
    assert np.isfinite(trace[:, [0, 2]]).all()
    np.testing.assert_array_equal(trace[:, 1], rows[:, 1])
    report = straggler_report(trace)
    assert report.kind_texts[1] == "missing since round 30"
    assert "worker 1: no response since round 30" in report.advice
    # On request, a worker that responds leaves parts to others.
    in_turns = np.stack([rows, np.full_like(rows, np.nan)], axis=2)
    in_turns[0, :, 1] = 1
    trace = filled(in_turns)
    assert np.isfinite(trace[:, [0, 2]]).all()
    assert np.isfinite(trace[:30, 1]).all()
    assert np.isnan(trace[30:, 1]).all()


def test_worker_that_may_be_busy_at_the_end_has_all_times():
    """The last round of a long trace ends without the slowest response."""
    rows = np.ones((20_000, 2))
    rows[-1, 1] = np.nan
    assert np.isfinite(filled(rows)).all()
    assert filled(np.array([[1.0, np.nan]])).shape == (1, 2)


def test_undecodable_rounds_say_how_long_and_why_they_waited():
    """A lost worker is away for too long; all have responded; the rule ends it."""
    world = World(single_fleet(replacement=8.0))
    world.begin(0)
    world.lose(0, "its process died")
    assert world.engine.result is None
    world.poll(7.9)
    assert world.engine.result is None
    world.poll(0.2)
    assert world.fleet.why_undecodable(world.engine.result) == (
        "no worker responded; missing: worker 0 (its process died); the round ended "
        "after 8.1 s: a lost worker has been away for 8.1 s; timeouts.replacement is 8"
    )
    world = World(single_fleet())
    world.begin(0)
    world.respond(0, is_finite=False)
    why = world.fleet.why_undecodable(world.engine.result)
    assert why.endswith("after 0 s: all workers have responded or are excluded")
    world = World(message_fleet(ends=lambda times: 2.5))
    result = world.run(by_worker(3, 3, 3, 3, 3))
    why = world.fleet.why_undecodable(result)
    assert why.endswith("the round ended after 2.5 s: the waiting rule ended it")


def test_round_of_all_workers_above_the_tolerance_misses_no_worker():
    world = World(message_fleet(ends=lambda times: 2.5))
    result = world.run(by_worker(3, 3, 3, 3, 3))._replace(received=np.ones(5, bool))
    why = world.fleet.why_undecodable(result)
    assert why.startswith("all workers responded, and the residual of their messages")
    assert "missing" not in why


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("message_dtype", [None, "bfloat16", "float16"])
def test_messages_beyond_float16_are_named(dtype, message_dtype):
    params = jax.ShapeDtypeStruct((2,), dtype)
    layout = Layout.of(codes.uncoded(1), params, message_dtype)
    world = World(single_fleet())
    world.begin()
    world.engine._layout = layout
    world.respond(0, is_finite=False)
    why = world.fleet.why_undecodable(world.engine.result)
    assert "its message is not finite" in why
    advice = "in float16, whose largest number is 65504: scale the loss down, or use"
    assert (advice in why) is (dtype is np.float16 or message_dtype == "float16")
    if advice in why:
        assert layout.not_finite("sum").startswith(f"its sum is not finite {advice}")


def test_the_newest_problem_of_a_worker_is_reported(caplog):
    """A worker dies, and its replacement sends NaN, which is said once."""
    world = World(single_fleet())
    world.begin(0)
    error = ArithmeticError("as told")
    world.lose(0, "ArithmeticError: as told", error)
    world.poll()
    world.respond(0)
    world.respond(0, is_finite=False)
    why = "no worker responded; missing: worker 0 (its message is not finite); "
    assert world.fleet.why_undecodable(world.engine.result).startswith(why)
    assert world.fleet.slots[0].error is None
    world.begin(1)
    world.respond(0, is_finite=False)
    assert world.engine.result.received.tolist() == [False]
    troubles = [text.split(": ", 1)[1] for text in caplog.messages]
    assert troubles == [
        "ArithmeticError: as told; the code tolerates 0 more of 0 stragglers",
        "its message is not finite; the code tolerates 0 more of 0 stragglers",
    ]
