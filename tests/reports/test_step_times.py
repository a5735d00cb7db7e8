"""Laps of simulated processes, on a simulated clock."""

import importlib.util
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import jaxwgc
from jaxwgc.reports import Kind, StepTimes

ROOT = pathlib.Path(__file__).parents[2]

EVERY = 20
DRAW = np.random.default_rng(0)
# Steps of three processes that are equally fast.
STEADY = DRAW.uniform(1.0, 1.2, (400, 3))


class Clock:
    """Clock of process 0, whose laps take the times of the first column."""

    def __init__(self, times):
        self.ends = np.cumsum(times[:, 0]).repeat(2)[:-1]
        self.ends = [0.0, *self.ends.tolist()]

    def __call__(self):
        return self.ends.pop(0)


def run(times, every=EVERY, **options):
    """Takes the laps of process 0, and returns its StepTimes and the changes.

    Args:
      times: (laps, processes), NaN for processes that do not respond.
      every: Number of laps between exchanges.
      options: Options of StepTimes.
    """
    changes = []
    first = [0]

    def gather(laps):
        num_laps = np.isfinite(laps).sum()
        rows = np.full((every, times.shape[1]), np.nan)
        rows[:num_laps] = times[first[0] : first[0] + num_laps]
        first[0] += num_laps
        np.testing.assert_allclose(laps[:num_laps], rows[:num_laps, 0], rtol=1e-6)
        return [None if np.isnan(row).all() else row for row in rows.T]

    step_times = StepTimes(
        gather, every=every, on_change=changes.append, clock=Clock(times), **options
    )
    for _ in times:
        with step_times:
            pass
    return step_times, changes


def test_reports_are_those_of_all_laps_and_of_the_last_ones():
    times = STEADY.copy()
    times[:, 1] *= 2
    step_times, _ = run(times, names=["a", "b", "c"], first_step=1000)
    steps = 1000 + np.arange(400)
    names = ["a", "b", "c"]
    expected = jaxwgc.straggler_report(times, names=names, steps=steps)
    assert str(step_times.report()) == str(expected)
    last = jaxwgc.straggler_report(times[-EVERY:], names=names, steps=steps[-EVERY:])
    assert str(step_times.latest) == str(last)
    metrics = step_times.metrics()
    assert metrics["step_times/slowest"] == 1
    assert metrics["step_times/slowdown"] == pytest.approx(last.slowdown[1])
    lost = last.round_time - last.median_time
    assert metrics["step_times/time_lost"] == pytest.approx(lost)
    assert metrics["step_times/after_barrier"] == 0


def test_a_process_that_becomes_slow_stops_and_returns_is_told():
    times = STEADY.copy()
    times[100:200, 1] *= 2
    times[240:300, 2] = np.nan
    _, changes = run(times)
    found = [(change.worker, change.kind) for change in changes]
    assert found == [
        ("1", Kind.SINCE),
        ("1", Kind.UNTIL),
        ("2", Kind.MISSING_SINCE),
        ("2", Kind.UNTIL),
    ]
    slow, recovered, missing, returned = changes
    assert slow.step == 100
    assert slow.slowdown == pytest.approx(2, rel=0.1)
    assert slow.report.rounds.steps[-1] in (139, 159)
    assert str(slow).startswith("worker 1 is slow since step 100: ")
    assert recovered.report.rounds.steps[0] == 200
    assert str(missing) == "worker 2 does not respond since step 240"
    assert returned.step == returned.report.rounds.steps[0] == 300
    assert str(returned).startswith("worker 2 responds again since step 300: 1.0")


def test_a_process_that_returns_slowly_has_returned():
    times = STEADY.copy()
    times[100:160, 2] = np.nan
    times[160:, 2] *= 1.5
    _, changes = run(times)
    kinds = [change.kind for change in changes]
    assert kinds == [Kind.MISSING_SINCE, Kind.UNTIL, Kind.SINCE]
    assert [change.step for change in changes] == [100, 160, 160]


def test_a_slow_process_stays_slow_in_noise():
    """It is told once, although it is not significantly slow in all windows."""
    draw = np.random.default_rng(2)
    times = draw.lognormal(0.0, 0.3, (2000, 8))
    times[:, 1] *= 1.3
    _, changes = run(times, every=50)
    assert [(change.worker, change.kind) for change in changes] == [("1", Kind.SINCE)]
    first = changes[0].report.rounds.steps[-1] + 1
    windows = times[first:].reshape(-1, 50, 8)
    kinds = [jaxwgc.straggler_report(window).kinds[1] for window in windows]
    assert kinds.count(Kind.STEADY) > 3


@pytest.mark.parametrize("noise", ["uniform", "lognormal", "correlated", "spells"])
def test_processes_that_are_alike_are_not_told(noise):
    """Noise, slow spells of one process, and a step in which all of them compile."""
    draw = np.random.default_rng(1)
    shape = (1000, 4)
    normal = draw.normal(size=shape)
    if noise == "correlated":
        for step in range(1, len(normal)):
            normal[step] = 0.8 * normal[step - 1] + 0.6 * normal[step]
    times = {
        "uniform": draw.uniform(1.0, 1.5, shape),
        "lognormal": np.exp(0.3 * normal),
        "correlated": np.exp(0.1 * normal),
        "spells": 1 + 0.05 * draw.random(shape),
    }[noise]
    if noise == "spells":
        for start in draw.integers(0, 990, 30):
            times[start : start + 5, draw.integers(4)] *= 2
    times[[0, 300]] *= 100
    _, changes = run(times, every=50)
    assert not changes


def test_laps_that_include_a_barrier_are_logged_once(caplog):
    times = np.repeat(DRAW.uniform(1, 2, (100, 1)), 3, axis=1)
    step_times, changes = run(times)
    assert not changes
    [record] = caplog.records
    assert record.name == "jaxwgc.reports"
    assert "stop a lap before the collective" in record.getMessage()
    assert step_times.metrics()["step_times/after_barrier"] == 1
    assert np.isnan(step_times.metrics()["step_times/slowest"])
    caplog.clear()
    step_times, _ = run(times, before_collective=True)
    assert step_times.metrics()["step_times/after_barrier"] == 0
    assert not caplog.records


def test_changes_are_logged_by_default(caplog):
    caplog.set_level(logging.INFO, "jaxwgc.reports")
    step_times = StepTimes(lambda laps: [laps, 2 * laps], every=8)
    for _ in range(16):
        step_times.start()
        step_times.stop()
    [record] = caplog.records
    assert record.getMessage().startswith("worker 1 is slow since step 0: 2.00 times")


def test_laps_at_the_end_are_exchanged_on_request():
    times = STEADY[: EVERY + 5]
    step_times, _ = run(times)
    assert step_times.report().num_rounds == EVERY
    step_times.exchange()
    assert step_times.report().num_rounds == EVERY + 5
    # There is nothing more to exchange.
    step_times.exchange()
    assert step_times.report().num_rounds == EVERY + 5


def test_other_processes_have_no_report():
    step_times = StepTimes(lambda laps: None, every=8)
    for _ in range(8):
        with step_times:
            pass
    assert step_times.metrics() == {}
    with pytest.raises(ValueError, match="needs exchanged laps; got none"):
        step_times.report()


def test_one_process_is_compared_with_none(caplog):
    step_times = StepTimes(lambda laps: [laps], every=8)
    for _ in range(16):
        with step_times:
            pass
    assert step_times.latest is None
    [record] = caplog.records
    assert "needs laps of several processes; got those of one" in record.getMessage()
    with pytest.raises(ValueError, match="at least 2 workers"):
        step_times.report()


def test_laps_that_raise_an_error_do_not_count():
    rows = []

    def gather(laps):
        rows.append(laps)

    # `start` of the first lap; `start` and `stop` of the others.
    step_times = StepTimes(gather, every=8, clock=[*range(17)][::-1].pop)
    with pytest.raises(ArithmeticError), step_times:
        raise ArithmeticError
    for _ in range(8):
        with step_times:
            pass
    np.testing.assert_array_equal(rows, [np.ones(8)])


def test_laps_are_not_nested_and_have_a_start():
    step_times = StepTimes(lambda laps: None)
    with pytest.raises(RuntimeError, match="must be started before it stops"):
        step_times.stop()
    step_times.start()
    with pytest.raises(RuntimeError, match="the lap of step 0 must be stopped before"):
        step_times.start()


def test_a_clock_that_goes_back_is_rejected():
    step_times = StepTimes(lambda laps: None, clock=[1.0, 2.0].pop)
    step_times.start()
    with pytest.raises(ValueError, match="the lap of step 0 took -1 s"):
        step_times.stop()


def test_a_failed_exchange_is_named_and_the_report_stays():
    """A process has ended: the collective fails, or waits in vain."""
    responses = [lambda laps: [laps, laps * 2], None]

    def gather(laps):
        response = responses.pop(0)
        if response is None:
            raise ConnectionError("connection closed by peer")
        return response(laps)

    step_times = StepTimes(gather, every=8)
    for _ in range(15):
        with step_times:
            pass
    why = "failed after 8 exchanged steps: ConnectionError: connection closed by peer"
    with pytest.raises(RuntimeError, match=why), step_times:
        pass
    assert step_times.report().num_rounds == 8


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [np.ones(3)],
            r"must return 8 laps of each process; got shape \(3,\) from pro",
        ),
        (np.ones((8, 2)), r"shape \(2,\) from process 0. .* the same `every`"),
        (np.ones((3, 8)), "laps of 2 processes, as before; got 3. If processes"),
    ],
)
def test_gather_returns_a_row_per_process(rows, message):
    results = [np.ones((2, 8)), rows]
    step_times = StepTimes(lambda laps: results.pop(0), every=8, before_collective=True)
    for _ in range(15):
        with step_times:
            pass
    with pytest.raises(ValueError, match=message), step_times:
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 7}, ValueError, "every must be .*8"),
        ({"every": 8.5}, TypeError, "every"),
        ({"first_step": -1}, ValueError, "first_step"),
        ({"before_collective": 1}, TypeError, "before_collective"),
        ({"gather": "mpi"}, ValueError, "gather must be .*jax.*torch"),
        ({"names": "ab"}, TypeError, "names must be a list of strings; got 'ab'"),
        ({"names": ["a", "a"]}, ValueError, "names must differ; got 'a' twice"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        StepTimes(**{"gather": "jax"} | options)


def test_jax_is_not_imported():
    program = (
        "import sys, jaxwgc\n"
        "times = jaxwgc.StepTimes(lambda laps: [laps, 2 * laps], every=8)\n"
        "for _ in range(16):\n"
        "    with times: pass\n"
        "print(times.latest.num_rounds, 'jax' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert ended.stdout == "8 False\n"


def test_one_process_of_jax_is_gathered():
    step_times = StepTimes("jax", every=8)
    for _ in range(8):
        with step_times:
            pass
    assert step_times._windows[0].shape == (8, 1)


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_examples_report_on_two_processes(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-m", f"examples.step_times_{library}"]
    ended = subprocess.run(
        command, capture_output=True, check=True, text=True, cwd=ROOT
    )
    assert "'step_times/slowest': " in ended.stdout
    assert "200 rounds of 2 workers." in ended.stdout
