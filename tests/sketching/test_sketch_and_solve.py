"""Sketch-and-solve against the least-squares solution of the sketched system."""

import functools

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxwgc import sketching
from jaxwgc.sketching import (
    count_sketch,
    gaussian,
    rademacher,
    row_sampling,
    sparse_sign,
    srht,
)

NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE = 300, 12, 96
KEY = jax.random.key(0)

# Gaussian sketches compile faster than the default.
sketch_and_solve = functools.partial(sketching.sketch_and_solve, embedding=gaussian)


@functools.cache
def system():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    return matrix, matrix.sum(axis=1) + random.standard_normal(NUM_ROWS)


@pytest.mark.parametrize("name", ["full rank", "duplicates", "wide", "zero"])
def test_solves_the_sketched_system_with_the_least_norm(with_x64, name):
    matrix, target = system()
    if name == "duplicates":
        matrix = np.hstack([matrix[:, :6], 100 * matrix[:, :6]])
    elif name == "wide":
        matrix, target = matrix[:8], target[:8]
    elif name == "zero":
        matrix = 0 * matrix
    embedding = gaussian(KEY, SKETCH_SIZE, len(matrix))
    found = sketch_and_solve(KEY, matrix, target, SKETCH_SIZE, embedding=embedding)
    sketch = np.asarray(embedding.matrix())
    expected = scipy.linalg.lstsq(sketch @ matrix, sketch @ target, cond=1e-12)[0]
    np.testing.assert_allclose(found.solution, expected, rtol=1e-9, atol=1e-12)
    assert found.converged and found.num_iterations == 1
    np.testing.assert_allclose(
        found.residual_history,
        [np.linalg.norm(target), np.linalg.norm(target - matrix @ expected)],
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "embedding", [rademacher, srht, count_sketch, sparse_sign, row_sampling]
)
def test_residual_is_near_the_optimum(with_x64, embedding):
    check_residual(KEY, np.float64, embedding)


def test_float32_and_typed_keys():
    check_residual(jax.random.key(3), np.float32, gaussian)


def test_float32_in_64_bit_mode_and_raw_keys(with_x64):
    check_residual(jax.random.PRNGKey(3), np.float32, gaussian)


@functools.partial(jax.jit, static_argnums=3)
def solve(key, matrix, target, embedding):
    return sketching.sketch_and_solve(key, matrix, target, SKETCH_SIZE, embedding)


def check_residual(key, dtype, embedding):
    matrix, target = system()
    found = solve(key, matrix.astype(dtype), target.astype(dtype), embedding)
    assert found.solution.dtype == dtype and found.converged
    optimum = np.linalg.norm(target - matrix @ scipy.linalg.lstsq(matrix, target)[0])
    residual = np.linalg.norm(target - matrix @ np.asarray(found.solution))
    history = np.asarray(found.residual_history)
    np.testing.assert_allclose(history[1], residual, rtol=1e-5)
    # The squared excess is about p / m in the mean.
    assert 1 < (residual / optimum) ** 2 < 1 + 3 * NUM_COLUMNS / SKETCH_SIZE


def test_expected_excess_of_gaussian_sketches(with_x64):
    matrix, target = system()
    found = jax.vmap(lambda key: sketch_and_solve(key, matrix, target, 96))(
        jax.random.split(KEY, 200)
    )
    optimum = np.linalg.norm(target - matrix @ scipy.linalg.lstsq(matrix, target)[0])
    excess = np.mean(np.square(found.residual_history[:, 1])) / optimum**2 - 1
    # Of an inverse Wishart matrix; the standard error is about 3%.
    expected = NUM_COLUMNS / (SKETCH_SIZE - NUM_COLUMNS - 1)
    np.testing.assert_allclose(excess, expected, rtol=0.12)


def test_many_targets_share_the_sketch(with_x64):
    matrix, target = system()
    targets = np.stack([target, 1e3 * target, 0 * target], axis=1)
    found = sketch_and_solve(KEY, matrix, targets, SKETCH_SIZE)
    alone = sketch_and_solve(KEY, matrix, target, SKETCH_SIZE).solution
    np.testing.assert_allclose(
        found.solution, np.stack([alone, 1e3 * alone, 0 * alone], 1), rtol=1e-12
    )
    assert found.residual_history.shape == (2, 3)
    assert found.converged.shape == found.num_iterations.shape == (3,)
    mapped = jax.vmap(
        lambda target: sketch_and_solve(KEY, matrix, target, SKETCH_SIZE), in_axes=1
    )(targets)
    np.testing.assert_allclose(mapped.solution.T, found.solution, rtol=1e-12)


def test_no_overflow_in_float32():
    matrix, target = (part.astype(np.float32) for part in system())
    expected = solve(KEY, matrix, target, gaussian).solution
    for scale in (np.float32(1e-30), np.float32(1e30)):
        found = solve(KEY, matrix * scale, target * scale, gaussian)
        np.testing.assert_allclose(found.solution, expected, rtol=1e-4, atol=1e-5)


def test_traced_nan_is_flagged():
    matrix, target = (part.astype(np.float32) for part in system())
    bad_matrix, bad_target = matrix.copy(), target.copy()
    bad_matrix[3, 4], bad_target[3] = np.nan, np.inf
    for case in ((bad_matrix, target), (matrix, bad_target)):
        found = solve(KEY, *case, gaussian)
        assert not found.converged and np.isnan(found.residual_history[-1])
    assert solve(KEY, matrix, target, gaussian).converged


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sketch_size": 0}, "sketch_size must be at least 1; got 0"),
        ({"sketch_size": 3}, r"sketch_size must be at least .* = 4; got 3"),
        ({"embedding": gaussian(KEY, 7, 20)}, "embedding must have"),
        ({"rcond": 1.0}, "rcond must be less than 1"),
        ({"matrix": np.full((20, 4), np.nan)}, "matrix must be finite"),
        ({"target": np.ones(19)}, "target must have as many rows as matrix"),
    ],
)
def test_wrong_values(change, message):
    args = {"matrix": np.eye(20)[:, :4], "target": np.ones(20), "sketch_size": 8}
    with pytest.raises(ValueError, match=message):
        sketch_and_solve(KEY, **(args | change))


@jax.jit
def of_many_samples(matrix, target):
    """By 20 of 200 rows, each time others."""
    return jax.vmap(
        lambda key: sketching.sketch_and_solve(key, matrix, target, 20, row_sampling)
    )(jax.random.split(KEY, 20))


def test_says_no_where_the_sketch_misses_a_direction(with_x64):
    matrix = np.zeros((200, 4))
    matrix[:4] = np.eye(4)
    target = np.arange(200.0)
    assert not np.any(of_many_samples(matrix, target).converged)
    # A direction that the matrix does not have is no loss.
    deficient = np.random.default_rng(0).normal(size=(200, 4))[:, [0, 1, 0, 1]]
    assert np.all(of_many_samples(deficient, target).converged)


def test_says_yes_where_an_outlier_was_not_sampled(with_x64):
    """Rounding in a row 1e8 times as long as the others is no missed direction."""
    matrix = np.random.default_rng(0).normal(size=(200, 4))
    matrix[3] *= 1e8
    assert np.all(of_many_samples(matrix, matrix[:, 0]).converged)


def test_small_sketches_by_default():
    """The default embedding then has fewer non-zeros."""
    matrix = np.random.default_rng(0).normal(size=(50, 4))
    found = sketching.sketch_and_solve(jax.random.key(0), matrix, matrix[:, 0], 4)
    np.testing.assert_allclose(found.solution, [1, 0, 0, 0], atol=1e-3)


def test_traced_cutoff_out_of_range_is_flagged():
    matrix = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)

    @jax.jit
    def with_cutoff(rcond):
        return sketch_and_solve(KEY, matrix, matrix[:, 0], 20, rcond=rcond)

    assert with_cutoff(1e-4).converged
    for rcond in (np.nan, -1.0, 2.0):
        found = with_cutoff(rcond)
        assert not found.converged and np.isnan(found.solution).all()
