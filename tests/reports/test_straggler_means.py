"""Means of a straggler report: from all rounds, and in any unit."""

import warnings

import numpy as np
import pytest

import jaxwgc

NUM_WORKERS = 4
TIMES = np.exp(0.1 * np.random.default_rng(0).standard_normal((300, 8)))
NOBODY = np.zeros(NUM_WORKERS, bool)


def periodic(period, num_rounds, slowdown=4.0):
    """Worker 2 is slow in the first of each `period` rounds."""
    generator = np.random.default_rng([period, num_rounds])
    times = np.exp(0.1 * generator.standard_normal((num_rounds, NUM_WORKERS)))
    times[::period, 2] *= slowdown
    return times


@pytest.mark.parametrize("num_rounds", [5_000, 40_951, 100_000])
@pytest.mark.parametrize("period", [2, 3, 7, 10, 24, 100])
def test_means_are_those_of_all_rounds(period, num_rounds):
    times = periodic(period, num_rounds)
    report = jaxwgc.straggler_report(times)
    medians = np.sort(times, axis=1)[:, 1]
    assert report.rounds.replaced_time(NOBODY) == report.round_time
    assert report.round_time == pytest.approx(times.max(axis=1).mean(), rel=1e-12)
    replaced = times.copy()
    replaced[:, 2] = medians
    expected = replaced.max(axis=1).mean()
    is_replaced = np.arange(NUM_WORKERS) == 2
    assert report.rounds.replaced_time(is_replaced) == pytest.approx(
        expected, rel=1e-12
    )
    lost = report.round_time - expected
    assert report.time_lost[2] == pytest.approx(lost, rel=1e-9)
    assert report.rounds.replaced_time(~NOBODY) == pytest.approx(
        medians.mean(), rel=1e-12
    )
    slowdown = np.median(times / medians[:, None], axis=0)
    np.testing.assert_allclose(report.slowdown, slowdown, 1e-12)
    low, high = report.slowdown_interval
    assert np.all((low <= report.slowdown) & (report.slowdown <= high))
    shares = 1 / slowdown / np.mean(1 / slowdown)
    proportional = np.max(times * shares, axis=1).mean()
    assert report.rounds.proportional_time(NOBODY) == pytest.approx(
        proportional, rel=1e-12
    )


@pytest.mark.parametrize("period", [5, 10, 13, 24, 50])
def test_periodic_stalls_are_intermittent(period):
    report = jaxwgc.straggler_report(periodic(period, 40_951))
    assert report.kinds.tolist() == ["steady", "steady", "intermittent", "steady"]
    assert "worker 2 may stall" in report.advice


def test_means_are_those_of_rounds_with_a_response():
    times = periodic(10, 5_000)
    times[np.random.default_rng(0).random(times.shape) < 0.2] = np.nan
    times[:100] = np.inf
    report = jaxwgc.straggler_report(times)
    kept = times[100:][np.isfinite(times[100:]).any(axis=1)]
    longest = np.nanmax(kept, axis=1)
    assert report.rounds.replaced_time(NOBODY) == report.round_time
    assert report.round_time == pytest.approx(longest.mean(), rel=1e-12)
    expected = np.nanmean(kept, axis=1).mean()
    assert report.mean_time == pytest.approx(expected, rel=1e-12)


def test_intervals_hold_the_slowdown_of_all_rounds():
    """They are from samples: of 100 workers, about 5 would be outside."""
    times = np.exp(0.1 * np.random.default_rng(0).standard_normal((40_000, 100)))
    report = jaxwgc.straggler_report(times)
    low, high = report.slowdown_interval
    assert np.all((low <= report.slowdown) & (report.slowdown <= high))


def test_a_report_keeps_its_times_if_the_array_changes():
    times = TIMES.copy()
    report = jaxwgc.straggler_report(times)
    times *= 5
    nobody = np.zeros(8, bool)
    assert report.rounds.replaced_time(nobody) == report.round_time


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-30, 1e30, 1e300, 1e307])
def test_reports_are_equal_up_to_the_unit(scale):
    times = TIMES.copy()
    times[:, 3] *= 2
    times[40, 5] = np.nan
    expected = jaxwgc.straggler_report(times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = jaxwgc.straggler_report(times * scale)
        proportional = report.rounds.proportional_time(np.zeros(8, bool))
        str(report)
    assert report.kinds.tolist() == expected.kinds.tolist()
    for name in ("time_lost", "time_lost_error", "round_time", "mean_time"):
        scaled = getattr(expected, name) * scale
        np.testing.assert_allclose(getattr(report, name), scaled, 1e-9, err_msg=name)
    for name in ("slowdown", "slowdown_interval", "last", "lost_share"):
        value = getattr(expected, name)
        np.testing.assert_allclose(getattr(report, name), value, 1e-9, err_msg=name)
    time = expected.rounds.proportional_time(np.zeros(8, bool))
    assert proportional == pytest.approx(time * scale, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1e300])
def test_wait_reports_are_equal_up_to_the_unit(scale):
    waits = TIMES.max(axis=1, keepdims=True) - TIMES
    expected = jaxwgc.straggler_report(waits=waits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = jaxwgc.straggler_report(waits=waits * scale)
    for name in ("time_lost", "time_lost_error", "mean_wait", "round_wait"):
        scaled = getattr(expected, name) * scale
        np.testing.assert_allclose(getattr(report, name), scaled, 1e-9, err_msg=name)


def test_times_at_both_ends_of_the_floats():
    """One stall of 1e300 among times of 1e-200."""
    times = TIMES * 1e-200
    times[17, 3] = 1e300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = jaxwgc.straggler_report(times)
        advice = report.advice
    assert report.round_time == pytest.approx(1e300 / 300)
    assert advice.startswith("One round takes 100% of the total time: worker 3 in")


def test_both_ends_of_an_interval_are_widened_by_correlation():
    """Each half is a multiple of that of independent rounds, in logarithms."""
    independent = np.random.default_rng(0).standard_normal((2000, 8))
    correlated = independent.copy()
    for number in range(1, len(correlated)):
        correlated[number] *= np.sqrt(1 - 0.9**2)
        correlated[number] += 0.9 * correlated[number - 1]

    def halves(noise):
        times = np.exp(0.1 * noise)
        times[:, 3] *= 2
        report = jaxwgc.straggler_report(times)
        low, high = report.slowdown_interval[:, 3]
        below = np.log(report.slowdown[3] / low)
        above = np.log(high / report.slowdown[3])
        return np.array([below, above])

    assert np.all(halves(correlated) > 2 * halves(independent))
