"""What others have reported of other libraries, run as it was reported."""

import numpy as np
import pytest
import scipy.linalg

from jaxwgc import sketching
from tests import oracles
from tests.sketching.zoo import KEY


def test_corners_of_an_image_in_perspective():
    """JAX 11433: Σ|Ax - b| of 562 in float32, where NumPy's float64 has 0.0005."""
    here = np.array([[122, 1141], [686, 1209], [626, 2], [23, 339]])
    there = np.array([[0, 1279], [719, 1279], [719, 0], [0, 0]])
    rows = []
    for (x, y), (u, v) in zip(here, there):
        rows.append([x, y, 1, 0, 0, 0, -x * u, -y * u])
        rows.append([0, 0, 0, x, y, 1, -x * v, -y * v])
    matrix, target = np.array(rows, np.float32), there.ravel().astype(np.float32)
    result = sketching.preconditioned(KEY, matrix, target)
    error = np.abs(matrix.astype(float) @ np.asarray(result.solution, float) - target)
    assert result.converged and error.sum() < 0.02
    exact = np.linalg.solve(matrix.astype(float), target)
    np.testing.assert_allclose(result.solution, exact, rtol=1e-3)


def test_the_cutoff_does_not_grow_with_rows():
    """scikit-learn 33032: with max(N, p) eps one of two columns counts as rounding."""
    random = np.random.RandomState(1137)
    num_rows = 500_000
    first = random.rand(num_rows)
    matrix = np.stack([first, 0.3 * first + 0.1 * random.rand(num_rows)], axis=1)
    target = matrix @ [0.5, 2.0] + 0.1 * random.rand(num_rows)
    matrix, target = matrix.astype(np.float32), target.astype(np.float32)
    expected = scipy.linalg.lstsq(matrix.astype(float), target)[0]
    least = oracles.residual_norm(matrix, target, expected)
    result = sketching.preconditioned(KEY, matrix, target)
    assert result.converged and result.rank.rank == 2
    # As in scikit-learn's own test.
    found = oracles.residual_norm(matrix, target, result.solution)
    assert found == pytest.approx(least, rel=1e-6)
