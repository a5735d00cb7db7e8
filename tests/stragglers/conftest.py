"""Fixtures of the tests of stragglers."""

import jax
import pytest


@pytest.fixture(params=["key", "PRNGKey"])
def key_in_mode(request):
    """Either kind of PRNG key, one with JAX's 64-bit mode off and one with it on."""
    with jax.enable_x64(request.param == "PRNGKey"):
        yield getattr(jax.random, request.param)
