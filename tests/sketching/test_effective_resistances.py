"""Effective resistances against pseudo-inverses in float64, and known graphs."""

import jax
import numpy as np
import pytest

from jaxwgc.sketching import effective_resistances


def laplacian(edges, weights, num_vertices):
    incidence = np.zeros((len(edges), num_vertices))
    order = np.arange(len(edges))
    incidence[order, edges[:, 0]] += 1
    incidence[order, edges[:, 1]] -= 1
    return incidence.T * weights @ incidence, incidence


def reference(edges, weights, num_vertices):
    matrix, incidence = laplacian(edges, weights, num_vertices)
    inverse = np.linalg.pinv(matrix, rcond=1e-11, hermitian=True)
    return np.einsum("ij,jk,ik->i", incidence, inverse, incidence)


def random_graph(num_vertices, num_edges, seed=0):
    random = np.random.default_rng(seed)
    edges = random.integers(0, num_vertices, (num_edges, 2))
    edges = edges[edges[:, 0] != edges[:, 1]]
    return edges, np.exp(random.standard_normal(len(edges)))


# The number of vertices, and of edges.
SIZE = 400


def resistances_of(edges, weights):
    """Loops and vertices without edges fill up, so that graphs share a program."""
    num_missing = SIZE - len(edges)
    edges = np.concatenate([edges, np.full((num_missing, 2), SIZE - 1)])
    weights = np.concatenate([weights, np.ones(num_missing)])
    result = np.asarray(effective_resistances(edges, weights, SIZE))
    np.testing.assert_array_equal(result[SIZE - num_missing :], 0)
    return result[: SIZE - num_missing]


# The last has isolated vertices, many components, and fewer edges than vertices.
@pytest.mark.parametrize(("num_vertices", "num_edges"), [(20, 90), (40, 24)])
def test_equal_to_pseudo_inverse(num_vertices, num_edges, x64):
    edges, weights = random_graph(num_vertices, num_edges)
    resistances = resistances_of(edges, weights)
    assert resistances.dtype == (np.float64 if x64 else np.float32)
    expected = reference(edges, weights, num_vertices)
    np.testing.assert_allclose(resistances, expected, rtol=1e-10 if x64 else 1e-4)


@pytest.mark.parametrize("length", [2, 3, 200])
def test_path_and_cycle(length, x64):
    vertices = np.arange(length)
    path = np.stack([vertices[:-1], vertices[1:]], axis=1)
    cycle = length + np.stack([vertices, np.roll(vertices, 1)], axis=1)
    weights = np.linspace(0.5, 2, length - 1)
    result = resistances_of(
        np.concatenate([path, cycle]), np.concatenate([weights, np.ones(length)])
    )
    expected = np.concatenate([1 / weights, np.full(length, (length - 1) / length)])
    np.testing.assert_allclose(result, expected, rtol=1e-9 if x64 else 2e-4)


@pytest.mark.parametrize("bridge", [1e-9, 1e-25])
def test_weakly_connected_clusters(bridge, x64):
    # The second eigenvalue is far below the rounding unit. The other clusters hang
    # together by two bridges, which carry a little current for edges inside.
    edges, weights = random_graph(20, 90)
    both = np.concatenate([edges, edges + 20, edges + 40])
    bridges = np.array([[0, 20], [25, 45], [27, 50]])
    resistances = resistances_of(
        np.concatenate([both, bridges]),
        np.concatenate([np.tile(weights, 3), [bridge, bridge, 2 * bridge]]),
    )
    inside = reference(edges, weights, 20)
    # Beside the bridge, a cluster is a point.
    between = np.array([1, 1 / 3, 1 / 3]) / bridge
    np.testing.assert_allclose(
        resistances,
        np.concatenate([inside, inside, inside, between]),
        rtol=1e-7 if x64 else 1e-4,
    )


def test_weights_over_many_orders_of_magnitude(x64):
    # A path of double edges.
    strengths = np.logspace(-25, 5, 30)
    edges = np.concatenate([[[i, i + 1], [i, i + 1]] for i in range(30)])
    weights = np.stack([strengths, 3 * strengths], axis=1).reshape(-1)
    resistances = resistances_of(edges, weights)
    np.testing.assert_allclose(
        weights * resistances, np.tile([0.25, 0.75], 30), rtol=1e-10 if x64 else 1e-4
    )


def test_loops_and_parallel_edges():
    resistances = effective_resistances([[0, 1], [1, 0], [2, 2], [1, 1], [3, 4]])
    np.testing.assert_allclose(resistances, [0.5, 0.5, 0, 0, 1], rtol=1e-5)


def test_many_labels_travel_far():
    """Components whose vertices are numbered in a random order."""
    random = np.random.default_rng(3)
    names = random.permutation(120)
    paths = np.stack([names[:-1], names[1:]], axis=1)[np.arange(119) % 40 != 39]
    result = resistances_of(paths[random.permutation(len(paths))], np.ones(len(paths)))
    np.testing.assert_allclose(result, 1, rtol=1e-3)


def test_jit_vmap_and_traced_values():
    edges, weights = random_graph(20, 90)
    all_edges, all_weights = np.stack([edges] * 5), np.stack([weights] * 5)
    all_weights[1] *= 2
    all_weights[2, 3], all_weights[3, 3], all_edges[4, 3, 0] = -1, np.nan, 20
    traced = jax.jit(jax.vmap(lambda e, w: effective_resistances(e, w, 20)))
    result = traced(all_edges, all_weights)
    expected = reference(edges, weights, 20)
    np.testing.assert_allclose(result[:2], [expected, expected / 2], rtol=1e-4)
    assert np.isnan(result[2:]).all()


def test_weights_beyond_the_range(with_x64):
    """The smaller one would underflow, and its edge would be taken for none."""
    path = [[0, 1], [1, 2]]
    result = resistances_of(path, [1e-150, 1e150])
    np.testing.assert_allclose(result, [1e150, 1e-150])
    with pytest.raises(ValueError, match="weights must not differ by more than"):
        effective_resistances(path, [1e-200, 1e200])
    traced = jax.jit(lambda weights: effective_resistances(path, weights, 3))
    assert np.isnan(traced(np.array([1e-200, 1e200]))).all()
