"""Rows that outweigh others beyond the precision, against QR of sorted rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxwgc import sketching
from tests.sketching.scores import NUM_COLUMNS, NUM_ROWS, SCORES, bcoo_of


def expected_scores(matrix, rank):
    """In float64: with sorted rows and pivoted columns, each row has its own digits."""
    matrix = np.asarray(matrix, float)
    order = np.argsort(-np.abs(matrix).max(axis=1))
    basis, _, _ = scipy.linalg.qr(matrix[order], mode="economic", pivoting=True)
    scores = np.empty(len(matrix))
    scores[order] = np.sum(basis[:, :rank] ** 2, axis=1)
    return scores


@functools.cache
def cases():
    gaussian = np.random.default_rng(0).standard_normal((NUM_ROWS, NUM_COLUMNS))

    def scaled(matrix, **sizes):
        matrix = matrix.copy()
        for row, size in sizes.items():
            matrix[int(row[1:])] *= size
        return matrix.astype(np.float32)

    # Exactly, in short numbers. One column has less of the heavy row than the others,
    # so that light rows see one direction nearly a hundred times as well as the rest.
    dependent = np.round(64 * gaussian) / 64
    dependent[7] = np.where(np.arange(12) == 5, 1 / 64, np.copysign(1, gaussian[7]))
    dependent[:, 3] = dependent[:, 2] + 2 * dependent[:, 4]
    square = np.append(np.linalg.qr(gaussian[:12])[0], gaussian[12:], axis=0)
    all_heavy = scaled(square, **{f"_{row}": 1e8 for row in range(NUM_COLUMNS)})
    twice = scaled(gaussian, _7=1e8)
    twice[9] = twice[7]
    return {
        "one": (scaled(gaussian, _7=1e8), 12),
        "three sizes": (scaled(gaussian, _7=1e12, _9=1e6), 12),
        "as many as columns": (all_heavy, 12),
        "twice the same": (twice, 12),
        "columns that depend on each other": (scaled(dependent, _7=2.0**27), 11),
        "none": (scaled(gaussian), 12),
    }


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("name", cases())
def test_scores_in_float32(name, scores):
    matrix, rank = cases()[name]
    np.testing.assert_allclose(
        scores(matrix), expected_scores(matrix, rank), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("way", ["gram", "qr", "sparse"])
def test_wide(way):
    random = np.random.default_rng(1)
    matrix = random.standard_normal((6, 3)) @ random.standard_normal((3, 20))
    matrix[2] *= 1e8
    matrix = matrix.astype(np.float32)
    scores = SCORES[way](matrix)
    # The rank of a matrix in float32 is 3 up to rounding only.
    np.testing.assert_allclose(scores, expected_scores(matrix, 3), atol=1e-5)
    matrix = bcoo_of(matrix) if way == "sparse" else matrix
    assert tuple(sketching.numerical_rank(matrix)) == (3, False)


def test_batches():
    names = ["one", "none", "columns that depend on each other"]
    batch = np.stack([cases()[name][0] for name in names] + [cases()["none"][0]])
    batch[3, 5, 2] = np.nan
    mapped = jax.jit(jax.vmap(SCORES["gram"]))(batch)
    assert np.isnan(mapped[3]).all()
    for scores, name in zip(mapped, names):
        expected = expected_scores(*cases()[name])
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    rank, is_ambiguous = jax.jit(jax.vmap(sketching.numerical_rank))(batch)
    np.testing.assert_array_equal(rank, [*(cases()[name][1] for name in names), 0])
    np.testing.assert_array_equal(is_ambiguous, [False, False, False, True])


def test_derivatives_are_those_of_what_the_heavy_row_leaves(with_x64):
    """Only what the others have orthogonal to it counts."""
    random = np.random.default_rng(2)
    matrix, weights = random.standard_normal((2, 30, NUM_COLUMNS))
    heavy = matrix[:1] * 1e20
    weights = weights[1:, 0]

    def beside_heavy(light):
        scores = sketching.leverage_scores(jnp.concatenate([heavy, light]))
        return jnp.sum(scores[1:] * weights)

    total, gradient = jax.jit(jax.value_and_grad(beside_heavy))(matrix[1:])
    left = scipy.linalg.null_space(heavy)
    inverse = np.linalg.pinv(matrix[1:] @ left)
    projector = matrix[1:] @ left @ inverse
    np.testing.assert_allclose(total, np.diag(projector) @ weights, atol=1e-12)
    expected = (np.eye(29) - projector) * weights @ inverse.T @ left.T * 2
    np.testing.assert_allclose(gradient, expected, atol=1e-10)


# Ranks.


def test_ranks_that_are_clear():
    random = np.random.default_rng(3)
    groups = np.eye(5)[random.integers(0, 5, 300)]
    images = random.standard_normal((300, 4)) @ random.standard_normal((4, 5))
    for matrix, rank in (
        (random.standard_normal((300, 5)), 5),
        (random.standard_normal((300, 5)) * 10.0 ** np.arange(-10, 15, 5), 5),
        (groups, 5),
        (np.hstack([groups[:, :4], np.ones((300, 1))]), 5),
        (np.hstack([groups, np.ones((300, 1))])[:, 1:], 5),
        (groups @ np.array([[1, 0, 0, 0, 1]] * 5), 1),
        (images, 4),
        (np.zeros((300, 5)), 0),
    ):
        found = sketching.numerical_rank(matrix.astype(np.float32))
        assert tuple(found) == (rank, False)


def test_rounding_decides_beside_a_large_mean():
    random = np.random.default_rng(4)
    column = 1e6 + random.standard_normal(300)
    matrix = np.stack([np.ones(300), column], axis=1)
    matrix = matrix.astype(np.float32)
    rank, is_ambiguous = sketching.numerical_rank(matrix)
    assert is_ambiguous
    np.testing.assert_allclose(sketching.leverage_scores(matrix).sum(), rank, atol=1e-4)
    assert tuple(sketching.numerical_rank(matrix - matrix.mean(0) * [0, 1])) == (
        2,
        False,
    )


def test_rounding_decides_next_to_a_cutoff():
    matrix = np.diag([1.0, 0.1, 1e-3]) @ scipy.linalg.hadamard(4)[:3, :3]
    values = np.linalg.svd(matrix, compute_uv=False)
    share = values[1] / values[0]
    for rcond, expected in (
        (share * 1.01, (1, False)),
        (share * (1 + 1e-7), (None, True)),
        (share * 0.99, (2, False)),
    ):
        rank, is_ambiguous = sketching.numerical_rank(matrix, rcond=rcond)
        assert expected[0] in (None, rank) and is_ambiguous == expected[1]


def test_rank_of_what_is_not_finite():
    matrix = np.full((3, 2), np.nan, np.float32)
    with pytest.raises(ValueError, match="matrix must be finite"):
        sketching.numerical_rank(matrix)
    with pytest.raises(ValueError, match="rcond must be less than 1"):
        sketching.numerical_rank(np.eye(2), rcond=2.0)
