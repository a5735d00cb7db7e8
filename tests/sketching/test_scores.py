"""Exact leverage scores by every way, and ridge scores, against NumPy in float64."""

import functools

import jax
import numpy as np
import pytest
import scipy.linalg
import sklearn.datasets
from jax.experimental import sparse

from jaxwgc.sketching import leverage_scores, numerical_rank, ridge_leverage_scores
from tests import oracles
from tests.sketching.zoo import (
    NUM_COLUMNS,
    NUM_ROWS,
    SCORES,
    check_scores,
    conditioned,
)

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


SCORES_TO_SPOIL = (
    "as it is, zero columns, repeated columns, outlier, equal rows, few rows, rank 5, "
    "ill-conditioned, 1e30, 1e-30, units from 1e-30 to 1e30, zero, wide, wide of rank 5"
)


@pytest.mark.parametrize("how", SCORES_TO_SPOIL.split(", "))
def test_real_and_spoilt_data(how):
    eps = float(np.finfo(np.float32).eps)
    matrices = [spoilt(data(name), how, eps).astype(np.float32) for name in SETS]
    # A wide matrix's columns are tied together by their ridge, and "gram" means "qr".
    left_out = ("no ridge", "qr") if how.startswith("wide") else ()
    for way in [way for way in SCORES if way not in left_out]:
        assert sum(check_scores(way, matrix) for matrix in matrices) >= 3


@pytest.mark.parametrize(
    ("way", "x64"),
    [*((way, False) for way in SCORES), ("gram", True), ("blocks", True)],
    indirect=["x64"],
)
def test_no_condition_number_loses_accuracy(way, x64):
    """The algorithm changes within this range."""
    for power in range(0, 11 if x64 else 5):
        matrix = conditioned(10.0**power).astype(np.float64 if x64 else np.float32)
        assert check_scores(way, matrix, rank=NUM_COLUMNS)


@pytest.mark.parametrize(
    ("way", "shape"), [("gram", (7, 1)), ("qr", (1, 3)), ("qr", (1, 1))]
)
def test_one_row_or_one_column(way, shape):
    matrix = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    assert check_scores(way, matrix, rank=1)


@pytest.mark.parametrize("way", SCORES)
def test_rcond_cuts_the_same_directions(way):
    random = np.random.default_rng(5)
    values = np.full(NUM_COLUMNS, 1.0)
    values[-3:] = 3e3**-0.3, 3e3**-0.7, 1 / 3e3
    left = np.linalg.qr(random.standard_normal((NUM_ROWS, NUM_COLUMNS)))[0]
    # Columns of equal norm, so that equilibration leaves the singular values alone.
    rotation = np.linalg.qr(random.standard_normal((3, 3)))[0]
    right = np.kron(scipy.linalg.hadamard(4) / 2, rotation)
    matrix = ((left * values) @ right).astype(np.float32)
    for rcond, rank in [(0.3, 9), (1.8e-2, 10), (1.1e-3, 11), (1e-6, 12)]:
        assert check_scores(way, matrix, rcond, rank)


with_shapes = pytest.mark.parametrize(
    ("shape", "x64"),
    [((NUM_ROWS, NUM_COLUMNS), True), ((NUM_COLUMNS, 60), False)],
    indirect=["x64"],
)


@with_shapes
def test_ridge_scores(shape, x64):
    """Normal equations with a ridge may have a condition number of 1e20."""
    dtype = np.float64 if x64 else np.float32
    for condition in (10.0, 1e3, 1e10) if x64 else (10.0, 1e3):
        matrix = conditioned(condition, shape).astype(dtype)
        for ridge in (1e-24, 1e-20, 1e-16, 1e-12, 1e-6, 1e-3, 1.0, 100.0):
            scores = ridge_leverage_scores(matrix, ridge)
            expected = oracles.leverage_scores(matrix, 0, ridge)
            tolerance = 100 * np.finfo(dtype).eps * min(condition, ridge**-0.5 + 1)
            np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


@with_shapes
def test_tiny_ridges_of_deficient_matrices(shape, x64):
    matrix = np.random.default_rng(2).standard_normal(shape)
    matrix[:, 5:] = matrix[:, :1]
    matrix[5:] = matrix[:1] if shape[0] < shape[1] else matrix[5:]
    expected = oracles.leverage_scores(matrix)
    for ridge in (0.0, 1e-30):
        scores = ridge_leverage_scores(matrix, ridge)
        np.testing.assert_allclose(scores, expected, atol=1e-9 if x64 else 1e-5)


def test_units_of_columns_with_a_ridge(with_x64):
    units = np.array([1e-6, *[1] * (NUM_COLUMNS - 2), 1e6])
    matrix = np.random.default_rng(3).standard_normal((NUM_ROWS, NUM_COLUMNS)) * units
    ridge = 1e-10
    # Columns are nearly orthogonal only after scaling.
    scaled = matrix / units
    inner = scaled.T @ scaled + ridge * np.diag(units**-2)
    expected = np.einsum("ij,ij->i", scaled @ np.linalg.inv(inner), scaled)
    scores = ridge_leverage_scores(matrix, ridge)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


def test_sparse_without_entries():
    parts = np.zeros(0, np.float32), np.zeros((0, 2), int)
    zeros = sparse.BCOO(jax.device_put(parts), shape=(3, 30), indices_sorted=True)
    assert jax.eval_shape(leverage_scores, zeros).shape == (3,)


def test_memory_is_that_of_the_entries():
    """Far less than the dense matrix takes."""
    shape = (200_000, 100)
    random = np.random.default_rng(0)
    indices = np.stack([np.arange(shape[0]), random.integers(0, 100, shape[0])], 1)
    entries = (np.ones(shape[0], np.float32), indices)
    entries = sparse.BCOO(jax.device_put(entries), shape=shape)
    compiled = jax.jit(leverage_scores).lower(entries).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < 0.5 * 4 * shape[0] * shape[1]
    counts = np.bincount(indices[:, 1], minlength=100)
    np.testing.assert_allclose(compiled(entries), 1 / counts[indices[:, 1]], rtol=1e-4)


@pytest.mark.parametrize("way", SCORES)
def test_small_directions_of_tall_matrices_are_kept(way):
    """The cutoff grows with the number of columns: for that of rows, the rank is 3.

    The last direction is that of the first row alone, which has the score 1.
    """
    random = np.random.default_rng(0)
    left = np.eye(20_000, 4)[:, ::-1]
    left[4:, :3] = np.linalg.qr(random.standard_normal((19_996, 3)))[0]
    left[:4, :3] = 0
    right = np.linalg.qr(random.standard_normal((4, 4)))[0]
    matrix = (left * [1, 1, 1, 4e-5] @ right.T).astype(np.float32)
    scores = SCORES[way](matrix)
    np.testing.assert_allclose(scores[0], 1, atol=0.1)


@pytest.mark.parametrize(
    ("smallest", "rank", "is_ambiguous"),
    [
        (2e-2, 4, False),
        (5e-3, 4, True),
        (2e-3, 4, True),
        (5e-4, 3, True),
        (2e-4, 3, True),
        (5e-5, 3, False),
    ],
)
def test_rank_is_ambiguous_on_both_sides_of_the_cutoff(smallest, rank, is_ambiguous):
    """Within a factor of ten of a cutoff of 0.001."""
    signs = scipy.linalg.hadamard(4)
    matrix = np.tile(signs, (5, 1)) * [1, 1, 1, smallest] @ signs
    found = numerical_rank(matrix.astype(np.float32), 1e-3)
    assert found.rank == rank
    assert found.is_ambiguous == is_ambiguous
