"""Wrappers of optax train as without a cluster, or raise an error that says why."""

import pathlib

import jax
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers

CODE = codes.fractional_repetition(6, 2)
TARGET = np.array([1.0, 2.0, 3.0], np.float32)
PARAMS = {"w": np.zeros(3, np.float32)}
SHARES = np.arange(1.0, 7.0, dtype=np.float32) / 21
ADVERSARY = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
# Errors of JAX, before an aggregator sees the result; this page explains them.
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "if-something-looks-wrong.md"
COND = "cond branches must have equal output types"
PRODUCT = "dot_general requires contracting dimensions to have the same shape"
ARITHMETIC = "multiply does not accept dtypes"
NOT_AROUND = r"wrappers such as optax.MultiSteps or optax.contrib.sam go around the "


def sam(inner):
    return optax.contrib.sam(inner, ADVERSARY)


def opaque_sam(inner):
    return optax.contrib.sam(inner, ADVERSARY, opaque_mode=True)


def multi_steps(inner):
    return optax.MultiSteps(inner, 2).gradient_transformation()


def apply_if_finite(inner):
    return optax.apply_if_finite(inner, 3)


def conditionally_mask(inner):
    return optax.conditionally_mask(inner, lambda step: step < 4)


def conditionally_transform(inner):
    return optax.conditionally_transform(inner, lambda step: step >= 0)


def schedule_free(inner):
    return optax.contrib.schedule_free(inner, 0.1)


def masked(inner):
    return optax.masked(inner, {"w": True})


def partition(inner):
    return optax.partition({"all": inner}, {"w": "all"})


def inject_hyperparams(inner):
    def scaled(factor):
        return optax.chain(inner, optax.scale(factor))

    return optax.inject_hyperparams(scaled)(factor=0.5)


def reduce_on_plateau(inner):
    return optax.chain(inner, optax.contrib.reduce_on_plateau())


def lookahead(inner):
    return optax.lookahead(inner, 3, 0.5)


def lookahead_with_reset(inner):
    return optax.lookahead(inner, 3, 0.5, reset_state=True)


def loss(params, share):
    return share / 2 * jax.numpy.sum((params["w"] - TARGET) ** 2)


def gradient(params, step=None):
    return jax.grad(loss)(params, 1.0)


def partial_gradients(params, step=None):
    return jaxwgc.partial_value_and_grad(loss)(params, SHARES)[1]


def aggregator(key):
    return jaxwgc.coded_aggregate(CODE, stragglers.uniform(2), key)


def trained(optimizer, gradients, extra, params=PARAMS):
    """Returns the parameters after six steps; the gradients are at `params.fast`."""
    state = optimizer.init(params)
    for _ in range(6):
        grads = gradients(getattr(params, "fast", params))
        updates, state = optimizer.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def expect_error(error, match):
    """Expects an error; one of JAX must be in the table of errors in the docs."""
    if error is TypeError:
        assert f'"{match}' in PAGE.read_text()
    return pytest.raises(error, match=match)


GRAD_FN = {"grad_fn": gradient}
VALUE = {"value": 1.0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("wrap", "extra"),
    [
        (multi_steps, {}),
        (apply_if_finite, {}),
        (optax.flatten, {}),
        (conditionally_mask, {}),
        (conditionally_transform, {}),
        (sam, {}),
        (opaque_sam, GRAD_FN),
        (schedule_free, {}),
        (optax.contrib.mechanize, {}),
        (optax.contrib.split_real_and_imaginary, {}),
        (masked, {}),
        (partition, {}),
        (inject_hyperparams, {}),
        (reduce_on_plateau, VALUE),
    ],
)
def test_wrappers_behind_the_aggregator_train(wrap, extra):
    expected = trained(wrap(optax.sgd(0.1)), gradient, extra)
    optimizer = optax.chain(aggregator(jax.random.key(0)), wrap(optax.sgd(0.1)))
    params = trained(optimizer, partial_gradients, extra)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        schedule_free,
        optax.contrib.split_real_and_imaginary,
        masked,
        partition,
        inject_hyperparams,
    ],
)
def test_wrappers_that_may_stand_around_the_chain_train(wrap):
    expected = trained(wrap(optax.sgd(0.1)), gradient, {})
    optimizer = wrap(optax.chain(aggregator(jax.random.key(0)), optax.sgd(0.1)))
    params = trained(optimizer, partial_gradients, {})
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "make_key", "error", "match"),
    [
        (multi_steps, jax.random.key, ValueError, NOT_AROUND),
        (optax.flatten, jax.random.key, ValueError, NOT_AROUND),
        (sam, jax.random.PRNGKey, ValueError, NOT_AROUND),
        (sam, jax.random.key, TypeError, ARITHMETIC),
        (opaque_sam, jax.random.key, ValueError, NOT_AROUND),
        (apply_if_finite, jax.random.key, TypeError, COND),
        (conditionally_mask, jax.random.key, TypeError, COND),
        (conditionally_transform, jax.random.key, TypeError, COND),
        (optax.contrib.mechanize, jax.random.key, TypeError, PRODUCT),
    ],
)
def test_wrappers_that_may_not_stand_around_the_chain_raise(
    wrap, make_key, error, match
):
    extra = {"grad_fn": partial_gradients} if wrap is opaque_sam else {}
    optimizer = wrap(optax.chain(aggregator(make_key(0)), optax.sgd(0.1)))
    with expect_error(error, match):
        trained(optimizer, partial_gradients, extra)


class TestLookahead:
    """Its params are two copies, of which the gradients are like the fast one."""

    params = optax.LookaheadParams.init_synced(PARAMS)

    @pytest.mark.parametrize(
        ("wrap", "make_key"),
        [
            (lookahead, jax.random.key),
            (lookahead, jax.random.PRNGKey),
            (lookahead_with_reset, jax.random.PRNGKey),
        ],
    )
    def test_around_the_chain(self, wrap, make_key):
        expected = trained(wrap(optax.sgd(0.1)), gradient, {}, self.params)
        optimizer = wrap(optax.chain(aggregator(make_key(0)), optax.sgd(0.1)))
        params = trained(optimizer, partial_gradients, {}, self.params)
        np.testing.assert_allclose(params.slow["w"], expected.slow["w"], rtol=1e-5)

    def test_reset_of_a_state_with_a_typed_key(self):
        chain = optax.chain(aggregator(jax.random.key(0)), optax.sgd(0.1))
        with expect_error(TypeError, ARITHMETIC):
            trained(lookahead_with_reset(chain), partial_gradients, {}, self.params)

    def test_in_the_chain(self):
        """The error names the leaves that differ, and where the wrapper goes."""
        optimizer = optax.chain(
            aggregator(jax.random.key(0)), lookahead(optax.sgd(0.1))
        )
        match = (
            r"got updates\['w'\] only in updates, and params.fast\['w'\], "
            r"params.slow\['w'\] only in params\. .* optax.lookahead, around the"
        )
        with pytest.raises(ValueError, match=match):
            trained(optimizer, partial_gradients, {}, self.params)


def test_wrappers_that_take_no_extra_arguments():
    """The chain passes no extra arguments to a plain transformation, as documented."""
    match = "got an unexpected keyword argument 'received'"
    extra = {"received": np.array([True, False, True, True, False, True])}
    aggregate = aggregator(jax.random.key(0))
    optimizer = sam(optax.sgd(0.1))
    with expect_error(TypeError, match):
        trained(optax.chain(aggregate, optimizer), partial_gradients, extra)
    expected = trained(optimizer, gradient, {})
    plain = optax.GradientTransformation(optimizer.init, optimizer.update)
    params = trained(optax.chain(aggregate, plain), partial_gradients, extra)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)
