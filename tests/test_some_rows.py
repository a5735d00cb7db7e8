"""Work on some of many masks, against the same work on all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxwgc._common.some_rows import any_under_vmap, masked_map

draw = np.random.default_rng(0).normal
CONDITION = np.random.default_rng(1).random((3, 5)) < 0.4
MAPPED = draw(size=(3, 5, 4)).astype(np.float32)
SHARED = draw(size=(2, 4)).astype(np.float32)


def function(mapped, shared):
    return jnp.cumsum(shared @ mapped)


def replaced(value, mapped, shared):
    return function(mapped, shared), True


def some_replaced(values, mapped, shared):
    """Every other one is left to the function of one."""
    computed = jax.vmap(function, (0, None))(mapped, shared)
    is_final = jnp.arange(len(mapped)) % 2 == 0
    return jnp.where(is_final[:, None], computed, values + 7), is_final


def expected(condition, mapped, shared):
    everywhere = np.cumsum(np.einsum("...ij,...j->...i", shared, mapped), axis=-1)
    return np.where(condition[..., None], everywhere, -1)


def compute(condition, mapped, shared):
    default = jnp.full((*condition.shape, 2), -1, jnp.float32)
    one_by_one = Partial(replaced, shared=shared)
    together = Partial(some_replaced, shared=shared)
    return masked_map(condition, one_by_one, together, default, mapped)


@pytest.mark.parametrize("axis", [0, None])
def test_map_over_masks(axis):
    condition = CONDITION if axis == 0 else CONDITION[0]
    result = jax.jit(jax.vmap(compute, (axis, 0, None)))(condition, MAPPED, SHARED)
    condition = np.broadcast_to(condition, (3, 5))
    np.testing.assert_allclose(result, expected(condition, MAPPED, SHARED), atol=1e-5)


@pytest.mark.parametrize("mapped", [False, True])
def test_many_rows_are_computed_together(mapped):
    """Unsolved rows and the rest of the last batch are computed one by one."""
    condition = np.random.default_rng(2).random((3, 200)) < 0.7
    rows = draw(size=(3, 200, 4)).astype(np.float32)
    solve = jax.vmap(compute, (0, 0, None)) if mapped else compute
    result = jax.jit(solve)(condition, rows, SHARED)
    np.testing.assert_allclose(result, expected(condition, rows, SHARED), atol=1e-5)


def test_the_shared_argument_may_be_mapped_over():
    """Codes, each with the same masks."""
    shared = draw(size=(6, 2, 4)).astype(np.float32)
    result = jax.jit(jax.vmap(compute, (None, None, 0)))(CONDITION, MAPPED, shared)
    reference = expected(CONDITION, MAPPED, shared[:, None, None])
    np.testing.assert_allclose(result, reference, atol=1e-5)


def test_the_shared_argument_may_be_mapped_over_twice():
    shared = draw(size=(3, 6, 2, 4)).astype(np.float32)
    in_lanes = jax.jit(jax.vmap(jax.vmap(compute, (None, None, 0))))
    result = in_lanes(CONDITION, MAPPED, shared)
    reference = expected(CONDITION[:, None], MAPPED[:, None], shared[:, :, None])
    np.testing.assert_allclose(result, reference, atol=1e-5)


def test_a_condition_on_any_lane_stays_one_condition_under_vmap():
    """A condition that differs between lanes would run both branches."""

    def both(condition):
        return jax.lax.cond(any_under_vmap(condition), lambda: 1, lambda: 0)

    jaxpr = str(jax.make_jaxpr(jax.vmap(both))(np.array([True, False])))
    assert "cond" in jaxpr
    assert "select_n" not in jaxpr
    np.testing.assert_array_equal(jax.vmap(both)(np.array([True, False])), 1)
    np.testing.assert_array_equal(jax.vmap(both)(np.array([False, False])), 0)
