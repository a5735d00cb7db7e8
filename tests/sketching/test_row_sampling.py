"""The laws of the row samplers, their inclusion probabilities and their scales."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest

from jaxwgc.sketching import row_probabilities, sample_rows
from tests.oracles import check_counts

# Row 1 is in every sample of 3 distinct rows, and in every Poisson sample.
PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.05, 0.2])
INCLUSION = {
    "without_replacement": np.array([0.4, 1, 0.6, 0.2, 0.8]),
    "pivotal": np.array([0.4, 1, 0.6, 0.2, 0.8]),
    "poisson": np.array([0.3, 1, 0.45, 0.15, 0.6]),
}
METHODS = ("with_replacement", *INCLUSION)
# One for most tests, so that they share compiled functions.
NUM_SAMPLES = 20_000


@functools.partial(jax.jit, static_argnames=("num", "size", "method", "weighted"))
def _many_samples(key, probabilities, num=NUM_SAMPLES, size=3, **options):
    keys = jax.random.split(key, num)
    return jax.vmap(lambda key: sample_rows(key, probabilities, size, **options))(keys)


def many_samples(seed, *args, **options):
    """Samples as NumPy arrays, so that tests compile nothing more."""
    return jax.device_get(_many_samples(jax.random.key(seed), *args, **options))


def spread(sample, values, num_rows=5):
    """The values of the slots at their rows, (num, num_rows)."""
    result = np.zeros((len(values), num_rows))
    samples, slots = np.nonzero(sample.counts)
    rows = sample.indices[samples, slots]
    result[samples, rows] = values[samples, slots]
    # Rows in used slots are distinct.
    assert np.count_nonzero(result) == np.count_nonzero(values)
    return result


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("probabilities", [PROBABILITIES, np.ones(5) / 5])
def test_sketches_are_unbiased(method, probabilities):
    """The mean of scale² is 1 for every row, within four standard errors."""
    sample = many_samples(0, probabilities, method=method)
    squares = spread(sample, sample.scale**2)
    error = squares.std(0) / np.sqrt(NUM_SAMPLES)
    assert np.all(np.abs(squares.mean(0) - 1) < 4 * error + 1e-6)


def test_top_k_is_biased():
    sample = sample_rows(None, PROBABILITIES, 3, "top_k")
    assert sample.indices.tolist() == [1, 4, 2]
    for values in (sample.counts, sample.probabilities, sample.scale):
        np.testing.assert_array_equal(values, np.ones(3))


def test_unweighted_scales_are_the_counts():
    """A row counts as often as it was drawn, as in LEVUNW."""
    sample = many_samples(1, PROBABILITIES, method="with_replacement", weighted=False)
    np.testing.assert_allclose(sample.scale**2, sample.counts, rtol=1e-6)
    assert sample.counts.any()


@pytest.mark.parametrize("method", INCLUSION)
def test_inclusion_probabilities(method):
    """The returned probabilities make sketches unbiased."""
    sample = many_samples(3, PROBABILITIES, method=method)
    used = sample.counts > 0
    expected = INCLUSION[method][sample.indices[used]]
    np.testing.assert_allclose(sample.probabilities[used], expected, rtol=1e-6)


def test_poisson_rows_are_independent():
    sample = many_samples(4, PROBABILITIES, method="poisson")
    is_in = spread(sample, sample.counts)[:, [0, 2, 3, 4]]
    chances = INCLUSION["poisson"][[0, 2, 3, 4]]
    cells = np.array(list(itertools.product([0, 1], repeat=4)))
    expected = np.prod(np.where(cells, chances, 1 - chances), axis=1) * NUM_SAMPLES
    observed = np.bincount((is_in @ [8, 4, 2, 1]).astype(int), minlength=16)
    check_counts(observed, expected)


def test_without_replacement_has_its_size_and_every_triple():
    sample = many_samples(5, np.ones(5), method="without_replacement")
    assert np.all(sample.counts == 1)
    triples = collections.Counter(map(tuple, sample.indices.tolist()))
    # All ten are as likely, where rows are: by symmetry of the random order.
    assert len(triples) == 10
    check_counts(list(triples.values()))


def test_poisson_samples_have_no_more_slots_than_rows():
    sample = sample_rows(jax.random.key(0), np.ones(5), 3, "poisson")
    assert sample.indices.shape == sample.scale.shape == (5,)


def test_default_slots_suffice():
    sample = many_samples(7, np.ones(400), 500, 100, method="poisson")
    assert 100 < sample.counts.shape[1] < 200
    # The last slots are unused, so that no row is lost.
    assert not sample.counts[:, -1].any()
    sizes = np.sum(sample.counts, axis=1)
    assert abs(sizes.mean() - 100) < 4 * np.sqrt(75 / 500)


@pytest.mark.parametrize("method", [*METHODS, "top_k"])
def test_precision_keys_and_jit(method):
    """float64 in and out in 64-bit mode; a traced call gives the same sample."""
    traced = many_samples(8, PROBABILITIES, method=method)
    key = jax.random.split(jax.random.key(8), NUM_SAMPLES)[7]
    key = jax.random.key_data(key) if method in INCLUSION else key
    draw = functools.partial(sample_rows, key, PROBABILITIES, 3, method)
    # Draws with replacement use uniform variables, which differ in 64-bit mode. The
    # other methods draw from bits: the same rows in both modes.
    is_same = method != "with_replacement"
    with jax.enable_x64(True):
        single = draw() if is_same else jax.eval_shape(draw)
    for sample, dtype in ((traced, np.float32), (single, np.float64)):
        assert sample.scale.dtype == sample.probabilities.dtype == dtype
        assert sample.indices.dtype == sample.counts.dtype == np.int32
    for one, many in zip(single, traced) if is_same else ():
        np.testing.assert_allclose(one, many[7], rtol=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "top_k"])
def test_invalid_traced_probabilities(method):
    for bad in ([0.5, np.nan, 0.5], [0.5, -1, 0.5], [0, 0, 0], [np.inf, 1, 1]):
        sample = many_samples(0, np.array([*bad, 0, bad[0]], float), method=method)
        assert not sample.counts.any()
        assert np.isnan(sample.scale).all()
    # Fewer positive ones than rows to be drawn.
    sample = many_samples(0, np.array([0.0, 3, 0, 0, 0]), method=method)
    assert np.all(sample.indices[:, 0] == 1)
    used = sample.counts > 0
    assert used[:, 0].all() and not used[:, 1:].any()
    assert np.isfinite(sample.scale).all() and not sample.scale[:, 1:].any()


SCORES = np.array([3.0, 1.0, 0.0, 4.0])
LEVERAGE = SCORES / 8


def test_row_probabilities():
    for arguments, expected in [
        ((SCORES,), LEVERAGE),
        ((SCORES, "unif"), 0.25),
        ((SCORES, "slev", 0.6), 0.6 * LEVERAGE + 0.1),
        ((SCORES, "slev"), 0.9 * LEVERAGE + 0.025),
        ((SCORES, "slev", 1.0), LEVERAGE),
        ((np.full(4, 3e38),), 0.25),
    ]:
        np.testing.assert_allclose(row_probabilities(*arguments), expected, rtol=1e-6)
