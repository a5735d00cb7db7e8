"""Scores of other objects: Lewis weights, BLESS of kernels, resistances of graphs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc.sketching import bless, effective_resistances, lewis_weights
from tests import oracles
from tests.sketching.references import resistances_by_inverse
from tests.sketching.zoo import KEY

# Lewis weights satisfy their fixed-point equation.


@functools.cache
def lewis_cases():
    random = np.random.default_rng(0)
    gaussian = random.standard_normal((200, 6))
    coherent = gaussian.copy()
    coherent[:6] = 1e3 * np.eye(6)
    coherent[50:60] = 0
    return {
        "gaussian": (gaussian, 6),
        "rows of all sizes": (gaussian * 10 ** random.uniform(-2, 2, (200, 1)), 6),
        "coherent, zero rows": (coherent, 6),
        "rank-deficient": (gaussian[:, :3] @ random.standard_normal((3, 6)), 3),
    }


def fixed_point(matrix, weights, p, rank):
    """Leverage scores of W^(1/2 - 1/p) X in float64."""
    weights = np.asarray(weights, np.float64)
    # Weights that are zero, or too small for float32, are those of rows of no account.
    powers = np.where(weights > 0, weights, 1) ** (0.5 - 1 / p) * (weights > 0)
    weighted = powers[:, None] * matrix
    return oracles.leverage_scores(weighted / np.abs(weighted).max(), 0, rank=rank)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2, 3.0, 3.9, 4.0, 6.0, 20.0])
def test_fixed_point(p, x64):
    for matrix, rank in lewis_cases().values():
        result = jax.tree.map(np.asarray, lewis_weights(matrix, p))
        assert result.converged
        expected = fixed_point(matrix, result.weights, p, rank)
        # Weights for p = 2 are leverage scores, without any iterations.
        assert p != 2 or result.num_iterations <= 1
        tolerance = (1e-12 if x64 else 1e-5) if p == 2 else (1e-11 if x64 else 2e-4)
        np.testing.assert_allclose(result.weights, expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(result.weights.sum(), rank, rtol=tolerance)
        zero = ~matrix.any(axis=1)
        np.testing.assert_array_equal(result.weights[zero], 0)
        assert np.all(result.weights[~zero] > 0) or not x64


def test_relative_accuracy_of_small_weights(with_x64):
    matrix, rank = lewis_cases()["rows of all sizes"]
    result = lewis_weights(matrix, 3.0)
    assert np.min(result.weights) < 1e-9
    expected = fixed_point(matrix, result.weights, 3.0, rank)
    np.testing.assert_allclose(result.weights, expected, rtol=1e-9)


def test_large_p_counts_the_ellipse_around_all_rows(with_x64):
    """As p tends to infinity, rows that touch the John ellipsoid have all weight."""
    matrix = np.zeros((200, 6))
    matrix[:4, :2] = [[1.0, 0], [0, 1], [0.5, 0.5], [0.1, -0.3]]
    result = lewis_weights(matrix, 100.0)
    np.testing.assert_allclose(result.weights, [1, 1] + [0] * 198, atol=1e-6)


def test_zero_matrix_and_wide(with_x64):
    result = lewis_weights(np.zeros((200, 6)), 1.0)
    np.testing.assert_array_equal(result.weights, 0)
    assert result.converged
    wide = np.random.default_rng(2).standard_normal((3, 8))
    np.testing.assert_allclose(lewis_weights(wide, 1.0).weights, 1, atol=1e-4)


def test_too_few_iterations_and_tolerances():
    solve = functools.partial(lewis_weights, lewis_cases()["gaussian"][0])
    few = solve(0.5, max_iterations=2)
    loose = solve(0.5, tolerance=0.1)
    assert not few.converged and few.num_iterations == 2 and few.residual > 1e-3
    assert loose.converged and loose.residual <= 0.1
    # One that is out of reach ends.
    strict = solve(3.0, tolerance=0.0)
    assert strict.num_iterations < 200 and strict.residual < 1e-4


# BLESS against the ridge leverage scores of the whole kernel matrix.


def gaussian_kernel(x, y):
    squares = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1) - 2 * x @ y.T
    return jnp.exp(-jnp.maximum(squares, 0) / 2)


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


def test_bless_scores_are_within_a_factor_of_two():
    data = clusters().astype(np.float32)
    exact = exact_scores(gaussian_kernel, data, 1.0)
    assert exact.max() > 10 * exact.min()
    sample = bless(KEY, gaussian_kernel, data, 1.0)
    again = bless(jax.random.key_data(KEY), gaussian_kernel, data, 1.0)
    ratios = np.asarray(sample.scores) / exact
    assert ratios.min() > 0.9 and ratios.max() < 1.5
    assert sample.scores.dtype == np.float32
    np.testing.assert_array_equal(sample.indices, again.indices)
    # Not all of the points were needed: their number follows the effective dimension.
    assert sample.indices.size < min(0.8 * len(data), 2 * 8 * 1.5 * exact.sum())


def test_fields_of_the_sample_are_consistent():
    data = clusters()
    sample = bless(KEY, gaussian_kernel, data, 1.0, oversampling=4.0)
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


def test_weights_are_unbiased():
    data = clusters()
    samples = [bless(jax.random.key(i), gaussian_kernel, data, 10.0) for i in range(20)]
    counts = [np.sum(np.asarray(sample.weights)) for sample in samples]
    error = np.std(counts) / np.sqrt(20)
    assert abs(np.mean(counts) - len(data)) < 4 * error + 1e-9
    assert error < 0.05 * len(data)


def test_bless_is_exact_with_much_oversampling_or_a_large_ridge(with_x64):
    """Enough oversampling is exact; so are a large ridge, and one point."""
    data = clusters()[::6]
    sample = bless(KEY, gaussian_kernel, data, 0.1, oversampling=1e6)
    np.testing.assert_array_equal(sample.weights, np.ones(len(data)))
    exact = exact_scores(gaussian_kernel, data, 0.1)
    np.testing.assert_allclose(sample.scores, exact, rtol=1e-9)
    for points, ridge, score in ((data, 1e6, 1e-6), (data[:1], 1.0, 0.5)):
        scores = bless(KEY, gaussian_kernel, points, ridge).scores
        np.testing.assert_allclose(scores, score, rtol=1e-3)


# Resistances against pseudo-inverses, and of known graphs.


def random_graph(num_vertices, num_edges, seed=0):
    random = np.random.default_rng(seed)
    edges = random.integers(0, num_vertices, (num_edges, 2))
    edges = edges[edges[:, 0] != edges[:, 1]]
    return edges, np.exp(random.standard_normal(len(edges)))


# The number of vertices, and of edges.
SIZE = 400


def resistances_of(edges, weights):
    """Loops and vertices without edges fill up, so that graphs share a program."""
    num_edges = len(edges)
    edges = np.pad(edges, ((0, SIZE - num_edges), (0, 0)), constant_values=SIZE - 1)
    weights = np.pad(weights, (0, SIZE - num_edges), constant_values=1)
    result = np.asarray(effective_resistances(edges, weights, SIZE))
    np.testing.assert_array_equal(result[num_edges:], 0)
    return result[:num_edges]


# The last has isolated vertices, many components, and fewer edges than vertices.
@pytest.mark.parametrize(("num_vertices", "num_edges"), [(20, 90), (40, 24)])
def test_equal_to_pseudo_inverse(num_vertices, num_edges, x64):
    edges, weights = random_graph(num_vertices, num_edges)
    resistances = resistances_of(edges, weights)
    assert resistances.dtype == (np.float64 if x64 else np.float32)
    expected = resistances_by_inverse(edges, weights, num_vertices)
    np.testing.assert_allclose(resistances, expected, rtol=1e-10 if x64 else 1e-4)


@pytest.mark.parametrize("length", [2, 3, 200])
def test_path_and_cycle(length, x64):
    """Labels are random, so that those of components travel far."""
    vertices = np.arange(length)
    path = np.stack([vertices[:-1], vertices[1:]], axis=1)
    cycle = length + np.stack([vertices, np.roll(vertices, 1)], axis=1)
    weights = np.linspace(0.5, 2, length - 1)
    labels = np.random.default_rng(3).permutation(2 * length)
    edges = labels[np.concatenate([path, cycle])]
    result = resistances_of(edges, np.concatenate([weights, np.ones(length)]))
    expected = np.concatenate([1 / weights, np.full(length, (length - 1) / length)])
    np.testing.assert_allclose(result, expected, rtol=1e-9 if x64 else 2e-4)


@pytest.mark.parametrize("bridge", [1e-9, 1e-25])
def test_weakly_connected_clusters(bridge, x64):
    # The second eigenvalue is far below the rounding unit. The other clusters hang
    # together by two bridges, which carry a little current for edges inside.
    edges, weights = random_graph(20, 90)
    all_edges = np.concatenate([edges, edges + 20, edges + 40])
    bridges = np.array([[0, 20], [25, 45], [27, 50]])
    all_weights = [*np.tile(weights, 3), bridge, bridge, 2 * bridge]
    resistances = resistances_of(np.concatenate([all_edges, bridges]), all_weights)
    inside = resistances_by_inverse(edges, weights, 20)
    # Beside the bridge, a cluster is a point.
    expected = [*np.tile(inside, 3), 1 / bridge, 1 / 3 / bridge, 1 / 3 / bridge]
    np.testing.assert_allclose(resistances, expected, rtol=1e-7 if x64 else 1e-4)


def test_weights_over_many_orders_of_magnitude(x64):
    # A path of double edges.
    weights = np.outer(np.logspace(-25, 5, 30), [1, 3]).ravel()
    edges = np.arange(30).repeat(2)[:, None] + [0, 1]
    shares = weights * resistances_of(edges, weights)
    expected = np.tile([0.25, 0.75], 30)
    np.testing.assert_allclose(shares, expected, rtol=1e-10 if x64 else 1e-4)


def test_loops_and_parallel_edges():
    edges = [[0, 1], [1, 0], [2, 2], [1, 1], [3, 4]]
    resistances = resistances_of(edges, np.ones(5))
    np.testing.assert_allclose(resistances, [0.5, 0.5, 0, 0, 1], rtol=1e-5)


def test_weights_whose_squares_are_beyond_the_range(with_x64):
    result = resistances_of([[0, 1], [1, 2]], [1e-150, 1e150])
    np.testing.assert_allclose(result, [1e150, 1e-150])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_ends_of_edges_may_have_a_narrow_dtype(dtype):
    last = np.iinfo(dtype).max
    path = np.array([[0, last], [last, 1]], dtype)
    np.testing.assert_allclose(effective_resistances(path), [1, 1])


def test_ends_of_edges_may_be_traced_one_by_one():
    def resistance(first, second):
        return effective_resistances([[first, second]], num_vertices=3)

    np.testing.assert_allclose(jax.jit(resistance)(0, 1), [1])
