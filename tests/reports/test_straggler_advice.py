"""Fast workers and advice of a straggler report, in traces of known speeds."""

import json

import numpy as np
import pytest

import jaxwgc
from jaxwgc.reports import Kind
from tests.conftest import weekly


def trace(seed, slowdowns, num_rounds=300, noise=0.1):
    """Log-normal times of workers with given slowdowns, (workers,)."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((num_rounds, len(slowdowns)))
    return np.asarray(slowdowns) * np.exp(noise * normal)


def slow_ones(num_workers, num_slow, factor=2.0):
    """Slowdowns of workers, the last of which are slow."""
    return np.where(np.arange(num_workers) < num_workers - num_slow, 1.0, factor)


def numbers_after(words, advice):
    """Returns the workers that an advice names after "less to" or "more to"."""
    if words not in advice:
        return set()
    names = advice.split(words)[1].split(":")[0].split(" and ")[0]
    return {int(word.strip(",")) for word in names.split()[1:]}


@pytest.mark.parametrize(
    ("num_workers", "num_slow"), [(8, 5), (3, 2), (9, 8), (32, 17), (32, 31)]
)
@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_fast_workers_are_named_if_most_workers_are_slow(num_workers, num_slow, noise):
    """At most 5% of reports name other workers: 4 of 20 by chance."""
    slowdowns = slow_ones(num_workers, num_slow)
    expected = np.where(slowdowns == 1, "fast", "steady")
    num_right = 0
    for seed in range(20):
        report = jaxwgc.straggler_report(trace(seed, slowdowns, noise=noise))
        num_right += np.array_equal(report.kinds, expected)
        assert report.advice.startswith("Give work in proportion to speed, more to")
        fast = set(range(num_workers - num_slow))
        assert numbers_after("more to", report.advice) >= fast
    assert num_right >= 16


@pytest.mark.parametrize("num_workers", [2, 4, 8, 10])
@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_slow_workers_are_named_if_half_of_the_workers_are_slow(num_workers, noise):
    """The other half is the reference, although its noise moves the median worker."""
    slowdowns = slow_ones(num_workers, num_workers // 2)
    expected = np.where(slowdowns == 1, "steady", "chronic")
    kinds = [
        jaxwgc.straggler_report(trace(seed, slowdowns, noise=noise)).kinds
        for seed in range(20)
    ]
    assert np.sum(np.all(np.array(kinds) == expected, axis=1)) >= 16


def test_one_fast_worker_gets_more_work():
    """Seven workers at speed 1 and one at 2 do 8 parts in 8 / 9 of a round."""
    slowdowns = np.ones(8)
    slowdowns[2] = 0.5
    report = jaxwgc.straggler_report(trace(0, slowdowns, noise=1e-4))
    time = report.rounds.proportional_time(keeps_work=np.zeros(8, bool))
    assert time == pytest.approx(8 / 9, rel=1e-3)
    assert report.advice == (
        "Give work in proportion to speed, more to worker 2: a round would take 0.889 "
        "instead of 1 (11% less)."
    )


def test_slow_and_fast_workers_are_both_in_the_advice():
    slowdowns = [1, 1, 1, 2, 2, 0.5, 1, 1, 1]
    report = jaxwgc.straggler_report(trace(0, slowdowns))
    assert numbers_after("less to", report.advice) == {3, 4}
    assert numbers_after("more to", report.advice) == {5}


def test_fast_workers_are_in_the_table_and_in_json():
    slowdowns = np.where(np.arange(40) == 33, 0.5, 1)
    report = jaxwgc.straggler_report(trace(0, slowdowns))
    (row,) = [line for line in str(report).splitlines() if line.startswith("33 ")]
    assert row.split()[1] == "fast"
    assert json.loads(json.dumps(report.to_dict()))["kinds"][33] == "fast"


def test_workers_that_stay_fast_while_most_become_slow():
    """Five of eight workers are slow from round 150 on."""
    num_right = 0
    for seed in range(20):
        times = trace(seed, np.ones(8))
        times[150:, 3:] *= 2
        report = jaxwgc.straggler_report(times)
        expected = [Kind.FAST_SINCE] * 3 + [Kind.STEADY] * 5
        num_right += report.kinds.tolist() == expected
        assert abs(np.median(report.change_round[:3]) - 150) <= 2
        assert not report.advice.startswith("Nothing to gain")
    assert num_right >= 16


def test_a_late_change_of_most_workers_is_in_the_advice():
    """Work in proportion to median speeds gains nothing, since these are equal."""
    times = trace(0, np.ones(8), noise=0.05)
    times[250:, 3:] *= 1.5
    report = jaxwgc.straggler_report(times)
    assert report.advice == (
        "Find out what changed near round 250: since then, the median worker takes "
        "longer than workers 0, 1, 2."
    )
    assert "fast since round 250 (0." in str(report)


def saving_of_other_rounds(times):
    """Share saved by work in proportion to speeds that other rounds show."""
    savings = []
    for measured, used in ((times[::2], times[1::2]), (times[1::2], times[::2])):
        middle = (times.shape[1] - 1) // 2
        slowdowns = np.median(measured / np.sort(measured, 1)[:, [middle]], axis=0)
        speeds = 1 / slowdowns
        time = np.mean(np.max(used * speeds / speeds.mean(), axis=1))
        savings.append(1 - time / np.mean(np.max(used, axis=1)))
    return min(savings)


def random_trace(seed):
    """Returns times, and which workers are slow."""
    generator = np.random.default_rng([seed, 5])
    num_workers = int(generator.integers(2, 33))
    shape = (int(generator.choice([40, 100, 300])), num_workers)
    normal = generator.standard_normal(shape)
    noise = {
        "normal": np.exp(0.1 * normal),
        "wide": np.exp(0.3 * normal),
        "exponential": 1 + 0.3 * generator.exponential(size=shape),
        "pareto": 1 + 0.3 * generator.pareto(2.0, shape),
    }[str(generator.choice(["normal", "wide", "exponential", "pareto"]))]
    num_slow = generator.integers(num_workers)
    is_slow = generator.permutation(num_workers) < num_slow
    return noise * np.where(is_slow, generator.uniform(1.3, 4), 1), is_slow


@pytest.mark.parametrize("num_traces", [200, weekly(1000)])
def test_advice_misses_no_saving_of_random_speeds(num_traces):
    """It names workers of the other speed only by chance."""
    num_wrong = 0
    for seed in range(num_traces):
        times, is_slow = random_trace(seed)
        advice = jaxwgc.straggler_report(times).advice
        if saving_of_other_rounds(times) > 0.1:
            assert "Give work in" in advice or "Check or replace" in advice, seed
        num_wrong += not numbers_after("less to", advice) <= {*np.flatnonzero(is_slow)}
        num_wrong += not numbers_after("more to", advice) <= {*np.flatnonzero(~is_slow)}
    assert num_wrong <= 0.075 * num_traces


def test_noise_is_no_advice():
    """Equal workers: at most 5% of reports act on a worker, 10 of 100 by chance."""
    times = [
        np.random.default_rng(seed).exponential(size=(40, 10)) for seed in range(100)
    ]
    advices = [jaxwgc.straggler_report(table).advice for table in times]
    is_action = [advice.startswith(("Give", "Check")) for advice in advices]
    assert np.sum(is_action) <= 10


def test_work_of_a_worker_that_never_responds_is_not_moved():
    """Rounds are over without its work, as they are now."""
    times = trace(0, [1, 1, 2, 1], noise=1e-4)
    times[:, 3] = np.nan
    report = jaxwgc.straggler_report(times)
    time = report.rounds.proportional_time(keeps_work=np.arange(4) == 3)
    assert time == pytest.approx(3 / 2.5, rel=1e-3)


def test_a_stall_in_one_round_is_no_advice_to_wait_for_fewer():
    times = trace(0, np.ones(8))
    calm = jaxwgc.straggler_report(times)
    times[17, 3] = 1e6
    report = jaxwgc.straggler_report(times)
    share = 1e6 / times.max(axis=1).sum()
    others = np.delete(times, 17, axis=0)
    ratio = others.max(axis=1).mean() / np.sort(others, axis=1)[:, 3].mean()
    assert report.advice == (
        f"One round takes {share:.0%} of the total time: worker 3 in round 17. Without "
        f"this round: Nothing to gain: a round takes {ratio:.2f} times as long as its "
        "median worker."
    )
    assert calm.advice.startswith("Nothing to gain")


def test_rounds_without_responses_are_counted_in_the_number_of_a_round():
    times = trace(0, np.ones(8))
    times[:10] = np.nan
    times[17, 3] = 1e6
    advice = jaxwgc.straggler_report(times).advice
    assert "worker 3 in round 17." in advice


def test_stalls_of_very_different_lengths_are_all_left_out():
    times = trace(0, np.ones(8), num_rounds=500)
    places = np.array([400, 17, 60, 90, 200])
    times[places, 3] = [1e12, 1e9, 1e6, 1e4, 1e4]
    advice = jaxwgc.straggler_report(times).advice
    assert advice.startswith(
        "5 rounds take 100% of the total time: worker 3 in round 400, worker 3 in "
        "round 17, worker 3 in round 60, 2 more. Without these rounds: "
    )
    assert "Nothing to gain" in advice


def test_a_stall_does_not_hide_a_slow_worker():
    slowdowns = slow_ones(8, 1, factor=1.5)
    times = trace(0, slowdowns, noise=0.05)
    expected = jaxwgc.straggler_report(np.delete(times, 17, axis=0)).advice
    times[17, 3] = 1e6
    advice = jaxwgc.straggler_report(times).advice
    assert expected.startswith("Check or replace worker 7")
    assert advice.endswith(f"Without this round: {expected}")


def test_a_stall_is_named_beside_a_barrier():
    times = trace(0, np.ones(8), noise=0.001)
    times[17, 3] = 1e6
    report = jaxwgc.straggler_report(times)
    assert report.advice.startswith("One round takes 100% of the total time: worker 3")
    assert "These times seem to include the wait" in report.advice


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_calm_rounds_are_not_named(noise):
    for seed in range(50):
        advice = jaxwgc.straggler_report(trace(seed, np.ones(8), noise=noise)).advice
        assert "of the total time" not in advice


def test_text_names_no_unit():
    """Times may be in any unit."""
    reports = [
        jaxwgc.straggler_report(trace(0, np.ones(8), noise=noise))
        for noise in (1e-4, 0.1, 1.0)
    ]
    waits = np.random.default_rng(0).random((100, 4))
    reports.append(jaxwgc.straggler_report(waits=waits))
    for report in reports:
        assert "second" not in str(report)


def test_a_worker_that_is_always_last_in_few_rounds_is_to_be_judged():
    """Its slowdown is not significant, but no other worker is ever last."""
    times = 1 + 0.1 * np.random.default_rng(0).random((12, 2))
    times[:, 1] *= 1.9
    report = jaxwgc.straggler_report(times)
    assert report.kinds[1] == "steady"
    assert report.advice.startswith("Measure more rounds to judge worker 1")
