"""Leverage scores of BCOO matrices: those of the dense ones."""

import jax
import numpy as np
import pytest
from jax.experimental import sparse

from jaxwgc.sketching import leverage_scores
from jaxwgc.sketching._linalg.rows import block_size


def sparse_matrix(shape, density, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal(shape) * (random.random(shape) < density)


def entries_of(matrix):
    """As BCOO.fromdense gives them, which compiles many programs for each shape.

    Filled up as JAX does it, out of bounds, so that matrices of one shape share theirs.
    """
    indices = np.argwhere(matrix)
    data = matrix[tuple(indices.T)]
    num_missing = 2 ** len(data).bit_length() - len(data)
    indices = np.concatenate([indices, np.tile(matrix.shape, (num_missing, 1))])
    data = np.concatenate([data, np.zeros(num_missing, data.dtype)])
    data, indices = jax.device_put((data, indices.astype(np.int32)))
    return sparse.BCOO((data, indices), shape=matrix.shape, indices_sorted=True)


def test_many_blocks_of_rows(with_x64):
    # Rows of very different sizes and numbers of entries, one block without any.
    shape = (20_001, 40)
    matrix = sparse_matrix(shape, 0.02) ** 3
    size = block_size(*shape)
    assert shape[0] > 2 * size
    matrix[size : 2 * size] = 0
    matrix[5] = 1
    scores = leverage_scores(entries_of(matrix))
    expected = np.sum(np.linalg.svd(matrix, full_matrices=False)[0] ** 2, axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-12)


traced_scores = jax.jit(leverage_scores)


@pytest.mark.parametrize(("shape", "num_entries"), [((30, 3), 90), ((3, 30), 0)])
def test_zero_matrices(shape, num_entries):
    # Filled up as JAX does it, out of bounds.
    parts = np.zeros(num_entries, np.float32), np.full((num_entries, 2), shape)
    zeros = sparse.BCOO(jax.device_put(parts), shape=shape, indices_sorted=True)
    np.testing.assert_array_equal(traced_scores(zeros), np.zeros(shape[0]))


def test_memory_is_that_of_the_entries():
    """Far less than the dense matrix takes."""
    shape = (200_000, 100)
    random = np.random.default_rng(0)
    indices = np.stack([np.arange(shape[0]), random.integers(0, 100, shape[0])], 1)
    entries = (np.ones(shape[0], np.float32), indices)
    entries = sparse.BCOO(jax.device_put(entries), shape=shape)
    compiled = traced_scores.lower(entries).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < 0.5 * 4 * shape[0] * shape[1]
    counts = np.bincount(indices[:, 1], minlength=100)
    np.testing.assert_allclose(compiled(entries), 1 / counts[indices[:, 1]], rtol=1e-4)
