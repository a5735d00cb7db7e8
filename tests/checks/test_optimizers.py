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
BEFORE = {
    "clipping": optax.clip_by_global_norm(0.01),
    "decay": optax.add_decayed_weights(1e-3),
    "scale": optax.scale(1 / 20),
}


def measure(gradients, behind, *before):
    probe = OptimizerProbe(chain(behind, before=before), CODE, ONES)
    return probe.measure_order(gradients)


@pytest.mark.parametrize("name", BEHIND)
def test_behind_the_aggregator(name):
    """Each of two mistakes alone; a scale is none."""
    gradients = PARTIAL(ONES, PARTS)[1]
    assert measure(gradients, BEHIND[name], BEFORE["clipping"]) > 0.2
    assert measure(gradients, BEHIND[name], BEFORE["decay"]) > 0.2
    # Others without a mistake are part of whole steps.
    if name not in ("sgd", "adam"):
        assert measure(gradients, BEHIND[name], BEFORE["scale"]) < 1e-3


def test_clipping_of_small_gradients():
    """A threshold counts that the gradients of other steps may reach."""
    gradients = jax.tree.map(lambda leaf: 1e-6 * leaf, PARTIAL(ONES, PARTS)[1])
    clipping = optax.clip_by_global_norm(1.0)
    assert measure(gradients, BEHIND["sgd"], clipping, optax.ema(0.9)) > 0.2
