"""The balanced Reed-Solomon code against its definition and every pattern."""

import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from tests.codes.reference import padded
from tests.conftest import every_pattern, random_patterns


@jax.jit
def decoded(code, received, gradients):
    """Weights and gradients in one program, which finds the weights once."""
    received = jaxwgc.decoding(code, received)
    like = jax.tree.map(lambda leaf: leaf[0], gradients)
    messages = jaxwgc.encode(code, gradients)
    return (
        jaxwgc.decoding_weights(code, received),
        jaxwgc.decode(code, messages, received, like),
    )


def valid_parameters(max_workers, max_parts):
    return [
        (num_workers, num_parts, replication)
        for num_workers in range(1, max_workers + 1)
        for num_parts in range(1, max_parts + 1)
        for replication in range(1, num_workers + 1)
        if num_parts * replication % num_workers == 0
    ]


@pytest.mark.parametrize("num_workers", range(1, 11))
def test_every_pattern_decodes_for_all_valid_parameters(num_workers, with_x64):
    for _, num_parts, replication in (
        triple for triple in valid_parameters(10, 10) if triple[0] == num_workers
    ):
        code = jaxwgc.codes.reed_solomon(num_workers, num_parts, replication)
        received = every_pattern(num_workers, code.num_stragglers)
        # Not jitted here: codes of one size and step share what is jitted inside.
        again = padded(code, num_workers, 10)
        weights = np.asarray(jaxwgc.decoding_weights(again, received))
        assert np.all(weights[~received] == 0)
        assert np.abs(weights @ code.encoding_matrix - 1).max() < 1e-10, code


@pytest.mark.parametrize(
    "parameters", [(50, 20, 30), (100, 100, 10), (200, 200, 20)], ids=str
)
class TestLargeCodes:
    def of_random_patterns(self, code):
        """Weights and gradients of random patterns, and the partial gradients."""
        received = random_patterns(code.num_workers, code.num_stragglers, 1000)
        gradients = np.random.default_rng(2).normal(size=(code.num_parts, 30))
        gradients = gradients.astype(np.float32)
        weights, sums = decoded(code, received, gradients)
        return np.asarray(weights, np.complex128), sums, gradients

    def errors(self, parameters):
        code = jaxwgc.codes.reed_solomon(*parameters)
        weights, _, _ = self.of_random_patterns(code)
        # The product in float64 leaves the error of the weights themselves.
        return np.abs(weights @ code.encoding_matrix - 1).max(axis=1)

    def test_float64(self, parameters, with_x64):
        assert self.errors(parameters).max() < 1e-9

    def test_float32(self, parameters):
        errors = self.errors(parameters)
        assert np.median(errors) < 1e-5
        assert np.quantile(errors, 0.99) < 2e-4
        assert errors.max() < 2e-3

    def test_weighted_float32(self, parameters):
        code = jaxwgc.codes.reed_solomon(*parameters)
        target = np.random.default_rng(1).integers(1, 6, code.num_parts)
        weights, _, _ = self.of_random_patterns(jaxwgc.weighted(code, target))
        reached = weights @ (code.encoding_matrix * target)
        errors = np.abs(reached / target - 1).max(axis=1)
        assert np.median(errors) < 1e-5
        assert np.quantile(errors, 0.99) < 2e-4
        assert errors.max() < 2e-3

    def test_decoded_gradient_float32(self, parameters):
        _, found, gradients = self.of_random_patterns(
            jaxwgc.codes.reed_solomon(*parameters)
        )
        truth = gradients.astype(np.float64).sum(0)
        errors = np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth)
        assert np.median(errors) < 1e-5
        assert np.quantile(errors, 0.99) < 2e-4
        assert errors.max() < 2e-3


def test_matches_the_product_that_defines_it():
    code = jaxwgc.codes.reed_solomon(10, 5, 4)
    points = np.exp(2j * np.pi * code.decoders[0].positions / 10)
    for part in range(5):
        without = points[~code.assignment[:, part]]
        values = np.prod(1 - points[:, None] / without, axis=1)
        np.testing.assert_allclose(code.encoding_matrix[:, part], values, atol=1e-13)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_assignment_is_balanced(data):
    num_workers = data.draw(st.integers(1, 40))
    num_parts = data.draw(st.integers(1, 40))
    unit = num_workers // math.gcd(num_workers, num_parts)
    replication = unit * data.draw(st.integers(1, num_workers // unit))
    code = jaxwgc.codes.reed_solomon(num_workers, num_parts, replication)
    assert np.all(code.assignment.sum(0) == replication)
    assert np.all(code.loads == num_parts * replication // num_workers)
    assert np.all((np.abs(code.encoding_matrix) > 1e-12) == code.assignment)


@pytest.mark.parametrize("num_workers", [16, 21, 25])
def test_parts_share_their_holders_where_d_and_n_minus_1_have_a_common_factor(
    num_workers,
):
    """Which is why the published order is accurate there."""
    for replication in range(1, num_workers // 2 + 1):
        code = jaxwgc.codes.reed_solomon(num_workers, num_workers, replication)
        num_supports = len(np.unique(code.assignment, axis=1).T)
        shares = math.gcd(replication, num_workers - 1) > 1
        assert (num_supports < num_workers) == shares, replication


def test_interleaving_is_the_same_code_with_workers_moved_on_the_circle():
    plain = jaxwgc.codes.reed_solomon(50, 20, 30, interleave=False)
    interleaved = jaxwgc.codes.reed_solomon(50, 20, 30)
    np.testing.assert_array_equal(plain.decoders[0].positions, np.arange(50))
    positions = interleaved.decoders[0].positions
    np.testing.assert_array_equal(np.sort(positions), np.arange(50))
    assert positions[1] != 1
    np.testing.assert_array_equal(plain.assignment, interleaved.assignment)
    # 14 orders of magnitude at n = 200, five of them here.
    assert np.abs(plain.encoding_matrix).max() > 1e5
    assert np.abs(interleaved.encoding_matrix).max() < 10


def test_interleaving_minimises_the_entries():
    code = jaxwgc.codes.reed_solomon(20, 10, 6)
    norm = np.linalg.norm(code.encoding_matrix)
    points = np.exp(2j * np.pi * np.arange(20) / 20)
    for step in range(1, 20):
        if math.gcd(step, 20) == 1:
            own = points[step * np.arange(20) % 20]
            factors = 1 - own[:, None] / own
            other = np.stack(
                [factors[:, ~column].prod(axis=1) for column in code.assignment.T], 1
            )
            assert norm <= np.linalg.norm(other[code.assignment]) * (1 + 1e-9)


def test_construction_does_not_depend_on_the_precision_setting(x64):
    matrix = jaxwgc.codes.reed_solomon(30, 10, 9).encoding_matrix
    assert isinstance(matrix, np.ndarray)
    assert matrix.dtype == np.complex128


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((50, 20, 11), r"num_workers \* load must equal num_parts \* replication"),
        ((10, 10, 0), "replication must be from 1 to num_workers; got replication = 0"),
        ((10, 10, 11), "replication must be from 1 to num_workers"),
        ((0, 10, 1), "num_workers must be at least 1; got 0"),
        ((10, 0, 1), "num_parts must be at least 1; got 0"),
    ],
)
def test_impossible_parameters(arguments, match):
    with pytest.raises(ValueError, match=match):
        jaxwgc.codes.reed_solomon(*arguments)


@pytest.mark.parametrize(
    ("num_workers", "num_parts", "replication", "expected"),
    [
        (50, 20, 11, ([10, 15], [50])),
        (6, 4, 2, ([3], [3, 6])),
        (6, 9, 1, ([2], [6, 12])),
        (7, 3, 5, ([7], [7])),
    ],
)
def test_uneven_loads_name_parameters_that_work(
    num_workers, num_parts, replication, expected
):
    with pytest.raises(ValueError, match="for an integer load") as raised:
        jaxwgc.codes.reed_solomon(num_workers, num_parts, replication)
    replications, parts = (
        [int(own) for own in re.findall(r"\d+", half)]
        for half in str(raised.value).partition("; for ")[2].split(", and for ")
    )
    assert (replications, parts) == expected
    for other in replications:
        jaxwgc.codes.reed_solomon(num_workers, num_parts, other)
    for other in parts:
        jaxwgc.codes.reed_solomon(num_workers, other, replication)


@pytest.mark.parametrize("wrong", [2.0, True, "2", None])
def test_parameters_are_ints(wrong):
    with pytest.raises(TypeError, match="num_workers must be"):
        jaxwgc.codes.reed_solomon(wrong, 2, 1)
