"""Leverage scores against SciPy's SVD in float64, in easy and in hard cases."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxwgc import sketching
from tests.sketching.scores import NUM_COLUMNS, NUM_ROWS, SCORES

METHODS = ["gram", "qr", "svd"]
MNIST = pathlib.Path(__file__).parents[2] / "experiments" / "data" / "mnist_4_9.npz"


def default_rcond(matrix):
    return 10 * np.sqrt(min(matrix.shape)) * np.finfo(matrix.dtype).eps


def reference(matrix, rcond):
    """Scores, rank and condition number of the kept part, in float64 by LAPACK."""
    matrix = np.asarray(matrix, np.float64)
    norms = np.linalg.norm(matrix, axis=0)
    norms[norms == 0] = 1
    matrix = matrix / 2 ** np.round(np.log2(norms))
    left, values, _ = scipy.linalg.svd(matrix, full_matrices=False)
    cut = rcond * values[0]
    # A singular value next to the cut-off could fall on either side of it.
    assert not np.any((values > cut / 3) & (values < 3 * cut)) or values[0] == 0
    kept = values > cut
    condition = values[kept][0] / values[kept][-1] if kept.any() else 1.0
    return np.sum(left[:, kept] ** 2, axis=1), kept.sum(), condition


# "svd" in float32 is in the tests of unequal rows and of real data.
@pytest.mark.parametrize(
    ("method", "x64"),
    [*((method, True) for method in METHODS), ("gram", False), ("qr", False)],
    indirect=["x64"],
)
@pytest.mark.parametrize("power", [0, 1, 2, 3, 4, 5, 6, 8, 10])
def test_sweep_of_condition_numbers(power, method, x64):
    """No condition number at which the way is changed loses accuracy."""
    dtype = np.float64 if x64 else np.float32
    eps = np.finfo(dtype).eps
    if 10.0**power * default_rcond(np.zeros((NUM_ROWS, NUM_COLUMNS), dtype)) > 0.3:
        pytest.skip("below the cut-off of this dtype")
    random = np.random.default_rng(7)
    left = np.linalg.qr(random.standard_normal((NUM_ROWS, NUM_COLUMNS)))[0]
    right = np.linalg.qr(random.standard_normal((NUM_COLUMNS,) * 2))[0]
    matrix = (left * np.logspace(0, -power, NUM_COLUMNS) @ right).astype(dtype)
    expected, rank, condition = reference(matrix, default_rcond(matrix))
    assert rank == NUM_COLUMNS
    tolerance = 100 * eps * condition
    if x64 and condition < 1e4:
        tolerance = min(tolerance, 1e-10)
    scores = sketching.leverage_scores(matrix, method)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rank_deficient", [False, True])
@pytest.mark.parametrize("num_rows", [8192, 20001])
def test_many_blocks_of_rows(num_rows, rank_deficient):
    random = np.random.default_rng(1)
    # Rows of very different sizes, so that a row missed or counted twice shows.
    matrix = random.standard_normal((num_rows, 5)) ** 3
    if rank_deficient:
        matrix[:, 4] = matrix[:, 0]
    matrix = matrix.astype(np.float32)
    expected, rank, condition = reference(matrix, default_rcond(matrix))
    assert rank == (4 if rank_deficient else 5)
    scores = np.asarray(sketching.leverage_scores(matrix))
    tolerance = 100 * np.finfo(np.float32).eps * condition
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(scores.sum(), rank, rtol=2e-6)


@pytest.mark.parametrize(
    ("method", "shape"), [("gram", (7, 1)), ("qr", (1, 3)), ("svd", (1, 1))]
)
def test_one_row_or_one_column(method, shape):
    matrix = np.random.default_rng(3).standard_normal(shape)
    expected = np.ones(1) if shape[0] == 1 else matrix[:, 0] ** 2 / np.sum(matrix**2)
    scores = sketching.leverage_scores(matrix, method)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


# The rank of the first 1,000 images by exact elimination modulo a prime. Many of the
# 784 pixels are always zero.
MNIST_RANK = 527


def test_mnist(with_x64):
    images = np.load(MNIST)["images"][:1000].reshape(1000, 784)
    expected, rank, _ = reference(images, 1e-11)
    assert rank == MNIST_RANK
    # Only 1.3 rows a column: "auto" would take "qr".
    scores = sketching.leverage_scores(images, "gram")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores.sum(), MNIST_RANK, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_rcond_cuts_the_same_directions(method):
    random = np.random.default_rng(5)
    values = np.full(NUM_COLUMNS, 1.0)
    values[-3:] = 3e3**-0.3, 3e3**-0.7, 1 / 3e3
    left = np.linalg.qr(random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))[1])[0]
    # Columns of equal norm, so that equilibration leaves the singular values alone.
    rotation = np.linalg.qr(random.standard_normal((3, 3)))[0]
    right = np.kron(scipy.linalg.hadamard(4) / 2, rotation)
    matrix = ((left * values) @ right).astype(np.float32)
    for rcond, rank in [(0.3, 9), (1.8e-2, 10), (1.1e-3, 11), (1e-6, 12)]:
        expected, expected_rank, condition = reference(matrix, rcond)
        assert expected_rank == rank
        scores = sketching.leverage_scores(matrix, method, rcond=rcond)
        tolerance = 100 * np.finfo(np.float32).eps * condition
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("power", [-36, -30, 0, 30, 36])
def test_units_do_not_matter_in_float32(power):
    # Many rows, so that norms are near the largest float32.
    matrix = np.random.default_rng(5).standard_normal((20001, 5)).astype(np.float32)
    matrix = np.sign(matrix) * (1 + np.abs(matrix))
    expected = sketching.leverage_scores(matrix)
    units = np.array([10.0**power, 1, 1, 10.0**-power, 1])
    scores = sketching.leverage_scores((matrix * units).astype(np.float32))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, bool])
def test_half_precision_and_bools_are_computed_in_float32(dtype):
    matrix = np.random.default_rng(6).standard_normal((NUM_ROWS, NUM_COLUMNS))
    matrix = jnp.asarray(matrix, dtype)
    scores = sketching.leverage_scores(matrix)
    assert scores.dtype == jnp.float32
    expected, _, _ = reference(np.asarray(matrix, np.float64), 1e-5)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "shape"),
    [*((way, (20, 4)) for way in ("gram", "qr", "sparse", "ridge")), ("qr", (4, 9))],
)
def test_jit_vmap_and_non_finite(way, shape):
    """Well-conditioned and rank-deficient matrices in one batch: both branches run."""
    ridge = 1.0 if way == "ridge" else 0.0
    scores_of = functools.partial(sketching.ridge_leverage_scores, ridge=ridge)
    scores_of = SCORES.get(way, scores_of)
    batch = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    batch[1, :, 2:] = batch[1, :, :1]
    batch[2] = 0
    batch[3:5, 3, 2] = np.nan, np.inf
    if way == "sharded":
        mapped = jax.jit(jax.vmap(scores_of))(batch[:5])
    else:
        # The last of the cut-offs are out of range.
        cutoffs = np.array([*[1e-6] * 5, np.nan, -1, 2], np.float32)
        mapped = jax.jit(jax.vmap(lambda matrix, rcond: scores_of(matrix, rcond=rcond)))
        mapped = mapped(batch, cutoffs)
    for matrix, scores in zip(batch[:3], mapped):
        left, values, _ = np.linalg.svd(matrix.astype(float), full_matrices=False)
        values = np.where(values > 1e-6 * values[0], values, 0) ** 2
        shares = np.divide(values, values + ridge, where=values > 0, out=0 * values)
        np.testing.assert_allclose(scores, left**2 @ shares, atol=1e-5)
    assert np.isnan(mapped[3:]).all()
