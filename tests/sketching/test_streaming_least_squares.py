"""Least squares in passes over blocks: the solution of the whole, in bounded memory."""

import jax
import numpy as np
import pytest

from jaxwgc.sketching import sparse_sign, streaming_least_squares
from jaxwgc.sketching._scores import _chunks
from jaxwgc.sketching._solvers._streamed_system import StreamedSystem
from tests.sketching.test_preconditioned import backward_error, conditioned, make_target
from tests.sketching.test_streaming_scores import in_blocks

KEY = jax.random.key(0)
SHAPE = 1000, 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 128 rows or so, so that small matrices have several."""
    monkeypatch.setattr(_chunks, "_CHUNK_BYTES", 8192)


def pairs(matrix, target, *cuts):
    rows, targets = in_blocks(matrix, *cuts), in_blocks(target, *cuts)
    return lambda: zip(rows(), targets())


@pytest.mark.parametrize("condition", [1e0, 1e5, 1e10])
@pytest.mark.parametrize("sketch_size", [None, 64])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_as_backward_stable_as_qr(with_x64, condition, sketch_size, noise):
    matrix = conditioned(condition, SHAPE)
    target = make_target(matrix, noise)
    seen = []
    result = streaming_least_squares(
        KEY,
        pairs(matrix, target, 3, 3, 50, 700),
        sketch_size,
        progress=lambda passes, residual: seen.append((passes, residual)),
    )
    assert result.converged
    assert backward_error(matrix, target, result.solution) < 4e-15
    if sketch_size is None:
        assert result.num_iterations <= 10
    last = int(result.num_iterations)
    assert [passes for passes, _ in seen] == list(range(2, last + 1))
    history = np.asarray(result.residual_history)
    np.testing.assert_allclose(history[: last - 1], [norm for _, norm in seen])
    np.testing.assert_array_equal(history[last - 2 :], history[last - 2])
    assert history.shape == (50,)


@pytest.mark.parametrize("sketch_size", [None, 64])
def test_ridge_ranks_and_several_targets_in_float32(sketch_size):
    matrix = conditioned(10.0, SHAPE).astype(np.float32)
    matrix[:, 3] = 2 * matrix[:, 2]
    targets = np.stack([make_target(matrix, 0.1, seed) for seed in (1, 2)], axis=1)
    targets = targets.astype(np.float32)
    wide = matrix.astype(float)
    for ridge in (0.0, 0.3):
        result = streaming_least_squares(
            KEY, pairs(matrix, targets, 300), sketch_size, ridge=ridge
        )
        normal = wide.T @ wide + ridge * np.eye(8)
        expected = np.linalg.pinv(normal, 1e-10) @ wide.T @ targets
        np.testing.assert_allclose(result.solution, expected, atol=2e-5)
        assert result.solution.dtype == np.float32 and result.converged.all()
        assert result.residual_history.shape == (50, 2)
        least = np.sum((targets - wide @ expected) ** 2, axis=0)
        least += ridge * np.sum(expected**2, axis=0)
        np.testing.assert_allclose(result.residual_history[-1] ** 2, least, rtol=1e-5)
    np.testing.assert_array_equal(result.rank.rank, 8)


def test_the_sketch_is_one_of_all_rows(with_x64):
    """So is its size in expectation, and not only that of a chunk."""
    stream = StreamedSystem(pairs(np.ones((1000, 2)), np.ones(1000), 10))
    small = [stream.small_matrix(jax.random.key(seed), 40)[:, 0] for seed in range(20)]
    squares = [float(column @ column) for column in small]
    np.testing.assert_allclose(np.mean(squares), 1000, rtol=0.25)
    one = sparse_sign(jax.random.fold_in(KEY, 0), 40, 1000) @ np.ones(1000)
    assert one.shape == small[0].shape


@pytest.mark.parametrize("kind", ["scaled", "permuted", "longer", "shorter", "target"])
def test_blocks_that_differ_from_pass_to_pass(kind):
    matrix = conditioned(10.0, SHAPE)
    target = make_target(matrix, 1.0)
    matrix, target = matrix.astype(np.float32), target.astype(np.float32)
    order = np.random.default_rng(0).permutation(1000)
    passes = {
        "scaled": (2 * matrix, target),
        "permuted": (matrix[order], target[order]),
        "longer": (np.tile(matrix, (2, 1)), np.tile(target, 2)),
        "shorter": (matrix[:-1], target[:-1]),
        "target": (matrix, target[::-1]),
    }
    blocks = iter([[(matrix, target)], [passes[kind]]])
    with pytest.raises(ValueError, match="blocks must be the same in all passes"):
        streaming_least_squares(KEY, lambda: next(blocks))
    # Rounding is no difference, and a NaN in a later pass is named.
    near = matrix * np.float32(1 + 1e-6), target
    blocks = iter([[(matrix, target)], *[[near]] * 3])
    assert streaming_least_squares(KEY, lambda: next(blocks), max_passes=4).converged
    broken = [(matrix[:9], target[:9]), (matrix[9:], target[9:] * np.nan)]
    blocks = iter([[(matrix, target)], broken, broken])
    with pytest.raises(ValueError, match="NaN or infinity in row 0 of block 1"):
        streaming_least_squares(KEY, lambda: next(blocks))


def test_from_a_memory_map(tmp_path, with_x64):
    matrix = conditioned(1e3, SHAPE)
    target = make_target(matrix, 1.0)
    file = np.memmap(tmp_path / "rows", float, "w+", shape=(1000, 9))
    file[:] = np.column_stack([matrix, target])

    def blocks():
        rows = np.memmap(tmp_path / "rows", float, "r", shape=(1000, 9))
        for start in range(0, 1000, 150):
            yield rows[start : start + 150, :8], rows[start : start + 150, 8]

    result = streaming_least_squares(KEY, blocks)
    assert backward_error(matrix, target, result.solution) < 4e-15
    few = streaming_least_squares(KEY, blocks, 20, max_passes=3)
    assert not few.converged and few.num_iterations == 3


@pytest.mark.parametrize("exponent", [-5, -9])
def test_converged_knows_what_float32_lost(exponent):
    """Of blocks in float64, as `preconditioned` does of arrays."""
    matrix = conditioned(10.0**-exponent, SHAPE)
    target = make_target(matrix, 1.0)
    result = streaming_least_squares(KEY, pairs(matrix, target, 300))
    best = np.linalg.lstsq(matrix, target)[0]
    longer = np.linalg.norm(matrix @ np.asarray(result.solution, float) - target)
    longer -= np.linalg.norm(matrix @ best - target)
    assert result.converged == (exponent == -5)
    assert not result.converged or longer < 1e-4 * np.linalg.norm(target)
    tiny = streaming_least_squares(KEY, pairs(1e-60 * matrix, target, 300))
    assert not tiny.converged


@pytest.mark.parametrize("sketch_size", [None, 64])
def test_any_units_in_float32(sketch_size):
    """Squares are beyond its range, and so may θ be."""
    matrix = conditioned(10.0, SHAPE)
    target = make_target(matrix, 1.0)
    best = np.linalg.lstsq(matrix, target)[0]
    for unit, size in ((1, 1e20), (1, 1e-20), (1e20, 1e-10), (1e-20, 1e10)):
        seen = {}
        blocks = pairs(np.float32(unit * matrix), np.float32(size * target), 300)
        result = streaming_least_squares(
            KEY, blocks, sketch_size, progress=seen.__setitem__
        )
        assert result.converged
        np.testing.assert_allclose(
            result.solution * np.float32(unit / size), best, atol=1e-3
        )
        norm = size * np.linalg.norm(matrix @ best - target)
        np.testing.assert_allclose(result.residual_history[-1], norm, rtol=1e-4)
        np.testing.assert_allclose(seen[int(result.num_iterations)], norm, rtol=1e-4)
    for unit in (1e-20, 1e20):
        blocks = pairs(np.float32(unit * matrix), np.float32(target / unit), 300)
        assert not streaming_least_squares(KEY, blocks, sketch_size).converged
