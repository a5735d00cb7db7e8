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


def counts(num_cells, num_genes):
    """Logarithms of the counts of genes in cells of a few kinds."""
    random = np.random.default_rng(3)
    kinds = random.gamma(0.5, 2.0, (6, num_genes))
    means = kinds[random.integers(6, size=num_cells)]
    return np.log1p(random.poisson(means)).astype(np.float32)


CELLS = counts(400, 40)
# One shape for most kinds, so that they share a compiled function.
KINDS = {
    # Seurat 7650: fewer than 50 of them were refused.
    "few genes": CELLS,
    # Seurat 7690 and 9927: "singular matrix in backsolve".
    "duplicate genes": CELLS[:, np.arange(40) % 34],
    "rank-deficient": CELLS[:, :9] @ np.random.default_rng(4).random((9, 40)),
    # Seurat 9690: "NA/NaN/Inf in qr".
    "cells and genes without counts": np.where(
        np.arange(400)[:, None] % 7 * (np.arange(40) % 5), CELLS, 0
    ),
    "more genes than cells": CELLS[:20],
    # Seurat 9164.
    "more than 8,000 cells": counts(9_000, 40),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_cells(kind):
    """Those of the singular value decomposition."""
    matrix = KINDS[kind].astype(np.float32)
    expected = oracles.leverage_scores(matrix, 1e-5)
    scores = sketching.leverage_scores(matrix)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)
