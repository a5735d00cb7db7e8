"""Random regular graphs, and Ramanujan graphs."""

import itertools

import jax
import numpy as np
import pytest

from jaxwgc import decoders
from jaxwgc.codes import _graphs, ramanujan_graph, regular_graph
from tests.conftest import own_decoder
from tests.oracles import check_counts
from tests.zoo import KEY

# Vertices and degrees; of each there is a compiled function.
SIZES = [(2, 1), (5, 4), (5, 2), (6, 3)]


def random_graphs(num_workers, copies, num_graphs):
    """Adjacency matrices by one vmapped call, bool (num_graphs, n, n)."""
    keys = jax.random.split(KEY, num_graphs)
    sample = jax.vmap(lambda key: regular_graph(key, num_workers, copies))
    return np.asarray(jax.jit(sample)(keys).assignment)


def every_graph(num_vertices, degree):
    """All simple regular graphs with labelled vertices, as tuples of edges."""
    pairs = list(itertools.combinations(range(num_vertices), 2))
    for edges in itertools.combinations(pairs, num_vertices * degree // 2):
        if np.all(np.bincount(np.ravel(edges), minlength=num_vertices) == degree):
            yield edges


def absolute_eigenvalues(graphs):
    """Absolute eigenvalues of every graph, in decreasing order."""
    values = np.abs(np.linalg.eigvalsh(graphs.astype(np.float64)))
    return np.sort(values, axis=-1)[..., ::-1]


def assert_simple_and_regular(adjacency, degree):
    assert np.all(adjacency.sum(axis=-1) == degree)
    assert np.all(adjacency == np.swapaxes(adjacency, -1, -2))
    assert not np.diagonal(adjacency, axis1=-2, axis2=-1).any()


class TestRegularGraph:
    @pytest.mark.parametrize(("num_workers", "copies"), SIZES)
    def test_graphs_are_simple_and_regular(self, num_workers, copies):
        code = regular_graph(KEY, num_workers, copies)
        assert code.assignment.dtype == np.bool_
        assert_simple_and_regular(code.assignment, copies)
        expected = code.assignment / copies
        np.testing.assert_array_equal(code.encoding_matrix, expected)
        assert own_decoder(code, decoders.OneStep).scale == num_workers
        assert code.decoders[0].is_a(decoders.LeastSquares)
        assert own_decoder(code, decoders.Peeling) is None

    def test_every_labelled_graph_is_equally_likely(self):
        counts = dict.fromkeys(every_graph(6, 3), 0)
        for adjacency in random_graphs(6, 3, 7000):
            edges = np.argwhere(np.triu(adjacency)).tolist()
            counts[tuple(map(tuple, edges))] += 1
        assert len(counts) == 70
        check_counts(list(counts.values()))

    def test_large_graphs_expand(self):
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

    def test_calls_outside_of_jit_compile_once(self):
        regular_graph(KEY, 6, 3)
        compiled = _graphs._swapped._cache_size()
        regular_graph(jax.random.key(1), 6, 3)
        assert _graphs._swapped._cache_size() == compiled


@pytest.mark.parametrize(
    ("prime", "modulus", "num_vertices"), [(5, 13, 2184), (17, 13, 1092)]
)
def test_ramanujan_graphs(prime, modulus, num_vertices):
    """Simple, regular, of two sides where they should be, and of small eigenvalues."""
    adjacency = _graphs.lps_graph(prime, modulus)
    degree = prime + 1
    assert adjacency.shape == (num_vertices, num_vertices)
    assert_simple_and_regular(adjacency, degree)
    values = np.linalg.eigvalsh(adjacency.astype(np.float64))
    has_two_sides = num_vertices == modulus * (modulus**2 - 1)
    assert (abs(values[0] + degree) < 1e-9) == has_two_sides
    inner = np.abs(values)[np.abs(values) < degree - 1e-9]
    # Connected, so that the largest eigenvalue is there once.
    assert len(inner) == num_vertices - 1 - has_two_sides
    assert inner.max() <= 2 * prime**0.5


@pytest.mark.parametrize(
    ("num_workers", "copies", "message"),
    [(9, 7, "copies.*even.*; got 7"), (5, 8, "copies.*1 to 4.*; got 8")],
)
def test_regular_graph_rejects_impossible_degrees(num_workers, copies, message):
    with pytest.raises(ValueError, match=message):
        regular_graph(KEY, num_workers, copies)


@pytest.mark.parametrize(
    ("prime", "modulus", "message"),
    [
        (7, 13, "prime must be a prime with.*; got 7"),
        (5, 21, "modulus.*got 21"),
        (13, 13, "modulus must differ from prime"),
        (13, 5, "larger.*got modulus = 5 and prime"),
    ],
)
def test_ramanujan_graph_rejects_wrong_primes(prime, modulus, message):
    with pytest.raises(ValueError, match=message):
        ramanujan_graph(prime, modulus)
