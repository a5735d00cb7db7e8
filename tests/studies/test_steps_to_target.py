"""The model of the steps, against gradient descent on quadratics."""

import math

import numpy as np
import pytest

from jaxwgc.studies._planning import _steps_to_target
from jaxwgc.studies._planning._judgement import _persistent
from jaxwgc.studies._planning._steps_to_target import Goal, Weights

NUM_PARTS = 12
GOAL = Goal(target=0.02, condition=20.0, heterogeneity=0.5, num_workers=NUM_PARTS)
LOST = 0.25
NUM_RUNS, NUM_DIMENSIONS = 150, 40


def rounds(kind, generator, num_steps):
    """Weights (runs, steps, parts) with mean one, and what is true of them."""
    shape = (NUM_RUNS, num_steps, NUM_PARTS)
    draws = generator.random(shape)
    noise, bias, correlation = LOST / (1 - LOST), 0.0, 0.0
    if kind == "same number each round":
        kept = draws.argsort(-1).argsort(-1) >= LOST * NUM_PARTS
    elif kind == "independent":
        kept = draws >= LOST
    elif kind == "slow spells":
        # Lost after lost with probability 0.7, so that LOST of all are.
        correlation, become_lost = 0.6, LOST * 0.4
        kept = np.empty(shape, bool)
        kept[:, 0] = draws[:, 0] >= LOST
        for t in range(1, num_steps):
            stays = np.where(kept[:, t - 1], become_lost, become_lost + correlation)
            kept[:, t] = draws[:, t] >= stays
    else:
        weights = np.ones(shape)
        weights[:, :, 0] = 0.0
        bias = (1 / NUM_PARTS) * (1 - 1 / NUM_PARTS) / (1 - 1 / NUM_PARTS) ** 2
        return weights / weights.mean(), Weights(0.0, bias, 0.0, 0.0, 0.0)
    scale_variance = 0.0
    if kind != "same number each round":
        scale_variance = noise / NUM_PARTS
        noise *= 1 - 1 / NUM_PARTS
    lasting = float(correlation > 0)
    truth = Weights(noise, bias, scale_variance, lasting, correlation)
    return kept / (1 - LOST), truth


def descend(weights, step, goal, generator):
    """Loss over that of the start after all steps, mean over runs and directions."""
    curvature = np.geomspace(1 / goal.condition, 1, 8)[:, None]
    start = np.ones((8, NUM_DIMENSIONS)) / np.sqrt(curvature)
    gradient = np.mean((curvature * start) ** 2)
    losses = []
    for own in weights:
        parts = generator.normal(size=(NUM_PARTS, 8, NUM_DIMENSIONS))
        parts -= parts.mean(0)
        parts *= math.sqrt(goal.heterogeneity * gradient / np.mean(parts**2))
        place = start
        for each in own:
            decoded = each.mean() * curvature * place
            decoded = decoded + np.tensordot(each, parts, 1) / NUM_PARTS
            place = place - step * decoded
        losses.append(np.mean(curvature * place**2))
    return np.mean(losses), np.std(losses) / math.sqrt(len(losses))


KINDS = ["same number each round", "independent", "slow spells", "one part is lost"]


@pytest.mark.parametrize("kind", KINDS)
def test_descent_takes_as_many_steps(kind):
    generator = np.random.default_rng(0)
    _, truth = rounds(kind, generator, 2)
    goal = GOAL
    if kind in ("slow spells", "one part is lost"):
        goal = goal._replace(heterogeneity=0.1)
    step = _steps_to_target.best_step(truth, goal)
    found = float(_steps_to_target.num_steps(truth, step, goal))
    number = round(found)
    weights, _ = rounds(kind, generator, number)
    loss, error = descend(weights, float(step), goal, generator)
    expected = truth.loss(step, goal, number)
    # What lasts is followed to second order, and as if it had gone on for long.
    relative = 0.1 if kind == "slow spells" else 0.04
    assert loss == pytest.approx(expected, rel=relative, abs=2 * error)
    before = truth.loss(step, goal, found * 0.99)
    after = truth.loss(step, goal, found * 1.01)
    assert before > goal.target > after


def test_what_is_found_of_the_weights():
    generator = np.random.default_rng(1)
    for kind in KINDS:
        weights, truth = rounds(kind, generator, 100)
        deviations = weights - weights.mean(-1, keepdims=True)
        bias, lasting, correlation = _persistent(
            deviations.reshape(-1, NUM_PARTS), NUM_RUNS
        )
        assert bias == pytest.approx(truth.bias, rel=0.05, abs=1e-12)
        assert lasting == pytest.approx(truth.lasting, abs=0.1)
        if truth.lasting:
            assert correlation == pytest.approx(truth.correlation, abs=0.05)


def test_what_few_rounds_have_by_chance_is_no_bias():
    """Nobody is late more often than others, though in 20 rounds some were."""
    generator = np.random.default_rng(0)
    for is_biased in (False, True):
        late = generator.random((20, NUM_PARTS)) < 0.1
        late[:, 0] |= is_biased
        drawn = (-1.0 * late)[generator.integers(0, 20, 20 * NUM_RUNS)]
        deviations = drawn - drawn.mean(-1, keepdims=True)
        assert _persistent(deviations, NUM_RUNS)[0] > 0
        assert (_persistent(deviations, NUM_RUNS, 20)[0] > 0) == is_biased


def test_exact_gradients_need_the_steps_of_gradient_descent():
    exact = Weights(0.0, 0.0, 0.0, 0.0, 0.0)
    goal = Goal(target=1e-6, condition=1.0, heterogeneity=1.0, num_workers=4)
    # All curvatures one: a step s leaves (1 - s)^2 of the loss.
    found = _steps_to_target.num_steps(exact, 0.5, goal)
    assert float(found) == pytest.approx(math.log(1e-6) / math.log(0.25), rel=1e-6)


def test_floor_of_a_bias():
    biased = Weights(0.0, 0.1, 0.0, 0.0, 0.0)
    goal = Goal(target=1e-6, condition=10.0, heterogeneity=1.0, num_workers=5)
    step = _steps_to_target.best_step(biased, goal)
    assert _steps_to_target.num_steps(biased, step, goal) == math.inf
    curvature = np.geomspace(0.1, 1, 8)
    expected = 0.1 * curvature.mean() / 4 * np.mean(1 / curvature)
    assert float(biased.loss(step, goal)) == pytest.approx(expected)
