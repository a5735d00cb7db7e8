"""Plans against closed forms, and what is plainly best."""

import dataclasses
import functools
import inspect
import json
import math
import re

import jax
import numpy as np
import pytest
from scipy import special

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.planning import Candidate, Candidates, Goal
from jaxwgc.planning._choice import Estimate

KEY = jax.random.key(0)
GOALS = {field.name for field in dataclasses.fields(Goal)}
CANDIDATES = {field.name for field in dataclasses.fields(Candidates)}


def plan(delay, num_workers, **options):
    """Plans with numbers of the goal and options of the candidates among others."""
    goal = {name: options.pop(name) for name in GOALS & options.keys()}
    candidates = {name: options.pop(name) for name in CANDIDATES & options.keys()}
    if candidates:
        options["candidates"] = Candidates(**candidates)
    return jaxwgc.plan(delay, num_workers, KEY, goal=Goal(**goal), **options)


EXPONENTIAL = stragglers.shifted_exponential(shift=1.0, rate=0.5)


def harmonic(number):
    return sum(1 / term for term in range(1, number + 1))


def enough(code):
    return stragglers.fastest(code.num_workers - code.num_stragglers)


def table(num_workers, seed=0):
    """Times of 30 rounds, by a trace of workers of unequal speed."""
    generator = np.random.default_rng(seed)
    speeds = generator.uniform(0.5, 1.5, num_workers)
    return (1 + generator.exponential(size=(30, num_workers))) / speeds


TWO_SLOW_WORKERS = stragglers.unequal_speeds(
    stragglers.bernoulli_slowdown(0.0, 1.0), [1, 1, 0.5, 0.5]
)


@functools.cache
def plan_for_two_slow_workers():
    """Returns a plan for four workers, two of which are half as fast."""
    return plan(TWO_SLOW_WORKERS, 4, copies=[2], late="cancelled")


def test_work_by_speed_is_among_the_choices():
    """Two of four machines half as fast: 32 parts are 11, 11, 5 and 5."""
    result = plan_for_two_slow_workers()
    times = {
        choice.name: choice.step_time.value
        for choice in result.choices
        if choice.is_exact
    }
    assert times["uncoded by speed"] == pytest.approx(4 * 11 / 32, rel=1e-5)
    assert times["uncoded"] == pytest.approx(2)
    twice = codes.proportional_placement([1, 1, 0.5, 0.5], 32, 2).sum(1)
    expected = 4 / 32 * max(twice / [1, 1, 0.5, 0.5])
    assert times["any_placement by speed"] == pytest.approx(expected, rel=1e-5)
    assert times["any_placement by speed"] < times["fractional_repetition"]
    advice = " ".join(result.advice.split())
    assert "Its steps are 1.45 times as fast as those of equal work without" in advice
    loads = "1.4 (worker 0), 1.4 (worker 1), 0.62 (worker 2), 0.62 (worker 3)"
    assert f"Loads: {loads}." in advice
    assert result.best.name.endswith("by speed")
    endless = Estimate(math.inf, math.nan)
    endless_choices = [
        dataclasses.replace(choice, step_time=endless) for choice in result.choices[1:]
    ]
    changed = dataclasses.replace(result, choices=(result.best, *endless_choices))
    assert "nan" not in changed.advice
    # Machines that only seem to differ are not told apart.
    times = 1 + np.random.default_rng(2).pareto(1.5, (15, 32))
    options = {"copies": [1], "exact": True, "tail": 0}
    result = plan(stragglers.empirical(times), 32, **options)
    assert not any("speed" in choice.name for choice in result.choices)


@pytest.mark.parametrize(
    ("delay", "mean"),
    [
        (EXPONENTIAL, lambda n, f: 1 + 2 * (harmonic(n) - harmonic(n - f))),
        (
            stragglers.pareto(scale=1.0, shape=1.7),
            lambda n, f: math.exp(
                special.gammaln(n + 1)
                - special.gammaln(n - f + 1)
                + special.gammaln(n - f + 1 - 1 / 1.7)
                - special.gammaln(n + 1 - 1 / 1.7)
            ),
        ),
    ],
    ids=["shifted exponential", "Pareto"],
)
def test_rule_of_halbawi_et_al(delay, mean):
    """The number of stragglers with the least expected time, at load s + 1."""
    n = 12
    options = {"waiting": [enough], "exact": True, "late": "cancelled"}
    result = plan(delay, n, copies=range(1, n + 1), **options)
    # One of the exact codes with equal loads, for every number of copies.
    times = {
        choice.copies: choice.step_time
        for choice in result.choices
        if choice.name != "binary" and choice.wait == enough(choice.code)
    }
    expected = {d: d * mean(n, n + 1 - d) for d in range(1, n + 1)}
    assert set(times) == set(expected)
    for copies, time in times.items():
        assert time.value == pytest.approx(expected[copies], rel=1e-4)
        assert time.standard_error == 0
    assert result.best.copies == min(expected, key=expected.__getitem__)
    assert result.best.is_closed_form
    assert result.best.decoding_error.value == 0


@pytest.mark.filterwarnings("error")
def test_a_rule_that_ends_before_any_response_never_reaches_the_goal():
    """No worker responds: no target is reached, and no division is by zero."""
    wait = stragglers.deadline(1e-9)
    result = plan(EXPONENTIAL, 4, waiting=[wait], copies=[2], num_rounds=40)
    times = {choice.wait: choice.time.value for choice in result.choices}
    assert math.isinf(times[wait]) and math.isfinite(result.best.time.value)


@pytest.fixture(scope="module")
def measured():
    """A plan for a trace, with codes of unequal loads and of several messages."""
    delay = stragglers.empirical(table(6), "workers")
    own_codes = {
        "repetition": codes.fractional_repetition(6, 1),
        "binary": codes.binary(6, 3),
        "stochastic": codes.stochastic(KEY, 6, 6, 2, straggler_probability=0.2),
        "messages": codes.multi_message(codes.uncoded(6, 12)),
    }
    return delay, plan(delay, 6, codes=own_codes, tail=0)


def test_choices_are_in_order_and_consistent(measured):
    _, result = measured
    times = [candidate.time.value for candidate in result.choices]
    assert times == sorted(times)
    for choice in result.choices:
        if math.isfinite(choice.num_steps):
            product = choice.num_steps * choice.step_time.value
            assert choice.time.value == pytest.approx(product)
            behind = choice.time.value - result.best.time.value
            assert choice.behind.value == pytest.approx(behind, abs=1e-9)
        assert choice.num_bytes == 4e6 * (6 + choice.num_messages)
    assert result.best.behind == (0, 0)
    assert result.uncoded in result.choices
    assert not any(candidate.memory for candidate in result.choices)
    text = str(result)
    assert f"{result.best.num_bytes / 1e6:#.3g}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_same_rounds_for_the_same_choices(measured):
    """Judged again they have the same times; paired differences are the surer ones."""
    delay, result = measured
    chosen = [other for other in result.choices if other.name == "uncoded"][:3]
    # The same twice is no harm.
    again = plan(delay, 6, candidates=[*chosen, *chosen])
    assert "takes" in str(again)
    by_wait = {other.waits_for: other for other in again.choices}
    for choice in chosen:
        assert by_wait[choice.waits_for].step_time == choice.step_time
    unpaired = math.hypot(*(other.time.standard_error for other in chosen[:2]))
    assert by_wait[chosen[2].waits_for].behind.standard_error < 0.5 * unpaired


def test_another_goal_from_the_same_rounds(measured):
    delay, result = measured
    goal = {"target": 1e-3, "condition": 30.0, "heterogeneity": 0.5}
    other = result.replan(Goal(**goal))
    fresh = plan(delay, 6, candidates=result.choices, tail=0, **goal)
    assert [choice.time for choice in other.choices] == [
        choice.time for choice in fresh.choices
    ]
    assert (other.goal.target, other.num_rounds) == (1e-3, result.num_rounds)
    assert result.replan(result.goal).choices == result.choices
    with pytest.raises(TypeError, match="goal must be a Goal"):
        result.replan(1e-3)


def test_equal_workers_are_not_coded(with_x64):
    times = 1 + 0.05 * np.random.default_rng(0).random((60, 8))
    own_codes = {"repetition": codes.fractional_repetition(8, 1)}
    result = plan(stragglers.empirical(times), 8, codes=own_codes, waiting=[enough])
    assert not result.best.is_coded
    text = str(result)
    assert text.startswith("Do not code: uncoded, waiting for")
    assert "The best code: " in text and "Next best: " not in text
    # Twice the work takes nearly twice as long.
    code = next(choice for choice in result.choices if choice.is_coded)
    assert code.behind.value > 0.7 * result.best.time.value


def test_one_slow_worker_is_coded_for():
    """Its parts would be lost, and a second copy costs less than waiting."""
    times = 1 + 0.05 * np.random.default_rng(0).random((60, 8))
    times[:, 3] *= 5
    repetition = {"repetition": codes.fractional_repetition(8, 1)}
    delay = stragglers.empirical(times)
    result = plan(delay, 8, codes=repetition, heterogeneity=1.0, late="cancelled")
    assert result.best.name == "repetition"
    assert result.best.decoding_error.value == 0
    text = str(result)
    assert text.startswith("Code: repetition with 2 copies")
    assert "Next best: " in text and "The best code: " not in text
    ignoring = next(
        choice
        for choice in result.choices
        if not choice.is_coded and choice.waits_for == "first 7"
    )
    assert ignoring.time.value == math.inf
    assert ignoring.lowest_loss > result.goal.target
    # Where all parts agree, nothing is lost with it.
    agreeing = plan(delay, 8, candidates=result.choices, heterogeneity=0.0)
    assert not agreeing.best.is_coded
    assert agreeing.best.waits_for != "all"


def test_target_that_no_choice_reaches():
    """A worker is dead: who waits for it never ends, who does not loses its parts."""
    times = np.ones((60, 4))
    times[:, 1] = np.inf
    delay = stragglers.empirical(times)
    options = {"target": 1e-4, "memory": True}
    waiting = [stragglers.fastest(1), stragglers.fastest(3)]
    result = plan(delay, 4, copies=[1], waiting=waiting, tail=0, **options)
    assert not result.is_reached
    by_wait = {choice.waits_for: choice for choice in result.choices}
    # Weights of 4/3 and 0, with a mean square of 1/3 around their mean.
    curvature = np.geomspace(1 / 100, 1, 8)
    floor = 0.1 * curvature.mean() / 3 * np.mean(1 / curvature) / 3
    for name in ("first 3", "first 3 + memory", "first 1 + memory"):
        assert by_wait[name].lowest_loss == pytest.approx(floor, rel=0.01)
    assert result.best.lowest_loss == pytest.approx(floor, rel=0.05)
    text = " ".join(result.advice.split())
    assert text.startswith(
        "Worker 1 never responds. No choice reaches a loss of 0.0001 of the start with "
        "all 4 workers. Closest comes uncoded, "
    )
    waiting = by_wait["all"]
    assert waiting.step_time.value == math.inf
    assert math.isnan(waiting.step_time.standard_error)
    coded = plan(delay, 4, copies=[2], exact=True, **options)
    assert coded.best.name == "fractional_repetition"
    # An old message is not exact.
    assert not any(choice.memory for choice in coded.choices)
    assert "has no finite mean time" in str(dataclasses.replace(coded, without=None))


def test_stalls_that_a_trace_does_not_show():
    """Eight alike workers: who waits for all is as fast, until one of them stalls."""
    times = 0.01 + 0.0005 * np.random.default_rng(0).random((40, 8))
    delay = stragglers.empirical(times)
    options = {"copies": [1], "target": 1e-3, "late": "cancelled"}
    careless = plan(delay, 8, tail=0, heterogeneity=1.0, **options)
    assert careless.best.waits_for == "all" and careless.stalls is None
    assert careless.best.stalled_step_time == careless.best.step_time
    result = plan(delay, 8, tail=20.0, heterogeneity=1.0, **options)
    by_wait = {choice.waits_for: choice for choice in result.choices}
    waiting = by_wait["all"]
    best = result.best
    assert isinstance(best.wait, stragglers.deadline)
    assert best.regret < 0.01
    assert waiting.regret > 0.5
    assert [choice.regret for choice in result.choices] == sorted(
        choice.regret for choice in result.choices
    )
    # By the rule of three: 3 of the 320 times would be 20 times the longest.
    probability = 3 / 320
    longest = times.max()
    assert result.stalls[1:] == (probability, pytest.approx(20 * longest), 40)
    someone = 1 - (1 - probability) ** 8
    mean = waiting.step_time.value
    expected = mean + someone * (20 * longest - mean)
    assert waiting.stalled_step_time.value == pytest.approx(
        expected, abs=4 * waiting.stalled_step_time.standard_error
    )
    assert waiting.regret == pytest.approx(
        waiting.stalled_time.value / best.stalled_time.value - 1, rel=0.05
    )
    text = " ".join(str(result).split())
    assert "longer if one time in 107 stalls" in text
    assert "This choice is the fastest with such stalls and without." in text
    assert "step, stalls: mean time of a step without and with stalls" in text
    assert "time regret" in text and "Sorted by regret" in text
    assert max(map(len, str(result).splitlines())) <= 80


def test_a_choice_has_the_options_of_its_simulation_and_cluster(measured):
    delay, result = measured
    by_wait = {
        choice.waits_for: choice for choice in result.choices if choice.name == "binary"
    }
    approximate = by_wait["tolerance 0.316"]
    exact = by_wait["decodable"]
    assert approximate.tolerance == approximate.wait.tolerance > 0.3
    counts = next(choice for choice in result.choices if choice.waits_for == "first 5")
    assert [choice.tolerance for choice in (exact, counts)] == [1e-3, 0.999]
    # Stored messages complete each round that is not exact.
    for choice in (counts, approximate):
        assert dataclasses.replace(choice, memory=True).tolerance == 1e-3
    assert exact.model(delay) == stragglers.delayed(delay, exact.wait, exact.late)
    options = exact.cluster_options()
    assert options["decoding"].tolerance == 1e-3
    assert {*options} < {*inspect.signature(jaxwgc.distributed.RayCluster).parameters}
    with pytest.raises(TypeError, match="delay must be a DelayModel"):
        exact.model(exact.model(delay))


def test_plans_run_in_double_precision(with_x64):
    options = {"waiting": [stragglers.until_decodable], "late": "cancelled"}
    result = plan(EXPONENTIAL, 4, copies=(2,), exact=True, **options)
    until = next(
        choice for choice in result.choices if choice.name == "fractional_repetition"
    )
    # Finished parts on request are no slower, and one sum a worker travels at most.
    assert result.best.name == "replicated" and 3.9 < result.best.num_messages <= 4
    assert result.best.decoding_error.value == 0
    # The later of two blocks, each the earlier of two workers.
    expected = 2 * (1 + 1 * harmonic(2))
    assert until.step_time.value == pytest.approx(
        expected, abs=4 * until.step_time.standard_error
    )


def one_step_of_all(num_workers):
    """A code that is not exact: its decoder doubles the gradient of all workers."""
    code = codes.uncoded(num_workers)
    return dataclasses.replace(code, decoders=(decoders.OneStep(2.0 * num_workers),))


def test_an_inexact_code_is_not_exact_under_any_name():
    code = one_step_of_all(4)
    assert not Candidate("uncoded", code, stragglers.fastest(4)).is_exact
    assert not Candidate("uncoded by speed", code, stragglers.fastest(4)).is_exact


def test_an_exact_code_is_exact_under_any_name():
    assert Candidate("mine", codes.uncoded(4), stragglers.fastest(4)).is_exact
    assert not Candidate("mine", codes.uncoded(4), stragglers.fastest(3)).is_exact
    assert Candidate("mine", codes.binary(4, 1), stragglers.fastest(3)).is_exact
    assert not Candidate("mine", codes.binary(4, 1), stragglers.fastest(2)).is_exact


def test_the_error_of_a_code_named_uncoded_is_simulated():
    everyone = stragglers.fastest(4)
    own_codes = {"uncoded": one_step_of_all(4)}
    result = plan(EXPONENTIAL, 4, codes=own_codes, waiting=[everyone], num_rounds=40)
    errors = sorted(choice.decoding_error.value for choice in result.choices)
    assert errors == [0, pytest.approx(1)]
    assert [choice.is_baseline for choice in result.choices] == [True, False]
    assert len(result.by_code) == 2


def test_waiting_for_all_is_reported_under_any_name():
    chosen = [
        Candidate("mine", codes.uncoded(4), stragglers.fastest(4)),
        Candidate("mine", codes.uncoded(4), stragglers.fastest(3)),
        Candidate("mine", codes.binary(4, 1), stragglers.fastest(3)),
    ]
    result = plan(EXPONENTIAL, 4, candidates=chosen, num_rounds=40)
    assert "mine, waiting for all 4 workers" in result.advice.replace("\n", " ")


def times_of_alike_workers(num_rounds=60, num_workers=8):
    random = np.random.default_rng(0)
    return 1 + random.exponential(0.1, (num_rounds, num_workers))


def one_dead(num_rounds=60, dead=(3,), num_workers=8):
    """Times of alike workers, without a response of those in `dead`."""
    times = times_of_alike_workers(num_rounds, num_workers)
    times[:, dead] = np.nan
    return stragglers.empirical(times)


@functools.cache
def plan_with_a_dead_worker(exact):
    """Returns a plan for eight workers, one of which never responds."""
    return plan(one_dead(), 8, copies=[1], exact=exact, tail=0)


def test_a_part_that_never_arrives_is_a_bias():
    """No rule without a code reaches the target, however noisy it is."""
    result = plan_with_a_dead_worker(exact=False)
    assert result.lost == {3: 0}
    assert not result.is_reached
    # One of eight parts is lost: with a share of 1/7 of its weight on the others, the
    # mean square of deviations is 1/7.
    curvature = np.geomspace(1 / 100, 1, 8)
    floor = 0.1 * curvature.mean() / 7 * np.mean(1 / curvature) / 7
    for choice in result.choices:
        if math.isfinite(choice.step_time.value):
            assert choice.lowest_loss > 0.95 * floor


def test_a_part_that_hardly_ever_arrives_is_a_bias():
    """Most parts are late in most rounds; one worker responded in 1 of 200 rounds."""
    times = 1 + np.random.default_rng(0).exponential(0.1, (200, 8))
    times[:-1, 3] = np.nan
    choice = Candidate("own", codes.uncoded(8), stragglers.deadline(1.02), "cancelled")
    result = plan(
        stragglers.empirical(times), 8, candidates=[choice], tail=0, target=1e-4
    )
    assert result.lost == {}
    assert math.isinf(result.best.num_steps)
    assert result.best.rounds[0].weights.bias[0] == pytest.approx(1 / 7, abs=0.07)


def test_lost_workers_are_named_with_the_plan_without_them():
    """Seven workers do the work of eight."""
    result = plan_with_a_dead_worker(exact=True)
    without = result.without
    [waiting] = [choice for choice in without.choices if choice.waits_for == "all"]
    alone = plan(one_dead(dead=()), 8, copies=[1], exact=True, tail=0).best
    ratio = waiting.step_time.value / alone.step_time.value
    # The first seven of eight alike workers are hardly faster than all of them.
    assert ratio == pytest.approx(8 / 7, rel=0.05)
    advice = " ".join(result.advice.split())
    assert advice.startswith(
        "Worker 3 never responds. Leave it out, so that the other 7 workers do all of "
        "the work: Do not code: uncoded, "
    )
    assert "No choice reaches a loss of 0.01 of the start with all 8 workers" in advice


def test_one_worker_of_four_is_left():
    """Rounds of the whole cluster never end; no number in the text is infinite."""
    delay = one_dead(dead=(0, 1, 2), num_workers=4)
    result = plan(delay, 4, copies=[1, 2])
    assert result.without.num_workers == 1
    assert result.without.is_reached
    assert math.isnan(result.best.decoding_error.value)
    assert result.best.lowest_loss == 1
    text = " ".join(str(result).split())
    assert "Workers 0, 1, 2 never respond. Leave them out" in text
    assert "waiting for the only worker" in text
    assert "with each of them, some rounds never end" in text
    table = " ".join(str(dataclasses.replace(result, without=None)).split())
    assert not any(word in table for word in ("inf", "nan", "0.0%", "fastest with"))


def test_lost_workers_of_own_codes_are_named():
    """There is no plan without them, because these codes are for all workers."""
    repetition = {"repetition": codes.fractional_repetition(8, 1)}
    result = plan(one_dead(), 8, codes=repetition)
    assert result.is_reached
    assert result.without is None
    assert result.advice.startswith("Worker 3 never responds.\nCode: repetition with 2")


def test_without_is_replanned_for_another_goal():
    result = plan_with_a_dead_worker(exact=False)
    harder = result.replan(Goal(target=1e-4))
    assert harder.without.goal.target == 1e-4
    assert harder.without.best.num_steps > result.without.best.num_steps


@pytest.mark.parametrize("slowdown", [1.0, 1.5])
def test_work_by_speed_is_advice_only_if_it_helps(slowdown):
    """It is compared with the first choice, in few lines for many workers.

    It helps without stalls. With them, its steps are longer than those of equal work.
    """
    times = 1 + 0.3 * np.random.default_rng(0).random((15, 32))
    times[:, :2] *= slowdown
    result = plan(stragglers.empirical(times), 32, copies=[1])
    advice = " ".join(result.advice.split())
    told = re.search(
        r"Work in proportion to speed: uncoded by speed, waiting for all 32 workers, "
        r"takes .* longer \(.*\) without stalls, .* stalls\. Its steps are 1\.\d+ "
        r"times as fast as those of equal work without a code\. Loads: from 0\.\d+ "
        r"\(worker [01]\) to ",
        advice,
    )
    assert bool(told) == (slowdown > 1)
    assert ("in proportion to speed" in advice) == (slowdown > 1)
    about_choices, _ = result.advice.split("The trace does not rule out")
    assert len(about_choices.splitlines()) <= 8


def test_gradients_of_workers_that_never_wait():
    """A gradient takes times of 1, 1, 2 and 2, and a step of all workers takes 2.

    Their rate is 3, so 6 gradients arrive in the time of a step, which uses 4. It is
    the same if no candidate has loads of 1.
    """
    waiting = Candidate("own", codes.uncoded(4), stragglers.fastest(4))
    result = plan(TWO_SLOW_WORKERS, 4, candidates=[waiting])
    expected = 6 * result.best.num_steps
    assert result.gradients_without_waiting == pytest.approx(expected, rel=1e-5)
    advice = " ".join(result.advice.split())
    assert (
        f"workers that never wait would deliver {expected:.0f} gradients of 1/4 of the "
        "data, 1.5 times as many as its 67 steps use at most." in advice
    )
    coded = Candidate("own", codes.fractional_repetition(4, 1), stragglers.fastest(3))
    result = plan(TWO_SLOW_WORKERS, 4, candidates=[coded])
    assert result.rate_without_waiting == pytest.approx(3, rel=1e-5)


def test_workers_of_one_law_that_never_wait():
    """Times have a mean of 1 + 1 / 0.5."""
    result = plan(EXPONENTIAL, 3, copies=[1], exact=True)
    assert result.rate_without_waiting == pytest.approx(3 / 3, rel=1e-6)


def test_a_worker_that_never_responds_delivers_no_gradients():
    """Without it, the other seven workers have 8/7 of the load."""
    times = np.delete(times_of_alike_workers(), 3, axis=1)
    expected = np.sum(1 / times.mean(axis=0))
    result = plan_with_a_dead_worker(exact=True)
    assert result.rate_without_waiting == pytest.approx(expected, rel=0.01)
    assert math.isinf(result.gradients_without_waiting)
    rate = result.without.rate_without_waiting
    assert rate == pytest.approx(7 / 8 * expected, rel=0.01)
    advice = " ".join(result.advice.split())
    number = rate * result.without.best.time.value
    assert f"would deliver {number:.0f} gradients of 1/7 of the data" in advice


def test_a_response_that_never_comes_takes_a_mean_time():
    """Each worker misses a quarter of its responses."""
    times = 1 + np.random.default_rng(0).random((60, 4))
    times[range(60), np.arange(60) % 4] = np.nan
    choice = Candidate("own", codes.uncoded(4), stragglers.fastest(3))
    result = plan(stragglers.empirical(times), 4, candidates=[choice], tail=0)
    expected = np.sum(0.75 / np.nanmean(times, axis=0))
    assert result.rate_without_waiting == pytest.approx(expected, rel=0.02)


def test_long_times_are_multiples():
    """71 times as long, not 7000.0% longer."""
    times = 1 + 0.1 * np.random.default_rng(0).random((60, 8))
    times[0] = 5000.0
    result = plan(stragglers.empirical(times), 8, copies=[1, 2], tail=0)
    advice = " ".join(result.advice.split())
    assert re.search(r"takes [1-9]\d* times as long \(± [\d.e+]+\)", advice)
    assert not re.search(r"\d{3}\.\d% longer", advice)


def test_a_worker_that_has_stopped_is_lost():
    """It counts as lost from its last response on, also with stored messages.

    Times are those of a part per worker: a plan ranks no overheads, which takes long.
    """
    times = 1 + np.random.default_rng(0).exponential(0.1, (60, 4, 1))
    times[40:, 1] = np.nan
    names = ["a", "b", "c", "d"]
    options = {"copies": [1], "tail": 0, "names": names}
    result = plan(stragglers.empirical(times), 4, memory=True, **options)
    assert result.lost == {1: 40}
    assert not result.is_reached
    always = times.copy()
    always[:, 1] = np.nan
    expected = plan(stragglers.empirical(always), 4, memory=True, **options).without
    assert result.without.best.time.value == pytest.approx(
        expected.best.time.value, rel=0.02
    )
    advice = " ".join(result.advice.split())
    assert advice.startswith("Worker b has not responded since round 40. Leave it out")


@pytest.mark.parametrize(
    ("responds", "since"),
    [
        ([1] * 40, None),
        ([1] * 39 + [0], None),
        ([1] * 38 + [0] * 2, None),
        ([1] * 30 + [0] * 10, 30),
        ([1, 0] * 20, None),
        ([1, 0, 0, 0] * 9 + [1, 0, 0, 0], None),
        ([1, 0] * 10 + [0] * 20, 19),
        ([0] * 40, 0),
    ],
)
def test_rounds_since_a_worker_has_stopped(responds, since):
    """Chance explains short runs at the end, and those of workers that often miss."""
    times = np.ones((40, 8))
    times[:, 3] = np.where(responds, 1.0, np.inf)
    expected = {} if since is None else {3: since}
    assert stragglers.empirical(times).stopped(8) == expected


def test_random_losses_stop_no_worker():
    """500 traces of 8 workers that all lose a tenth of their responses."""
    random = np.random.default_rng(0)
    num_stopped = sum(
        bool(stragglers.empirical(np.where(lost, np.inf, 1.0)).stopped(8))
        for lost in random.random((500, 60, 8)) < 0.1
    )
    assert num_stopped <= 5


@pytest.mark.parametrize(("resample", "num_workers"), [("cells", 4), ("rounds", 3)])
def test_simulated_workers_that_are_drawn_do_not_stop(resample, num_workers):
    """They stand for no worker of the trace in particular."""
    times = np.ones((40, 4))
    times[20:, 3] = np.inf
    delay = stragglers.empirical(times, resample)
    assert stragglers.empirical(times).stopped(4) == {3: 20}
    assert delay.stopped(num_workers) == {}


def test_speeds_of_few_rounds_are_no_advice():
    """One round of equal workers has speeds, but says nothing about the next."""
    times = np.random.default_rng(0).exponential(size=(1, 8))
    result = plan(stragglers.empirical(times), 8, copies=[1], exact=True)
    assert not any(choice.by_speed for choice in result.choices)


def test_fewest_copies_of_equally_good_choices_come_first():
    result = plan(stragglers.empirical(np.ones((60, 4))), 4, tail=0, exact=True)
    assert not result.best.is_coded
    copies = [choice.copies for choice in result.choices if choice.regret < 1e-4]
    assert copies == sorted(copies)


@pytest.mark.parametrize("unit", [1e-200, 1e-38, 1e38])
def test_units_in_which_float32_is_not_enough_are_rejected(unit):
    times = 1 + np.random.default_rng(0).random((60, 4))
    with pytest.raises(
        ValueError, match="longest time of delay must be between .*Choose another"
    ):
        plan(stragglers.empirical(unit * times), 4, copies=[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": 2}, "copies must be a list; got 2"),
        (
            {"candidates": Candidate("a", codes.uncoded(4), stragglers.fastest(4))},
            "a list",
        ),
        ({"candidates": [1]}, "candidates must be a Candidate"),
        ({"codes": [codes.uncoded(4)]}, "codes must be a dict from names to codes"),
        ({"codes": {}}, "codes must have at least one entry"),
        ({"codes": {"a": codes.uncoded(5)}}, "code 'a' must have num_workers = 4"),
        ({"names": ["a"]}, "names must have num_workers = 4 entries"),
    ],
)
def test_wrong_lists_are_rejected(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plan(EXPONENTIAL, 4, **options)


def test_choices_of_a_plan_for_other_workers_are_rejected():
    result = plan(EXPONENTIAL, 4, copies=[1], exact=True)
    with pytest.raises(ValueError, match="'uncoded' must have num_workers = 5; got 4"):
        plan(EXPONENTIAL, 5, candidates=result.choices)


def test_the_only_worker_is_awaited():
    result = plan(EXPONENTIAL, 1)
    assert [choice.waits_for for choice in result.choices] == ["all"]
    assert result.best.step_time.value == pytest.approx(3)
    assert "waiting for the only worker" in result.advice
    assert "never wait" not in result.advice


def test_one_measured_round_does_not_make_a_plan_certain():
    """Three times rule out no stalls, so that copies come first."""
    result = plan(stragglers.empirical(np.array([[1.0, 2.0, 3.0]])), 3)
    assert result.best.is_coded and result.best.is_exact
    [waiting] = [choice for choice in result.choices if choice.is_baseline]
    assert waiting.step_time.value == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_workers_that_all_never_respond(missing):
    delay = stragglers.empirical(np.full((60, 4), missing))
    result = plan(delay, 4, copies=[2])
    assert result.lost == {0: 0, 1: 0, 2: 0, 3: 0}
    assert result.without is None and not result.is_reached
    assert result.advice.startswith("Workers 0, 1, 2, 3 never respond.")


def test_waiting_for_all_never_ends_if_every_round_misses_a_time():
    """Waiting for all never ends; parts of one missing response may arrive."""
    times = 1 + np.random.default_rng(0).random((60, 4))
    times[np.arange(60), np.arange(60) % 4] = np.nan
    result = plan(stragglers.empirical(times), 4, copies=[2], tail=0)
    assert result.lost == {}
    assert math.isinf(result.baseline.step_time.value)
    assert result.is_reached


def test_names_of_standard_codes_are_only_names():
    own_codes = {"uncoded": codes.fractional_repetition(4, 1)}
    result = plan(EXPONENTIAL, 4, codes=own_codes, exact=True)
    copies = {choice.copies for choice in result.choices}
    assert copies == {1, 2}
    assert {choice.name for choice in result.choices} == {"uncoded"}
    assert result.baseline.copies == 1


def test_a_plan_as_a_dict_has_the_rows_of_the_table(measured):
    _, result = measured
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["advice"] == result.advice
    rows = [(row["code"], row["waits_for"]) for row in read["choices"]]
    assert rows == [(choice.name, choice.waits_for) for choice in result.shown]
    first = read["choices"][0]
    time = result.best.time
    assert first["time"] == {"value": time.value, "standard_error": time.standard_error}
    assert first["loads"] == result.best.code.loads.tolist()


def test_a_plan_as_a_dict_says_what_is_lost():
    result = plan_with_a_dead_worker(exact=True)
    read = result.to_dict()
    assert read["lost"] == {"3": 0}
    assert read["num_workers"] == 7
    assert read["choices"][0]["time"]["value"] == result.without.best.time.value
    assert read["choices_with_lost_workers"][0]["time"]["value"] is None


def test_a_plan_as_a_picture(measured):
    """Points at the times of the table, and of every choice with its error."""
    _, result = measured
    left, right = result.plot().axes
    rows = [choice for choice in result.shown if math.isfinite(choice.time.value)]
    [points] = left.containers
    drawn = points.lines[0].get_xdata()
    assert list(drawn) == [choice.time.value for choice in rows]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels[0].startswith(result.best.name)
    number = sum(len(line.get_xdata()) for line in right.lines)
    ended = [
        choice for choice in result.choices if math.isfinite(choice.step_time.value)
    ]
    assert number == len(ended) + 1


def test_progress_of_a_plan_is_reported():
    calls = []
    plan(
        EXPONENTIAL,
        3,
        copies=[1],
        progress=lambda done, total: calls.append((done, total)),
    )
    total = calls[0][1]
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_rules_of_other_codes_are_rejected():
    """A rule waits for the messages of one code."""
    mine = codes.fractional_repetition(4, 1)
    rule = stragglers.until_decodable(mine)
    with pytest.raises(ValueError, match="waiting for code 'uncoded' must wait for"):
        plan(EXPONENTIAL, 4, codes={"mine": mine}, waiting=[rule])
    chosen = Candidate("other", codes.binary(4, 1), rule)
    with pytest.raises(ValueError, match="wait of candidate 'other' must wait for"):
        plan(EXPONENTIAL, 4, candidates=[chosen])


def test_a_picture_with_lost_workers_is_that_of_the_advice():
    result = plan_with_a_dead_worker(exact=True)
    [points] = result.plot().axes[0].containers
    assert points.lines[0].get_xdata()[0] == result.without.best.time.value


def test_the_delay_model_of_a_plan_simulates_its_choices():
    """The plan without a lost worker has seven workers with loads of 8/7."""
    result = plan_with_a_dead_worker(exact=True).without
    choice = result.best
    model = choice.model(result.delay)
    loads = np.asarray(choice.code.loads)

    def elapsed(key):
        return model.sample(key, model.init(7), loads)[0].elapsed

    times = jax.jit(jax.vmap(elapsed))(jax.random.split(jax.random.key(1), 400))
    assert float(times.mean()) == pytest.approx(choice.step_time.value, rel=0.02)


def test_missing_times_are_not_measured_times():
    """Half of the times are missing: stalls may be twice as frequent."""
    times = 1 + np.random.default_rng(0).random((50, 4))
    all_there = stragglers.empirical(times).stalls(10.0)
    times[:, :2] = np.nan
    half = stragglers.empirical(times).stalls(10.0)
    assert half.probability == pytest.approx(2 * all_there.probability)


def test_exact_choices_are_exact_with_stalls_too():
    times = 1 + np.random.default_rng(0).random((60, 4))
    longest = stragglers.deadline(float(times.max()))
    result = plan(
        stragglers.empirical(times), 4, waiting=[longest], exact=True, copies=[1]
    )
    assert [choice.waits_for for choice in result.choices] == ["all"]


def test_equal_regrets_are_ordered_by_the_other_case():
    """Two and three copies are equally good without stalls, three better with them."""
    times = 1 + 0.1 * np.random.default_rng(1).random((60, 4))
    lost = np.random.default_rng(0).integers(0, 4, 60)
    times[np.arange(60), lost] = np.nan
    result = plan(stragglers.empirical(times), 4, copies=[2, 3], exact=True)
    tied = [
        choice for choice in result.choices if choice.regret < result.best.regret + 1e-3
    ]
    stalled = [choice.stalled_time.value for choice in tied]
    assert stalled[0] == pytest.approx(min(stalled), rel=1e-2)


def test_more_copies_than_remaining_workers_become_as_many_as_these():
    options = {"copies": [4], "exact": True, "tail": 0}
    result = plan(one_dead(dead=(1,), num_workers=4), 4, **options)
    assert max(choice.copies for choice in result.without.choices) == 3


def test_work_by_speed_is_compared_once():
    advice = " ".join(plan_for_two_slow_workers().advice.split())
    assert advice.count("uncoded by speed, waiting for all 4 workers") <= 1


def test_a_rule_that_ends_before_a_round_is_rejected():
    @dataclasses.dataclass(frozen=True)
    class Early(stragglers.WaitingRule):
        def ends(self, times):
            return times.min() - 2

    with pytest.raises(ValueError, match="rules must end rounds at times of at least"):
        plan(EXPONENTIAL, 4, waiting=[Early()], copies=[1])


def test_an_endless_deadline_waits_for_all():
    endless = stragglers.deadline(math.inf)
    options = {"waiting": [endless], "exact": True, "copies": [1]}
    result = plan(EXPONENTIAL, 4, **options)
    assert "waiting for all workers" in str(result)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Candidate("a", "binary", stragglers.fastest(4)), "code 'a' must be a Grad"),
        (
            Candidate("a", codes.uncoded(4), "all"),
            "wait of candidate 'a' must be a Wait",
        ),
        (
            Candidate("a", codes.uncoded(4), stragglers.fastest(9)),
            "wait of candidate 'a' does not fit the code",
        ),
        (
            Candidate("a", codes.uncoded(4), stragglers.fastest(3), memory=True),
            "candidate 'a' with memory=True needs late='busy'",
        ),
        (
            Candidate("a", codes.uncoded(4), stragglers.fastest(3), memory="yes"),
            "memory of candidate 'a' must be True or False",
        ),
    ],
)
def test_wrong_candidates_are_rejected_by_name(candidate, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plan(EXPONENTIAL, 4, candidates=[candidate])


def test_a_plan_is_no_list_of_choices():
    result = plan(EXPONENTIAL, 4, copies=[1], exact=True)
    with pytest.raises(TypeError, match="Pass plan.choices"):
        plan(EXPONENTIAL, 4, candidates=result)


class Negative(stragglers.DelayModel):
    """Times below zero."""

    def sample(self, key, state, loads):
        return -loads, state


class NoArrivals(stragglers.WaitingRule):
    """Returns times instead of `Arrivals`."""

    def arrivals(self, key, times):
        return times


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, "target must be between"),
        ({"condition": 0.5}, "condition must be at least 1"),
        ({"heterogeneity": math.inf}, "heterogeneity must be finite"),
        ({"tail": math.inf}, "tail must be finite"),
        ({"copies": [5]}, "copies must be at most num_workers"),
        ({"codes": {"own": codes.uncoded(6)}}, "code 'own'.*= 4; got 6"),
        ({"codes": {}, "copies": [1]}, "codes= and copies= cannot both"),
        ({"candidates": []}, "candidates must have at least one entry"),
        ({"waiting": []}, "waiting must have at least one entry"),
        ({"waiting": [stragglers.fastest(5)]}, "num_required must be at most"),
        ({"memory": True, "late": "cancelled"}, "memory=True needs late='busy'"),
    ],
)
def test_options_out_of_range_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        plan(EXPONENTIAL, 4, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": {"own": "mds"}}, "code 'own' must be a GradientCode"),
        ({"candidates": ["all"]}, "candidates must be a Candidate"),
        ({"waiting": ["patience"]}, "entry of waiting must be a WaitingRule, or a"),
        ({"waiting": [repr]}, "waiting for code 'uncoded' must be a waiting rule"),
        ({"waiting": [NoArrivals()]}, r"NoArrivals.arrivals must return \(arr"),
    ],
)
def test_options_of_another_type_are_rejected(options, message):
    with pytest.raises(TypeError, match=message):
        plan(EXPONENTIAL, 4, **options)


def test_traced_keys_are_rejected():
    with pytest.raises(TypeError, match="key must be concrete"):
        jax.eval_shape(lambda key: jaxwgc.plan(EXPONENTIAL, 4, key), KEY)


@pytest.mark.parametrize(
    ("delay", "message"),
    [
        (stragglers.empirical(np.ones((2, 3))), "the trace must have at least 4"),
        (Negative(), "delay must return times of at"),
    ],
)
def test_delays_that_do_not_fit_the_workers_are_rejected(delay, message):
    with pytest.raises(ValueError, match=message):
        plan(delay, 4, copies=[1])


def test_busy_workers_cannot_have_several_messages():
    waiting = [stragglers.fastest(4)]
    result = plan(EXPONENTIAL, 4, copies=[1], waiting=waiting, num_rounds=40)
    several_messages = codes.replicated(4, 8, 2)
    choice = dataclasses.replace(result.best, code=several_messages, late="busy")
    with pytest.raises(ValueError, match="late of .* must be one of 'cancelled'"):
        plan(EXPONENTIAL, 4, candidates=[choice])


def test_late_messages_are_received_too_with_memory():
    """Worker 1 takes one and a half rounds of worker 0."""
    chosen = [
        Candidate("own", codes.uncoded(2), stragglers.fastest(1), "busy", memory)
        for memory in (False, True)
    ]
    delay = stragglers.empirical(np.tile([1.0, 1.5], (40, 1)))
    found = plan(delay, 2, candidates=chosen, tail=0)
    num_messages = {own.memory: own.num_messages for own in found.choices}
    assert num_messages[False] == 1
    assert num_messages[True] > 1.3
