"""Poisson and systematic samples with given inclusion probabilities."""

import jax
import numpy as np
import pytest

from jaxwgc.sketching._samplers._exact_inclusion import poisson_rows, systematic_rows


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
