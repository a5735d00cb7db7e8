"""Times that include the wait for the slowest worker are said to be such."""

import pathlib

import numpy as np
import pytest

import jaxwgc

DATA = pathlib.Path(__file__).parents[2] / "experiments/data"
TRACES = {
    f"{file}/{name}": times
    for file in ("pai_delays", "llm_training_delays")
    for name, times in np.load(DATA / f"{file}.npz").items()
}


def busy_times(seed, num_rounds=200, num_workers=8, slowdown=2.0, seconds=1.0):
    """Seconds before the collective; worker 3 is slow."""
    generator = np.random.default_rng(seed)
    times = seconds * (1 + generator.exponential(0.1, (num_rounds, num_workers)))
    times[:, 3] *= slowdown
    return times


def after_barrier(times, jitter, seed=0):
    """Every worker's time is that of the slowest one, and some jitter."""
    generator = np.random.default_rng(seed)
    return times.max(1, keepdims=True) + jitter * generator.random(times.shape)


@pytest.mark.parametrize("jitter", [0.0, 0.001, 0.005])
@pytest.mark.parametrize("seconds", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("num_rounds", [20, 300])
def test_equal_times_of_all_workers_are_those_after_a_barrier(
    jitter, seconds, num_rounds
):
    for seed in range(10):
        times = busy_times(seed, num_rounds, seconds=seconds)
        report = jaxwgc.straggler_report(after_barrier(times, jitter, seed))
        assert report.after_barrier
        assert set(report.kinds) == {"unknown"}
        assert report.advice.startswith("These times seem to include the wait")
        assert str(report).startswith("These times seem to include the wait")
        assert "Nothing to gain" not in str(report)
        assert report.to_dict()["after_barrier"] is True


def test_advice_says_within_how_much_workers_took_the_same_time():
    times = busy_times(0).max(1, keepdims=True) * np.linspace(0.998, 1, 8)
    report = jaxwgc.straggler_report(times)
    assert "all workers took the same time (within 0.2%)" in report.advice


def test_a_collective_that_one_worker_always_leaves_last():
    times = after_barrier(busy_times(0), 0.002)
    times[:, 5] += 0.003
    assert jaxwgc.straggler_report(times).after_barrier


def test_a_coarse_clock_lets_several_workers_be_last():
    """Two thirds of the workers are last in each round."""
    generator = np.random.default_rng(0)
    late = generator.random((200, 8)) < 2 / 3
    late[:, 0] |= ~late.any(1)
    times = busy_times(0).max(1, keepdims=True) * np.where(late, 1.0, 0.95)
    assert jaxwgc.straggler_report(times).after_barrier


def test_rounds_of_very_different_length():
    """Jitter of 7% of a round is small beside rounds that differ by a factor of 30."""
    generator = np.random.default_rng(0)
    rounds = np.exp(generator.standard_normal((300, 1)))
    times = rounds * (1 - 0.07 * generator.random((300, 4)))
    assert jaxwgc.straggler_report(times).after_barrier


@pytest.mark.parametrize("name", TRACES)
def test_measured_traces_are_not_those_after_a_barrier(name):
    report = jaxwgc.straggler_report(TRACES[name])
    assert not report.after_barrier
    assert "unknown" not in report.kinds


@pytest.mark.parametrize("slowdown", [1.0, 1.1, 2.0])
def test_times_before_the_collective_are_not_those_after_a_barrier(slowdown):
    for seed in range(20):
        times = busy_times(seed, num_rounds=100, slowdown=slowdown)
        assert not jaxwgc.straggler_report(times).after_barrier


def test_rare_stalls_show_that_there_is_no_barrier():
    """Workers are equal within 0.1%, and one of them stalls in every tenth round."""
    times = 1 + 0.001 * np.random.default_rng(0).random((300, 8))
    times[::10, 3] *= 3
    report = jaxwgc.straggler_report(times)
    assert not report.after_barrier
    assert report.kinds[3] == "intermittent"


def test_a_worker_that_is_always_three_percent_slower_is_no_barrier():
    times = 1 + 0.01 * np.random.default_rng(0).random((300, 8))
    times[:, 3] *= 1.03
    assert not jaxwgc.straggler_report(times).after_barrier


def test_times_known_to_end_before_the_collective():
    times = after_barrier(busy_times(0), 0.001)
    report = jaxwgc.straggler_report(times, before_collective=True)
    assert not report.after_barrier
    assert set(report.kinds) == {"steady"}
    assert report.advice.startswith("Nothing to gain")


def test_missing_responses_do_not_hide_a_barrier():
    times = after_barrier(busy_times(0), 0.005)
    times[np.random.default_rng(1).random(times.shape) < 0.1] = np.nan
    times[:, 7] = np.nan
    assert jaxwgc.straggler_report(times).after_barrier


def test_two_workers_show_a_barrier():
    times = after_barrier(busy_times(0)[:, :2], 0.001)
    assert jaxwgc.straggler_report(times).after_barrier
