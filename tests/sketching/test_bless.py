"""BLESS against the ridge leverage scores of the whole kernel matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.sketching import bless


def gaussian_kernel(x, y):
    squares = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1) - 2 * x @ y.T
    return jnp.exp(-jnp.maximum(squares, 0) / 2)


def linear_kernel(x, y):
    return jnp.matmul(x, y.T, precision="highest")


@functools.cache
def clusters():
    """Points in dense and thin places: scores over two orders of magnitude."""
    random = np.random.default_rng(0)
    dense = 0.3 * random.standard_normal((500, 2))
    return np.concatenate([dense, 6 * random.standard_normal((100, 2))])


def exact_scores(kernel, data, ridge):
    with jax.enable_x64(True):
        matrix = np.asarray(jax.jit(kernel)(data.astype(float), data.astype(float)))
    return np.diag(np.linalg.solve(matrix + ridge * np.eye(len(data)), matrix))


def test_well_within_a_factor_of_two(with_x64):
    data, ridge = clusters(), 10.0
    exact = exact_scores(gaussian_kernel, data, ridge)
    assert exact.max() > 10 * exact.min()
    sample = bless(jax.random.key(0), gaussian_kernel, data, ridge)
    ratios = np.asarray(sample.scores) / exact
    assert ratios.min() > 0.9 and ratios.max() < 1.5
    # Not all of the points were needed.
    assert sample.indices.size < 0.8 * len(data)
    assert sample.indices.size < 2 * 8 * 1.5 * exact.sum()


def test_well_within_a_factor_of_two_in_float32():
    data = clusters().astype(np.float32)
    exact = exact_scores(gaussian_kernel, data, 1.0)
    sample, again = (
        bless(jax.random.PRNGKey(7), gaussian_kernel, data, 1.0) for _ in range(2)
    )
    assert sample.scores.dtype == jnp.float32
    ratios = np.asarray(sample.scores) / exact
    assert ratios.min() > 0.9 and ratios.max() < 1.5
    np.testing.assert_array_equal(sample.indices, again.indices)


def test_far_fewer_landmarks_than_points(with_x64):
    # Their number follows the effective dimension.
    random = np.random.default_rng(1)
    data = random.standard_normal((5000, 3)) * [1, 1, 20]
    ridge = 50.0
    sample = bless(jax.random.key(0), linear_kernel, data, ridge)
    exact = np.einsum(
        "ij,jk,ik->i", data, np.linalg.inv(data.T @ data + ridge * np.eye(3)), data
    )
    ratios = np.asarray(sample.scores)[exact > 1e-5] / exact[exact > 1e-5]
    assert 0.99 < ratios.min() and ratios.max() < 1.01
    assert sample.indices.size < 100


def test_sample_is_what_it_says(with_x64):
    data = clusters()
    sample = bless(jax.random.key(0), gaussian_kernel, data, 1.0, oversampling=4.0)
    indices = np.asarray(sample.indices)
    assert sample.indices.dtype == jnp.int32
    assert np.all(np.diff(indices) > 0) and indices[-1] < len(data)
    assert sample.scores.shape == (len(data),)
    scores = np.asarray(sample.scores)
    assert np.all((scores > 0) & (scores <= 1))
    assert np.all(np.asarray(sample.weights) >= 1)
    # Landmarks of small scores stand for many points.
    scores = scores[indices]
    assert np.corrcoef(np.log(scores), np.log(sample.weights))[0, 1] < -0.9


def test_weights_are_unbiased(with_x64):
    data = clusters()
    samples = [bless(jax.random.key(i), gaussian_kernel, data, 10.0) for i in range(20)]
    counts = [np.sum(np.asarray(sample.weights)) for sample in samples]
    error = np.std(counts) / np.sqrt(20)
    assert abs(np.mean(counts) - len(data)) < 4 * error + 1e-9
    assert error < 0.05 * len(data)


def test_enough_oversampling_is_exact(with_x64):
    data = clusters()
    sample = bless(jax.random.key(0), gaussian_kernel, data, 0.1, oversampling=1e6)
    assert sample.indices.size == len(data)
    np.testing.assert_array_equal(sample.weights, 1)
    exact = exact_scores(gaussian_kernel, data, 0.1)
    np.testing.assert_allclose(sample.scores, exact, rtol=1e-9)


def test_large_ridge_and_one_point(with_x64):
    data = clusters()
    sample = bless(jax.random.key(0), gaussian_kernel, data, 1e6)
    np.testing.assert_allclose(sample.scores, 1e-6, rtol=1e-3)
    sample = bless(jax.random.key(0), gaussian_kernel, data[:1], 1.0)
    np.testing.assert_allclose(sample.scores, 0.5)
