"""Fixtures and straggler patterns that the tests share."""

import itertools

import jax
import numpy as np
import pytest


@pytest.fixture(params=[False, True], ids=["x64-off", "x64-on"])
def x64(request):
    """Runs a test with JAX's 64-bit mode off and on; gives the mode."""
    with jax.enable_x64(request.param):
        yield request.param


@pytest.fixture
def with_x64():
    """Runs a test with JAX's 64-bit mode on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[jax.random.key, jax.random.PRNGKey], ids=["key", "PRNGKey"])
def make_key(request):
    """Both kinds of PRNG keys."""
    return request.param


def every_pattern(num_workers, num_stragglers):
    """All masks with at most that many stragglers, filled up to 2**n rows.

    Masks that do not count are replaced by the one where all answer, so that codes of
    one size share a compiled function.
    """
    masks = np.array(list(itertools.product([False, True], repeat=num_workers)))
    masks[masks.sum(1) < num_workers - num_stragglers] = True
    return masks


def random_patterns(num_workers, num_stragglers, num_patterns, seed=0):
    """Masks with exactly that many stragglers."""
    order = np.random.default_rng(seed).random((num_patterns, num_workers))
    return order.argsort(axis=1).argsort(axis=1) >= num_stragglers
