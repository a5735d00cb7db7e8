"""Plans with remembered late answers, against descent that remembers them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.studies._planning._steps_to_target import Goal, quadratic

KEY = jax.random.key(0)
NUM_WORKERS, NUM_RUNS, NUM_DIMENSIONS = 6, 300, 24
GOAL = {"target": 0.02, "condition": 20.0, "heterogeneity": 1.0}


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
        (codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, 2), 3),
    ],
    ids=["one is late", "half are late", "repetition", "complex"],
)
def test_descent_takes_as_long(code, number):
    delay, wait = slow_one(), stragglers.fastest(number)
    plan = functools.partial(jaxwgc.plan, delay, NUM_WORKERS, KEY, tail=0, **GOAL)
    found = plan(codes={"own": code}, waiting=[wait])
    ignoring = next(
        own for own in found.choices if (own.name, own.wait) == ("own", wait)
    )
    choice = plan(choices=[ignoring._replace(memory=True)]).best
    assert ignoring.time.value > 1.05 * choice.time.value
    number = choice.num_steps
    curvature, parts = quadratic(Goal(**GOAL, num_workers=NUM_WORKERS))
    loss, clock = descend(
        code,
        stragglers.delayed(delay, choice.wait, late=choice.late),
        choice.step_size,
        math.ceil(number),
        jnp.asarray(curvature),
        # Of a mean of parts; that of one is as many times as large.
        parts * (NUM_WORKERS - 1),
    )
    loss, clock = np.asarray(loss), np.asarray(clock)
    reached, seconds = (
        np.interp(number, range(1, 1 + own.shape[1]), own.mean(0))
        for own in (np.log(loss.mean(0))[None], clock)
    )
    error = loss[:, -1].std() / loss[:, -1].mean() / math.sqrt(NUM_RUNS)
    assert math.exp(reached) == pytest.approx(GOAL["target"], rel=0.03 + 3 * error)
    assert seconds == pytest.approx(choice.time.value, rel=0.03)


def test_who_is_slow_is_remembered():
    """In little more time than the first take, and without a code the whole target."""
    found = jaxwgc.plan(slow_one(), NUM_WORKERS, KEY, replications=[1], **GOAL)
    by_kind = {(own.waits_for, own.memory): own for own in found.choices}
    remembering, waiting = by_kind["first 5 + late", True], by_kind["all", False]
    assert found.best.memory and found.best.late == "busy"
    assert math.isinf(by_kind["first 5", False].time.value)
    assert remembering.time.value < 0.5 * waiting.time.value
    answer = " ".join(found.answer.split())
    assert "late answers remembered" in answer and "+ late" in str(found)
    # Late answers are sent, too: one in three rounds or so.
    assert 5.2 < remembering.num_answers < 5.5
    # Again by the same rounds, and for another goal.
    again = jaxwgc.plan(slow_one(), NUM_WORKERS, KEY, choices=found.choices, **GOAL)
    assert [own.time for own in again.choices] == [own.time for own in found.choices]
    harder = found.replan(target=1e-4)
    assert harder.best.memory and harder.best.num_steps > found.best.num_steps
    # Who is stopped never answers late.
    for options in ({"late": "cancelled"}, {"exact": True}):
        stopped = jaxwgc.plan(
            slow_one(), NUM_WORKERS, KEY, replications=[1], **options, **GOAL
        )
        assert not any(own.memory for own in stopped.choices)


def test_the_dead_are_not_remembered():
    """Their parts are lost as if they were ignored."""
    times = np.ones((40, 4))
    times[:, 0] = np.inf
    found = jaxwgc.plan(
        stragglers.empirical(times), 4, KEY, replications=[1], target=1e-4
    )
    floors = {
        own.memory: own.lowest_loss
        for own in found.choices
        if own.wait == stragglers.fastest(3)
    }
    assert floors[True] == pytest.approx(floors[False], rel=1e-3)
    assert 1e-4 < floors[True] < 1


def test_what_long_stalls_hide_is_lost_until_they_end():
    """A worker begins with a stall of some hundred rounds: more steps, but an end."""
    times = np.ones((40, 4))
    times[:, 0] = 400.0
    found = jaxwgc.plan(
        stragglers.empirical(times), 4, KEY, replications=[1], target=1e-3, tail=0
    )
    [choice] = [
        own for own in found.choices if own.memory and own.wait == stragglers.fastest(3)
    ]
    assert 400 < choice.num_steps < 1000
