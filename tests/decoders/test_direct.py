"""Decoders that solve no system of equations, against loops over workers and parts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.decoders import Components, Group, OneStep
from tests import oracles
from tests.catalogue.decoders import group_weights
from tests.conftest import every_pattern
from tests.zoo import KEY

MASKS = every_pattern(7, 7)


@jax.jit
def weights_and_errors(code, masks):
    decoding = jaxwgc.decoding(code, masks)
    return decoding.weights[..., 0, :], decoding.error


@jax.jit
def components_of(mask, incident, target):
    matrix = jnp.zeros((mask.shape[-1], len(incident)))
    return Components(incident).weights(matrix, target[None], mask)[..., 0, :]


class TestGroup:
    """Exact to the last bit, and what it loses beyond."""

    @pytest.mark.parametrize("num_workers", [1, 5, 10])
    def test_one_of_each_part_up_to_s(self, num_workers):
        """Every pattern and every s of both constructions."""

        @jax.jit
        def decode(masks, groups, assignment, target):
            return Group(groups).weights(assignment, target[None], masks)[:, 0]

        for s in range(num_workers):
            kinds = [codes.binary(num_workers, s)]
            if num_workers % (s + 1) == 0:
                kinds.append(codes.fractional_repetition(num_workers, s))
            masks = every_pattern(num_workers, s)
            for code in kinds:
                # An empty family more, so that all codes share a compiled function.
                families = np.full((2, num_workers), -1)
                families[: len(code.decoders[0].groups)] = code.decoders[0].groups
                weights = decode(masks, families, code.assignment, code.target)
                weights = np.asarray(weights)
                assert set(np.unique(weights)) <= {0, 1}
                assert not np.any(weights[~masks])
                np.testing.assert_array_equal(weights @ code.encoding_matrix, 1)

    @pytest.mark.parametrize("size", [1e-30, 1e-20, 1e15])
    def test_weights_do_not_depend_on_the_scale_of_the_code(self, size):
        """Squares of these are zero or infinite in float32."""
        code = codes.binary(5, 2)
        masks = every_pattern(5, 5)
        result = [
            weights_and_errors(jaxwgc.weighted(code, np.full(5, weight)), masks)[0]
            for weight in (size, 1.0)
        ]
        np.testing.assert_array_equal(*result)

    @pytest.mark.parametrize(
        "code",
        [codes.fractional_repetition(8, 1), codes.binary(8, 2), codes.uncoded(4, 8)],
    )
    def test_weighted_codes_have_no_error_either(self, code):
        """Weights that no float holds exactly, zero among them."""
        weights = np.random.default_rng(0).uniform(0.1, 3, 8)
        weights[3] = 0
        masks = every_pattern(code.num_workers, code.num_stragglers)
        _, errors = weights_and_errors(jaxwgc.weighted(code, weights), masks)
        np.testing.assert_array_equal(errors, 0)

    @pytest.mark.parametrize("is_weighted", [False, True])
    @pytest.mark.parametrize(("num_workers", "s"), [(7, 2), (9, 6)])
    def test_the_family_with_the_least_error_is_chosen(
        self, num_workers, s, is_weighted
    ):
        """Binary codes have two families where s + 1 does not divide n."""
        weights = np.random.default_rng(1).integers(0, 4, num_workers)
        weights = weights.astype(float) if is_weighted else np.ones(num_workers)
        code = jaxwgc.weighted(codes.binary(num_workers, s), weights)
        families = np.asarray(code.decoders[0].groups)
        assert len(families) == 2
        masks = every_pattern(num_workers, num_workers)
        expected = np.array([group_weights(code, mask) for mask in masks])
        result, errors = weights_and_errors(code, masks)
        np.testing.assert_array_equal(result, expected)
        misses = expected @ code.encoding_matrix - code.target
        np.testing.assert_array_equal(errors, np.sum(misses**2, 1))
        # Both families are chosen, each where the other would lose more.
        for family in families >= 0:
            assert {bool((weight[family] > 0).any()) for weight in expected} == {
                False,
                True,
            }

    def test_heavy_part_is_lost_by_neither_family(self):
        """Family 0 lacks one part that counts nine times, and family 1 lacks three."""
        code = codes.binary(5, 1)
        families = [[0, -1, 1, -1, 2], [-1, 0, -1, 1, -1]]
        np.testing.assert_array_equal(code.decoders[0].groups, families)
        heavy = jaxwgc.weighted(code, np.array([1.0, 1, 1, 1, 9]))
        received = np.array([True, False, True, True, False])
        for own, expected in ((code, [1, 0, 1, 0, 0]), (heavy, [0, 0, 0, 1, 0])):
            found = jaxwgc.decoding(own, received, Group).weights[..., 0, :]
            np.testing.assert_array_equal(found, expected)


class TestOneStep:
    """The catalogue has the formulas for as many parts as workers."""

    @pytest.mark.parametrize(
        ("code", "formula"),
        [
            (codes.bernoulli(KEY, 7, 10, copies=3), lambda r: 7 / (r * 3)),
            (codes.stochastic(KEY, 7, 5, 3, 0.2), lambda r: 1.0),
        ],
        ids=["bernoulli", "stochastic"],
    )
    def test_more_or_fewer_parts_than_workers(self, code, formula):
        """Weights without responses are 0, not 0 / 0; the error is the whole target."""
        decoding = jaxwgc.decoding(code, MASKS, OneStep)
        expected = [mask * formula(max(mask.sum(), 1)) for mask in MASKS]
        np.testing.assert_allclose(decoding.weights[:, 0], expected, rtol=1e-6)
        reached = expected @ code.encoding_matrix
        errors = np.sum((reached - 1) ** 2, 1)
        np.testing.assert_allclose(decoding.error, errors, rtol=1e-4, atol=1e-4)
        assert not MASKS[0].any() and errors[0] == code.num_parts

    def test_each_cluster_is_scaled_by_its_own_responses(self):
        code = codes.clustered(codes.uncoded(3), 2)
        masks = np.array([[1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]], bool)
        weights = jaxwgc.decoding(code, masks, decoder=OneStep).weights[..., 0, :]
        np.testing.assert_allclose(
            weights, [[3, 0, 0, 1.5, 1.5, 0], [0, 0, 0, 1, 1, 1]]
        )


# Of at most six parts and nine edges.
GRAPHS = {
    "complete": list(itertools.combinations(range(4), 2)),
    # A path, so with an even cycle nowhere; a square with a tail; two triangles that
    # share a vertex; parts that no worker holds.
    "path": [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)],
    "square": [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)],
    "triangles": [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (2, 4)],
    "lonely": [(1, 3), (3, 5)],
    "two sides": [(i, 3 + j) for i in range(3) for j in range(3)],
}


def incidence(edges, num_parts, num_edges, degree):
    """B of some edges, filled up with zeros, and the messages at each part."""
    matrix = np.zeros((num_edges, num_parts))
    matrix[np.arange(len(edges))[:, None], edges] = 1
    incident = np.full((num_parts, degree), -1)
    for part, row in enumerate(incident):
        messages = np.flatnonzero(matrix[:, part])
        row[: len(messages)] = messages
    return matrix, incident


class TestComponents:
    """Least squares on any graph, any responses, any weights."""

    @pytest.mark.parametrize("is_weighted", [False, True])
    @pytest.mark.parametrize("name", GRAPHS)
    def test_least_squares_for_every_pattern(self, name, is_weighted, with_x64):
        """Weights of parts may be zero, negative or very small."""
        edges = GRAPHS[name]
        matrix, incident = incidence(edges, 6, 9, 4)
        target = [3.0, 0, 1, -2, 1e-9, 5] if is_weighted else np.ones(6)
        code = jaxwgc.GradientCode(
            encoding_matrix=matrix,
            assignment=matrix != 0,
            target=np.ones(6),
            num_stragglers=0,
        )
        code = jaxwgc.weighted(code, target)
        masks = every_pattern(9, 9) & (np.arange(9) < len(edges))
        weights = np.asarray(components_of(masks, incident, code.target))
        assert not weights[~masks].any()
        reached = weights[:, None] @ code.encoding_matrix
        minimum = oracles.squared_errors(oracles.best_mixtures(code, masks), code)
        result = oracles.squared_errors(reached, code)
        np.testing.assert_allclose(result, minimum, rtol=1e-12, atol=1e-12)

    def test_effective_weights_are_those_of_the_pseudo_inverse_for_10000_masks(self):
        """The same weight of each part as by `numpy.linalg.pinv`."""
        code = codes.edge_graph(KEY, 10, degree=6)
        share = np.random.default_rng(0).uniform(0.1, 0.9, (10_000, 1))
        masks = np.random.default_rng(1).random((10_000, 30)) < share
        weights = components_of(masks, code.decoders[0].incident, code.target)
        reached = np.asarray(weights, np.float64) @ code.encoding_matrix
        # What is nearest to ones in the span of the rows that arrived.
        rows = code.encoding_matrix * masks[..., None]
        expected = (np.linalg.pinv(rows, rcond=1e-10) @ rows).sum(1)
        np.testing.assert_allclose(reached, expected, atol=1e-5, rtol=0)

    def test_graphs_that_are_drawn_inside(self):
        """There are more masks than are decoded at once."""
        masks = np.random.default_rng(0).random((300, 9)) < 0.5

        def decode(key):
            code = codes.edge_graph(key, 6, degree=3)
            return code.encoding_matrix, jaxwgc.decoding(code, masks).effective_weights

        matrix, result = jax.jit(decode)(KEY)
        rows = np.asarray(matrix, float) * masks[..., None]
        expected = (np.linalg.pinv(rows, rcond=1e-10) @ rows).sum(1)
        np.testing.assert_allclose(result, expected, atol=1e-5)

    def test_weights_on_long_paths_are_exact(self):
        """Weights alternate all the way along an even path of 2,000 parts."""
        matrix, incident = incidence(np.arange(2000)[:, None] + [0, 1], 2001, 2000, 2)
        mask = np.arange(2000)[None] < 1999
        weights = np.asarray(components_of(mask, incident, np.ones(2001)))[0]
        np.testing.assert_array_equal(weights @ matrix, np.append(np.ones(2000), 0))

    def test_one_of_two_equal_edges_is_enough(self):
        """Two workers with the same two parts: one of them is enough."""
        code = jaxwgc.GradientCode.from_matrix([[1, 1], [1, 1]])
        components = Components(np.array([[0, 1], [0, 1]]))
        code = dataclasses.replace(code, decoders=(components,))
        masks = np.array([[True, True], [True, False], [False, False]])
        np.testing.assert_array_equal(jaxwgc.decoding(code, masks).error, [0, 0, 2])
