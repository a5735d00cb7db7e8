"""Random regular graphs: uniform, expanding, and within the bound for every pattern."""

import functools
import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from jaxwgc import decoders
from jaxwgc.codes import _graphs, regular_graph
from tests.conftest import own_decoder


@functools.cache
def random_graphs(num_workers, replication, num_graphs, seed=0):
    """Adjacency matrices by one vmapped call, bool (num_graphs, n, n)."""
    keys = jax.random.split(jax.random.key(seed), num_graphs)
    sample = jax.jit(
        jax.vmap(lambda key: regular_graph(key, num_workers, replication).assignment)
    )
    return np.asarray(sample(keys))


def every_graph(num_vertices, degree):
    """All simple regular graphs with labelled vertices, as tuples of edges."""
    found = []

    def extend(vertex, edges, missing):
        while vertex < num_vertices and missing[vertex] == 0:
            vertex += 1
        if vertex == num_vertices:
            found.append(tuple(edges))
            return
        others = [w for w in range(vertex + 1, num_vertices) if missing[w]]
        for chosen in itertools.combinations(others, missing[vertex]):
            left = list(missing)
            left[vertex] = 0
            for other in chosen:
                left[other] -= 1
            extend(vertex + 1, edges + [(vertex, w) for w in chosen], left)

    extend(0, [], [degree] * num_vertices)
    return found


def absolute_eigenvalues(graphs):
    """Of every graph, falling."""
    values = np.abs(np.linalg.eigvalsh(graphs.astype(np.float64)))
    return np.sort(values, axis=-1)[..., ::-1]


def assert_simple_and_regular(adjacency, degree):
    assert adjacency.dtype == np.bool_
    assert np.all(adjacency.sum(axis=-1) == degree)
    assert np.all(adjacency == np.swapaxes(adjacency, -1, -2))
    assert not np.diagonal(adjacency, axis1=-2, axis2=-1).any()


@pytest.mark.parametrize(
    ("num_workers", "replication"), [(2, 1), (4, 3), (5, 2), (6, 3)]
)
def test_graphs_are_simple_and_regular(num_workers, replication):
    code = regular_graph(jax.random.key(0), num_workers, replication)
    assert_simple_and_regular(code.assignment, replication)
    np.testing.assert_array_equal(
        code.encoding_matrix, code.assignment.astype(np.float64) / replication
    )
    assert own_decoder(code, decoders.OneStep).scale == num_workers
    assert code.decoders[0].is_a(decoders.LeastSquares)
    assert own_decoder(code, decoders.Peeling) is None


@pytest.mark.parametrize("num_vertices", range(1, 12))
def test_the_chain_starts_from_a_regular_graph(num_vertices):
    for degree in range(num_vertices):
        if num_vertices * degree % 2 == 0:
            start = _graphs._circulant_graph(num_vertices, degree)
            assert_simple_and_regular(start, degree)


@pytest.mark.parametrize(("num_vertices", "degree"), [(5, 2), (6, 3)])
def test_every_labelled_graph_is_equally_likely(num_vertices, degree):
    graphs = every_graph(num_vertices, degree)
    assert len(graphs) == {(5, 2): 12, (6, 3): 70}[num_vertices, degree]
    index = {edges: number for number, edges in enumerate(graphs)}
    counts = np.zeros(len(graphs), int)
    for adjacency in random_graphs(num_vertices, degree, 7000):
        counts[index[tuple(map(tuple, np.argwhere(np.triu(adjacency)).tolist()))]] += 1
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_large_graphs_expand():
    """Many at once; the second eigenvalue is near that of the infinite tree."""
    graphs = random_graphs(100, 6, 300)
    assert_simple_and_regular(graphs, 6)
    second = absolute_eigenvalues(graphs)[:, 1]
    assert abs(second.mean() / (2 * np.sqrt(5)) - 1) < 0.05
    assert second.max() < 5.3
    start = _graphs._circulant_graph(100, 6)
    assert absolute_eigenvalues(start)[1] > 5.9
    # In the limit Poisson with mean (d - 1)^3 / 6.
    cube = np.linalg.matrix_power(graphs.astype(np.float64), 3)
    triangles = np.trace(cube, axis1=1, axis2=2) / 6
    assert abs(triangles.mean() - 125 / 6) < 1.5
    # No edge of the start is remembered.
    kept = (graphs & start).sum(axis=(1, 2)) / 2
    error = kept.std() / np.sqrt(len(kept))
    assert abs(kept.mean() - 300 * 6 / 99) < 4 * error


def test_calls_outside_of_jit_compile_once():
    regular_graph(jax.random.key(0), 6, 2)
    compiled = _graphs._swapped._cache_size()
    regular_graph(jax.random.key(1), 6, 2)
    assert _graphs._swapped._cache_size() == compiled
