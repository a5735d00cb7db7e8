"""Waiting times: the worker that waits least is the slow one."""

import json

import numpy as np
import pandas
import pytest
from scipy import stats

import jaxwgc
from jaxwgc.reports import _wait_report


def waits_of(times):
    """Time from a worker's arrival to that of the last one."""
    return times.max(1, keepdims=True) - times


def busy_times(seed, slowdown, num_rounds=300, workers=(3,)):
    times = 1 + 0.1 * np.random.default_rng(seed).random((num_rounds, 8))
    times[:, list(workers)] *= slowdown
    return times


def test_slow_worker_is_named():
    waits = waits_of(busy_times(0, 2.0))
    report = jaxwgc.straggler_report(waits=waits)
    assert report.kinds.tolist() == ["steady"] * 3 + ["late"] + ["steady"] * 4
    assert report.last.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert report.advice.startswith("Check or replace worker 3: last in 100% of the ro")
    ordered = np.sort(waits, 1)
    lost = np.mean(ordered[:, 1] - ordered[:, 0])
    assert report.time_lost[3] == pytest.approx(lost, rel=1e-12)
    assert report.time_saved == pytest.approx(lost, rel=1e-12)
    assert report.mean_wait == pytest.approx(waits.mean(0), rel=1e-12)
    assert report.round_wait == pytest.approx(waits.mean(), rel=1e-12)


def test_two_slow_workers_are_named():
    report = jaxwgc.straggler_report(waits=waits_of(busy_times(0, 2.0, workers=(1, 6))))
    assert np.flatnonzero(report.kinds == "late").tolist() == [1, 6]
    assert "workers 1, 6: last in 100% of the rounds" in report.advice
    # Without both, a round is as long as that of the six others.
    times = busy_times(0, 2.0, workers=(1, 6))
    others = np.delete(times, [1, 6], axis=1)
    saved = np.mean(times.max(1) - others.max(1))
    assert report.time_saved == pytest.approx(saved, rel=1e-12)


@pytest.mark.parametrize("num_rounds", [10, 300])
def test_workers_that_are_alike_are_rarely_named(num_rounds):
    """At most 5% of reports may name one, so 10 of 100 by chance."""
    reports = [
        jaxwgc.straggler_report(waits=waits_of(busy_times(seed, 1.0, num_rounds)))
        for seed in range(100)
    ]
    assert sum("late" in report.kinds for report in reports) <= 10
    steady = next(report for report in reports if "late" not in report.kinds)
    assert steady.advice.startswith("No worker is last in more rounds than chance expl")


def test_significance_is_that_of_a_binomial_test():
    """Rounds are not correlated: workers other than 3 are last in turns."""
    waits = np.ones((120, 8))
    last = np.where(np.arange(120) % 2, 3, np.arange(120) % 8)
    waits[np.arange(120), last] = 0
    report = jaxwgc.straggler_report(waits=waits)
    num_last = int((last == 3).sum())
    expected = stats.binomtest(num_last, 120, 1 / 8, alternative="greater").pvalue * 8
    assert report.last_p_value[3] == pytest.approx(expected, rel=1e-9)
    assert report.kinds[3] == "late"


def test_correlated_rounds_count_as_fewer():
    """Worker 3 is last in one spell of 60 of 300 rounds, as may happen by chance."""
    waits = np.ones((300, 5))
    waits[np.arange(300), np.arange(300) // 60] = 0
    report = jaxwgc.straggler_report(waits=waits)
    assert "late" not in report.kinds


def test_few_rounds_name_a_worker_that_is_always_last():
    report = jaxwgc.straggler_report(waits=waits_of(busy_times(0, 1.8, num_rounds=10)))
    assert np.flatnonzero(report.kinds == "late").tolist() == [3]


def test_worker_that_joins_late():
    """It is judged by the rounds in which it takes part."""
    times = busy_times(0, 1.8, num_rounds=100)
    times[:60, 3] = np.nan
    waits = np.nanmax(times, 1, keepdims=True) - times
    report = jaxwgc.straggler_report(waits=waits)
    assert np.flatnonzero(report.kinds == "late").tolist() == [3]
    assert report.last[3] == pytest.approx(0.4)


def test_workers_that_may_be_late_are_named_as_such():
    """One is slow in the first half of the rounds, another in the second half."""
    times = busy_times(0, 1.0)
    times[:150, 2] *= 1.8
    times[150:, 4] *= 1.8
    report = jaxwgc.straggler_report(waits=waits_of(times))
    assert "late" not in report.kinds
    assert report.advice.startswith(
        "Measure more rounds to judge workers 2, 4: last in"
    )


def test_ties_and_missing_workers():
    waits = np.tile([0.0, 0.0, 1.0, np.nan], (40, 1))
    waits[0] = np.nan
    report = jaxwgc.straggler_report(waits=waits)
    assert report.last.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert report.time_lost.tolist() == [0.0] * 4
    assert report.missing.tolist() == [1, 1, 1, 40]
    assert report.kinds[3] == "missing"
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["mean_wait"] == [0.0, 0.0, 1.0, None]


def test_text_and_names():
    waits = waits_of(busy_times(0, 2.0))
    report = jaxwgc.straggler_report(waits=waits, names=[f"host-{i}" for i in range(8)])
    text = str(report)
    assert text.startswith("300 rounds of 8 workers, waiting times. Mean wait: ")
    assert text.index("host-3") < text.index("host-0")
    assert max(map(len, text.splitlines())) <= 88
    assert report.advice[:30] in " ".join(text.split())


def test_times_and_waits_give_the_report_before_the_collective():
    times = busy_times(0, 1.5)
    waits = waits_of(times)
    report = jaxwgc.straggler_report(times + waits, waits=waits)
    expected = jaxwgc.straggler_report(times)
    np.testing.assert_allclose(report.slowdown, expected.slowdown, rtol=1e-12)
    assert report.kinds.tolist() == expected.kinds.tolist()


def test_waits_in_a_data_frame():
    waits = waits_of(busy_times(0, 2.0, num_rounds=20))
    frame = pandas.DataFrame(
        {
            "step": np.repeat(np.arange(20), 8),
            "rank": np.tile(np.arange(8), 20),
            "step_time": 1.0,
            "wait_ms": 1e3 * waits.ravel(),
        }
    )
    report = jaxwgc.straggler_report(waits=frame)
    np.testing.assert_allclose(report.mean_wait, waits.mean(0), rtol=1e-12)


def test_times_and_waits_in_data_frames_are_aligned():
    times = busy_times(0, 1.5, num_rounds=40)
    waits = waits_of(times)
    names = [f"rank{rank}" for rank in range(8)]
    whole = pandas.DataFrame(times + waits, columns=names)
    idle = pandas.DataFrame(waits, columns=names)
    expected = jaxwgc.straggler_report(times)
    report = jaxwgc.straggler_report(whole, waits=idle[names[::-1]])
    assert report.names.tolist() == names
    np.testing.assert_allclose(report.slowdown, expected.slowdown, rtol=1e-12)
    with pytest.raises(
        ValueError, match="waits must have the workers of times, rank0, r"
    ):
        jaxwgc.straggler_report(whole.drop(columns="rank1"), waits=idle)
    with pytest.raises(ValueError, match="waits must have the steps of times"):
        jaxwgc.straggler_report(whole[:-1], waits=idle[1:])
    with pytest.raises(ValueError, match="waits must have the steps of times"):
        jaxwgc.straggler_report(whole, waits=idle[::-1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "needs times or waits; got neither"),
        ({"waits": [[1, -2], [1, 2]]}, ValueError, r"at least 0, .* -2.0 at \[0, 1\]"),
        ({"waits": [[1, np.inf], [1, 2]]}, ValueError, r"finite .* inf at \[0, 1\]"),
        ({"waits": [[1, 2]]}, ValueError, r"at least 2 rounds; got \(1, 2\)"),
        (
            {"waits": [[1], [2]]},
            ValueError,
            r"waits .* at least 2 workers; got \(2, 1\)",
        ),
        ({"waits": np.full((2, 2), np.nan)}, ValueError, "at least one number; got no"),
        ({"waits": [["a", "b"]] * 2}, TypeError, "waits must be real numbers"),
        (
            {"waits": np.ones((3, 2)), "names": ["a"]},
            ValueError,
            r"names must have shape .* = \(2,\)",
        ),
        (
            {"times": np.ones((3, 2)), "waits": np.ones((2, 2))},
            ValueError,
            r"waits must have the shape of times, \(3, 2\); got \(2, 2\)",
        ),
        (
            {"times": np.ones((2, 2)), "waits": [[0.5, 0.5], [0.5, 2]]},
            ValueError,
            r"a wait of 2.0 in a time of 1.0 at \[1, 1\]",
        ),
        (
            {"waits": np.ones((3, 2)), "steps": [1, 2, 3]},
            ValueError,
            r"steps= needs times=; got steps=\[1, 2, 3\]",
        ),
        (
            {"times": np.ones((3, 2)), "before_collective": "no"},
            TypeError,
            "before_collective must be True or False; got 'no'",
        ),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        jaxwgc.straggler_report(**arguments)


def test_correlation_of_consecutive_rounds_is_estimated_without_bias():
    """The factor (1 + r) / (1 - r) is that of a Gaussian series with r = 0.5."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((20, 2000)) * np.sqrt(1 - 0.5**2)
    series = np.empty_like(noise)
    series[0] = generator.standard_normal(2000)
    for number in range(1, 20):
        series[number] = 0.5 * series[number - 1] + noise[number]
    factors = np.array([_wait_report._correlation_factor(one) for one in series.T])
    correlations = (factors - 1) / (factors + 1)
    # Without the correction for 20 rounds, the mean is below 0.4.
    assert correlations.mean() == pytest.approx(0.5, abs=0.03)
