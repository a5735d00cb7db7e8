"""Samplers refuse arguments that do not fit together, with their rule in the message.

Refusals of one argument alone are tested for each row of `tests/catalogue`.
"""

import numpy as np
import pytest

import jaxwgc
from jaxwgc import sketching
from tests.catalogue.problems import SAMPLE
from tests.sketching.refusals import check_refusal


def test_subnormal_scores_are_zero(with_x64):
    changes = {"scores": [1e-310, 3e-310]}
    message = "scores must not all be zero"
    check_refusal(sketching.row_probabilities, changes, ValueError, message)


def test_mixture_of_probabilities_above_one():
    message = "alpha must be at most 1"
    check_refusal(sketching.row_probabilities, {"alpha": 1.5}, ValueError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "top_k", "sample_size": 5},
            "got sample_size = 5 and num_rows = 4",
        ),
        (
            {"method": "without_replacement", "sample_size": 5},
            "got sample_size = 5 and num_rows = 4",
        ),
        (
            {"method": "pivotal", "sample_size": 5},
            "got sample_size = 5 and num_rows = 4",
        ),
        ({"order": [0, 1, 2, 3]}, "order= is used only by method='pivotal'; got 'poi"),
        (
            {"method": "pivotal", "order": [0, 1, 2]},
            r"order must have shape \(N,\) = \(4,\); got \(3,\)",
        ),
        (
            {"method": "pivotal", "order": [0, 1, 2, 2]},
            "order must have each of the 4 rows once",
        ),
    ],
)
def test_sample_rows(changes, message):
    check_refusal(sketching.sample_rows, changes, ValueError, message)


def test_order_of_rows_by_floats():
    changes = {"method": "pivotal", "order": np.arange(4.0)}
    message = "order must be integers"
    check_refusal(sketching.sample_rows, changes, TypeError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"x": np.ones(4), "y": np.ones(5)}},
            r"data\['y'\] must have a leading axis of N = 4",
        ),
        ({"num_parts": 21}, "got num_parts = 21 and num_rows = 20"),
        ({"data": np.float32(1)}, "data must have a leading axis"),
        ({"data": {}}, "data must have a leading axis"),
        ({"data": [1.0, 2.0]}, "a list is a pytree .*convert it with np.array"),
    ],
)
def test_partition(changes, message):
    check_refusal(jaxwgc.parts.partition, changes, ValueError, message)


def test_more_parts_than_scores():
    message = "got num_parts = 5 and num_rows = 4"
    changes = {"num_parts": 5}
    check_refusal(jaxwgc.parts.partition_probabilities, changes, ValueError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_draws": None}, "exactly one of num_distinct and num_draws"),
        ({"num_distinct": 1}, "exactly one of num_distinct and num_draws"),
        (
            {"num_draws": None, "num_distinct": 0},
            "num_distinct must be at least 1; got 0",
        ),
        (
            {"num_draws": None, "num_distinct": 5},
            "got num_distinct = 5 and .* = 4",
        ),
        (
            {
                "num_draws": None,
                "num_distinct": 3,
                "probabilities": [0.5, 0.0, 0.5],
            },
            "num_distinct must be .* positive probabilities, 2 of 3; got 3. Draw fewer",
        ),
        # A subnormal probability counts as zero.
        (
            {
                "num_draws": None,
                "num_distinct": 3,
                "probabilities": np.float32([1.0, 1e-44, 0.5]),
            },
            "num_distinct must be .* positive probabilities, 2 of 3; got 3. Draw fewer",
        ),
    ],
)
def test_sample_partitions(changes, message):
    check_refusal(jaxwgc.parts.sample_partitions, changes, ValueError, message)


def test_drop_last_distinct_of_one_slot():
    changes = {"sample": SAMPLE._replace(counts=np.ones(1))}
    message = "at least 2 parts;"
    check_refusal(jaxwgc.parts.drop_last_distinct, changes, ValueError, message)


@pytest.mark.parametrize("changes", [{"num_rows": None}, {"rescaling": "unbiased"}])
def test_number_of_rows_is_for_the_rescaling_of_the_paper(changes):
    message = "rescaling='paper' needs num_rows="
    check_refusal(jaxwgc.parts.rescaling_factors, changes, ValueError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": np.ones(3)}, r"rows\['x'\].*len\(factors\) = 3"),
        ({"factors": np.ones((2, 1))}, "factors must have shape"),
    ],
)
def test_scale_rows(changes, message):
    check_refusal(jaxwgc.parts.scale_rows, changes, ValueError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_weights": np.ones(3)}, r"row_weights must have shape \(K, m\)"),
        ({"parts": {"x": np.ones((2, 6))}}, r"parts\['x'\]"),
        ({"parts": {"x": np.ones((3, 1))}}, r"parts\['x'\].*axes \(3, .*row_weights"),
        ({"sample": SAMPLE._replace(indices=np.array([0, 25]))}, "parts must"),
    ],
)
def test_weighted_parts(changes, message):
    check_refusal(jaxwgc.parts.weighted_parts, changes, ValueError, message)


@pytest.mark.parametrize(
    ("function", "argument", "shape"),
    [
        (jaxwgc.parts.scale_rows, "rows", (4, 2)),
        (jaxwgc.parts.partition, "data", (20, 4)),
        (jaxwgc.parts.weighted_parts, "parts", (3, 6)),
    ],
)
def test_strings_are_no_data(function, argument, shape):
    changes = {argument: {"x": np.full(shape, "a")}}
    message = rf"{argument}\['x'\] must be numbers.* bools.*; got <U1"
    check_refusal(function, changes, TypeError, message)
