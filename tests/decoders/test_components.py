"""Decoding by components: least squares on any graph, any answers, any weights."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.decoders import Components
from tests.conftest import every_pattern, random_patterns
from tests.zoo import KEY

weights_of = jax.jit(
    lambda mask, incident, target: Components(incident).weights(
        jnp.zeros((mask.shape[-1], len(incident))), target[None], mask
    )[..., 0, :]
)


def incidence(edges, num_parts):
    """B of some edges, and the messages at each part, of any number."""
    matrix = np.zeros((len(edges), num_parts))
    matrix[np.arange(len(edges))[:, None], edges] = 1
    degree = int(matrix.sum(0).max())
    incident = np.full((num_parts, degree), -1)
    for part in range(num_parts):
        messages = np.flatnonzero(matrix[:, part])
        incident[part, : len(messages)] = messages
    return matrix, incident


def least_errors(matrix, masks, target):
    """By `lstsq` in float64, of the weighted code."""
    errors = []
    for mask in masks:
        rows = (matrix * target)[mask]
        weights = np.linalg.lstsq(rows.T, target, rcond=1e-12)[0]
        errors.append(np.sum((weights @ rows - target) ** 2))
    return np.array(errors)


GRAPHS = {
    "complete": list(itertools.combinations(range(4), 2)),
    # A path, so with an even cycle nowhere; a square with a tail; two triangles that
    # share a vertex; parts that nobody holds.
    "path": [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)],
    "square": [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)],
    "triangles": [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (2, 4)],
    "lonely": [(1, 3), (3, 5)],
    "two sides": [(i, 3 + j) for i in range(3) for j in range(3)],
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_least_squares_for_every_pattern(name, is_weighted):
    """And with weights, of which one is zero and one hardly counts."""
    edges = GRAPHS[name]
    num_parts = 1 + max(itertools.chain(*edges))
    matrix, incident = incidence(edges, num_parts)
    target = np.ones(num_parts)
    if is_weighted:
        target = np.array([3.0, 0, 1, 2, 1e-9, 5])[:num_parts]
    masks = every_pattern(len(edges), len(edges))
    with jax.enable_x64(True):
        weights = np.asarray(weights_of(masks, incident, target))
    assert not weights[~masks].any()
    reached = weights @ (matrix * target)
    errors = ((reached - target) ** 2).sum(-1)
    np.testing.assert_allclose(
        errors, least_errors(matrix, masks, target), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("x64", [False, True])
def test_ten_thousand_masks(x64):
    """The same error as `lstsq`, and the same weight of each part."""
    code = codes.edge_graph(KEY, 10, degree=6)
    share = np.random.default_rng(0).uniform(0.1, 0.9, (10_000, 1))
    masks = np.random.default_rng(1).random((10_000, 30)) < share
    with jax.enable_x64(x64):
        weights = weights_of(masks, code.decoders[0].incident, code.target)
    reached = np.asarray(weights, np.float64) @ code.encoding_matrix
    # What is nearest to ones in the span of the rows that arrived.
    rows = code.encoding_matrix * masks[..., None]
    expected = (np.linalg.pinv(rows, rcond=1e-10) @ rows).sum(1)
    error = 1e-12 if x64 else 1e-5
    np.testing.assert_allclose(reached, expected, atol=error, rtol=0)


def test_batches_vmap_and_traced_graphs_give_the_same():
    """More masks than are worked on at once, in lanes, of graphs drawn inside."""
    code = codes.edge_graph(KEY, 6, degree=3)
    masks = random_patterns(9, 4, 300)
    expected = jaxwgc.decoding_weights(code, masks)
    mapped = jax.vmap(lambda mask: jaxwgc.decoding_weights(code, mask))(masks)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)

    @jax.jit
    def drawn(key):
        return jaxwgc.decoding_weights(codes.edge_graph(key, 6, degree=3), masks)

    np.testing.assert_allclose(drawn(KEY), expected, atol=1e-6)


def test_long_paths_are_exact():
    """Weights alternate all the way along an even path of 2,000 parts."""
    matrix, incident = incidence(np.arange(2000)[:, None] + [0, 1], 2001)
    mask = np.ones((1, 2000), bool)
    mask[0, -1] = False
    weights = np.asarray(weights_of(mask, incident, np.ones(2001)))[0]
    reached = weights @ matrix
    np.testing.assert_array_equal(reached, np.append(np.ones(2000), 0))


def test_edges_twice():
    """Two workers with the same two parts: one of them is enough."""
    incident = np.array([[0, 1], [0, 1]])
    code = jaxwgc.GradientCode.from_matrix([[1, 1], [1, 1]])
    code = dataclasses.replace(code, decoders=(Components(incident),))
    masks = np.array([[True, True], [True, False], [False, False]])
    np.testing.assert_array_equal(jaxwgc.decoding_error(code, masks), [0, 0, 2])
