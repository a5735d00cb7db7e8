"""Steps of a plan, against gradient descent on quadratics in rounds drawn anew."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.planning import Candidate, Candidates, Goal
from tests.conftest import every_pattern

KEY = jax.random.key(0)
NUM_WORKERS = 6
NUM_DIMENSIONS = 24
GOAL = Goal(target=0.02, condition=20.0, heterogeneity=1.0)
CURVATURE = np.geomspace(1 / GOAL.condition, 1, 8)


@functools.partial(jax.jit, static_argnames=("model", "memory"))
def descend(code, model, memory, step_size, size, num_steps):
    """Returns relative losses after the last two steps, (runs, 2), and times, (runs,).

    The number of steps is traced, so that each target has the same program.
    """

    def run(key):
        own_key, key = jax.random.split(key)
        shape = code.num_parts, NUM_DIMENSIONS, len(CURVATURE)
        parts = jax.random.normal(own_key, shape)
        parts -= parts.mean(0)
        parts *= jnp.sqrt(size * code.num_parts / (code.num_parts - 1))
        aggregate = jaxwgc.coded_aggregate(code, model, key, memory=memory)
        start = jnp.ones(shape[1:]) / np.sqrt(CURVATURE)

        def step(_, carry):
            params, state, losses = carry
            gradients = (CURVATURE * params + parts) / code.num_parts
            gradient, state = aggregate.update(gradients, state, params)
            params = params - step_size * gradient
            losses = losses.at[0].set(losses[1])
            losses = losses.at[1].set(jnp.mean(CURVATURE * params**2))
            return params, state, losses

        carry = start, aggregate.init(start), jnp.ones(2)
        _, state, losses = jax.lax.fori_loop(0, num_steps, step, carry)
        return losses, state.elapsed

    return jax.vmap(run)(jax.random.split(KEY, 300))


def slow_one(slowdown=3.4):
    """Returns times of 40 rounds in which the last worker takes longer.

    They are those of a part per worker: a plan ranks no overheads, which takes long.
    """
    times = 1 + 0.3 * np.random.default_rng(0).random((40, NUM_WORKERS, 1))
    times[:, -1] *= slowdown
    return stragglers.empirical(times)


EXPONENTIAL = stragglers.shifted_exponential(shift=1.0, rate=1.0)
FAST = stragglers.bernoulli_slowdown(0.0, 1.0)
SPELLS = stragglers.markov(FAST, stragglers.affine(FAST, 9.0), 0.1, 0.3)
UNCODED = codes.uncoded(NUM_WORKERS)


class Table(decoders.Decoder):
    """Weights of every mask from NumPy's least squares, which compiles in no time."""

    by_mask: np.ndarray

    def weights(self, matrix, target, mask):
        numbers = mask @ 2 ** np.arange(mask.shape[-1])[::-1]
        return jnp.asarray(self.by_mask)[numbers][..., None, :]


COMPLEX = codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, 2)
ROWS = every_pattern(NUM_WORKERS, NUM_WORKERS)[..., None] * COMPLEX.encoding_matrix
TABLE = Table(np.ones(NUM_WORKERS) @ np.linalg.pinv(ROWS))
COMPLEX = dataclasses.replace(COMPLEX, decoders=(TABLE,))
LATE = stragglers.deadline(1 + math.log(4))
# Delays, code, rule, heterogeneity, share of the gradient that is recovered without
# memory or 1 with it, and how far the loss may be off.
CASES = {
    "a number is late": (EXPONENTIAL, UNCODED, stragglers.fastest(4), 0.5, 4 / 6, 0.05),
    "some are late": (EXPONENTIAL, UNCODED, LATE, 0.5, 0.75, 0.05),
    # What lasts is followed to second order, and as if it had gone on for long.
    "spells": (SPELLS, UNCODED, stragglers.deadline(2.0), 0.3, 0.75, 0.1),
    "one is lost": (slow_one(), UNCODED, stragglers.fastest(5), 0.1, 5 / 6, 0.05),
    "half are stored": (slow_one(), UNCODED, stragglers.fastest(3), 1.0, 1, 0.05),
    "complex": (slow_one(), COMPLEX, stragglers.fastest(3), 1.0, 1, 0.1),
    # It responds every twenty rounds.
    "long stalls": (slow_one(22.0), UNCODED, stragglers.fastest(5), 0.1, 1, 0.1),
}


@pytest.mark.parametrize("case", CASES)
def test_descent_takes_as_many_steps(case):
    """Each of two targets has its best step size."""
    delay, code, wait, heterogeneity, share, tolerance = CASES[case]
    memory = share == 1
    late = "busy" if memory else "cancelled"
    choice = Candidate("own", code, wait, late, memory)
    goal = dataclasses.replace(GOAL, heterogeneity=heterogeneity)
    plan = jaxwgc.plan(
        delay, code.num_workers, KEY, candidates=[choice], goal=goal, tail=0
    )
    assert 5 < plan.best.num_steps < 200
    for target in (0.2, GOAL.target):
        best = plan.replan(dataclasses.replace(goal, target=target)).best
        number = math.ceil(best.num_steps)
        size = heterogeneity * CURVATURE.mean()
        losses, elapsed = descend(
            code, best.model(delay), memory, best.step_size / share, size, number
        )
        before, after = np.asarray(losses).mean(0)
        assert (1 - tolerance) * after < target < (1 + tolerance) * before
    seconds = np.mean(elapsed) / number
    assert seconds == pytest.approx(plan.best.step_time.value, rel=0.03)


def test_exact_gradients_need_the_steps_of_gradient_descent():
    [own_plan] = jaxwgc.plan(
        FAST,
        4,
        KEY,
        candidates=[Candidate("own", codes.uncoded(4), stragglers.fastest(4))],
    ).choices
    curvature = np.geomspace(1 / 100, 1, 8)
    loss = np.mean(
        np.abs(1 - own_plan.step_size * curvature) ** (2 * own_plan.num_steps)
    )
    assert loss == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("is_biased", [False, True])
def test_chance_differences_in_few_rounds_are_no_bias(is_biased):
    """All workers are late equally often, though not within 20 rounds."""
    is_late = np.random.default_rng(0).random((20, 12)) < 0.1
    is_late[:, 0] |= is_biased
    delay = stragglers.empirical(np.where(is_late, 3.0, 1.0))
    choice = Candidate("own", codes.uncoded(12), stragglers.deadline(2.0))
    goal = Goal(target=1e-5)
    result = jaxwgc.plan(delay, 12, KEY, candidates=[choice], goal=goal, tail=0)
    assert math.isinf(result.best.num_steps) == is_biased


def test_stored_messages_of_a_slow_worker_reach_the_goal():
    """Waiting for the first takes little less time, and never reaches the target."""
    result = jaxwgc.plan(
        slow_one(),
        NUM_WORKERS,
        KEY,
        candidates=Candidates(copies=[1], waiting=[stragglers.fastest(5)], memory=True),
        goal=GOAL,
    )
    by_kind = {(choice.waits_for, choice.memory): choice for choice in result.choices}
    remembering = by_kind["first 5 + memory", True]
    waiting = by_kind["all", False]
    assert result.best.memory and result.best.late == "busy"
    assert math.isinf(by_kind["first 5", False].time.value)
    assert remembering.time.value < 0.5 * waiting.time.value
    advice = " ".join(result.advice.split())
    assert "late messages stored" in advice and "+ memory" in str(result)
    # Late messages are sent, too: one in three rounds or so.
    assert 5.2 < remembering.num_messages < 5.5
    harder = result.replan(dataclasses.replace(GOAL, target=1e-4))
    assert harder.best.memory and harder.best.num_steps > result.best.num_steps
