"""Parameters as other libraries have them: pytrees, Equinox, Flax Linen and NNX."""

from typing import NamedTuple

import chex
import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import jaxwgc


class Scale(NamedTuple):
    slope: jax.Array
    offset: jax.Array


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(1)(jnp.tanh(flax.linen.Dense(3)(x)))[..., 0]


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.last = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))[..., 0]


def as_tuple():
    params = (Scale(jnp.array([1.0, 2.0]), jnp.array(0.5)), [jnp.array(3.0)])

    def predict(params, x):
        (slope, offset), [factor] = params
        return factor * jnp.tanh(x @ slope + offset)

    return params, predict


def as_equinox():
    module = eqx.nn.MLP(2, "scalar", 3, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def predict(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return params, predict


def as_linen():
    model = Linen()
    return model.init(jax.random.key(0), jnp.ones((1, 2))), model.apply


def as_nnx():
    definition, params = nnx.split(Nnx(nnx.Rngs(0)))
    return params, lambda params, x: nnx.merge(definition, params)(x)


# Complex, and decoded by NumPy.
CYCLIC = jaxwgc.codes.cyclic_mds(3, 1)
MASK = np.array([True, False, True])
WEIGHTS = np.zeros((1, 3), np.complex64)
WEIGHTS[:, MASK] = np.linalg.lstsq(CYCLIC.encoding_matrix[MASK].T, np.ones(3))[0]
DECODING = jaxwgc.Decoding(CYCLIC, MASK, WEIGHTS)


DRAW = np.random.default_rng(0).normal
PARTS = {
    "x": DRAW(size=(3, 4, 2)).astype(np.float32),
    "target": (DRAW(size=(3, 4)).astype(np.float32), np.ones((3, 1), bool)),
}


def gradients_of(predict):
    """The loss on all parts, and what gives its gradient on every path."""

    def loss(params, part):
        target, counts = part["target"]
        miss = predict(params, part["x"]) - target
        return jnp.sum(jnp.where(counts, miss, 0) ** 2)

    def whole(params):
        return jnp.sum(jax.vmap(loss, (None, 0))(params, PARTS))

    def every_path(params, decoding):
        partial = jaxwgc.partial_value_and_grad(loss)(params, PARTS)[1]
        messages = jaxwgc.encode(CYCLIC, partial)
        step = jaxwgc.decoded_value_and_grad(loss, CYCLIC)
        value, gradient = step(params, PARTS, decoding)
        by_messages = decoding.combine(messages, params)
        return value, [gradient, by_messages, decoding.collapse(partial)]

    return whole, every_path


def test_gradients_are_those_of_the_whole_loss():
    params, predict = as_tuple()
    whole, every_path = gradients_of(predict)
    value, result = jax.jit(every_path)(params, DECODING)
    expected_value, expected = jax.jit(jax.value_and_grad(whole))(params)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    for gradient in result:
        chex.assert_trees_all_close(gradient, expected, rtol=1e-3, atol=1e-3)
    assert float(ravel_pytree(expected)[0].std()) > 0.1


@pytest.mark.parametrize("make", [as_equinox, as_linen, as_nnx])
def test_gradients_have_the_structure_of_the_parameters(make):
    params, predict = make()
    _, result = jax.eval_shape(gradients_of(predict)[1], params, DECODING)
    for gradient in result:
        assert jax.tree.structure(gradient) == jax.tree.structure(params)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)


CODE = jaxwgc.codes.uncoded(3)
ROWS = np.ones((3, 4, 2), np.float32)


def with_counter():
    """A batch statistic of integers and the key of a dropout layer, beside floats."""

    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.linear = nnx.Linear(2, 1, rngs=rngs)

    return nnx.split(Counting(nnx.Rngs(0)))[1]


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), r"\.activation .* got <"),
        ({"w": np.ones(2), "kind": "model"}, r"\['kind'\] .* got 'model'"),
        ({"w": np.ones(2), "steps": np.ones(2, int)}, r"\['steps'\] .* got int64"),
        (with_counter(), r"\['dropout'\].* got (uint32|key<fry>)"),
    ],
    ids=["function", "string", "integers", "key"],
)
def test_parameters_that_are_not_floats_are_rejected(params, shown):
    """Before another transformation of the chain fails, and with what to do."""
    rule = f"params{shown}.*eqx.partition.*nnx.split.*optax.masked"
    aggregate = jaxwgc.coded_aggregate(
        CODE, jaxwgc.stragglers.uniform(0), jax.random.key(0)
    )
    loss = lambda params, part: jnp.sum(part)  # noqa: E731
    for call in (
        lambda: jaxwgc.partial_value_and_grad(loss)(params, ROWS),
        lambda: jaxwgc.decoded_value_and_grad(loss, CODE)(params, ROWS, [True] * 3),
        lambda: optax.chain(aggregate, optax.adam(0.1)).init(params),
    ):
        with pytest.raises(TypeError, match=rule):
            call()
