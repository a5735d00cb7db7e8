"""Advice of a straggler report: to which workers, and in which rounds, time is lost."""

import numpy as np
import pytest

import jaxwgc
from jaxwgc.reports._lost_time import last_workers
from tests.conftest import weekly

# Of 100 reports, 5% may name any worker: 11 with a probability of 1%.
MOST_OF_100 = 10


def trace(seed, num_rounds=200, num_workers=8, noise=0.05):
    generator = np.random.default_rng(seed)
    return np.exp(noise * generator.standard_normal((num_rounds, num_workers)))


def advices(make_times, num_traces=100):
    return [
        jaxwgc.straggler_report(make_times(np.random.default_rng(seed))).advice
        for seed in range(num_traces)
    ]


def num_with(words, texts):
    return sum(words in text for text in texts)


@pytest.mark.parametrize(
    ("first", "end", "slowdown"), [(60, 120, 3), (60, 75, 3), (195, 200, 10)]
)
def test_a_worker_that_is_slow_for_a_while_is_named_with_its_rounds(
    first, end, slowdown
):
    for seed in range(20):
        times = trace(seed)
        times[first:end, 0] *= slowdown
        advice = jaxwgc.straggler_report(times).advice
        assert advice.startswith("Find out what slowed worker 0: "), seed
        assert advice.endswith(f"worker 0, from round {first} to round {end - 1}.")


def test_two_workers_that_are_slow_for_a_while_are_both_named():
    times = trace(0)
    times[60:120, [2, 5]] *= 3
    advice = jaxwgc.straggler_report(times).advice
    assert advice.startswith("Find out what slowed workers 2, 5: ")
    first, last = (
        int(words.split()[0].strip(".")) for words in advice.split("round ")[1:]
    )
    assert 60 <= first < 66
    assert 114 < last < 120


def test_share_of_the_time_lost_is_that_of_the_column():
    times = trace(0)
    times[60:120, 0] *= 3
    report = jaxwgc.straggler_report(times)
    share = report.time_lost[0] / report.time_lost.sum()
    said = float(report.advice.split("worker 0: ")[1].split("%")[0]) / 100
    # In a few calm rounds worker 0 is last, too, and is hardly later than others.
    assert said == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("law", "num_rounds"),
    [
        ("exponential", 30),
        ("pareto", 300),
        ("normal", 30),
        ("correlated", 300),
        weekly("exponential", 300),
        weekly("pareto", 30),
        weekly("normal", 300),
        weekly("correlated", 30),
    ],
)
def test_no_equal_worker_is_named(law, num_rounds):
    """None is named for its lost time, or to be measured further."""

    def make_times(generator):
        shape = (num_rounds, 10)
        if law == "exponential":
            return generator.exponential(size=shape)
        if law == "pareto":
            return 1 + generator.pareto(1.5, shape)
        noise = generator.standard_normal(shape)
        correlation = 0.5 if law == "correlated" else 0.0
        for number in range(1, num_rounds):
            noise[number] *= np.sqrt(1 - correlation**2)
            noise[number] += correlation * noise[number - 1]
        return np.exp(0.5 * noise)

    texts = advices(make_times)
    num_named = num_with("Find out what slowed", texts) + num_with("Measure", texts)
    assert num_named <= MOST_OF_100


@pytest.mark.parametrize("num_rounds", [50, 300, weekly(2000)])
@pytest.mark.parametrize("law", ["exponential", "normal"])
def test_none_of_two_equal_workers_is_to_be_measured_further(num_rounds, law):
    """One of them is last in more than half of the rounds, nearly always."""

    def make_times(generator):
        if law == "exponential":
            return generator.exponential(size=(num_rounds, 2))
        return np.exp(0.4 * generator.standard_normal((num_rounds, 2)))

    assert num_with("Measure more rounds", advices(make_times)) <= MOST_OF_100


def test_a_worker_that_is_last_in_all_of_few_rounds_is_to_be_measured_further():
    times = trace(0, num_rounds=5)
    times[:, 3] *= 2
    advice = jaxwgc.straggler_report(times).advice
    assert advice.startswith("Measure more rounds to judge worker 3: ")


def test_rounds_of_equal_stalls_are_named_together():
    times = trace(0)
    times[[7, 90, 91], [3, 5, 1]] = 100
    advice = jaxwgc.straggler_report(times).advice
    assert advice.startswith("3 rounds take ")
    for place in (
        "worker 3 in round 7",
        "worker 5 in round 90",
        "worker 1 in round 91",
    ):
        assert place in advice
    assert "Without these rounds: Nothing to gain: " in advice


def test_workers_that_stall_together_are_named_together():
    times = trace(0)
    times[7, [3, 5]] = 100
    assert "workers 3, 5 in round 7." in jaxwgc.straggler_report(times).advice


def test_lost_time_is_per_round_of_the_whole_trace():
    times = trace(0)
    times[60:120, 0] *= 3
    ordered = np.sort(times, axis=1)
    lost = np.sum(ordered[60:120, -1] - ordered[60:120, -2]) / len(times)
    lasts = last_workers(times, np.median(times, axis=1))
    assert lasts.lost_time == pytest.approx(lost, rel=0.02)
