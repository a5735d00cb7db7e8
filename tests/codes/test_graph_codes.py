"""Codes of graphs and of block designs: uniform, expanding, or all pairs alike."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers
from jaxwgc.codes import edge_graph, paley, projective_plane, regular_graph
from tests.zoo import KEY

# Vertices and degrees; of each there is a compiled function.
SIZES = [(2, 1), (5, 4), (5, 2), (6, 3)]


class TestEdgeGraph:
    @pytest.mark.parametrize(("num_parts", "degree"), SIZES)
    def test_every_worker_is_an_edge(self, num_parts, degree):
        """The workers are the edges of the regular graph of the key."""
        code = edge_graph(KEY, num_parts, degree)
        assert code.num_workers == num_parts * degree // 2
        assert np.all(code.parts_per_worker == 2)
        np.testing.assert_array_equal(code.encoding_matrix, code.assignment)
        adjacency = code.encoding_matrix.T @ code.encoding_matrix
        expected = regular_graph(KEY, num_parts, degree).assignment
        np.testing.assert_array_equal(adjacency, expected + degree * np.eye(num_parts))
        # The messages with a part are those of its decoder.
        held = np.nonzero(code.encoding_matrix.T)[1].reshape(num_parts, degree)
        np.testing.assert_array_equal(np.sort(code.decoders[0].incident), held)

    def test_effective_weights_have_equal_means_over_graphs_and_rounds(self):
        """Every part has the same expected weight, over graphs and responses."""
        model = stragglers.bernoulli(0.4)

        def effective_weights(key):
            graph_key, responses_key = jax.random.split(key)
            code = edge_graph(graph_key, 6, 3)
            arrivals, _ = model.sample(responses_key, model.init(9), code.loads)
            return jaxwgc.decoding(code, arrivals.received).effective_weights

        weights = jaxwgc.monte_carlo(effective_weights, KEY, 4000)
        means = np.mean(weights, axis=0)
        spreads = np.std(weights, axis=0) / 4000**0.5
        share = means.mean()
        assert 0.5 < share < 1
        assert np.all(np.abs(means - share) < 4 * spreads)


@pytest.mark.parametrize(
    ("code", "v", "kappa", "lambda_"),
    [(projective_plane(q), q * q + q + 1, q + 1, 1) for q in (2, 3, 5, 7)]
    + [(paley(v), v, v // 2, v // 4) for v in (3, 7, 11, 19, 23)],
    ids=str,
)
def test_two_workers_share_lambda_parts_and_two_parts_lambda_workers(
    code, v, kappa, lambda_
):
    matrix = code.encoding_matrix
    expected = (kappa - lambda_) * np.eye(v) + lambda_
    assert matrix.shape == (v, v)
    assert set(np.unique(matrix)) == {0, 1}
    np.testing.assert_array_equal(matrix @ matrix.T, expected)
    np.testing.assert_array_equal(matrix.T @ matrix, expected)
    np.testing.assert_array_equal(matrix, code.assignment)


@pytest.mark.parametrize(
    ("num_parts", "degree", "message"),
    [(7, 3, "degree.*= 7 .*; got 3"), (6, 6, "degree.* 1 to 5.* got 6")],
)
def test_edge_graph_rejects_impossible_degrees(num_parts, degree, message):
    with pytest.raises(ValueError, match=message):
        edge_graph(KEY, num_parts, degree)


@pytest.mark.parametrize(
    ("constructor", "size", "message"),
    [
        (projective_plane, 4, "order must be a prime; got 4"),
        (paley, 15, "num_workers must be a prime.*; got 15"),
        (paley, 13, "remainder 3 modulo 4; got 13"),
    ],
)
def test_block_designs_reject_sizes_without_a_design(constructor, size, message):
    with pytest.raises(ValueError, match=message):
        constructor(size)
