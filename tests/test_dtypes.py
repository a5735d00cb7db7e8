"""Types are promoted or refused, never truncated: against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers

KEY = jax.random.key(0)
CODES = {
    "real": codes.fractional_repetition(6, 2),
    "complex": codes.reed_solomon(6, 6, 3),
    "heavy": jaxwgc.weighted(
        codes.cyclic_repetition(KEY, 6, 2), np.geomspace(1e4, 1e2, 6)
    ),
}
LOST_TWO = np.arange(6) % 3 > 0
SMALL = [jnp.bfloat16, np.float16, jnp.float8_e5m2]


def linear(params, part):
    return jnp.sum(params * part)


def share_of_miss(result, truth):
    truth = np.asarray(truth, np.float64)
    return np.abs(np.asarray(result, np.float64) - truth).max() / np.abs(truth).max()


def test_one_code_serves_both_precisions():
    """Programs that were compiled in the other mode do not matter."""
    code = codes.ldgm(KEY, 8, 6, 2)
    received = np.arange(code.num_workers) > 0
    parts = np.arange(7.0 * code.num_parts, dtype=np.float32).reshape(-1, 7)
    compiled = []
    for mode in (False, True, False):

        def everything(received, parts):
            messages = jaxwgc.encode(code, parts)
            return (
                jaxwgc.decode(code, messages, received, parts[0]),
                jaxwgc.decoding(code, received).collapse(parts),
                jaxwgc.decoding(code, received).effective_weights @ parts,
                jaxwgc.decoding(code, received).error,
            )

        compiled.append(jax.jit(everything))
        with jax.enable_x64(mode):
            *sums, error = compiled[-1](received, parts)
        for result in sums:
            np.testing.assert_allclose(result, sums[0], rtol=1e-5)
        assert np.asarray(error) < code.num_parts


class TestMessages:
    @pytest.mark.parametrize("dtype", [np.int64, bool, jnp.int4])
    def test_integers_and_bools_are_promoted(self, dtype, x64):
        code = CODES["real"]
        whole = np.array([[0, 1], [1, 0], [5, 1], [1, 3], [0, 0], [7, 1]]).astype(dtype)
        messages = jaxwgc.encode(code, whole)
        assert messages.dtype == (np.float64 if x64 else np.float32)
        numbers = whole.astype(float)
        np.testing.assert_array_equal(messages, code.encoding_matrix @ numbers)
        plain = codes.uncoded(6)
        for weights in (whole, jnp.asarray(whole), whole.tolist()):
            decoded = jaxwgc.decode(plain, weights, LOST_TWO, np.zeros(2, np.float32))
            np.testing.assert_allclose(decoded, numbers[LOST_TWO].sum(0), rtol=1e-6)

    def test_integers_of_64_bits_keep_their_size(self):
        """2**32 + 5 would be 5 in JAX's integers of 32 bits."""
        big = np.full((6, 1), 2**32 + 5)
        for decoded in (
            jaxwgc.encode(codes.uncoded(6), big)[0],
            jaxwgc.decode(codes.uncoded(6), big, np.arange(6) < 1, np.zeros(1)),
        ):
            np.testing.assert_allclose(decoded, 2**32 + 5, rtol=1e-6)

    @pytest.mark.parametrize("dtype", SMALL)
    def test_small_floats_are_decoded_in_float32(self, dtype):
        """The gradient is that of the messages as they are, cast once at the end."""
        code = CODES["heavy"]
        draw = np.random.default_rng(0).normal(size=(6, 4))
        messages = jnp.asarray(draw, dtype)
        decoded = jaxwgc.decode(code, messages, LOST_TWO, np.zeros(4, np.float32))
        weights = jaxwgc.decoding(code, LOST_TWO).weights[..., 0, :]
        truth = np.float64(weights) @ np.asarray(messages, np.float64)
        assert share_of_miss(decoded, truth) < 1e-6
        cast = jaxwgc.decode(code, messages, LOST_TWO, jnp.zeros(4, jnp.bfloat16))
        np.testing.assert_array_equal(cast, decoded.astype(jnp.bfloat16))


def test_shape_structs_are_taken_for_parameters_alone():
    """A `jax.ShapeDtypeStruct` is taken for parameters, and for nothing else."""
    struct = jax.ShapeDtypeStruct((6,), np.float32)
    plain = codes.uncoded(6)
    parts = np.ones((6, 1), np.float32)
    column = jax.ShapeDtypeStruct((6, 1), np.float32)
    for call in (
        lambda: jaxwgc.encode(plain, struct),
        lambda: jaxwgc.decode(plain, column, np.ones(6, bool), np.zeros(1)),
        lambda: jaxwgc.weighted(plain, struct),
        lambda: jaxwgc.summarize(struct),
        lambda: jaxwgc.partial_value_and_grad(linear)(np.ones(1), column),
        lambda: jaxwgc.decoded_value_and_grad(linear, plain)(
            jax.ShapeDtypeStruct((1,), np.float32), parts, np.ones(6, bool)
        ),
        lambda: stragglers.pareto(1.0, 2.0).sample(KEY, (), struct),
        lambda: stragglers.fastest(2).arrivals(KEY, struct),
    ):
        with pytest.raises(TypeError, match="must be .*; got ShapeDtypeStruct"):
            call()


def both(loss, has_aux=False):
    """Functions that differentiate a loss from its parameters and parts alone."""
    decoded = jaxwgc.decoded_value_and_grad(loss, CODES["real"], has_aux)
    return (
        jaxwgc.partial_value_and_grad(loss, has_aux),
        lambda params, parts: decoded(params, parts, LOST_TWO),
    )


class TestLosses:
    def test_one_result_on_every_path(self):
        """Weights of up to 1e4, just within float16."""
        code = CODES["heavy"]
        dtype = np.float16
        draw = 1e-3 * np.random.default_rng(1).normal(size=(6, 4))
        parts = jnp.asarray(draw, dtype)
        params = jnp.ones(4, dtype)

        @jax.jit
        def every_path(params, parts):
            lost_two = jaxwgc.decoding(code, LOST_TWO)
            values, gradients = jaxwgc.partial_value_and_grad(linear)(params, parts)
            decoded = jaxwgc.decoded_value_and_grad(linear, code)
            value, gradient = decoded(params, parts, lost_two)
            messages = jaxwgc.encode(code, gradients)
            by_messages = lost_two.combine(messages, params)
            aggregate = jaxwgc.coded_aggregate(code, stragglers.uniform(2), KEY)
            state = aggregate.init(params)
            updates, _ = aggregate.update(gradients, state, params, received=lost_two)
            return values, value, gradient, by_messages, updates

        values, value, *gradients = every_path(params, parts)
        truth = code.target @ np.asarray(parts, np.float64)
        # A few roundings of the dtype, in sums that cancel by a factor of at most ten.
        bound = 16 * float(jnp.finfo(dtype).eps)
        for gradient in gradients:
            assert share_of_miss(gradient, truth) < bound
            assert gradient.dtype == dtype
        assert value.dtype == dtype
        if np.isfinite(value):
            assert share_of_miss(value, code.target @ np.float64(values)) < bound

    @pytest.mark.parametrize("factor", [1e-36, 3e5, 1e36])
    def test_weights_of_any_size(self, factor):
        code = jaxwgc.weighted(codes.uncoded(6), np.full(6, factor))
        parts = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
        _, gradient = jaxwgc.decoded_value_and_grad(linear, code)(
            np.ones(4, np.float32), parts, np.ones(6, bool)
        )
        assert share_of_miss(gradient / factor, np.float64(parts).sum(0)) < 1e-6

    @pytest.mark.parametrize("has_aux", [False, True])
    @pytest.mark.parametrize(
        ("result", "rule"),
        [
            (lambda total: total + 1j, "loss's result must be real floats; got comple"),
            (lambda total: total.astype(int), "loss's result must be real floats; got"),
            (lambda total: total > 0, "loss's result must be real floats; got bool"),
            (lambda total: 3, "loss's result must be real floats; got int"),
            (lambda total: "3", "loss's result must be real floats; got '3'"),
            (lambda total: None, "loss must return .*; got PyTree"),
            (lambda total: [total], "loss must return .*; got PyTree"),
            (lambda total: total[None], r"loss must return a scalar; .* \(1,\)"),
        ],
    )
    def test_losses_that_have_no_gradient(self, result, rule, has_aux):
        def loss(params, part):
            value = result(linear(params, part))
            return (value, part) if has_aux else value

        for call in both(loss, has_aux):
            with pytest.raises(TypeError, match=rule):
                call(np.ones(4, np.float32), np.ones((6, 4), np.float32))

    def test_parts_with_keys(self):
        """Such as those of dropout."""
        keys = jax.random.split(KEY, 6)

        def loss(params, key):
            return jnp.sum(params * jax.random.normal(key, (4,)))

        _, gradient = jaxwgc.decoded_value_and_grad(loss, CODES["real"])(
            np.ones(4, np.float32), keys, LOST_TWO
        )
        draws = [jax.random.normal(key, (4,)) for key in keys]
        np.testing.assert_allclose(gradient, np.sum(draws, 0), rtol=1e-5, atol=1e-6)

    def test_auxiliary_results_that_are_missing(self):
        for call in both(linear, True):
            with pytest.raises(TypeError, match=r"\(scalar, aux\) if"):
                call(np.ones(4), np.ones((6, 4)))


@pytest.mark.parametrize(
    ("dtype", "method"), [(np.float16, "partials"), (jnp.float8_e5m2, "messages")]
)
def test_small_floats_are_aggregated_in_float32(dtype, method):
    """Float8 as well, which JAX itself promotes to nothing."""
    updates = jnp.asarray(np.random.default_rng(3).normal(size=(6, 5)), dtype)
    aggregate = jaxwgc.coded_aggregate(
        CODES["complex"], stragglers.uniform(2), KEY, method=method
    )
    result, _ = aggregate.update(updates, aggregate.init(None), received=LOST_TWO)
    assert result.dtype == dtype
    truth = np.asarray(updates, np.float64).sum(0)
    miss = np.abs(np.asarray(result, np.float64) - truth)
    assert np.all(miss <= (float(jnp.finfo(dtype).eps) / 2 + 1e-5) * np.abs(truth))
