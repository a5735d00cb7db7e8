"""Every way to leverage scores, on real and spoilt data, against NumPy in float64."""

import functools

import numpy as np
import pytest
import sklearn.datasets

from jaxwgc import sketching
from tests.sketching import scores
from tests.sketching.scores import NUM_COLUMNS, NUM_ROWS

SETS = ("digits", "breast_cancer", "diabetes", "wine", "iris")


@functools.cache
def data(name):
    """Features, followed by products of features where there are too few."""
    features = getattr(sklearn.datasets, f"load_{name}")().data
    products = [features * np.roll(features, i, axis=1) for i in range(2)]
    return np.hstack([features, *products])[:NUM_ROWS, :NUM_COLUMNS]


def spoilt(matrix, how, precision):
    random = np.random.default_rng(0)
    matrix = matrix.copy()
    if how == "zero columns":
        matrix[:, ::3] = 0
    elif how == "repeated columns":
        matrix[:, 1] = matrix[:, 0]
        matrix[:, -1] = -3 * matrix[:, 0]
    elif how == "outlier":
        matrix[5] *= 1e-4 / precision**0.75
    elif how == "equal rows":
        matrix[:] = matrix[0]
    elif how == "few rows":
        matrix[random.random(NUM_ROWS) > 0.05] = 0
    elif how == "rank 5":
        matrix = matrix[:, :5] @ random.standard_normal((5, NUM_COLUMNS))
    elif how == "ill-conditioned":
        left = np.linalg.qr(random.standard_normal(matrix.shape))[0]
        values = np.geomspace(1, 200 * precision, NUM_COLUMNS)
        matrix = left * values @ np.linalg.qr(matrix[:NUM_COLUMNS])[0]
    elif how in ("1e30", "1e-30"):
        matrix *= float(how) / np.abs(matrix).max()
    elif how == "units from 1e-30 to 1e30":
        largest = np.abs(matrix).max(axis=0)
        units = np.geomspace(1e-30, 1e30, NUM_COLUMNS)
        matrix *= units / np.where(largest > 0, largest, 1)
    elif how == "zero":
        matrix[:] = 0
    elif how == "wide":
        matrix = matrix.T
    elif how == "wide of rank 5":
        matrix = (matrix[:, :5] @ random.standard_normal((5, NUM_COLUMNS))).T
    return matrix


def reference(matrix):
    """Left singular vectors and singular values, with columns of norms next to 1."""
    matrix = matrix.astype(float)
    largest = np.abs(matrix).max(axis=0)
    matrix = matrix / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(matrix, axis=0)
    matrix = matrix / 2 ** np.round(np.log2(np.where(norms > 0, norms, 1)))
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return left, values


SCORES = {
    **scores.SCORES,
    "blocks": lambda matrix: sketching.leverage_scores(
        sketching.Blocks(np.array_split(matrix, 4))
    ),
}


WAYS_TO_SPOIL = (
    "as it is, zero columns, repeated columns, outlier, equal rows, few rows, rank 5, "
    "ill-conditioned, 1e30, 1e-30, units from 1e-30 to 1e30, zero, wide, wide of rank 5"
)


@pytest.mark.parametrize("how", WAYS_TO_SPOIL.split(", "))
def test_agree_with_numpy(how):
    eps = float(np.finfo(np.float32).eps)
    num_clear = 0
    for name in SETS:
        matrix = spoilt(data(name), how, eps).astype(np.float32)
        left, values = reference(matrix)
        cut = 10 * np.sqrt(NUM_COLUMNS) * eps * values[0]
        if np.any((values > cut / 4) & (values < 4 * cut)):
            # Rounding may put this one on either side.
            continue
        num_clear += 1
        is_kept = values > cut
        expected = np.sum(left[:, is_kept] ** 2, axis=1)
        condition = values[0] / values[is_kept].min(initial=values[0]) if cut else 1
        for way, function in SCORES.items():
            # Where the columns of a wide matrix are tied together by their
            # ridge.
            if how.startswith("wide") and way == "no ridge":
                continue
            computed = np.asarray(function(matrix))
            assert computed.dtype == np.float32
            assert computed.min() >= 0 and computed.max() <= 1
            np.testing.assert_allclose(
                computed,
                expected,
                rtol=0,
                atol=100 * eps * max(condition, 10),
                err_msg=f"{name}, {way}",
            )
    assert num_clear >= 3
