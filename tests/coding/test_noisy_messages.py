"""Noisy messages: weights of noisy sources; few bits, their error, who gets them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxwgc
from jaxwgc import coding

VARIANCES = hnp.arrays(
    np.float64, 5, elements=st.floats(1e-30, 1e30, allow_subnormal=False)
)
# One shape, so that few functions are compiled.
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(6, 8, 3))


@settings(max_examples=50)
@given(VARIANCES)
def test_weights_are_those_of_numpy(variances):
    with jax.enable_x64(True):
        result = coding.inverse_variance_weights(variances)
    inverse = variances.min() / variances
    np.testing.assert_allclose(result, inverse / inverse.mean(), rtol=1e-12)
    with jax.enable_x64(False):
        # 1 / 1e-30² would overflow in float32.
        rounded = coding.inverse_variance_weights(variances)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, result, rtol=1e-5, atol=1e-37)


def test_weights_under_jit_vmap_and_grad(with_x64):
    variances = np.array([[1.0, 2, 4, 8, 16], [5.0, 5, 5, 5, 5], [1.0, 0, 1, 1, 1]])
    result = jax.jit(jax.vmap(coding.inverse_variance_weights))(variances)
    assert result.dtype == np.float64
    inverse = 1 / variances[0]
    np.testing.assert_allclose(result[0], inverse / inverse.mean(), rtol=1e-6)
    np.testing.assert_array_equal(result[1], 1)
    assert np.isnan(result[2]).all()
    jacobian = jax.jit(jax.jacrev(coding.inverse_variance_weights))(variances[0])
    # d log w_j / d log v_l = w_l / k - 1 where l = j.
    scaled = jacobian * variances[0] / result[0][:, None]
    np.testing.assert_allclose(scaled, result[0] / 5 - np.eye(5), atol=1e-6)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_wrong_variances(wrong):
    variances = np.array([1.0, 2.0, 3.0, wrong, 1.0])
    with pytest.raises(ValueError, match=r"variances must be positive.*\[3\] = "):
        coding.inverse_variance_weights(variances)
    assert np.isnan(jax.jit(coding.inverse_variance_weights)(variances)).all()


def test_traced_leverage_without_degrees_of_freedom_gives_nan():
    residuals = np.ones((2, 4))
    rounded = jnp.array([[0.5] * 4, [1 - 1e-7] * 4], jnp.float32)
    result = jax.jit(coding.source_variances)(residuals, rounded)
    np.testing.assert_array_equal(result, [2, np.nan])


def test_variances_leave_padded_rows_out(x64):
    rows = RNG.normal(size=(11, 2))
    residuals, row_weights = jaxwgc.partition(rows[:, 0], 3)
    leverage, _ = jaxwgc.partition(rows[:, 1] ** 2 / 20, 3)
    result = jax.jit(coding.source_variances)(residuals, leverage, row_weights)
    expected = [
        np.sum(block[:, 0] ** 2) / np.sum(1 - block[:, 1] ** 2 / 20)
        for block in np.split(rows, [4, 8])
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    single = coding.source_variances(np.zeros((3, 4), np.float32))
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, np.zeros(3))


def projection(weights):
    """Of ordinary or weighted least squares: fitted values are H y; by NumPy."""
    matrix = ROWS.reshape(-1, 3)
    scaled = matrix * np.repeat(weights, 8)[:, None]
    return matrix @ np.linalg.solve(matrix.T @ scaled, scaled.T)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_variances_are_unbiased_where_the_docstring_says(is_weighted, with_x64):
    """The exact law of quadratic forms gives E[r²] = diag (I - H) V (I - H)ᵀ."""
    variances = np.array([1.0, 4, 9, 16, 25, 100]) if is_weighted else np.full(6, 3.0)
    weights = np.asarray(coding.inverse_variance_weights(variances))
    annihilator = np.eye(48) - projection(weights)
    covariance = annihilator * np.repeat(variances, 8) @ annihilator.T
    rows = ROWS.reshape(-1, 3) * np.sqrt(np.repeat(weights, 8))[:, None]
    leverage = jaxwgc.sketching.leverage_scores(rows).reshape(6, 8)
    # Root mean squares in the place of residuals give the mean of the estimate.
    means = np.sqrt(np.diag(covariance)).reshape(6, 8)
    np.testing.assert_allclose(coding.source_variances(means, leverage), variances)


KEY = jax.random.key(0)
NUM_DRAWS = 20_000
ERROR = 4 / np.sqrt(NUM_DRAWS)


@jax.jit
def draws(messages, bits):
    keys = jax.random.split(KEY, NUM_DRAWS)
    return jax.vmap(lambda key: coding.quantize(key, messages, bits))(keys)


def exact_variance(message, bits):
    """E‖Q(m) - m‖² / ‖m‖², from where each number lies between two levels."""
    levels = 2 ** (bits - 1) - 1
    place = np.abs(message) / np.linalg.norm(message) * levels % 1
    return np.sum(place * (1 - place)) / levels**2


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_quantized_messages_are_unbiased_with_bits_per_message(dtype):
    """Means and squared errors are right to four standard errors per entry."""
    real = np.random.default_rng(0).normal(size=(3, 64))
    messages = real[:, ::2] + 1j * real[:, 1::2] if dtype == np.complex64 else real
    messages = messages.astype(dtype)
    bits = np.array([2, 4, 9])
    result = np.asarray(draws(messages, bits)).astype(np.complex128)
    misses = result - messages
    spread = np.sqrt(misses.real.var(0) + misses.imag.var(0))
    assert np.all(np.abs(misses.mean(0)) <= ERROR * spread)
    sizes = np.linalg.norm(real, axis=1)
    squares = np.sum(np.abs(misses) ** 2, 2) / sizes**2
    expected = [exact_variance(message, number) for message, number in zip(real, bits)]
    assert np.all(np.abs(squares.mean(0) - expected) <= ERROR * squares.std(0))
    assert np.all(expected < coding.quantization_variance(64, bits))
    levels = 2.0 ** (bits[:, None] - 1) - 1
    steps = np.stack([result.real, result.imag]) * levels / sizes[:, None]
    np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    assert np.all(np.abs(steps) <= levels + 1e-3)


def test_messages_are_rounded_independently():
    """Equal messages of several workers: their mean has less noise than one of them."""
    message = np.random.default_rng(0).normal(size=64)
    messages = np.tile(message, (3, 1)).astype(np.float32)
    bits = np.array([4, 4, 4])
    misses = np.asarray(draws(messages, bits), float) - messages
    of_one = np.sum(misses[:, 0] ** 2, 1).mean()
    of_mean = np.sum(misses.mean(1) ** 2, 1).mean()
    assert of_mean == pytest.approx(of_one / 3, rel=0.1)


def test_the_bound_of_the_quantization_variance_is_sharp():
    """Vectors that reach it: all alike, or all in the middle between two levels.

    For the first ones, √P / (2 M) would be too small.
    """
    alike = np.ones(64)
    bound = coding.quantization_variance(64, 2)
    assert exact_variance(alike, 2) == pytest.approx(bound)
    assert bound > np.sqrt(64) / 2
    # Squares of odd numbers that add up to (2 · 7)².
    middle = np.array([13.0, 5.0, 1.0, 1.0])
    bound = coding.quantization_variance(4, 4)
    assert exact_variance(middle, 4) == pytest.approx(bound)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        length = generator.integers(1, 100)
        bits = generator.integers(2, 8)
        message = generator.normal(size=length) ** generator.integers(1, 6)
        bound = coding.quantization_variance(length, bits)
        assert exact_variance(message, bits) <= bound * (1 + 1e-9)
        levels = 2.0 ** (bits - 1) - 1
        assert bound <= min(length / levels**2, np.sqrt(length) / levels)


def test_zero_huge_and_infinite_messages_are_quantized(with_x64):
    sizes = np.array([0.0, 1e-30, 1e30, np.inf, np.nan], np.float32)
    messages = sizes[:, None] * np.ones((5, 3), np.float32)
    quantize = jax.jit(coding.quantize)
    result = np.asarray(quantize(KEY, messages, 8))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[0], 0)
    np.testing.assert_allclose(result[1:3], messages[1:3], rtol=0.02)
    assert np.isnan(result[3:]).all()
    half = np.ones((1, 2), jnp.bfloat16)
    assert jax.eval_shape(quantize, KEY, half, 8).dtype == np.float32


def test_wrong_traced_bits_give_nan():
    result = jax.jit(coding.quantize)(KEY, np.ones((4, 2)), np.array([1, 2, 24, 25]))
    np.testing.assert_array_equal(np.isnan(result).all(1), [True, False, False, True])


def objective(probabilities, length, bits):
    sent = np.array(bits) > 0
    lost = probabilities[sent]
    variance = coding.quantization_variance(length, np.array(bits)[sent])
    return np.sum((1 - lost) / (lost + variance))


class TestAllocateBits:
    @pytest.mark.parametrize("total", [2, 3, 7, 12, 17])
    def test_no_other_allocation_is_better(self, total):
        """All allocations of four workers, one by one."""
        generator = np.random.default_rng(total)
        for length in (1, 30, 1000):
            probabilities = generator.uniform(0.01, 0.9, 4)
            bits = coding.allocate_bits(probabilities, length, total)
            assert bits.sum() <= total
            best = max(
                objective(probabilities, length, other)
                for other in itertools.product([0, *range(2, total + 1)], repeat=4)
                if sum(other) <= total
            )
            result = objective(probabilities, length, bits)
            assert result == pytest.approx(best, rel=1e-12)

    def test_no_worker_gets_more_than_24_bits(self):
        np.testing.assert_array_equal(coding.allocate_bits([0.1, 0.5], 8, 10**6), 24)


@pytest.mark.parametrize(
    ("variances", "error", "message"),
    [
        (1.0, ValueError, "variances must have (shape|a leading axis)"),
        ([], ValueError, "variances must have (shape|a leading axis)"),
        ([[1.0, 2.0]], ValueError, "variances must have (shape|a leading axis)"),
        (np.ones(6, bool), TypeError, "variances must be real numbers"),
    ],
)
def test_inverse_variance_weights_rejects_other_arrays(variances, error, message):
    with pytest.raises(error, match=message):
        coding.inverse_variance_weights(variances)


@pytest.mark.parametrize(
    ("residuals", "error", "message"),
    [
        (np.ones(3), ValueError, "residuals must have (shape|a leading axis)"),
        (np.ones((2, 0)), ValueError, "residuals must have (shape|a leading axis)"),
        (np.array([[1.0], [np.nan]]), ValueError, "residuals must be"),
        (1j * np.ones((6, 2)), TypeError, "residuals must be real numbers"),
    ],
)
def test_source_variances_rejects_other_residuals(residuals, error, message):
    with pytest.raises(error, match=message):
        coding.source_variances(residuals)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"leverage": np.ones(6)}, "leverage must"),
        ({"leverage": -1.0}, "leverage.* = -1"),
        ({"leverage": 1.5}, "leverage.* = 1.5"),
        ({"row_weights": 1.0}, "row_weights must have"),
        ({"row_weights": -np.ones((2, 6), np.float32)}, "row_weights.*-1"),
    ],
)
def test_source_variances_rejects_wrong_leverage_and_weights(arguments, message):
    with pytest.raises(ValueError, match=message):
        coding.source_variances(np.ones((2, 6), np.float32), **arguments)


@pytest.mark.parametrize("last", [1 - 1e-7, 1])
def test_source_variances_needs_degrees_of_freedom(last):
    """The rows of source 1 determine as many parameters as there are rows."""
    leverage = np.float32([[0.5] * 6, [last] * 6])
    with pytest.raises(ValueError, match="must have a positive sum.*source 1"):
        coding.source_variances(np.ones((2, 6), np.float32), leverage)


@pytest.mark.parametrize(
    ("messages", "bits", "error", "message"),
    [
        (np.ones((1, 2)), 0, ValueError, r"bits.*got bits\[0\] = 0"),
        (np.ones((1, 2)), 25, ValueError, r"bits.*got bits\[0\] = 25"),
        (np.ones((1, 3)), [4, 4], ValueError, "bits must have (shape|a leading axis)"),
        (np.ones(3), 4, ValueError, "messages must have (shape|a leading axis)"),
        (np.ones((0, 3)), 4, ValueError, "messages must have (shape|a leading axis)"),
        ([[1, 2]], 4, TypeError, "messages must be real or complex"),
        (np.ones((1, 2)), 4.0, TypeError, "bits must be integers"),
    ],
)
def test_quantize_rejects_wrong_messages_and_bits(messages, bits, error, message):
    with pytest.raises(error, match=message):
        coding.quantize(jax.random.key(0), messages, bits)


def test_quantization_variance_rejects_wrong_and_traced_bits():
    with pytest.raises(ValueError, match=r"bits.*got bits\[1\] = 1"):
        coding.quantization_variance(8, [4, 1])
    with pytest.raises(TypeError, match="bits must be"):
        jax.eval_shape(lambda bits: coding.quantization_variance(8, bits), 4)


@pytest.mark.parametrize(
    ("straggler_probabilities", "message"),
    [
        ([0.5, 1.0], r"straggler_probabilities\[1\]"),
        ([], "probabilities must have (shape|a leading axis)"),
    ],
)
def test_allocate_bits_rejects_wrong_probabilities(straggler_probabilities, message):
    with pytest.raises(ValueError, match=message):
        coding.allocate_bits(straggler_probabilities, 8, 4)
