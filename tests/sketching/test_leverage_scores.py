"""Leverage scores against SciPy's SVD in float64, in easy and in hard cases."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import sparse

from jaxwgc import sketching

METHODS = ["gram", "qr", "svd"]
MNIST = pathlib.Path(__file__).parents[2] / "experiments" / "data" / "mnist_4_9.npz"

# One shape for most cases, so that they share compiled functions.
NUM_ROWS, NUM_COLUMNS = 300, 12


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


@functools.cache
def cases():
    random = np.random.default_rng(0)
    shape = (NUM_ROWS, NUM_COLUMNS)
    gaussian = random.standard_normal(shape)
    basis = np.linalg.qr(random.standard_normal(shape))[0]
    rotation = np.linalg.qr(random.standard_normal((NUM_COLUMNS,) * 2))[0]

    def conditioned(condition):
        values = np.full(NUM_COLUMNS, 1.0)
        values[-3:] = [condition**-0.3, condition**-0.7, 1 / condition]
        return (basis * values) @ rotation

    half = gaussian[:, : NUM_COLUMNS // 2]
    integers = random.integers(-4, 5, (NUM_ROWS, 5))
    heavy_row = gaussian.copy()
    heavy_row[7] *= 1e3
    zero_columns = gaussian.copy()
    zero_columns[:, [0, 4, 11]] = 0
    near_duplicates = np.hstack([half, half + 1e-3 * gaussian[:, NUM_COLUMNS // 2 :]])
    return {
        "gaussian": (gaussian, 12),
        "integers": (random.integers(-9, 10, shape), 12),
        "duplicated columns": (np.hstack([half, half]), 6),
        "multiples of columns": (np.hstack([half, -3 * half]), 6),
        "rank-deficient integers": (
            integers @ random.integers(-4, 5, (5, NUM_COLUMNS)),
            5,
        ),
        "low-rank product": (gaussian[:, :4] @ random.standard_normal((4, 12)), 4),
        "zero columns": (zero_columns, 9),
        "zero matrix": (np.zeros(shape), 0),
        "condition 1e2": (conditioned(1e2), 12),
        "condition 3e3": (conditioned(3e3), 12),
        "condition 1e6": (conditioned(1e6), None),
        "condition 1e10": (conditioned(1e10), None),
        "badly scaled columns": (gaussian * np.logspace(-8, 8, NUM_COLUMNS), 12),
        "near duplicates": (near_duplicates, 12),
        "row of leverage 1": (heavy_row, 12),
        "all ones": (np.ones(shape), 1),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", cases())
def test_agrees_with_float64_svd(name, method, x64):
    matrix, rank = cases()[name]
    dtype = np.float64 if x64 else np.float32
    eps = np.finfo(dtype).eps
    if matrix.dtype.kind == "f":
        matrix = matrix.astype(dtype)
    rcond = 10 * np.sqrt(NUM_COLUMNS) * eps
    expected, expected_rank, condition = reference(matrix, rcond)
    assert rank is None or rank == expected_rank
    scores = sketching.leverage_scores(matrix, method)
    assert scores.shape == (NUM_ROWS,) and scores.dtype == dtype
    tolerance = 100 * eps * condition
    if x64 and condition < 1e4:
        tolerance = min(tolerance, 1e-10)
    scores = np.asarray(scores)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(scores.sum(), expected_rank, atol=12 * tolerance)
    assert np.all((scores >= 0) & (scores <= 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [0, 1, 2, 3, 4, 5, 6, 8, 10])
def test_sweep_of_condition_numbers(power, method, x64):
    """No condition number at which the way is changed loses accuracy."""
    dtype = np.float64 if x64 else np.float32
    eps = np.finfo(dtype).eps
    if 10.0**power * default_rcond(np.zeros((300, 12), dtype)) > 0.3:
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


def test_condition_1e10_is_full_rank_in_float64(with_x64):
    # One pass over the Gram matrix sees nothing below a condition number of 1e8.
    matrix, _ = cases()["condition 1e10"]
    assert matrix.dtype == np.float64
    scores = sketching.leverage_scores(matrix, "gram")
    np.testing.assert_allclose(scores.sum(), NUM_COLUMNS, atol=1e-4)


@pytest.mark.parametrize("rank_deficient", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "x64"), [(8192, False), (20001, False), (20001, True)]
)
def test_many_blocks_of_rows(num_rows, rank_deficient, x64):
    random = np.random.default_rng(1)
    # Rows of very different sizes, so that a row missed or counted twice shows.
    matrix = random.standard_normal((num_rows, 5)) ** 3
    if rank_deficient:
        matrix[:, 4] = matrix[:, 0]
    dtype = np.float64 if x64 else np.float32
    matrix = matrix.astype(dtype)
    expected, rank, condition = reference(matrix, default_rcond(matrix))
    assert rank == (4 if rank_deficient else 5)
    with jax.enable_x64(x64):
        scores = np.asarray(sketching.leverage_scores(matrix))
    tolerance = 100 * np.finfo(dtype).eps * condition
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(scores.sum(), rank, rtol=2e-6)


@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("rank", [6, 2])
def test_wide(method, rank, x64):
    random = np.random.default_rng(2)
    matrix = random.standard_normal((6, rank)) @ random.standard_normal((rank, 20))
    dtype = np.float64 if x64 else np.float32
    matrix = matrix.astype(dtype)
    expected, expected_rank, condition = reference(matrix, default_rcond(matrix))
    assert expected_rank == rank
    scores = sketching.leverage_scores(matrix, method)
    tolerance = 100 * np.finfo(dtype).eps * condition
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 3)])
def test_one_row_or_one_column(method, shape):
    matrix = np.random.default_rng(3).standard_normal(shape)
    expected = np.ones(1) if shape[0] == 1 else matrix[:, 0] ** 2 / np.sum(matrix**2)
    scores = sketching.leverage_scores(matrix, method)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


# Ranks of the first images by exact elimination modulo a prime. Many of the 784 pixels
# are always zero.
MNIST_RANKS = {1000: 527, 10_000: 602}


def mnist_images(number):
    return np.load(MNIST)["images"][:number].reshape(number, 784)


def test_mnist(with_x64):
    images = mnist_images(1000)
    expected, rank, _ = reference(images, 1e-11)
    assert rank == MNIST_RANKS[1000]
    # Only 1.3 rows a column: "auto" would take "qr".
    scores = sketching.leverage_scores(images, "gram")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores.sum(), MNIST_RANKS[1000], atol=1e-8)


def test_mnist_in_float32():
    # With fewer images, one direction falls below the cut-off of float32.
    images = mnist_images(10_000).astype(np.float32) / 255
    scores = sketching.leverage_scores(images)
    np.testing.assert_allclose(scores.sum(), MNIST_RANKS[10_000], atol=0.01)


def test_value_checks_see_constants_of_a_traced_function():
    matrix = jnp.full((4, 2), jnp.nan)
    with pytest.raises(ValueError, match="matrix must be finite; got 8 NaN"):
        jax.jit(lambda x: x * sketching.leverage_scores(matrix))(1.0)


@pytest.mark.parametrize("method", METHODS)
def test_rcond_cuts_the_same_directions(method):
    matrix = cases()["condition 3e3"][0].astype(np.float32)
    for rcond, rank in [(0.2, 9), (1.4e-2, 10), (8e-4, 11), (1e-6, 12)]:
        expected, expected_rank, condition = reference(matrix, rcond)
        assert expected_rank == rank
        scores = sketching.leverage_scores(matrix, method, rcond=rcond)
        tolerance = 100 * np.finfo(np.float32).eps * condition
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


def test_invariant_under_change_of_basis(x64):
    random = np.random.default_rng(4)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    mixed = matrix @ random.standard_normal((NUM_COLUMNS, NUM_COLUMNS))
    np.testing.assert_allclose(
        sketching.leverage_scores(matrix),
        sketching.leverage_scores(mixed),
        atol=1e-12 if x64 else 1e-5,
    )


@pytest.mark.parametrize("power", [-36, -30, 0, 30, 36])
def test_units_do_not_matter_in_float32(power):
    # Many rows, so that norms are near the largest float32.
    matrix = np.random.default_rng(5).standard_normal((20001, 5)).astype(np.float32)
    matrix = np.sign(matrix) * (1 + np.abs(matrix))
    expected = sketching.leverage_scores(matrix)
    units = np.array([10.0**power, 1, 1, 10.0**-power, 1])
    scores = sketching.leverage_scores((matrix * units).astype(np.float32))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    matrix = jnp.asarray(np.random.default_rng(6).standard_normal((40, 4)), dtype)
    scores = sketching.leverage_scores(matrix)
    assert scores.dtype == jnp.float32
    expected, _, _ = reference(np.asarray(matrix, np.float64), 1e-5)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_incidence_matrix_of_bools():
    matrix = np.array([[True, False], [True, False], [False, True]])
    np.testing.assert_allclose(
        sketching.leverage_scores(matrix), [0.5, 0.5, 1.0], rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_jit_vmap_and_non_finite(method):
    # Well-conditioned and rank-deficient matrices in one batch: both branches run.
    names = ["gaussian", "duplicated columns", "zero matrix", "gaussian", "gaussian"]
    batch = np.stack([cases()[name][0] for name in names])
    batch[3:, 5, 2] = np.nan, np.inf
    one = functools.partial(sketching.leverage_scores, method=method)
    found = jax.jit(jax.vmap(one))(batch)
    for matrix, scores in zip(batch[:3], found):
        np.testing.assert_allclose(scores, one(matrix), atol=1e-6)
    assert np.isnan(found[3:]).all()
    for matrix in batch[3:]:
        with pytest.raises(ValueError, match="matrix must be finite; got 1 NaN"):
            one(matrix)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"matrix": np.ones(3)}, ValueError, r"matrix must have shape \(N, p\)"),
        ({"matrix": np.ones((0, 3))}, ValueError, r"matrix .* got \(0, 3\)"),
        ({"matrix": np.ones((3, 0))}, ValueError, r"matrix .* got \(3, 0\)"),
        ({"matrix": np.ones((3, 2), complex)}, TypeError, "matrix must be real"),
        ({"matrix": "no"}, TypeError, "matrix must be an array"),
        ({"matrix": np.eye(2), "method": "lu"}, ValueError, "method must be one of"),
        ({"matrix": np.eye(2), "method": None}, ValueError, "method must be one of"),
        ({"matrix": np.eye(2), "rcond": -1.0}, ValueError, "rcond must be at least 0"),
        ({"matrix": np.eye(2), "rcond": 1.0}, ValueError, "rcond must be less than 1"),
        ({"matrix": np.eye(2), "rcond": np.nan}, ValueError, "rcond"),
        ({"matrix": np.eye(2), "rcond": np.ones(2)}, TypeError, "rcond"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        sketching.leverage_scores(**arguments)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 3), (3, 3), (9, 2)]),
    st.sampled_from(METHODS),
    st.integers(0, 2**32 - 1),
)
def test_integer_matrices_have_scores_that_sum_to_the_rank(shape, method, seed):
    matrix = np.random.default_rng(seed).integers(-2, 3, shape)
    scores = np.asarray(sketching.leverage_scores(matrix, method))
    assert np.all((scores >= 0) & (scores <= 1))
    np.testing.assert_allclose(
        scores.sum(), np.linalg.matrix_rank(matrix.astype(float)), atol=1e-4
    )
    projector = matrix @ np.linalg.pinv(matrix.astype(float))
    np.testing.assert_allclose(scores, np.diag(projector), atol=1e-4)


@pytest.mark.parametrize(
    "scores",
    [
        sketching.leverage_scores,
        functools.partial(sketching.ridge_leverage_scores, ridge=1.0),
        lambda matrix, rcond: sketching.lewis_weights(matrix, 1.0, rcond=rcond).weights,
        lambda matrix, rcond: sketching.leverage_scores(
            sparse.BCOO.fromdense(matrix, nse=matrix.size), rcond=rcond
        ),
    ],
    ids=["dense", "ridge", "lewis", "sparse"],
)
def test_traced_cutoff_out_of_range(scores):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
    traced = jax.jit(lambda rcond: scores(matrix, rcond=rcond))
    assert np.isfinite(traced(1e-4)).all()
    for rcond in (np.nan, -1.0, 2.0):
        assert np.isnan(traced(rcond)).all()
