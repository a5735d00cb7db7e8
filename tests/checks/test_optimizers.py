"""Mistakes before the aggregator, measured through any optimizer behind it."""

import jax
import optax
import pytest

from jaxwgc.checks._optimizers import OptimizerProbe
from tests.checks.regression import CODE, ONES, PARTIAL, PARTS, chain

BEHIND = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(0.1),
    "adafactor": optax.adafactor(0.1),
    "lion": optax.lion(0.1),
    "multi_steps": optax.MultiSteps(optax.adam(0.1), 16).gradient_transformation(),
}


@pytest.mark.parametrize("name", BEHIND)
def test_behind_the_aggregator(name):
    """Two mistakes at once, each of which has a measure; or none."""
    gradients = PARTIAL(ONES, PARTS)[1]
    mistakes = optax.clip_by_global_norm(0.01), optax.add_decayed_weights(1e-3)
    cases = [(mistakes, ("unequal", "added"))]
    # Others without a mistake are part of whole steps.
    if name not in ("sgd", "adam"):
        cases.append(([optax.scale(1 / 20)], ()))
    for before, expected in cases:
        probe = OptimizerProbe(chain(BEHIND[name], before=before), CODE, ONES)
        for mistake, share in probe.measure(gradients)._asdict().items():
            assert share > 0.2 if mistake in expected else share < 1e-3


def test_clipping_of_small_gradients():
    """A threshold counts that the gradients of other steps may reach."""
    gradients = jax.tree.map(lambda leaf: 1e-6 * leaf, PARTIAL(ONES, PARTS)[1])
    clipping = [optax.clip_by_global_norm(1.0), optax.ema(0.9)]
    probe = OptimizerProbe(chain(BEHIND["sgd"], before=clipping), CODE, ONES)
    assert probe.measure(gradients).unequal > 0.2
