"""Missing responses in a straggler report."""

import warnings

import numpy as np
import pytest

import jaxwgc


def trace(seed, num_rounds=200, num_workers=8, noise=0.05):
    generator = np.random.default_rng(seed)
    return np.exp(noise * generator.standard_normal((num_rounds, num_workers)))


def with_losses(seed, num_rounds, share):
    times = trace(seed, num_rounds)
    is_lost = np.random.default_rng([seed, 1]).random(times.shape) < share
    return np.where(is_lost, np.nan, times)


@pytest.mark.parametrize(
    ("num_rounds", "share"), [(10, 0.01), (30, 0.02), (30, 0.1), (200, 0.05)]
)
def test_no_worker_is_named_if_responses_are_lost_by_chance(num_rounds, share):
    """5% of 100 reports may name a worker: at most 11 with a probability of 99%."""
    reports = [
        jaxwgc.straggler_report(with_losses(seed, num_rounds, share))
        for seed in range(100)
    ]
    assert sum("Check worker" in report.advice for report in reports) <= 10


def test_one_lost_response_names_no_worker():
    times = trace(0, num_rounds=12)
    times[4, 3] = np.nan
    assert jaxwgc.straggler_report(times).advice.startswith("Nothing to gain")


def test_the_last_round_may_not_be_over():
    times = trace(0)
    times[-1, 2] = np.nan
    report = jaxwgc.straggler_report(times)
    assert report.kinds[2] == "steady"
    assert report.missing[2] == 1


def test_a_worker_that_stopped_responding_is_named_with_the_first_round():
    times = trace(0, num_rounds=1000)
    times[952:, 2] = np.nan
    report = jaxwgc.straggler_report(times)
    assert report.kind_texts[2] == "missing since round 952"
    assert report.advice == "Check worker 2: no response since round 952."
    assert "missing since round 952  " in str(report)


@pytest.mark.parametrize(
    ("start", "kind", "sentence"),
    [
        (150, "missing since round 150", "no response since round 150."),
        (0, "missing", "no response in 200 of 200 rounds."),
    ],
)
def test_a_dead_worker_is_named_if_the_others_are_equally_fast(start, kind, sentence):
    """Equal times look as if workers had waited, which says nothing of the dead one."""
    times = 1 + 0.05 * np.random.default_rng(0).random((200, 8))
    times[start:, 5] = np.nan
    report = jaxwgc.straggler_report(times)
    assert report.after_barrier
    expected = ["unknown"] * 8
    expected[5] = kind
    assert report.kind_texts == expected
    assert report.advice.startswith(f"Check worker 5: {sentence}")
    assert "the workers that responded are equally fast" in report.advice
    assert f"\n5       {kind}  {200 - start}" in str(report)


def test_rounds_of_several_dead_workers_are_said_to_count_from_0():
    times = 1 + 0.05 * np.random.default_rng(0).random((200, 8))
    times[150:, 5] = np.nan
    times[170:, 2] = np.nan
    report = jaxwgc.straggler_report(times)
    assert report.after_barrier
    assert report.advice.startswith("Check workers 2, 5: no response since rounds 170,")
    assert "Rounds count from 0." in " ".join(str(report).split())


def test_a_worker_that_takes_part_in_no_more_waits_is_named():
    waits = np.random.default_rng(0).random((200, 8))
    waits[150:, 5] = np.nan
    waits[170] = np.nan
    report = jaxwgc.straggler_report(waits=waits)
    expected = ["steady"] * 8
    expected[5] = "missing since round 150"
    assert report.kind_texts == expected
    assert report.advice.startswith("Check worker 5: no response since round 150. ")
    assert report.missing_p_value[5] < 1e-6
    assert "\n5       missing since round 150  " in str(report)


def test_a_worker_that_stopped_is_named_if_all_lose_responses():
    """Before its end, it loses as many responses as others."""
    times = with_losses(0, 300, share=0.1)
    times[280:, 2] = np.nan
    report = jaxwgc.straggler_report(times)
    first = np.flatnonzero(~np.isnan(times[:, 2]))[-1] + 1
    assert report.kind_texts[2] == f"missing since round {first}"
    assert report.advice.count("Check") == 1


def test_a_worker_that_misses_more_rounds_than_others_is_named():
    times = with_losses(0, 200, share=0.05)
    times[np.random.default_rng(5).random(200) < 0.3, 4] = np.nan
    num_missing = np.isnan(times[:, 4]).sum()
    advice = jaxwgc.straggler_report(times).advice
    assert advice.startswith(
        f"Check worker 4: no response in {num_missing} of 200 rounds."
    )


def test_a_worker_that_never_responds_hides_no_other():
    times = trace(0)
    times[:, 1] = np.nan
    times[::8, 6] = np.nan
    advice = jaxwgc.straggler_report(times).advice
    assert advice.startswith("Check workers 1, 6: no response in up to 200 of 200 ")


def test_many_losses_of_all_workers_are_in_the_advice():
    advice = jaxwgc.straggler_report(with_losses(0, 200, share=0.3)).advice
    assert "Check" not in advice
    assert advice.split("% of the responses of all workers are missing")[0] in "293031"


def test_rounds_without_any_response_are_in_the_advice():
    times = trace(0)
    times[120:] = np.nan
    report = jaxwgc.straggler_report(times)
    assert report.advice == "No worker responded in 80 of 200 rounds."
    assert set(report.kinds) == {"steady"}


def test_a_worker_that_often_misses_gets_no_more_work():
    """It is four times as fast if it responds, which is in a tenth of the rounds."""
    times = trace(0)
    times[:, 0] /= 4
    times[np.random.default_rng(1).random(200) < 0.9, 0] = np.nan
    times[:, 5:] *= 2
    report = jaxwgc.straggler_report(times)
    assert report.kinds[0] == "fast"
    assert report.advice.startswith("Check worker 0: no response in ")
    assert "less to workers 5, 6, 7" in report.advice
    assert "more to" not in report.advice
    # The others share their work in proportion to their speeds.
    speeds = 1 / report.slowdown[1:]
    factors = speeds / speeds.mean()
    expected = np.nanmax(times * np.append(1, factors), axis=1).mean()
    assert report.rounds.proportional_time(np.arange(8) == 0) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_slow_workers_are_found_if_many_responses_are_missing(share):
    """Half of the workers are slow, so that the median response is of any of them."""
    num_right = 0
    for seed in range(20):
        times = with_losses(seed, 200, share)
        times[:, :4] *= 2
        report = jaxwgc.straggler_report(times)
        num_right += report.kinds.tolist() == ["chronic"] * 4 + ["steady"] * 4
        # Standard errors are up to 0.05 / 60**0.5 = 0.6%.
        np.testing.assert_allclose(report.slowdown[:4], 2, rtol=0.06)
    # At most 5% of reports name other workers: 4 of 20 by chance.
    assert num_right >= 16


def test_one_round_with_responses_names_no_worker():
    times = np.full((20, 3), np.nan)
    times[3] = 1, 2, 9
    report = jaxwgc.straggler_report(times)
    assert set(report.kinds) == {"steady"}
    assert report.advice.startswith("No worker responded in 19 of 20 rounds.")


def test_reports_of_short_traces_with_many_missing_responses():
    """All of them have an advice, without warnings."""
    for seed in range(200):
        generator = np.random.default_rng(seed)
        num_rounds, num_workers = generator.integers([2, 2], [30, 6])
        times = trace(seed, num_rounds, num_workers, noise=0.5)
        times[generator.integers(num_rounds) :, 0] *= 100
        times[generator.random(times.shape) < 0.5] = np.nan
        times[generator.integers(num_rounds) :, 1] = np.nan
        if np.isfinite(times).any():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert jaxwgc.straggler_report(times).advice


def in_own_rows(times):
    """Each worker counts its own steps, as runs of a logger may: one time per row."""
    num_rounds, num_workers = times.shape
    own = np.full((num_rounds, num_workers, num_workers), np.nan)
    own[:, range(num_workers), range(num_workers)] = times
    return own.reshape(-1, num_workers)


def test_workers_that_share_no_rounds_are_rejected():
    times = trace(0, num_rounds=30)
    times[:, 3] *= 1.6
    for arguments in (
        {"times": in_own_rows(times)},
        {"waits": in_own_rows(times)},
        {"times": in_own_rows(times), "before_collective": True},
        # Workers 0 and 1 share rounds, and 2 to 7 do.
        {"times": np.where(in_groups(range(60)), times.repeat(2, axis=0), np.nan)},
    ):
        with pytest.raises(
            ValueError, match=r"must have several workers in each round"
        ):
            jaxwgc.straggler_report(**arguments)


def in_groups(rounds):
    """Returns responses: workers 0 and 1 in even rounds, 2 to 7 in odd ones."""
    is_even = np.array(rounds)[:, None] % 2 == 0
    return is_even == (np.arange(8) < 2)


def test_workers_that_replace_all_others_share_no_rounds():
    times = trace(0)
    times[100:, :4] = np.nan
    times[:100, 4:] = np.nan
    report = jaxwgc.straggler_report(times)
    assert report.kind_texts == ["missing since round 100"] * 4 + ["steady"] * 4


def test_a_worker_is_compared_in_rounds_with_others_only():
    """It counts other steps, and shares a quarter of its rounds with the others."""
    times = trace(0, num_rounds=100)
    rounds = np.full((400, 8), np.nan)
    rounds[0:300:3, 0] = 1.6 * times[:, 0]
    rounds[0:400:4, 1:] = times[:, 1:]
    report = jaxwgc.straggler_report(rounds)
    assert report.slowdown[0] == pytest.approx(1.6, rel=0.06)
    assert "One worker responded alone in 75 of 400 rounds" in report.advice


def test_few_rounds_with_one_response_are_not_named():
    times = trace(0, num_rounds=100)
    times[::50, 1:] = np.nan
    assert "alone" not in jaxwgc.straggler_report(times).advice


def test_stalls_are_counted_per_response():
    """A worker that responds rarely stalls no more often in all, but per response."""
    generator = np.random.default_rng(0)
    times = np.exp(0.05 * generator.standard_normal((4000, 8)))
    times[generator.random((4000, 8)) < 0.0025] *= 20
    responds = np.arange(4000) % 10 == 0
    times[~responds, 0] = np.nan
    times[::250, 0] = 20.0
    report = jaxwgc.straggler_report(times)
    assert report.kinds.tolist() == ["intermittent"] + ["steady"] * 7
