"""Workers that recovered, and workers that others left behind, in a report."""

import pathlib

import numpy as np
import pytest

import jaxwgc
from jaxwgc.reports import Kind
from jaxwgc.reports._kinds import likeliest_change


def trace(seed, num_rounds=200, num_workers=8, noise=0.05):
    generator = np.random.default_rng(seed)
    return np.exp(noise * generator.standard_normal((num_rounds, num_workers)))


@pytest.mark.parametrize(("first", "end"), [(0, 100), (0, 180), (60, 180), (100, 170)])
def test_a_worker_that_recovered_is_no_one_to_replace(first, end):
    """It is like others in the last 20 of 200 rounds, or more."""
    num_right = 0
    for seed in range(20):
        times = trace(seed)
        times[first:end, 2] *= 3
        report = jaxwgc.straggler_report(times)
        expected = ["steady"] * 8
        expected[2] = f"until round {end}"
        num_right += report.kind_texts == expected
        assert "replace" not in report.advice
        assert "Measure" not in report.advice
        assert "less to worker" not in report.advice
    # At most 5% of reports name other workers: 4 of 20 by chance.
    assert num_right >= 16


def test_advice_is_drawn_from_the_rounds_since_a_worker_recovered():
    times = trace(0)
    times[:100, 2] *= 3
    times[:, 5] *= 2
    advice = jaxwgc.straggler_report(times).advice
    now = jaxwgc.straggler_report(times[100:]).advice
    assert now.startswith("Check or replace worker 5: ")
    assert advice == (
        "Worker 2 was slow until round 100, and nothing is to be done about it now. "
        f"Since round 100: {now}"
    )


def test_the_slowdown_before_the_change_is_in_the_table():
    times = trace(0)
    times[:100, 2] *= 3
    report = jaxwgc.straggler_report(times)
    assert f"until round 100 ({report.slowdown_before[2]:.2f})" in str(report)
    assert report.slowdown_before[2] == pytest.approx(3, rel=0.05)
    assert report.slowdown_after[2] == pytest.approx(1, rel=0.05)


def test_a_worker_that_was_fast_gets_no_more_work():
    """Six of eight workers are slow until round 180."""
    times = trace(0)
    times[:180, :6] *= 3
    report = jaxwgc.straggler_report(times)
    assert report.kind_texts[6:] == ["fast until round 180"] * 2
    assert "more to" not in report.advice


def test_a_spell_at_the_beginning_is_no_change_if_others_have_such_spells():
    """It lasts 20 rounds, and others have 60 spells of 5 rounds on average."""
    num_changes = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        times = trace(seed, num_rounds=300)
        is_slow = np.zeros(8, dtype=bool)
        for number in range(300):
            draws = generator.random(8)
            is_slow = np.where(is_slow, draws >= 0.2, draws < 0.03)
            times[number, is_slow] *= 5
        times[20:, 5] = np.where(times[20:, 5] > 3, 1, times[20:, 5])
        times[:20, 5] = np.maximum(times[:20, 5], 5)
        num_changes += jaxwgc.straggler_report(times).kinds[5] in (
            Kind.UNTIL,
            Kind.FAST_UNTIL,
        )
    # The length of the spell has a probability of about 60 * 0.8**19 = 0.9.
    assert num_changes <= 2


@pytest.mark.parametrize(("num_workers", "num_faster"), [(2, 1), (8, 6)])
def test_workers_are_not_to_blame_if_the_others_become_faster(num_workers, num_faster):
    """Their own times are those of before."""
    for seed in range(20):
        times = trace(seed, num_workers=num_workers)
        faster = np.arange(num_workers) >= num_workers - num_faster
        times[100:, faster] /= 3
        report = jaxwgc.straggler_report(times)
        assert set(report.kinds[~faster]) == {Kind.OTHERS_FASTER_SINCE}, seed
        assert set(report.change_round[~faster]) == {100}, seed
        assert "replace" not in report.advice
        assert report.advice.startswith("The others are faster since round 100 than ")
        assert "Since round 100: Give work in proportion to speed, less to" in (
            report.advice
        )


def test_a_worker_that_became_slower_is_to_blame_even_if_the_others_became_faster():
    """All get two thirds of the work, and worker 3 takes twice as long for it."""
    times = trace(0)
    times[100:] /= 1.5
    times[100:, 3] *= 3
    report = jaxwgc.straggler_report(times)
    assert report.kind_texts[3] == "since round 100"
    assert report.advice.startswith("Check or replace worker 3: ")


def test_most_workers_of_measured_traces_are_correlated():
    """The page of reports says: successive rounds are correlated, 0.4 to 0.7."""
    path = pathlib.Path(__file__).parents[2] / "experiments/data/pai_delays.npz"
    correlations = []
    for times in np.load(path).values():
        middle = (times.shape[1] - 1) // 2
        medians = np.sort(times, axis=1)[:, middle]
        residuals = likeliest_change(np.log(times / medians[:, None])).residuals
        products = np.sum(residuals[1:] * residuals[:-1], axis=0)
        correlations.extend(products / np.sum(residuals**2, axis=0))
    rounded = np.round(correlations, 1)
    assert np.mean((rounded >= 0.4) & (rounded <= 0.7)) > 0.75
