"""Masks that closed forms and conjugate gradients leave to decompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc._common.tolerances import ROUNDING
from jaxwgc.decoders import _systems
from jaxwgc.decoders._systems import solve_in_turn, systems_of
from tests.conftest import every_pattern
from tests.oracles import row_scales

CODE = jaxwgc.codes.reed_solomon(8, 8, 3)
# All masks with too few responses, more than are factorised together.
SHORT = np.array([mask for mask in every_pattern(8, 8) if 0 < mask.sum() < 6])
PART_WEIGHTS = np.array([1.0, 2, 3, 0.5, 1, 5, 1, 1])
CODES = {
    "plain": CODE,
    "weighted": jaxwgc.weighted(CODE, PART_WEIGHTS),
    "wide": jaxwgc.codes.reed_solomon(8, 16, 3),
    "graph": jaxwgc.codes.regular_graph(jax.random.key(0), 8, copies=3),
}


def by_lstsq(code, masks):
    """Weights of minimum norm, times the norms of the rows as powers of two."""
    weights = np.zeros(masks.shape, code.encoding_matrix.dtype)
    norms = row_scales(code.encoding_matrix)
    rows = code.encoding_matrix / norms[:, None]
    for mask_weights, mask in zip(weights, masks, strict=True):
        mask_weights[mask] = np.linalg.lstsq(rows[mask].T, code.target, rcond=1e-10)[0]
    return weights / norms


@pytest.mark.parametrize("name", CODES)
def test_all_short_masks_as_by_numpy(name, with_x64):
    code = CODES[name]
    expected = by_lstsq(code, SHORT)
    weights = jaxwgc.decoding(code, SHORT).weights[..., 0, :]
    size = np.abs(expected).max()
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-11 * size)


@pytest.mark.parametrize("name", ["plain", "weighted"])
def test_batches_lanes_and_single_masks(name, x64):
    """A single mask is decomposed, and a batch is factorised."""
    code = CODES[name]

    def decode(mask):
        return jaxwgc.decoding(code, mask).weights[..., 0, :]

    batch = decode(SHORT)
    assert np.finfo(batch.dtype).bits == (64 if x64 else 32)
    size = np.abs(batch).max()
    tolerance = size * (1e-11 if x64 else 2e-4)
    alone = jax.jit(decode)
    lanes = jax.jit(jax.vmap(decode))
    for result in (jax.jit(decode)(SHORT), lanes(SHORT)):
        np.testing.assert_allclose(result, batch, rtol=0, atol=tolerance)
    for mask, weights in list(zip(SHORT, batch, strict=True))[::20]:
        np.testing.assert_allclose(alone(mask), weights, rtol=0, atol=tolerance)


def factorised(code, masks):
    """Returns weights by Cholesky decompositions, and which masks are solved."""
    systems = systems_of(jnp.asarray(code.encoding_matrix), code.segment_targets, False)
    weights = jnp.zeros((len(masks), 1, masks.shape[1]), systems[0].matrix.dtype)
    return solve_in_turn(_systems._by_cholesky, weights, masks, systems)


def test_short_masks_are_factorised(x64):
    _, is_solved = factorised(CODE, SHORT)
    assert is_solved.all()


def test_masks_that_are_not_factorised_are_decomposed(x64):
    """Rows of three copies each have a singular Gram matrix."""
    matrix = np.repeat(np.eye(4), 3, axis=0)
    matrix = np.concatenate([matrix, np.ones((12, 8))], axis=1)
    code = jaxwgc.GradientCode.from_matrix(matrix)
    masks = every_pattern(12, 3)
    weights, is_solved = factorised(code, masks)
    assert not is_solved.any()
    systems = systems_of(jnp.asarray(matrix), code.segment_targets, False)
    result = _systems.solve_poor(~is_solved, weights, masks, matrix, np.ones((1, 12)))
    left = systems[0].residual(result)
    expected = systems[0].residual(jnp.asarray(by_lstsq(code, masks))[:, None])
    np.testing.assert_allclose(
        left, expected, atol=10 * ROUNDING[jnp.finfo(left.dtype).bits]
    )
    size = np.abs(result).max()
    np.testing.assert_allclose(
        result[:, 0],
        by_lstsq(code, masks),
        rtol=0,
        atol=size * (1e-11 if x64 else 1e-5),
    )


def test_the_first_decoding_compiles_no_decomposition():
    """Outside of jit, the fallback is compiled only if a mask needs it."""
    _systems._solve_poor.clear_cache()
    jaxwgc.decoding(CODE, every_pattern(8, 2))
    assert _systems._solve_poor._cache_size() == 0
    jaxwgc.decoding(CODE, SHORT)
    assert _systems._solve_poor._cache_size() == 1
