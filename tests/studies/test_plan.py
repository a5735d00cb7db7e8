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
from jaxwgc.studies import Candidate

KEY = jax.random.key(0)
plan = functools.partial(jaxwgc.plan, key=KEY)
EXPONENTIAL = stragglers.shifted_exponential(shift=1.0, rate=0.5)


def harmonic(number):
    return sum(1 / own for own in range(1, number + 1))


def enough(code):
    return stragglers.fastest(code.num_workers - code.num_stragglers)


def table(num_workers, seed=0):
    """Times of 30 rounds, by a trace of workers of unequal speed."""
    generator = np.random.default_rng(seed)
    speeds = generator.uniform(0.5, 1.5, num_workers)
    return (1 + generator.exponential(size=(30, num_workers))) / speeds


def test_work_by_speed_is_among_the_choices():
    """Two of four machines half as fast: 32 parts are 11, 11, 5 and 5."""
    law = stragglers.bernoulli_slowdown(0.0, 1.0)
    found = plan(stragglers.unequal_speeds(law, [1, 1, 0.5, 0.5]), 4)
    times = {own.name: own.step_time.value for own in found.choices if own.is_exact}
    assert times["uncoded by speed"] == pytest.approx(4 * 11 / 32, rel=1e-5)
    assert times["uncoded"] == pytest.approx(2)
    twice = codes.proportional_placement([1, 1, 0.5, 0.5], 32, 2).sum(1)
    expected = 4 / 32 * max(twice / [1, 1, 0.5, 0.5])
    assert times["any_placement by speed"] == pytest.approx(expected, rel=1e-5)
    assert times["any_placement by speed"] < times["fractional_repetition"]
    answer = " ".join(found.answer.split())
    assert "Its steps are 1.45 times as fast as those of equal work without" in answer
    loads = "1.4 (worker 0), 1.4 (worker 1), 0.62 (worker 2), 0.62 (worker 3)"
    assert f"Loads: {loads}." in answer
    assert found.best.name.endswith("by speed")
    endless = jaxwgc.studies.Estimate(math.inf, math.nan)
    own = [dataclasses.replace(own, step_time=endless) for own in found.choices[1:]]
    assert "nan" not in found._replace(choices=(found.best, *own)).answer
    # Machines that only seem to differ are not told apart.
    times = 1 + np.random.default_rng(2).pareto(1.5, (15, 32))
    found = plan(stragglers.empirical(times), 32, replications=[1])
    assert not any("speed" in own.name for own in found.choices)


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
    found = plan(delay, n, replications=range(1, n + 1), **options)
    # One of the exact codes with equal loads, for every number of copies.
    times = {
        own.replication: own.step_time
        for own in found.choices
        if own.name != "binary" and own.wait == enough(own.code)
    }
    expected = {d: d * mean(n, n + 1 - d) for d in range(1, n + 1)}
    assert set(times) == set(expected)
    for copies, time in times.items():
        assert time.value == pytest.approx(expected[copies], rel=1e-4)
        assert time.standard_error == 0
    assert found.best.replication == min(expected, key=expected.__getitem__)
    assert found.best.is_closed_form
    assert found.best.decoding_error.value == 0


@pytest.mark.filterwarnings("error")
def test_a_rule_that_ends_at_once():
    """Nobody answers: nothing is reached, and nothing divided by zero."""
    wait = stragglers.deadline(1e-9)
    found = plan(EXPONENTIAL, 4, waiting=[wait], replications=[2], num_rounds=40)
    times = {choice.wait: choice.time.value for choice in found.choices}
    assert math.isinf(times[wait]) and math.isfinite(found.best.time.value)


@pytest.fixture(scope="module")
def measured():
    """A plan for a trace, with codes of unequal loads and of several messages."""
    delay = stragglers.empirical(table(6), "workers")
    own = {
        "repetition": codes.fractional_repetition(6, 1),
        "binary": codes.binary(6, 3),
        "stochastic": codes.stochastic(KEY, 6, 6, 2, straggler_probability=0.2),
        "messages": codes.multi_message(codes.uncoded(6, 12)),
    }
    return delay, plan(delay, 6, codes=own, tail=0)


def test_choices_are_in_order_and_consistent(measured):
    _, found = measured
    times = [own.time.value for own in found.choices]
    assert times == sorted(times)
    for own in found.choices:
        if math.isfinite(own.num_steps):
            product = own.num_steps * own.step_time.value
            assert own.time.value == pytest.approx(product)
            behind = own.time.value - found.best.time.value
            assert own.behind.value == pytest.approx(behind, abs=1e-9)
        assert own.num_bytes == 4e6 * (6 + own.num_answers)
    assert found.best.behind == (0, 0)
    assert found.uncoded in found.choices
    assert not any(own.memory for own in found.choices)
    text = str(found)
    assert f"{found.best.num_bytes / 1e6:#.3g}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_same_rounds_for_the_same_choices(measured):
    """Judged again they have the same times; paired differences are the surer ones."""
    delay, found = measured
    chosen = [own for own in found.choices if own.name == "uncoded"][:3]
    # The same twice is no harm.
    again = plan(delay, 6, choices=[*chosen, *chosen])
    assert "takes" in str(again)
    by_wait = {own.waits_for: own for own in again.choices}
    for own in chosen:
        assert by_wait[own.waits_for].step_time == own.step_time
    unpaired = math.hypot(*(own.time.standard_error for own in chosen[:2]))
    assert by_wait[chosen[2].waits_for].behind.standard_error < 0.5 * unpaired


def test_another_goal_from_the_same_rounds(measured):
    delay, found = measured
    goal = {"target": 1e-3, "condition": 30.0, "heterogeneity": 0.5}
    other = found.replan(**goal)
    fresh = plan(delay, 6, choices=found.choices, tail=0, **goal)
    assert [own.time for own in other.choices] == [own.time for own in fresh.choices]
    assert (other.target, other.num_rounds) == (1e-3, found.num_rounds)
    assert found.replan().choices == found.choices
    with pytest.raises(ValueError, match="target must be between 0 and 1"):
        found.replan(target=2)


def test_do_not_code_where_workers_are_alike(x64):
    times = 1 + 0.05 * np.random.default_rng(0).random((40, 8))
    found = plan(stragglers.empirical(times), 8, replications=(1, 2), waiting=[enough])
    assert not found.best.is_coded
    text = str(found)
    assert text.startswith("Do not code: uncoded, waiting for")
    assert "The best code: " in text and "Next best: " not in text
    # Twice the work takes nearly twice as long.
    code = next(own for own in found.choices if own.is_coded)
    assert code.behind.value > 0.7 * found.best.time.value


def test_code_where_one_worker_is_always_slow():
    """Without it its parts are lost for good; a second copy is cheaper than to wait."""
    times = 1 + 0.05 * np.random.default_rng(0).random((40, 8))
    times[:, 3] *= 5
    repetition = {"repetition": codes.fractional_repetition(8, 1)}
    delay = stragglers.empirical(times)
    found = plan(delay, 8, codes=repetition, heterogeneity=1.0, late="cancelled")
    assert found.best.name == "repetition"
    assert found.best.decoding_error.value == 0
    text = str(found)
    assert text.startswith("Code: repetition with 2 copies")
    assert "Next best: " in text and "The best code: " not in text
    ignoring = next(
        own for own in found.choices if not own.is_coded and own.waits_for == "first 7"
    )
    assert ignoring.time.value == math.inf
    assert ignoring.lowest_loss > found.target
    # Where all parts agree, nothing is lost with it.
    agreeing = plan(delay, 8, choices=found.choices, heterogeneity=0.0)
    assert not agreeing.best.is_coded
    assert agreeing.best.waits_for != "all"


def test_target_that_no_choice_reaches():
    """A worker is dead: who waits for it never ends, who does not loses its parts."""
    times = np.ones((20, 4))
    times[:, 0] = np.inf
    delay = stragglers.empirical(times)
    options = {"target": 1e-4, "memory": True}
    waiting = [stragglers.fastest(1), stragglers.fastest(3)]
    found = plan(delay, 4, replications=[1], waiting=waiting, **options)
    assert not found.is_reached
    by_wait = {own.waits_for: own for own in found.choices}
    # Weights of 4/3 and 0, with a mean square of 1/3 around their mean.
    curvature = np.geomspace(1 / 100, 1, 8)
    floor = 0.1 * curvature.mean() / 3 * np.mean(1 / curvature) / 3
    for name in ("first 3", "first 3 + late", "first 1 + late"):
        assert by_wait[name].lowest_loss == pytest.approx(floor, rel=0.01)
    assert found.best.lowest_loss == pytest.approx(floor, rel=0.05)
    text = " ".join(found.answer.split())
    assert text.startswith(
        "Worker 0 never responds. No choice reaches a loss of 0.0001 of the start with "
        "all 4 workers. Closest comes uncoded, "
    )
    waiting = by_wait["all"]
    assert waiting.step_time.value == math.inf
    assert math.isnan(waiting.step_time.standard_error)
    coded = plan(delay, 4, replications=[2], exact=True, **options)
    assert coded.best.name == "fractional_repetition"
    # An old message is not exact.
    assert not any(own.memory for own in coded.choices)
    assert "has no finite mean time" in str(coded._replace(without=None))


def test_stalls_that_a_trace_does_not_show():
    """Eight alike workers: who waits for all is as fast, until one of them stalls."""
    times = 0.01 + 0.0005 * np.random.default_rng(0).random((40, 8))
    delay = stragglers.empirical(times)
    options = {"replications": [1], "target": 1e-3, "late": "cancelled"}
    careless = plan(delay, 8, tail=0, heterogeneity=1.0, **options)
    assert careless.best.waits_for == "all" and not careless.has_stalls
    assert careless.best.stalled_step_time == careless.best.step_time
    found = plan(delay, 8, tail=20.0, heterogeneity=1.0, **options)
    by_wait = {own.waits_for: own for own in found.choices}
    waiting = by_wait["all"]
    best = found.best
    assert isinstance(best.wait, stragglers.deadline)
    assert best.regret < 0.01
    assert waiting.regret > 0.5
    assert [own.regret for own in found.choices] == sorted(
        own.regret for own in found.choices
    )
    # By the rule of three: 3 of the 320 times would be 20 times the longest.
    probability = 3 / 320
    longest = times.max()
    assert found.stalls[1:] == (probability, pytest.approx(20 * longest), 40)
    someone = 1 - (1 - probability) ** 8
    mean = waiting.step_time.value
    expected = mean + someone * (20 * longest - mean)
    assert waiting.stalled_step_time.value == pytest.approx(
        expected, abs=4 * waiting.stalled_step_time.standard_error
    )
    assert waiting.regret == pytest.approx(
        waiting.stalled_time.value / best.stalled_time.value - 1, rel=0.05
    )
    text = " ".join(str(found).split())
    assert "longer if one time in 107 stalls" in text
    assert "This choice is the fastest with such stalls and without." in text
    assert "stalls: mean without and with stalls" in text
    assert "time regret" in text and "Sorted by regret" in text
    assert max(map(len, str(found).splitlines())) <= 80


def test_what_a_choice_is_for(measured):
    delay, found = measured
    by_wait = {own.waits_for: own for own in found.choices if own.name == "binary"}
    approximate = by_wait["error 10%"]
    exact = by_wait["decodable"]
    assert approximate.tolerance == approximate.wait.tolerance > 0.3
    counts = next(own for own in found.choices if own.waits_for == "first 5")
    remembers = dataclasses.replace(counts, memory=True)
    assert [own.tolerance for own in (exact, counts, remembers)] == [1e-3, 0.999, 1e-3]
    assert exact.model(delay) == stragglers.delayed(delay, exact.wait, exact.late)
    options = exact.cluster_options()
    assert options["decoding"].tolerance == 1e-3
    assert {*options} < {*inspect.signature(jaxwgc.distributed.RayCluster).parameters}
    with pytest.raises(TypeError, match="delay must be a DelayModel"):
        exact.model(exact.model(delay))


def test_double_precision(with_x64):
    options = {"waiting": [stragglers.until_decodable], "late": "cancelled"}
    found = plan(EXPONENTIAL, 4, replications=(2,), exact=True, **options)
    until = next(own for own in found.choices if own.name == "fractional_repetition")
    # Finished parts on request are no slower, and one sum a worker travels at most.
    assert found.best.name == "replicated" and 3.9 < found.best.num_answers <= 4
    assert found.best.decoding_error.value == 0
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
    own = {"uncoded": one_step_of_all(4)}
    found = plan(EXPONENTIAL, 4, codes=own, waiting=[everyone], num_rounds=40)
    errors = sorted(choice.decoding_error.value for choice in found.choices)
    assert errors == [0, pytest.approx(1)]
    assert [choice.is_baseline for choice in found.choices] == [True, False]
    assert len(found.by_code) == 2


def test_waiting_for_all_is_reported_under_any_name():
    chosen = [
        Candidate("mine", codes.uncoded(4), stragglers.fastest(4)),
        Candidate("mine", codes.uncoded(4), stragglers.fastest(3)),
        Candidate("mine", codes.binary(4, 1), stragglers.fastest(3)),
    ]
    found = plan(EXPONENTIAL, 4, choices=chosen, num_rounds=40)
    assert "mine, waiting for all 4 workers" in found.answer.replace("\n", " ")


def one_dead(num_rounds=60, dead=(3,), num_workers=8):
    """Times of alike workers, without a response of those in `dead`."""
    random = np.random.default_rng(0)
    times = 1 + random.exponential(0.1, (num_rounds, num_workers))
    times[:, dead] = np.nan
    return stragglers.empirical(times)


def test_a_part_that_never_arrives_is_a_bias():
    """No rule without a code reaches the target, however noisy it is."""
    found = plan(one_dead(), 8, replications=[1], tail=0)
    assert found.lost == {3: 0}
    assert not found.is_reached
    # One of eight parts is lost: with a share of 1/7 of its weight on the others, the
    # mean square of deviations is 1/7.
    curvature = np.geomspace(1 / 100, 1, 8)
    floor = 0.1 * curvature.mean() / 7 * np.mean(1 / curvature) / 7
    for choice in found.choices:
        if math.isfinite(choice.step_time.value):
            assert choice.lowest_loss > 0.95 * floor


def test_a_part_that_hardly_ever_arrives_is_a_bias():
    """Most parts are late in most rounds; one worker responded in 1 of 200 rounds."""
    times = 1 + np.random.default_rng(0).exponential(0.1, (200, 8))
    times[:-1, 3] = np.nan
    choice = Candidate("own", codes.uncoded(8), stragglers.deadline(1.02), "cancelled")
    found = plan(stragglers.empirical(times), 8, choices=[choice], tail=0, target=1e-4)
    assert found.lost == {}
    assert math.isinf(found.best.num_steps)
    assert found.best.rounds[0].weights.bias[0] == pytest.approx(1 / 7, abs=0.07)


def test_lost_workers_are_named_with_the_plan_without_them():
    """Seven workers do the work of eight."""
    found = plan(one_dead(), 8, replications=[1], exact=True, tail=0)
    without = found.without
    [waiting] = [own for own in without.choices if own.waits_for == "all"]
    alone = plan(one_dead(dead=()), 8, replications=[1], exact=True, tail=0).best
    ratio = waiting.step_time.value / alone.step_time.value
    # The first seven of eight alike workers are hardly faster than all of them.
    assert ratio == pytest.approx(8 / 7, rel=0.05)
    answer = " ".join(found.answer.split())
    assert answer.startswith(
        "Worker 3 never responds. Leave it out, so that the other 7 workers do all of "
        "the work: Do not code: uncoded, "
    )
    assert "No choice reaches a loss of 0.01 of the start with all 8 workers" in answer


def test_one_worker_of_eight_is_left():
    """Rounds of the whole cluster never end; no number in the text is infinite."""
    found = plan(one_dead(dead=(0, 1, 2, 3, 4, 5, 6)), 8, replications=[1, 4])
    assert found.without.num_workers == 1
    assert found.without.is_reached
    assert math.isnan(found.best.decoding_error.value)
    assert found.best.lowest_loss == 1
    text = " ".join(str(found).split())
    assert "Workers 0, 1, 2, 3, 4, 5, 6 never respond. Leave them out" in text
    assert "waiting for the only worker" in text
    assert "with each of them, some rounds never end" in text
    table = " ".join(str(found._replace(without=None)).split())
    assert not any(word in table for word in ("inf", "nan", "0.0%", "fastest with"))


def test_lost_workers_of_own_codes_are_named():
    """There is no plan without them, because these codes are for all workers."""
    repetition = {"repetition": codes.fractional_repetition(8, 1)}
    found = plan(one_dead(), 8, codes=repetition)
    assert found.is_reached
    assert found.without is None
    assert found.answer.startswith("Worker 3 never responds.\nCode: repetition with 2")


def test_without_is_replanned_for_another_goal():
    found = plan(one_dead(), 8, replications=[1], tail=0)
    harder = found.replan(target=1e-4)
    assert harder.without.target == 1e-4
    assert harder.without.best.num_steps > found.without.best.num_steps


@pytest.mark.parametrize("slowdown", [1.0, 1.5])
def test_work_by_speed_is_advice_only_if_it_helps(slowdown):
    """It is compared with the first choice, in few lines for many workers."""
    times = 1 + 0.3 * np.random.default_rng(0).random((15, 32))
    times[:, :2] *= slowdown
    found = plan(stragglers.empirical(times), 32, replications=[1], tail=0)
    answer = " ".join(found.answer.split())
    told = re.search(
        r"Work in proportion to speed: uncoded by speed, waiting for all 32 workers, "
        r"takes .* longer \(.*\)\. Its steps are 1\.\d+ times as fast as those of "
        r"equal work without a code\. Loads: from 0\.\d+ \(worker [01]\) to ",
        answer,
    )
    assert bool(told) == (slowdown > 1)
    assert ("in proportion to speed" in answer) == (slowdown > 1)
    assert len(found.answer.splitlines()) <= 8


def test_long_times_are_multiples():
    """71 times as long, not 7000.0% longer."""
    times = 1 + 0.1 * np.random.default_rng(0).random((60, 8))
    times[0] = 5000.0
    found = plan(stragglers.empirical(times), 8, replications=[1, 2], tail=0)
    answer = " ".join(found.answer.split())
    assert re.search(r"takes [1-9]\d* times as long \(± [\d.e+]+\)", answer)
    assert not re.search(r"\d{3}\.\d% longer", answer)


def test_a_worker_that_has_stopped_is_lost():
    """It counts as lost from its last response on, also with stored messages."""
    times = 1 + np.random.default_rng(0).exponential(0.1, (100, 4))
    times[40:, 1] = np.nan
    names = ["a", "b", "c", "d"]
    options = {"replications": [1], "tail": 0, "names": names}
    found = plan(stragglers.empirical(times), 4, memory=True, **options)
    assert found.lost == {1: 40}
    assert not found.is_reached
    always = times.copy()
    always[:, 1] = np.nan
    expected = plan(stragglers.empirical(always), 4, memory=True, **options).without
    assert found.without.best.time.value == pytest.approx(
        expected.best.time.value, rel=0.02
    )
    answer = " ".join(found.answer.split())
    assert answer.startswith("Worker b has not responded since round 40. Leave it out")


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
    found = plan(stragglers.empirical(times), 8, replications=[1], exact=True)
    assert not any(own.by_speed for own in found.choices)


def test_fewest_copies_of_equally_good_choices_come_first():
    found = plan(stragglers.empirical(np.ones((50, 4))), 4, tail=0, exact=True)
    assert not found.best.is_coded
    copies = [own.replication for own in found.choices if own.regret < 1e-4]
    assert copies == sorted(copies)


@pytest.mark.parametrize("unit", [1e-200, 1e-38, 1e38])
def test_units_in_which_float32_is_not_enough_are_rejected(unit):
    times = 1 + np.random.default_rng(0).random((20, 4))
    with pytest.raises(
        ValueError, match="longest time of delay must be between .*Choose another"
    ):
        plan(stragglers.empirical(unit * times), 4, replications=[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replications": 2}, "replications must be a list; got 2"),
        (
            {"choices": Candidate("a", codes.uncoded(4), stragglers.fastest(4))},
            "a list",
        ),
        ({"choices": [1]}, "choices must be a Candidate"),
        ({"codes": [codes.uncoded(4)]}, "codes must be a dict with names; got a list"),
        ({"codes": {}}, "codes must have at least one entry"),
        ({"codes": {"a": codes.uncoded(5)}}, "code 'a' must have num_workers = 4"),
        ({"names": ["a"]}, "names must be one for each of num_workers = 4"),
    ],
)
def test_lists_are_lists(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plan(EXPONENTIAL, 4, **options)


def test_choices_of_a_plan_for_other_workers_are_rejected():
    found = plan(EXPONENTIAL, 4, replications=[1], exact=True)
    with pytest.raises(ValueError, match="'uncoded' must have num_workers = 5; got 4"):
        plan(EXPONENTIAL, 5, choices=found.choices)


def test_the_only_worker_is_awaited():
    found = plan(EXPONENTIAL, 1)
    assert [choice.waits_for for choice in found.choices] == ["all"]
    assert found.best.step_time.value == pytest.approx(3)
    assert "waiting for the only worker" in found.answer


def test_one_measured_round_is_no_exact_knowledge():
    """Three times rule out no stalls, so that copies come first."""
    found = plan(stragglers.empirical(np.array([[1.0, 2.0, 3.0]])), 3)
    assert found.best.is_coded and found.best.is_exact
    [waiting] = [own for own in found.choices if own.is_baseline]
    assert waiting.step_time.value == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_workers_that_all_never_respond(missing):
    found = plan(stragglers.empirical(np.full((5, 3), missing)), 3, replications=[2])
    assert found.lost == {0: 0, 1: 0, 2: 0}
    assert found.without is None and not found.is_reached
    assert found.answer.startswith("Workers 0, 1, 2 never respond.")


def test_a_missing_time_in_every_round():
    """Waiting for all never ends; parts of one missing response may arrive."""
    times = 1 + np.random.default_rng(0).random((21, 3))
    times[np.arange(21), np.arange(21) % 3] = np.nan
    found = plan(stragglers.empirical(times), 3, replications=[2], tail=0)
    assert found.lost == {}
    assert math.isinf(found.baseline.step_time.value)
    assert found.is_reached


def test_names_of_standard_codes_are_only_names():
    own = {"uncoded": codes.fractional_repetition(4, 1)}
    found = plan(EXPONENTIAL, 4, codes=own, exact=True)
    copies = {choice.replication for choice in found.choices}
    assert copies == {1, 2}
    assert {choice.name for choice in found.choices} == {"uncoded"}
    assert found.baseline.replication == 1


def test_a_plan_as_a_dict_has_the_rows_of_the_table(measured):
    _, found = measured
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["advice"] == found.answer
    rows = [(row["code"], row["waits_for"]) for row in read["choices"]]
    assert rows == [(choice.name, choice.waits_for) for choice in found.shown]
    first = read["choices"][0]
    time = found.best.time
    assert first["time"] == {"value": time.value, "standard_error": time.standard_error}
    assert first["loads"] == found.best.code.loads.tolist()


def test_a_plan_as_a_dict_says_what_is_lost():
    found = plan(one_dead(), 8, replications=[1], exact=True, tail=0)
    read = found.to_dict()
    assert read["lost"] == {"3": 0}
    assert read["num_workers"] == 7
    assert read["choices"][0]["time"]["value"] == found.without.best.time.value
    assert read["choices_with_lost_workers"][0]["time"]["value"] is None


def test_a_plan_as_a_picture(measured):
    """Points at the times of the table, and of every choice with its error."""
    _, found = measured
    left, right = found.plot().axes
    rows = [choice for choice in found.shown if math.isfinite(choice.time.value)]
    [points] = left.containers
    drawn = points.lines[0].get_xdata()
    assert list(drawn) == [choice.time.value for choice in rows]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels[0].startswith(found.best.name)
    number = sum(len(line.get_xdata()) for line in right.lines)
    ended = [own for own in found.choices if math.isfinite(own.step_time.value)]
    assert number == len(ended) + 1


def test_progress_of_a_plan_is_reported():
    calls = []
    plan(
        EXPONENTIAL,
        3,
        replications=[1],
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
    with pytest.raises(ValueError, match="wait of choice 'other' must wait for"):
        plan(EXPONENTIAL, 4, choices=[chosen])


def test_a_picture_with_lost_workers_is_that_of_the_advice():
    found = plan(one_dead(), 8, replications=[1], exact=True, tail=0)
    [points] = found.plot().axes[0].containers
    assert points.lines[0].get_xdata()[0] == found.without.best.time.value


def test_the_delay_model_of_a_plan_simulates_its_choices():
    """Of the plan without a lost worker: seven workers with loads of 8/7."""
    found = plan(one_dead(), 8, replications=[1], exact=True, tail=0).without
    choice = found.best
    model = choice.model(found.delay)
    loads = np.asarray(choice.code.loads)

    def elapsed(key):
        return model.sample(key, model.init(7), loads)[0].elapsed

    times = jax.vmap(elapsed)(jax.random.split(jax.random.key(1), 400))
    assert float(times.mean()) == pytest.approx(choice.step_time.value, rel=0.02)


def test_missing_times_are_not_measured_times():
    """Half of the times are missing: stalls may be twice as frequent."""
    times = 1 + np.random.default_rng(0).random((50, 4))
    all_there = stragglers.empirical(times).stalls(10.0)
    times[:, :2] = np.nan
    half = stragglers.empirical(times).stalls(10.0)
    assert half.probability == pytest.approx(2 * all_there.probability)


def test_exact_choices_are_exact_with_stalls_too():
    times = 1 + np.random.default_rng(0).random((50, 4))
    longest = stragglers.deadline(float(times.max()))
    found = plan(
        stragglers.empirical(times), 4, waiting=[longest], exact=True, replications=[1]
    )
    assert [choice.waits_for for choice in found.choices] == ["all"]


def test_equal_regrets_are_ordered_by_the_other_case():
    """Two and three copies are equally good without stalls, three better with them."""
    times = 1 + 0.1 * np.random.default_rng(1).random((50, 4))
    lost = np.random.default_rng(0).integers(0, 4, 50)
    times[np.arange(50), lost] = np.nan
    found = plan(stragglers.empirical(times), 4, replications=[2, 3], exact=True)
    tied = [own for own in found.choices if own.regret < found.best.regret + 1e-3]
    stalled = [own.stalled_time.value for own in tied]
    assert stalled[0] == pytest.approx(min(stalled), rel=1e-2)


def test_more_copies_than_remaining_workers_become_as_many_as_these():
    found = plan(one_dead(num_workers=4), 4, replications=[4], exact=True)
    assert max(choice.replication for choice in found.without.choices) == 3


def test_work_by_speed_is_compared_once():
    law = stragglers.bernoulli_slowdown(0.0, 1.0)
    found = plan(stragglers.unequal_speeds(law, [1, 1, 0.5, 0.5]), 4)
    answer = " ".join(found.answer.split())
    assert answer.count("uncoded by speed, waiting for all 4 workers") <= 1


def test_a_rule_that_ends_before_a_round_is_rejected():
    @dataclasses.dataclass(frozen=True)
    class Early(stragglers.WaitingRule):
        def ends(self, times):
            return times.min() - 2

    with pytest.raises(ValueError, match="rules must end rounds at times of at least"):
        plan(EXPONENTIAL, 4, waiting=[Early()], replications=[1])


def test_an_endless_deadline_waits_for_all():
    found = plan(EXPONENTIAL, 4, waiting=[stragglers.deadline(math.inf)], exact=True)
    assert "waiting for all workers" in str(found)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Candidate("a", "binary", stragglers.fastest(4)), "code 'a' must be a Grad"),
        (Candidate("a", codes.uncoded(4), "all"), "wait of choice 'a' must be a Wait"),
        (
            Candidate("a", codes.uncoded(4), stragglers.fastest(9)),
            "wait of choice 'a' does not fit the code",
        ),
        (
            Candidate("a", codes.uncoded(4), stragglers.fastest(3), memory=True),
            "late of choice 'a' must be 'busy' with memory=True",
        ),
        (
            Candidate("a", codes.uncoded(4), stragglers.fastest(3), memory="yes"),
            "memory of choice 'a' must be True or False",
        ),
    ],
)
def test_wrong_candidates_are_rejected_by_name(candidate, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plan(EXPONENTIAL, 4, choices=[candidate])


def test_a_plan_is_no_list_of_choices():
    found = plan(EXPONENTIAL, 4, replications=[1], exact=True)
    with pytest.raises(TypeError, match="Pass its choices: plan.choices"):
        plan(EXPONENTIAL, 4, choices=found)


@pytest.mark.parametrize(
    "others",
    [
        {"codes": {"own": codes.uncoded(4)}},
        {"waiting": [stragglers.fastest(3)]},
    ],
)
def test_choices_exclude_codes_and_waiting_rules(others):
    candidate = Candidate("a", codes.uncoded(4), stragglers.fastest(2))
    with pytest.raises(ValueError, match="codes and waiting must be None with choices"):
        plan(EXPONENTIAL, 4, choices=[candidate], **others)


def test_exact_leaves_a_choice_or_says_so():
    candidate = Candidate("a", codes.uncoded(4), stragglers.fastest(2))
    with pytest.raises(ValueError, match="of which none is exact in every round"):
        plan(EXPONENTIAL, 4, choices=[candidate], exact=True)


def test_late_messages_are_received_too_with_memory():
    """Worker 1 takes one and a half rounds of worker 0."""
    chosen = [
        Candidate("own", codes.uncoded(2), stragglers.fastest(1), "busy", memory)
        for memory in (False, True)
    ]
    delay = stragglers.empirical(np.tile([1.0, 1.5], (40, 1)))
    found = plan(delay, 2, choices=chosen, tail=0)
    num_answers = {own.memory: own.num_answers for own in found.choices}
    assert num_answers[False] == 1
    assert num_answers[True] > 1.3
