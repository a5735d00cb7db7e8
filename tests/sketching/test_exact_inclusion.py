"""Poisson, systematic and pivotal samples with given inclusion probabilities."""

import jax
import numpy as np
import pytest

from jaxwgc.sketching._samplers._exact_inclusion import (
    _below,
    pivotal_rows,
    poisson_rows,
    systematic_rows,
)
from tests.conftest import weekly
from tests.oracles import check_counts


@jax.jit
def many_systematic(key, probabilities, size):
    keys = jax.random.split(key, 20)
    return jax.vmap(lambda key: systematic_rows(key, probabilities, size))(keys)


@pytest.mark.parametrize(
    ("size", "spread"), [(300, 2.0), (1900, 0.1), (7, 4.0), (2000, 1.0)]
)
def test_systematic_inclusion_probabilities(size, spread):
    """They sum to the size, which every sample has, also with rounding."""
    num_rows = 2000
    probabilities = np.exp(spread * np.random.default_rng(0).normal(size=num_rows))
    probabilities = probabilities / probabilities.sum()
    result = many_systematic(jax.random.key(6), probabilities, np.int32(size))
    is_in, inclusion = jax.device_get(result)
    np.testing.assert_array_equal(np.sum(is_in, axis=1), size)
    total = np.sum(inclusion, axis=1, dtype=float)
    np.testing.assert_allclose(total, size, rtol=1e-6)
    # In proportion, where they are not 1, as all are where all rows are taken.
    inclusion = inclusion[0]
    assert (inclusion < 1).any() == (size < num_rows)
    is_large = (inclusion < 1) & (inclusion > 1e-4)
    ratio = (inclusion / probabilities)[is_large]
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "spread"), [(300, 2.0), (1900, 0.1), (7, 4.0), (2000, 1.0)]
)
def test_systematic_inclusion_probabilities_in_float64(size, spread, with_x64):
    """They sum to the size exactly, and are in proportion up to 2⁻³²."""
    num_rows = 2000
    probabilities = np.exp(spread * np.random.default_rng(0).normal(size=num_rows))
    probabilities = probabilities / probabilities.sum()
    result = many_systematic(jax.random.key(6), probabilities, np.int32(size))
    is_in, inclusion = jax.device_get(result)
    assert inclusion.dtype == np.float64
    np.testing.assert_array_equal(np.sum(is_in, axis=1), size)
    np.testing.assert_allclose(np.sum(inclusion, axis=1), size, rtol=1e-12)
    inclusion = inclusion[0]
    assert (inclusion < 1).any() == (size < num_rows)
    is_large = (inclusion < 1) & (inclusion > 1e-2)
    ratio = (inclusion / probabilities)[is_large]
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), rtol=1e-6)


def test_rare_rows_are_not_lost():
    """Chances below 2⁻³² are rounded up, and the scale uses the rounded ones."""
    key = jax.random.key(0)
    probabilities = np.pad(np.float32([0.5, 0.5, 1e-15]), (0, 1997))
    _, systematic = many_systematic(key, probabilities, np.int32(1))
    _, poisson = jax.jit(poisson_rows, static_argnums=2)(key, probabilities, 1)
    for inclusion in (systematic[0], poisson):
        assert inclusion[2] == 2.0**-32 and inclusion[3] == 0


@jax.jit
def many_pivotal(key, probabilities, size, order):
    keys = jax.random.split(key, 20_000)
    return jax.vmap(lambda key: pivotal_rows(key, probabilities, size, order))(keys)


@pytest.mark.parametrize(
    ("num_rows", "size"),
    [(1, 1), (13, 4), (32, 20), weekly(2, 1)],
)
def test_pivotal_inclusion_probabilities(num_rows, size):
    """They are those of systematic samples, and every sample has the size."""
    generator = np.random.default_rng(num_rows)
    probabilities = generator.exponential(size=num_rows).astype(np.float32)
    probabilities /= probabilities.sum()
    order = generator.permutation(num_rows).astype(np.int32)
    key = jax.random.key(1)
    result = many_pivotal(key, probabilities, np.int32(size), order)
    is_in, inclusion = jax.device_get(result)
    _, expected = jax.jit(systematic_rows)(key, probabilities, np.int32(size))
    np.testing.assert_allclose(inclusion[0], expected, atol=1e-6)
    np.testing.assert_array_equal(is_in.sum(axis=1), size)
    chances = inclusion[0]
    error = np.sqrt(chances * (1 - chances) / len(is_in))
    assert np.all(np.abs(is_in.mean(axis=0) - chances) <= 4.5 * error)


def test_pivotal_rows_are_negatively_correlated():
    """No pair of rows is in the sample more often than if rows were independent."""
    probabilities = np.float32([0.05, 0.1, 0.15, 0.2, 0.05, 0.1, 0.15, 0.2])
    order = np.arange(8, dtype=np.int32)
    result = many_pivotal(jax.random.key(2), probabilities, np.int32(3), order)
    is_in, inclusion = jax.device_get(result)
    pairs = is_in.T.astype(float) @ is_in / len(is_in)
    independent = np.outer(inclusion[0], inclusion[0])
    error = np.sqrt(independent / len(is_in))
    is_pair = ~np.eye(8, dtype=bool)
    assert np.all((pairs - independent)[is_pair] < 4.5 * error[is_pair])
    # The first two rows have 0.45 together, and so they are never both in the sample.
    assert pairs[0, 1] == 0 and pairs[0, 7] > 0


def test_pivotal_samples_have_one_row_per_group():
    """A subtree whose probabilities sum to an integer has as many rows."""
    probabilities = np.full(64, 1 / 64, np.float32)
    groups = np.random.default_rng(0).permutation(64)
    order = np.argsort(groups // 8, kind="stable").astype(np.int32)
    result = many_pivotal(jax.random.key(3), probabilities, np.int32(8), order)
    is_in, _ = jax.device_get(result)
    in_groups = is_in[:, order].reshape(len(is_in), 8, 8)
    np.testing.assert_array_equal(in_groups.sum(axis=2), 1)
    # Rows of a group, and rows of two groups, are drawn independently.
    check_counts(in_groups.sum(axis=0).ravel())
    pairs = in_groups[:, 0, :, None] & in_groups[:, 1, None, :]
    check_counts(pairs.sum(axis=0).ravel())


def test_random_numbers_below_a_size():
    """They are the upper words of products of 64 bits."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 10_000, dtype=np.uint32)
    size = generator.integers(1, 2**32, 10_000, dtype=np.uint32)
    size[:5] = [0, 1, 2, 2**16, 2**32 - 1]
    bits[5:9] = [0, 2**16 - 1, 2**16, 2**32 - 1]
    product = bits.astype(object) * np.where(size == 0, 2**32, size.astype(object))
    np.testing.assert_array_equal(_below(bits, size), product // 2**32)
