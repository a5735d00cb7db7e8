"""Leverage scores in two passes over blocks: those of the whole matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc.sketching import leverage_scores, streaming_leverage_scores
from jaxwgc.sketching._scores import _chunks


def in_blocks(matrix, *cuts):
    return lambda: iter(np.split(matrix, cuts))


def conditioned(condition, num_rows=1000, num_columns=8, seed=0):
    random = np.random.default_rng(seed)
    left = np.linalg.qr(random.standard_normal((num_rows, num_columns)))[0]
    right = np.linalg.qr(random.standard_normal((num_columns, num_columns)))[0]
    return left * np.geomspace(1, 1 / condition, num_columns) @ right


def expected_scores(matrix):
    """Of full rank, whatever the units of its columns."""
    matrix = matrix.astype(float)
    matrix = matrix / np.abs(matrix).max(axis=0)
    return np.sum(np.linalg.svd(matrix, full_matrices=False)[0] ** 2, axis=1)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 128 rows of 8 columns, so that small matrices have several."""
    monkeypatch.setattr(_chunks, "_CHUNK_BYTES", 4096)


@pytest.mark.parametrize(
    ("condition", "x64"), [(1e3, False), (1.0, True), (1e6, True), (1e10, True)]
)
def test_agrees_with_svd(condition, x64, small_chunks):
    dtype = np.float64 if x64 else np.float32
    eps = np.finfo(dtype).eps
    matrix = conditioned(condition).astype(dtype)
    with jax.enable_x64(x64):
        scores = streaming_leverage_scores(in_blocks(matrix, 3, 3, 50, 700))
    assert isinstance(scores, np.ndarray) and scores.dtype == dtype
    np.testing.assert_allclose(
        scores, expected_scores(matrix), rtol=0, atol=100 * eps * condition
    )


@pytest.mark.parametrize("kind", ["scaled", "redrawn", "permuted"])
def test_blocks_that_differ_from_pass_to_pass(kind, small_chunks):
    """Their scores would be of no matrix at all."""
    matrix = conditioned(10.0, num_rows=300).astype(np.float32)
    others = {
        "scaled": 2 * matrix,
        "redrawn": conditioned(10.0, num_rows=300, seed=1).astype(np.float32),
        "permuted": np.random.default_rng(0).permutation(matrix),
    }
    passes = iter([matrix, others[kind]])
    with pytest.raises(ValueError, match="blocks must be the same in all passes"):
        streaming_leverage_scores(lambda: [next(passes)])
    # Rounding is no difference.
    passes = iter([matrix, matrix * np.float32(1 + 1e-6)])
    scores = streaming_leverage_scores(lambda: [next(passes)])
    np.testing.assert_allclose(scores, expected_scores(matrix), atol=1e-4)


def test_rows_shuffled_beside_one_that_outweighs_all():
    matrix = conditioned(10.0, num_rows=100).astype(np.float32)
    matrix[0] *= 1e8
    others = np.random.default_rng(0).permutation(matrix[1:])
    passes = iter([matrix, np.concatenate([matrix[:1], others])])
    with pytest.raises(ValueError, match="blocks must be the same in all passes"):
        streaming_leverage_scores(lambda: [next(passes)])


def test_chunks_may_be_deficient_where_the_whole_is_not(with_x64, small_chunks):
    # Rows sorted by group: every chunk misses columns that others have.
    matrix = np.zeros((1024, 8))
    random = np.random.default_rng(1)
    for column in range(8):
        matrix[128 * column : 128 * column + 160, column] = random.random(
            matrix[128 * column : 128 * column + 160].shape[0]
        )
    matrix[:128, :2] += 0.5
    scores = streaming_leverage_scores(in_blocks(matrix, 100))
    np.testing.assert_allclose(scores, expected_scores(matrix), atol=1e-11)


def test_units_differ_between_columns_and_blocks(small_chunks):
    matrix = np.random.default_rng(3).standard_normal((512, 8))
    matrix *= 10.0 ** np.array([-34, -20, 0, 0, 0, 0, 20, 36])
    matrix[:128, 0] *= 1e-2
    matrix[256:300, 7] = 0
    matrix = matrix.astype(np.float32)
    scores = streaming_leverage_scores(in_blocks(matrix, 128, 256))
    np.testing.assert_allclose(scores, expected_scores(matrix), atol=1e-5)


def test_one_row_that_outweighs_all_others(small_chunks, with_x64):
    matrix = np.random.default_rng(6).standard_normal((512, 8))
    # In a few columns only: in their units, what other rows have there is small.
    matrix[5, :5] *= 1e9
    scores = streaming_leverage_scores(in_blocks(matrix, 100))
    np.testing.assert_allclose(scores, expected_scores(matrix), atol=1e-6)
    np.testing.assert_allclose(scores.sum(), 8, atol=1e-6)


def test_says_where_rows_are_lost_beside_others(small_chunks):
    matrix = conditioned(10.0, num_rows=300).astype(np.float32)
    matrix[5] *= 1e8
    with pytest.raises(ValueError, match="rows that outweigh others .* in float32"):
        streaming_leverage_scores(in_blocks(matrix, 100))
    scores = streaming_leverage_scores(in_blocks(matrix, 100), rcond=1e-5)
    np.testing.assert_allclose(scores.sum(), 1, atol=1e-5)


def test_many_kinds_of_blocks():
    rows = np.random.default_rng(5).integers(-5, 6, (30, 3))
    expected = expected_scores(rows)
    for blocks in (
        lambda: [rows],
        lambda: (rows[i : i + 1] for i in range(30)),
        lambda: [jnp.asarray(rows[:7]), rows[7:].astype(np.float32)],
        lambda: [rows[:0], rows[:9].tolist(), np.asfortranarray(rows[9:])],
    ):
        np.testing.assert_allclose(
            streaming_leverage_scores(blocks), expected, atol=1e-6
        )


def test_whole_chunks_and_what_is_left(with_x64, monkeypatch):
    matrix = np.random.default_rng(6).standard_normal((200, 4)) ** 3
    expected = expected_scores(matrix)
    for cuts in ([], [64], [10, 74, 138], [63, 64, 65]):
        blocks = in_blocks(matrix, *cuts)
        with monkeypatch.context() as patch:
            patch.setattr(_chunks, "_CHUNK_BYTES", 64 * 4 * 8)
            sizes = [size for _, size in _chunks.chunks(blocks)]
        assert sizes == [64, 64, 64, 8]
        scores = streaming_leverage_scores(blocks)
        np.testing.assert_allclose(scores, expected, atol=1e-13)


def test_rcond_cuts_directions(small_chunks, with_x64):
    matrix = conditioned(1e3)
    assert round(streaming_leverage_scores(in_blocks(matrix)).sum()) == 8
    cut = streaming_leverage_scores(in_blocks(matrix, 200), rcond=0.05)
    np.testing.assert_allclose(cut, leverage_scores(matrix, rcond=0.05), atol=1e-12)
    assert round(cut.sum()) < 8


def test_blocks_that_change():
    calls = []

    def longer():
        calls.append(0)
        return [np.eye(3)] * len(calls)

    with pytest.raises(ValueError, match="3 rows in the first and 6 in a later one"):
        streaming_leverage_scores(longer)
    calls.clear()
    with pytest.raises(ValueError, match="3 rows in the first and 0 in a later one"):
        once = iter([np.eye(3)])
        streaming_leverage_scores(lambda: once)
