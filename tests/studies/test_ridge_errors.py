"""Strain against ridge regression by NumPy's least squares."""

import itertools

import numpy as np
import pytest

from jaxwgc.codes import GradientCode
from jaxwgc.studies._worst_pattern import RidgeErrors, all_swaps, swapped


def random_code(kind):
    """Six workers, of codes with one and with several messages and segments."""
    generator = np.random.default_rng(2)
    messages = 2 if kind == "messages" else 1
    segments = 3 if kind == "segments" else 1
    matrix = generator.normal(size=(6 * messages, 4 * segments))
    if kind == "complex":
        matrix = matrix + 1j * generator.normal(size=matrix.shape)
    return GradientCode(
        encoding_matrix=matrix,
        assignment=np.ones((6, 4), bool),
        target=np.array([1.0, 2.0, 0.0, -1.0]),
        num_stragglers=0,
        num_segments=segments,
        messages_per_worker=messages,
        required_parts=None if messages == 1 else np.tile([2, 4], (6, 1)),
    )


def ridge_error(code, lost):
    """The regularised problem as a larger one without: rows of the ridge below."""
    matrix = code.encoding_matrix
    ridge = 0.01 * np.mean(np.sum(np.abs(matrix) ** 2, axis=1))
    kept = np.repeat(~np.isin(np.arange(6), lost), code.messages_per_worker)
    rows = matrix[kept]
    system = np.concatenate([rows.T, np.sqrt(ridge) * np.eye(len(rows))])
    total = 0
    for segment in range(code.num_segments):
        target = np.zeros((code.num_parts, code.num_segments))
        target[:, segment] = code.target
        goal = np.concatenate([target.ravel(), np.zeros(len(rows))])
        weights = np.linalg.lstsq(system, goal.astype(system.dtype), rcond=None)[0]
        total += np.sum(np.abs(system @ weights - goal) ** 2)
    return total / code.num_segments


@pytest.mark.parametrize("kind", ["plain", "complex", "messages", "segments"])
def test_of_sets_of_one_more_and_of_every_swap(kind):
    code = random_code(kind)
    errors = RidgeErrors(code)
    for lost in [(), (2,), (1, 4), (0, 2, 3, 5)]:
        np.testing.assert_allclose(errors.of(lost), ridge_error(code, lost), rtol=1e-9)
        others = np.setdiff1d(np.arange(6), lost)
        expected = [ridge_error(code, (*lost, other)) for other in others]
        more = errors.after_losing(lost, others)
        np.testing.assert_allclose(more, expected, rtol=1e-9)
        swaps = all_swaps(lost, 6)
        assert len(swaps) == len(lost) * (6 - len(lost))
        expected = [ridge_error(code, swapped(lost, swap)) for swap in swaps]
        np.testing.assert_allclose(errors.after_swaps(lost, swaps), expected, 1e-9)
    for lost in itertools.combinations(range(6), 3):
        top = errors.climb(lost)
        assert errors.of(top) >= errors.of(lost)
        swaps = all_swaps(top, 6)
        assert errors.after_swaps(top, swaps).max() <= errors.of(top) + 1e-6


def test_swaps_are_in_order():
    np.testing.assert_array_equal(
        all_swaps((1, 3), 4), [[0, 1], [2, 1], [0, 3], [2, 3]]
    )
    assert swapped((1, 3), np.array([0, 3])) == (0, 1)


@pytest.mark.parametrize(
    ("matrix", "target"), [(np.zeros((3, 2)), np.ones(2)), (np.eye(3), np.zeros(3))]
)
def test_where_all_errors_are_equal(matrix, target):
    code = GradientCode(
        encoding_matrix=matrix, assignment=matrix > 0, target=target, num_stragglers=0
    )
    strain = RidgeErrors(code)
    np.testing.assert_array_equal(
        strain.after_swaps((1,), all_swaps((1,), 3)), target.sum()
    )
    assert strain.climb((1,)) == (1,)
