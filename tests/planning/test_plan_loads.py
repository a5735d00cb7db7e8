"""Plans of times that were measured at one load, or at several."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers
from jaxwgc.planning import Candidates, Goal

TIMES = 1 + np.random.default_rng(0).random((30, 4))


def step_times(choices):
    """Times of a step by code and waiting rule."""
    times = {}
    for choice in choices:
        place = choice.name, choice.copies, choice.waits_for
        times[place] = choice.step_time.value
    return times


@pytest.fixture(scope="module")
def at_one_load():
    delay = stragglers.empirical(TIMES)
    return jaxwgc.plan(
        delay,
        4,
        jax.random.key(0),
        candidates=Candidates(
            copies=[1, 2],
            waiting=[stragglers.until_decodable],
            late="cancelled",
        ),
        num_rounds=1000,
    )


def words(text):
    return " ".join(text.split())


def test_times_are_ranked_again_with_an_overhead(at_one_load):
    """Load 1 takes as long; load 2 takes 1.5 times, or as long, in place of twice."""
    times = step_times(at_one_load.choices)
    assert list(at_one_load.overheads) == [0.5, 1.0]
    num_compared = 0
    for share, choices in at_one_load.overheads.items():
        for choice in choices:
            if choice.sends_several_messages or choice.by_speed:
                continue
            load = choice.copies
            ratio = (share + (1 - share) * load) / load
            place = choice.name, choice.copies, choice.waits_for
            np.testing.assert_allclose(
                choice.step_time.value, ratio * times[place], rtol=1e-3
            )
            num_compared += 1
    assert num_compared >= 4


def test_a_plan_says_that_times_are_taken_to_be_proportional(at_one_load):
    text = words(at_one_load.advice)
    assert "measured at one load, and are taken to be proportional to it." in text
    assert "If 50% of each time did not depend on the load, " in text
    assert "If all of each time did not depend on the load, " in text
    # A law is what it is.
    law = stragglers.shifted_exponential(1.0, 1.0)
    few = Candidates(copies=[1, 2])
    plan = jaxwgc.plan(law, 4, jax.random.key(0), candidates=few, num_rounds=1000)
    assert not plan.overheads
    assert "one load" not in plan.advice


def test_overheads_are_ranked_for_other_goals(at_one_load):
    plan = at_one_load.replan(Goal(target=1e-4))
    for share, choices in plan.overheads.items():
        assert {id(choice.code) for choice in choices} == {
            id(choice.code) for choice in at_one_load.overheads[share]
        }
        assert min(choice.num_steps for choice in choices) > 100


def test_a_plan_names_choices_beyond_the_measured_loads():
    """A load of 2 is measured, one of 3 is not."""
    table = np.stack([TIMES, 1.5 * TIMES])
    delay = stragglers.empirical(table, measured_at=[1.0, 2.0])
    few = Candidates(copies=[1, 2, 3])
    plan = jaxwgc.plan(delay, 4, jax.random.key(0), candidates=few, num_rounds=1000)
    text = words(plan.advice)
    assert "Extrapolated beyond the largest measured load, 2, " in text
    sentence = text.split("Extrapolated", 1)[1].split(".")[0]
    assert "with 3 copies" in sentence
    assert "with 2 copies" not in sentence.replace("by speed with 2 copies", "")
    assert "one load" not in text
