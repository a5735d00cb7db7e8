"""Leverage scores of matrices whose rows are read in several blocks."""

import numpy as np
import pytest

from jaxwgc.sketching._linalg.rows import block_size
from tests.sketching.zoo import check_scores


@pytest.mark.parametrize("way", ["gram", "sparse"])
def test_many_blocks_of_rows(way):
    random = np.random.default_rng(1)
    size = block_size(20_001, 40)
    # Rows of very different sizes, so that one missed or counted twice shows.
    matrix = random.standard_normal((20_001, 40)) ** 3
    matrix *= random.random(matrix.shape) < 0.1
    matrix[size : 2 * size] = 0
    matrix[5] = 1
    deficient = matrix.copy()
    deficient[:, 4] = deficient[:, 0]
    assert len(matrix) > 2 * size
    assert check_scores(way, matrix.astype(np.float32), rank=40)
    assert check_scores(way, deficient.astype(np.float32), rank=39)
    # With so many rows, norms are near the largest float32.
    units = np.resize([1e-36, 1.0, 1e36], 40)
    assert check_scores(way, (matrix * units).astype(np.float32), rank=40)
