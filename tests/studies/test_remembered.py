"""Plans with remembered late answers, against descent that remembers them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.studies._planning._choice import Choice
from jaxwgc.studies._planning._judgement import judge
from jaxwgc.studies._planning._remembered import RememberedDescent
from jaxwgc.studies._planning._simulated_rounds import Drawn
from jaxwgc.studies._planning._steps_to_target import Goal, quadratic

KEY = jax.random.key(0)
NUM_WORKERS, NUM_RUNS, NUM_DIMENSIONS = 6, 300, 24
GOAL = {"target": 0.02, "condition": 20.0, "heterogeneity": 1.0}

# Decoded without interpolation, which compiles faster.
COMPLEX = dataclasses.replace(
    codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, 2),
    decoders=(decoders.LeastSquares(num_missing=1),),
)


def slow_one(num_workers=NUM_WORKERS):
    """Times of 40 rounds in which the last worker takes 3.4 times as long."""
    times = 1 + 0.3 * np.random.default_rng(0).random((40, num_workers))
    times[:, -1] *= 3.4
    return stragglers.empirical(times)


@functools.partial(jax.jit, static_argnames=("model", "num_steps", "size"))
def descend(code, model, step_size, num_steps, curvature, size):
    """Loss over that of the start, and time, after each step: (runs, steps)."""

    def run(key):
        own_key, key = jax.random.split(key)
        parts = jax.random.normal(
            own_key, (code.num_parts, NUM_DIMENSIONS, len(curvature))
        )
        parts -= parts.mean(0)
        parts *= math.sqrt(size * code.num_parts / (code.num_parts - 1))
        aggregate = jaxwgc.coded_aggregate(code, model, key, memory=True)
        start = jnp.ones(parts.shape[1:]) / jnp.sqrt(curvature)

        def step(carry, _):
            params, state = carry
            gradients = (curvature * params + parts) / code.num_parts
            gradient, state = aggregate.update(gradients, state, params)
            params = params - step_size * gradient
            return (params, state), (jnp.mean(curvature * params**2), state.elapsed)

        carry = start, aggregate.init(start)
        return jax.lax.scan(step, carry, length=num_steps)[1]

    return jax.vmap(run)(jax.random.split(KEY, NUM_RUNS))


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (codes.uncoded(NUM_WORKERS), 5),
        (codes.uncoded(NUM_WORKERS), 3),
        (codes.fractional_repetition(NUM_WORKERS, 1), 3),
        (COMPLEX, 3),
    ],
    ids=["one is late", "half are late", "repetition", "complex"],
)
def test_loss_of_descent(code, number):
    """Of every step, with rounds that are drawn anew."""
    delay, wait = slow_one(), stragglers.fastest(number)
    drawn = Drawn.of(delay, [code], KEY, (40, 100), math.inf, has_stalls=False)
    [judged] = judge([Choice("own", code, wait, "busy", memory=True)], drawn)
    found = RememberedDescent(*(own.mean(0) for own in judged.remembered))
    goal = Goal(**GOAL, num_workers=NUM_WORKERS)
    curvature, parts = quadratic(goal)
    model = stragglers.delayed(delay, wait, late="busy")
    for step in (0.5, 1.5):
        # Parts are that many times as large as their mean.
        size = float(parts) * (NUM_WORKERS - 1)
        losses, clock = descend(code, model, step, 15, jnp.asarray(curvature), size)
        expected = found.loss(step, goal, np.arange(1, 16))
        np.testing.assert_allclose(
            np.mean(losses, 0), expected, rtol=0.1 if code.is_complex else 0.06
        )
    seconds = np.asarray(clock)[:, -1].mean()
    assert seconds == pytest.approx(15 * judged.seconds.mean(), rel=0.02)


def test_steps_of_a_choice():
    """With the best step of all the target is reached when the plan says so."""
    wait = stragglers.fastest(5)
    found = jaxwgc.plan(
        slow_one(), NUM_WORKERS, KEY, waiting=[wait], tail=0, memory=True, **GOAL
    )
    choice = found.best
    assert choice.memory and choice.wait == wait
    curvature, parts = quadratic(Goal(**GOAL, num_workers=NUM_WORKERS))
    model = stragglers.delayed(slow_one(), wait, late=choice.late)
    number, size = math.ceil(choice.num_steps), float(parts) * (NUM_WORKERS - 1)
    losses, _ = descend(
        choice.code, model, choice.step_size, number, jnp.asarray(curvature), size
    )
    before, after = np.mean(losses, 0)[-2:]
    assert 0.95 * after < GOAL["target"] < 1.05 * before


def test_who_is_slow_is_remembered():
    """In little more time than the first take, and without a code the whole target."""
    found = jaxwgc.plan(
        slow_one(), NUM_WORKERS, KEY, replications=[1], memory=True, **GOAL
    )
    by_kind = {(own.waits_for, own.memory): own for own in found.choices}
    remembering, waiting = by_kind["first 5 + late", True], by_kind["all", False]
    assert found.best.memory and found.best.late == "busy"
    assert math.isinf(by_kind["first 5", False].time.value)
    assert remembering.time.value < 0.5 * waiting.time.value
    answer = " ".join(found.answer.split())
    assert "late messages stored" in answer and "+ late" in str(found)
    # Late answers are sent, too: one in three rounds or so.
    assert 5.2 < remembering.num_answers < 5.5
    # Again by the same rounds, and for another goal.
    again = jaxwgc.plan(slow_one(), NUM_WORKERS, KEY, choices=found.choices, **GOAL)
    assert [own.time for own in again.choices] == [own.time for own in found.choices]
    harder = found.replan(target=1e-4)
    assert harder.best.memory and harder.best.num_steps > found.best.num_steps
    # An old answer is not exact.
    for options in ({"memory": False}, {"memory": True, "exact": True}):
        stopped = jaxwgc.plan(
            slow_one(), NUM_WORKERS, KEY, replications=[1], **options, **GOAL
        )
        assert not any(own.memory for own in stopped.choices)


def test_the_dead_are_not_remembered():
    """Their parts are lost as if they were ignored."""
    times = np.ones((40, 4))
    times[:, 0] = np.inf
    found = jaxwgc.plan(
        stragglers.empirical(times), 4, KEY, replications=[1], target=1e-4, memory=True
    )
    floors = {
        own.memory: own.lowest_loss
        for own in found.choices
        if own.wait == stragglers.fastest(3)
    }
    assert floors[True] == pytest.approx(floors[False], rel=1e-3)
    assert 1e-4 < floors[True] < 1


def test_what_long_stalls_hide_is_lost_until_they_end():
    """One of four workers answers every 60 rounds: more steps, but an end."""
    times, wait = np.ones((40, 4)), stragglers.fastest(3)
    times[:, 0] = 60.0
    delay, goal = stragglers.empirical(times), {**GOAL, "heterogeneity": 0.1}
    choice = Choice("uncoded", codes.uncoded(4), wait, "busy", memory=True)
    [found] = jaxwgc.plan(delay, 4, KEY, choices=[choice], tail=0, **goal).choices
    assert 60 < found.num_steps < 600
    curvature, parts = quadratic(Goal(**goal, num_workers=4))
    size, number = 3 * float(parts), math.ceil(found.num_steps)
    model = found.model(delay)
    losses, _ = descend(
        found.code, model, found.step_size, number, jnp.asarray(curvature), size
    )
    before, after = np.mean(losses, 0)[-2:]
    assert 0.9 * after < GOAL["target"] < 1.1 * before
