"""Arguments that the aggregator refuses, and what newcomers ran into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers
from tests.aggregate.problems import GROUPS, aggregate
from tests.zoo import CODES

CODE, KEY, MODEL = CODES["reed_solomon"], jax.random.key(0), stragglers.uniform(2)
GRADIENTS, MASK = np.ones((6, 2), np.float32), np.ones(6, bool)


def make(code=CODE, model=MODEL, key=KEY, **options):
    return jaxwgc.coded_aggregate(code, model, key, **options)


def update(updates=GRADIENTS, **extra):
    transform = make()
    return transform.update(updates, transform.init(None), None, **extra)


def with_leaf(shape):
    return {"updates": {"w": np.ones(shape), "b": np.ones(6)}}


@pytest.mark.parametrize(
    ("call", "options", "rule"),
    [
        (make, {"method": "message"}, "method must be one of 'partials', 'mess"),
        (make, {"undecodable": None}, "undecodable must be one of 'least_squ"),
        (make, {"undecodable": "raise"}, "'raise' .read num_undecodable in"),
        (make, {"tolerance": -1e-3}, "tolerance must be .*-0.001"),
        (make, {"tolerance": float("nan")}, "tolerance must be .*nan"),
        (
            make,
            {"model": stragglers.uniform(6)},
            "num_stragglers must be less than num",
        ),
        (update, with_leaf(()), r"updates\['w'\] .* num_parts = 6; got"),
        (update, with_leaf((5, 2)), r"updates\['w'\] .* num_parts = 6; got"),
        (update, with_leaf((1, 6)), r"updates\['w'\] .* num_parts = 6; got"),
        (update, {"updates": {}}, "updates must have at least one array"),
        (update, {"elapsed": 2.0}, "elapsed goes with received.*2.0"),
    ],
)
def test_values(call, options, rule):
    with pytest.raises(ValueError, match=rule):
        call(**options)


@pytest.mark.parametrize(
    ("call", "options", "rule"),
    [
        (
            make,
            {"code": CODE.encoding_matrix},
            "code must be a GradientCode; got array",
        ),
        (make, {"model": 2}, "model must be a StragglerModel; got 2"),
        (
            make,
            {"model": stragglers.pareto(1.0, 2.0)},
            "model must be a StragglerModel",
        ),
        (make, {"key": 0}, "key must be a PRNG key from jax"),
        (make, {"key": None}, "key must be a PRNG key from jax"),
        (make, {"key": np.zeros(2, np.int32)}, "key must be a PRNG key from jax"),
        (make, {"tolerance": "small"}, "tolerance must be a real scalar"),
        (
            update,
            {"received": MASK, "elapsed": np.ones(6)},
            "elapsed must be a real scalar",
        ),
        (
            update,
            {"updates": {"w": np.ones((6, 2), int)}},
            r"updates\['w'\] must be real or complex",
        ),
    ],
)
def test_types(call, options, rule):
    with pytest.raises(TypeError, match=rule):
        call(**options)


def test_donating_the_state_leaves_the_key_alone(make_key):
    key = make_key(0)
    transform = aggregate(GROUPS, key)
    step = jax.jit(
        lambda state: transform.update(jnp.ones((6, 2)), state)[1], donate_argnums=0
    )
    first, again = step(transform.init(None)), step(transform.init(None))
    np.testing.assert_array_equal(first.received, again.received)
    jax.random.uniform(key)
