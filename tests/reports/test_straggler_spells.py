"""False alarms of a straggler report if equal workers have slow spells."""

import numpy as np
import pytest

import jaxwgc
from jaxwgc.reports import Kind
from tests.conftest import weekly


def two_states(generator, shape, to_slow, to_fast, noise=0.1):
    """Times of workers that switch between 1 and 5, by a Markov chain."""
    num_rounds, num_workers = shape
    is_slow = generator.random(num_workers) < to_slow / (to_slow + to_fast)
    times = np.exp(noise * generator.standard_normal(shape))
    for number in range(num_rounds):
        draws = generator.random(num_workers)
        is_slow = np.where(is_slow, draws >= to_fast, draws < to_slow)
        times[number, is_slow] *= 5
    return times


def num_alarms(traces):
    kinds = [jaxwgc.straggler_report(times).kinds for times in traces]
    return np.sum(np.any(np.array(kinds) != "steady", axis=1))


@pytest.mark.parametrize(
    ("to_slow", "to_fast", "num_workers"),
    [
        (0.01, 0.2, 8),
        (0.05, 0.2, 32),
        *(
            weekly(*case)
            for case in [
                (0.01, 0.2, 32),
                (0.02, 0.2, 8),
                (0.02, 0.2, 32),
                (0.03, 0.25, 8),
                (0.03, 0.25, 32),
                (0.05, 0.2, 8),
            ]
        ),
    ],
)
def test_false_alarms_of_slow_spells(to_slow, to_fast, num_workers):
    """5% of 100 reports may name a worker: at most 11 with a probability of 99%."""
    traces = [
        two_states(np.random.default_rng(key), (300, num_workers), to_slow, to_fast)
        for key in range(100)
    ]
    assert num_alarms(traces) <= 10


@pytest.mark.parametrize("noise", ["normal", "exponential"])
def test_false_alarms_of_many_workers_in_few_rounds(noise):
    """Tests of 32 workers in 30 rounds: small samples have wide tails."""
    traces = []
    for key in range(100):
        generator = np.random.default_rng(key)
        if noise == "normal":
            traces.append(np.exp(0.3 * generator.standard_normal((30, 32))))
        else:
            traces.append(generator.exponential(size=(30, 32)))
    assert num_alarms(traces) <= 10


@pytest.mark.parametrize(
    ("num_rounds", "num_workers", "correlation"), [(30, 32, 0.5), (300, 10, 0.8)]
)
def test_false_alarms_of_correlated_rounds(num_rounds, num_workers, correlation):
    traces = []
    for key in range(100):
        noise = np.random.default_rng(key).standard_normal((num_rounds, num_workers))
        for number in range(1, num_rounds):
            noise[number] *= np.sqrt(1 - correlation**2)
            noise[number] += correlation * noise[number - 1]
        traces.append(np.exp(0.3 * noise))
    assert num_alarms(traces) <= 10


def test_a_spell_at_the_end_is_no_change_if_others_have_such_spells():
    """It lasts 20 rounds, and others have 60 spells of 5 rounds on average."""
    num_changes = 0
    for key in range(20):
        times = two_states(np.random.default_rng(key), (300, 8), 0.03, 0.2)
        times[:280, 5] = np.where(times[:280, 5] > 3, 1, times[:280, 5])
        times[280:, 5] = np.maximum(times[280:, 5], 5)
        kinds = jaxwgc.straggler_report(times).kinds
        num_changes += kinds[5] == Kind.SINCE
    # The length of the spell has a probability of about 60 * 0.8**19 = 0.9.
    assert num_changes <= 2


def test_a_change_is_found_among_slow_spells():
    """It lasts 100 rounds: 60 * 0.8**99 = 2e-8."""
    num_changes = 0
    for key in range(20):
        times = two_states(np.random.default_rng(key), (300, 8), 0.03, 0.2)
        times[200:, 5] = np.maximum(times[200:, 5], 5)
        kinds = jaxwgc.straggler_report(times).kinds
        num_changes += kinds[5] == Kind.SINCE
    assert num_changes >= 18


def test_changes_of_several_workers_are_no_spells_of_each_other():
    """Four workers are slow in the last 30 of 250 rounds, as in `job_3`."""
    times = np.exp(0.05 * np.random.default_rng(0).standard_normal((250, 10)))
    times[220:, 6:] *= 1.2
    report = jaxwgc.straggler_report(times)
    assert set(report.kinds[6:]) == {Kind.SINCE}
    assert all(200 <= start < 250 for start in report.change_round[6:])
    assert set(report.kinds[:6]) == {Kind.STEADY}
