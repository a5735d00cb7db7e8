"""Scores in the leading directions, wherever the rows are, against NumPy's SVD."""

import functools

import jax
import numpy as np
import pytest

from jaxwgc import sketching
from tests.oracles import change_of_scores, leverage_scores
from tests.sketching import zoo
from tests.sketching.zoo import KEY

NUM_ROWS = 300
NUM_COLUMNS = 40
RANK = 5
INDEX = np.arange(1, NUM_COLUMNS + 1.0)
SPECTRA = {
    "falling": 1 / INDEX,
    "gap": np.where(INDEX <= RANK, 2, 1 / INDEX),
    "slow": INDEX**-0.3,
    "graded": np.where(INDEX <= RANK, 10 ** ((1 - INDEX) / 1.5), 1e-4),
    "cluster in k": np.where(INDEX <= RANK, 1, 0.3 / INDEX),
    "cluster across k": np.where(INDEX <= RANK + 2, 1, 0.3 / INDEX),
    "rank 3": np.where(INDEX <= 3, 1 / INDEX, 0),
    "zero": 0 * INDEX,
}


@functools.cache
def of_spectrum(name):
    """A matrix with these singular values, and its scores in the directions there."""
    matrix = zoo.of_singular_values(SPECTRA[name], (NUM_ROWS, NUM_COLUMNS))
    return matrix, leverage_scores(matrix, rank=RANK)


of_array = functools.partial(sketching.rank_k_leverage_scores, KEY)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_reported_bound_holds_and_is_informative(name, x64):
    """It is at most 1, which says nothing; what is not ambiguous is nearer."""
    dtype = np.float64 if x64 else np.float32
    rounding = 200 * np.finfo(dtype).eps
    matrix, expected = of_spectrum(name)
    rank = min(RANK, np.count_nonzero(SPECTRA[name]))
    matrix = matrix.astype(dtype)
    for num_passes, size in ((5, 1.0),) if x64 else ((3, 2.0**100), (5, 2.0**-100)):
        result = of_array(matrix * dtype(size), RANK, num_passes=num_passes)
        scores = np.asarray(result.scores, float)
        assert result.scores.dtype == dtype and scores.min() >= 0 and scores.max() <= 1
        assert result.rank == rank
        is_slow = name == "slow" and num_passes == 3
        assert bool(result.is_ambiguous) == (name == "cluster across k" or is_slow)
        errors = np.abs(np.sqrt(scores) - np.sqrt(expected))
        assert errors.max() <= result.error_bound + rounding
    if name == "cluster across k":
        # Those of five directions nevertheless.
        np.testing.assert_allclose(scores.sum(), RANK, rtol=1e-4)
        np.testing.assert_allclose(result.gap, 0, atol=1e-4)
        return
    assert result.error_bound < 0.05
    values = SPECTRA[name][:RANK]
    np.testing.assert_allclose(result.singular_values / size, values, atol=1e-4)
    gap = 1 - SPECTRA[name][RANK] / values[-1] if rank == RANK else rank > 0
    np.testing.assert_allclose(result.gap, gap, atol=2e-2)


def test_counts_in_six_passes(with_x64):
    """Words of 20 topics, as in messages of 20 newsgroups."""
    random = np.random.default_rng(0)
    topics = random.dirichlet(np.full(500, 0.05), 20)
    shares = random.dirichlet(np.full(20, 0.1), 1000)
    matrix = random.poisson(100 * shares @ topics).astype(float)
    result = of_array(matrix, 20, num_passes=6)
    expected = leverage_scores(matrix, rank=20)
    np.testing.assert_allclose(result.scores, expected, rtol=0, atol=1e-5)
    is_large = expected > np.median(expected)
    np.testing.assert_allclose(result.scores[is_large], expected[is_large], rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 30), (4, 1)])
def test_all_directions_are_leverage_scores(shape, with_x64):
    matrix = np.random.default_rng(0).standard_normal(shape)
    rank = min(shape)
    result = of_array(matrix, rank)
    np.testing.assert_allclose(
        result.scores, leverage_scores(matrix, rank=rank), atol=1e-9
    )
    assert result.rank == rank and not result.is_ambiguous


def test_cutoff_is_of_singular_values(with_x64):
    matrix, _ = of_spectrum("falling")
    result = of_array(matrix, RANK, rcond=0.3, num_passes=5)
    assert result.rank == 3 and not result.is_ambiguous
    np.testing.assert_allclose(
        result.scores, leverage_scores(matrix, rank=3), atol=1e-8
    )


def six_pass_scores(matrix):
    return of_array(matrix, RANK, num_passes=6).scores


@pytest.mark.parametrize("name", ["falling", "slow", "cluster in k"])
def test_derivatives(name, with_x64):
    matrix, _ = of_spectrum(name)
    random = np.random.default_rng(1)
    change = random.standard_normal(matrix.shape)
    weights = random.random(len(matrix))
    expected = change_of_scores(matrix, change, RANK)
    zoo.check_both_modes(six_pass_scores, (matrix,), (change,), weights, expected, 1e-8)


def test_derivatives_of_sparse_matrices_of_a_low_rank(with_x64):
    matrix, change = zoo.start_of(zoo.path_of_rank((30, 7), 2))
    expected = change_of_scores(matrix, change, 2)
    of_entries = jax.jit(lambda matrix: of_array(zoo.bcoo_of(matrix), 3).scores)
    _, forward = jax.jvp(of_entries, (matrix,), (change,))
    np.testing.assert_allclose(forward, expected, atol=1e-9)


def test_no_derivatives_inside_of_a_cluster(with_x64):
    matrix, _ = of_spectrum("cluster across k")
    change, (gradient,) = zoo.forward_and_backward(
        six_pass_scores, (matrix,), (matrix,), np.ones(len(matrix))
    )
    assert np.isnan(change).all() and np.isnan(gradient).all()


def test_second_derivatives_are_nan(with_x64):
    matrix, _ = of_spectrum("falling")

    def along(step):
        return of_array(matrix + step * matrix[::-1], RANK, num_passes=3).scores

    assert np.isnan(jax.jit(jax.jacfwd(jax.jacfwd(along)))(0.0)).all()


def test_traced_matrices():
    matrix, expected = of_spectrum("gap")
    matrices = np.stack([matrix, -2 * matrix]).astype(np.float32)
    of_both = jax.jit(jax.vmap(lambda matrix: of_array(matrix, RANK, num_passes=4)))
    np.testing.assert_allclose(of_both(matrices).scores, [expected] * 2, atol=1e-5)
    matrices[1, 3, 4] = np.nan
    result = of_both(matrices)
    assert np.isfinite(result.scores[0]).all() and np.isnan(result.scores[1]).all()
    assert result.rank[1] == 0 and result.is_ambiguous[1] and np.isnan(result.gap[1])
