"""Codes of graphs whose workers are edges."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.codes import _graphs
from tests.zoo import KEY


@pytest.mark.parametrize(("num_parts", "degree"), [(2, 1), (5, 4), (10, 6), (9, 2)])
def test_every_worker_is_an_edge(num_parts, degree):
    code = codes.edge_graph(KEY, num_parts, degree)
    assert code.num_workers == num_parts * degree // 2
    assert np.all(code.parts_per_worker == 2)
    assert np.all(code.assignment.sum(0) == degree)
    # Simple: no two workers hold the same two parts.
    assert len(np.unique(code.assignment, axis=0)) == code.num_workers
    np.testing.assert_array_equal(code.encoding_matrix, code.assignment)
    code.decoders[0].check(code.encoding_matrix, code.segment_targets)


def test_the_graph_is_that_of_the_key():
    code = codes.edge_graph(KEY, 8, 3)
    adjacency = code.encoding_matrix.T @ code.encoding_matrix - 3 * np.eye(8)
    np.testing.assert_array_equal(adjacency, codes.regular_graph(KEY, 8, 3).assignment)
    traced = jax.jit(lambda key: codes.edge_graph(key, 8, 3).assignment)(KEY)
    np.testing.assert_array_equal(traced, code.assignment)


@pytest.mark.parametrize(
    ("prime", "modulus", "num_vertices"), [(5, 13, 2184), (17, 13, 1092)]
)
def test_ramanujan_graphs(prime, modulus, num_vertices):
    """Simple, regular, of two sides where they should be, and of small eigenvalues."""
    adjacency = _graphs.lps_graph(prime, modulus)
    degree = prime + 1
    assert adjacency.shape == (num_vertices, num_vertices)
    np.testing.assert_array_equal(adjacency, adjacency.T)
    assert np.all(adjacency.sum(0) == degree) and not adjacency.diagonal().any()
    values = np.linalg.eigvalsh(adjacency.astype(np.float64))
    has_two_sides = num_vertices == modulus * (modulus**2 - 1)
    assert (abs(values[0] + degree) < 1e-9) == has_two_sides
    inner = np.abs(values)[np.abs(values) < degree - 1e-9]
    # Connected, so that the largest eigenvalue is there once.
    assert len(inner) == num_vertices - 1 - has_two_sides
    assert inner.max() <= 2 * prime**0.5


def test_divided_by_the_expected_weights_it_is_unbiased():
    """Every part has the same expected weight, over graphs and answers."""
    model = stragglers.bernoulli(0.4)

    def effective_weights(key):
        graph_key, answers_key = jax.random.split(key)
        code = codes.edge_graph(graph_key, 6, 3)
        arrivals, _ = model.sample(answers_key, model.init(9), code.loads)
        return jaxwgc.effective_weights(code, arrivals.received)

    weights = jaxwgc.monte_carlo(effective_weights, KEY, 4000)
    means, spreads = np.mean(weights, axis=0), np.std(weights, axis=0) / 4000**0.5
    share = means.mean()
    assert 0.5 < share < 1
    assert np.all(np.abs(means - share) < 4 * spreads)
