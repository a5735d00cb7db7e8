"""Straggler reports, beside brute force and simulated traces of known stragglers."""

import json

import numpy as np
import pytest
from scipy import stats

import jaxwgc
from jaxwgc.reports import Kind

TIMES = np.exp(0.1 * np.random.default_rng(0).standard_normal((300, 10)))


def by_brute_force(times):
    """Statistics of the report, round by round."""
    sums = {}
    slowdowns = np.full(times.shape, np.nan)
    for number, row in enumerate(times):
        here = np.flatnonzero(np.isfinite(row))
        if not len(here):
            continue
        median = sorted(row[here])[(len(here) - 1) // 2]
        slowdowns[number, here] = row[here] / median
        replaced = np.zeros(len(row))
        for worker in here:
            instead = row.copy()
            instead[worker] = median
            replaced[worker] = row[here].max() - instead[here].max()
        values = {
            "round_time": row[here].max(),
            "mean_time": row[here].mean(),
            "median_time": median,
            "last": row == row[here].max(),
            "time_lost": replaced,
        }
        for name, value in values.items():
            sums.setdefault(name, []).append(value)
    means = {name: np.mean(values, 0) for name, values in sums.items()}
    slowdown = [np.median(column[np.isfinite(column)]) for column in slowdowns.T]
    return means | {"slowdown": slowdown, "missing": np.isnan(slowdowns).sum(0)}


@pytest.mark.parametrize("num_workers", [2, 3, 4, 7])
def test_statistics_match_brute_force(num_workers):
    """Responses are missing, one round has none, and times tie."""
    generator = np.random.default_rng(num_workers)
    times = generator.integers(1, 9, (60, num_workers)).astype(float)
    times[generator.random(times.shape) < 0.1] = np.nan
    times[3] = np.inf
    times[4, 0] = np.inf
    report = jaxwgc.straggler_report(times)
    for name, expected in by_brute_force(times).items():
        np.testing.assert_allclose(getattr(report, name), expected, 1e-12, err_msg=name)
    assert report.lost_share == 1 - report.median_time / report.round_time


def test_interval_of_time_lost_is_that_of_batch_means():
    report = jaxwgc.straggler_report(TIMES)
    ordered = np.sort(TIMES, 1)
    gaps = (ordered[:, -1] - ordered[:, -2])[:, None] * (ordered[:, -1:] == TIMES)
    means = gaps.reshape(10, 30, 10).mean(1)
    error = stats.sem(means) * stats.t.ppf(0.975, 9)
    np.testing.assert_allclose(report.time_lost_error, error, 1e-12)


def test_parts_are_summed():
    parts = np.stack([0.25 * TIMES, 0.75 * TIMES], -1)
    parts[5, 3, 1] = np.nan
    report = jaxwgc.straggler_report(parts)
    assert report.missing.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    whole = np.where(np.isnan(parts.sum(-1)), np.inf, TIMES)
    expected = jaxwgc.straggler_report(whole)
    np.testing.assert_allclose(report.slowdown, expected.slowdown, 1e-12)


@pytest.mark.parametrize("num_rounds", [8, 40])
def test_interval_of_the_median_is_that_of_order_statistics(num_rounds):
    """Rounds are not correlated, or negatively: here speeds alternate."""
    signs = np.where(np.add.outer(np.arange(num_rounds), np.arange(10)) % 2, 1, -1)
    times = TIMES[:num_rounds] * 1.2**signs
    report = jaxwgc.straggler_report(times)
    slowdowns = times / np.sort(times, 1)[:, 4:5]
    expected = [
        stats.quantile_test(column).confidence_interval(0.95) for column in slowdowns.T
    ]
    np.testing.assert_allclose(report.slowdown_interval.T, expected, 1e-12)


def simulated(kind, num_rounds, slowdown, key):
    """Ten workers that vary by 5%, and in a common factor; worker 3 straggles."""
    generator = np.random.default_rng(key)
    common = np.exp(generator.standard_normal((num_rounds, 1)))
    times = common * np.exp(0.05 * generator.standard_normal((num_rounds, 10)))
    rounds = np.arange(num_rounds)
    times[:, 3] *= {
        "steady": 1.0,
        "chronic": slowdown,
        "since": np.where(rounds < num_rounds // 2, 1.0, slowdown),
        "intermittent": np.where(generator.random(num_rounds) < 0.05, slowdown, 1.0),
    }[kind]
    return times


@pytest.mark.parametrize(
    ("kind", "num_rounds", "slowdown", "share"),
    [
        ("chronic", 30, 1.3, 0.9),
        ("chronic", 300, 1.1, 0.9),
        ("since", 30, 1.3, 0.9),
        ("since", 300, 1.1, 0.9),
        ("intermittent", 100, 5.0, 0.6),
        ("intermittent", 300, 5.0, 0.9),
    ],
)
def test_simulated_stragglers_are_named_by_their_kind(
    kind, num_rounds, slowdown, share
):
    """In this share of 40 traces, the straggler alone is named."""
    expected = [Kind.STEADY] * 10
    expected[3] = kind
    reports = [
        jaxwgc.straggler_report(simulated(kind, num_rounds, slowdown, key))
        for key in range(40)
    ]
    is_right = [report.kinds.tolist() == expected for report in reports]
    assert np.mean(is_right) >= share
    if kind == Kind.SINCE:
        onsets = [
            report.change_round[3]
            for report in reports
            if report.kinds[3] != Kind.STEADY
        ]
        assert abs(np.median(onsets) - num_rounds // 2) <= 1


ROUNDS = np.arange(300)


@pytest.mark.parametrize(
    ("start", "before", "after", "outlier", "kind", "rounds"),
    [
        (270, 1.0, 1.3, 1.0, Kind.SINCE, [270]),
        # Outliers hide no change.
        (100, 1.0, 1.2, 1000.0, Kind.SINCE, range(300)),
        # It has been slow before.
        (150, 1.5, 2.0, 1.0, Kind.CHRONIC, [-1]),
        (150, 1.3, 1.0, 1.0, Kind.UNTIL, range(100, 200)),
    ],
)
def test_a_change_of_speed_is_named(start, before, after, outlier, kind, rounds):
    """Worker 3 changes its speed in a round, and each fortieth is an outlier."""
    times = np.exp(0.05 * np.random.default_rng(0).standard_normal((300, 10)))
    times[:, 3] *= np.where(start > ROUNDS, before, after)
    times[::40, 3] *= outlier
    report = jaxwgc.straggler_report(times)
    assert report.kinds[3] == kind
    assert report.change_round[3] in rounds


def correlated(generator, num_rounds, num_workers, correlation):
    """Gaussian series whose lag-1 autocorrelation is given."""
    series = generator.standard_normal((num_rounds, num_workers))
    for number in range(1, num_rounds):
        new = np.sqrt(1 - correlation**2) * series[number]
        series[number] = correlation * series[number - 1] + new
    return series


LAWS = {
    "exponential": lambda generator: generator.exponential(size=(30, 10)),
    "pareto": lambda generator: 1 + generator.pareto(1.5, (30, 10)),
    "stalls": lambda generator: np.where(
        generator.random((30, 10)) < 0.01, 9.0, TIMES[:30]
    ),
    "normal": lambda generator: np.exp(0.1 * generator.standard_normal((30, 10))),
    "correlated": lambda generator: np.exp(0.1 * correlated(generator, 30, 10, 0.5)),
}


@pytest.mark.parametrize("law", LAWS)
def test_false_alarms(law):
    """Reports of workers that are alike: 5% may name any, so 10 of 100 by chance."""
    traces = [LAWS[law](np.random.default_rng(key)) for key in range(100)]
    kinds = [jaxwgc.straggler_report(times).kinds for times in traces]
    assert np.sum(np.any(np.array(kinds) != "steady", axis=1)) <= 10


def with_workers(slowdown, *workers):
    times = TIMES.copy()
    times[:, workers] *= slowdown
    return times


def gone(times):
    times[200:, 7] = np.nan
    return times


STALLS = np.where(np.random.default_rng(1).random((300, 1)) < 0.1, 8, 1)
WIDE = np.random.default_rng(2).exponential(size=(300, 10))


@pytest.mark.parametrize(
    ("times", "start"),
    [
        (TIMES, "Nothing to gain: "),
        (with_workers(2, 7), "Check or replace worker 7: "),
        (with_workers(2, 1, 2, 7), "Give work in proportion to speed, less to"),
        (with_workers(STALLS, 7), "Wait for fewer, since worker 7 may stall: "),
        (WIDE, "Wait for fewer workers, since "),
        (with_workers(2, 7)[:3], "Measure more rounds to judge worker 7: "),
        (
            gone(with_workers(2, 1)),
            "Check worker 7: no response since round 200. Check or replace worker 1: ",
        ),
        (gone(TIMES.copy()), "Check worker 7: no response since round 200."),
        (with_workers(1.5, 3)[:, [3, 4]], "Check or replace worker 0: "),
    ],
)
def test_advice_begins_with_the_measure_to_take(times, start):
    report = jaxwgc.straggler_report(times)
    assert report.advice.startswith(start), report.advice
    assert report.advice[:30] in " ".join(str(report).split())


def test_times_without_slow_workers():
    """Work in proportion, or workers replaced by the median one of the round."""
    times = np.array([[1.0, 1.0, 4.0], [1.0, 2.0, 4.0]] * 10)
    report = jaxwgc.straggler_report(times)
    assert report.rounds.replaced_time(np.array([False, False, True])) == pytest.approx(
        1.5
    )
    # Slowdowns are 3/4, 1 and 3.
    speeds = np.array([4 / 3, 1, 1 / 3])
    expected = np.mean(np.max(times * speeds / speeds.mean(), 1))
    assert report.rounds.proportional_time(np.zeros(3, bool)) == pytest.approx(expected)


def test_text_and_json():
    times = with_workers(1.5, 4)
    times[150:, 6] *= 1.5
    times[:, 9] = np.nan
    report = jaxwgc.straggler_report(times, names=[f"host-{i}" for i in range(10)])
    text = str(report)
    assert "300 rounds of 10 workers" in text
    assert "Missing responses: 300, which" in " ".join(text.split())
    assert text.index("host-4") < text.index("host-0")
    assert "since round 150 (1.4" in text
    assert max(map(len, text.splitlines())) <= 88
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["kinds"][9] == "missing"
    assert read["kinds"][6] == "since round 150"
    assert read["kind_values"][6] == "since"
    assert read["change_round"][6] == 150
    assert read["slowdown"][9] is None
    assert read["advice"] == report.advice
    # Of many workers those that matter.
    many = np.tile(times[:, :9], 5)
    assert str(jaxwgc.straggler_report(many)).count("\n") < 30


def test_kinds_are_members_and_strings():
    times = with_workers(1.5, 4)
    times[150:, 6] *= 1.5
    times[200:, 8] = np.nan
    times[:, 9] = np.nan
    equal = np.ones((100, 4))
    for report in (
        jaxwgc.straggler_report(times),
        jaxwgc.straggler_report(equal),
        jaxwgc.straggler_report(waits=times.max(initial=0, where=times > 0) - times),
    ):
        assert all(isinstance(kind, Kind) for kind in report.kinds)
    report = jaxwgc.straggler_report(times)
    names = ("CHRONIC", "SINCE", "MISSING_SINCE", "MISSING")
    for worker, name in zip((4, 6, 8, 9), names):
        is_kind = report.kinds == Kind[name]
        assert np.flatnonzero(is_kind).tolist() == [worker]
        assert np.array_equal(is_kind, report.kinds == Kind[name].value)
    assert report.change_round[[0, 4, 6, 8, 9]].tolist() == [-1, -1, 150, 200, -1]


def test_long_traces_are_sampled():
    """Means are of all rounds; tests and pictures of 4,096."""
    times = np.tile(with_workers(1.2, 3), (20, 1))
    report = jaxwgc.straggler_report(times)
    assert report.rounds.times.shape == (6000, 10)
    assert report.kinds[3] == "chronic"
    assert report.round_time == pytest.approx(times.max(1).mean(), rel=1e-12)


@pytest.mark.parametrize("period", [2, 10, 13])
def test_samples_of_long_traces_do_not_alias(period):
    """A worker is four times as slow in every tenth of 40,951 rounds."""
    times = np.tile(TIMES, (137, 1))[:40_951]
    times[::period, 2] *= 4
    report = jaxwgc.straggler_report(times)
    slowdown = np.median(times[:, 2] / np.sort(times, 1)[:, 4])
    assert report.slowdown[2] == pytest.approx(slowdown, rel=0.1)
    others = np.delete(times, 2, axis=1).max(1)
    is_replaced = np.arange(10) == 2
    replaced = np.maximum(others, np.sort(times, 1)[:, 4]).mean()
    assert report.rounds.replaced_time(is_replaced) == pytest.approx(replaced, rel=0.1)


def test_the_plot_can_be_drawn():
    figure = pytest.importorskip("matplotlib.figure")
    times = with_workers(1.5, 4)
    times[4, 5] = np.nan
    drawn = jaxwgc.straggler_report(times).plot()
    assert isinstance(drawn, figure.Figure)
    heat, bars = drawn.axes[:2]
    assert heat.images[0].get_array().shape == (10, 300)
    assert len(bars.patches) == 10


def test_the_plot_counts_steps_as_the_report_does():
    times = with_workers(1.5, 4)
    steps = 1000 + 10 * np.arange(len(times))
    heat, _ = jaxwgc.straggler_report(times, steps=steps).plot().axes[:2]
    assert heat.get_xlabel() == "step"
    format_tick = heat.xaxis.get_major_formatter()
    assert format_tick(100.0, None) == "2000"
    assert format_tick(-5.0, None) == format_tick(300.0, None) == ""


def test_few_rounds_name_nobody():
    """Two rounds show nothing, and one response of a worker does not either."""
    times = np.array([[1.0, 1.0, 9.0, np.nan], [1.0, 2.0, 9.0, 3.0]])
    report = jaxwgc.straggler_report(times)
    assert set(report.kinds) == {"steady"}
    assert report.slowdown_interval.tolist() == [[0] * 4, [np.inf] * 4]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.ones(3), "times must have (shape|a leading axis)"),
        ([[1.0, 2.0]], r"times.* at least 2 rounds; got \(1, 2\)"),
        ([[1.0], [2.0]], r"times.* at least 2 workers; got \(2, 1\)"),
        ([[1, 2], [3, -1]], r"times.*got -1.0 at \[1, 1\]"),
        (np.full((3, 2), np.nan), "times.*got none"),
    ],
)
def test_times_that_are_no_trace_are_rejected(times, message):
    with pytest.raises(ValueError, match=message):
        jaxwgc.straggler_report(times)


def test_names_of_other_workers_are_rejected():
    with pytest.raises(ValueError, match=r"names must have shape .* = \(10,\)"):
        jaxwgc.straggler_report(TIMES, names=["a"])
