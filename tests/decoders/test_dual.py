"""Weights by iterations on the dual code."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from jaxwgc.decoders._dual import _corrected
from jaxwgc.decoders._lagrange import _by_dual_code
from jaxwgc.decoders._systems import System, scaled_rows
from tests.conftest import every_pattern


def test_steps_of_the_dual_code_converge_to_rounding():
    """A system that is not quite that of the mask would take more of them."""
    code = jaxwgc.codes.reed_solomon(60, 60, 15)
    number = code.num_workers
    lost = code.num_stragglers
    positions = np.asarray(code.decoders[0].positions)
    around = np.argsort(positions)
    powers = np.arange(number - lost, number)
    masks = [
        ~np.isin(np.arange(60), np.roll(around, 2 * turn)[:lost]) for turn in range(30)
    ]

    @jax.jit
    def solve(masks, matrix):
        matrix, norms = scaled_rows(matrix)
        none = jnp.full((1, number), jnp.nan, matrix.dtype)
        target = jnp.ones((1, number), matrix.dtype)
        system = System(matrix, norms, target)
        solve = jax.vmap(
            lambda mask: _by_dual_code(none, mask, system, positions, powers)
        )
        return solve(masks) * norms, matrix

    matrix = code.encoding_matrix.astype(np.complex64)
    weights, matrix = solve(np.array(masks), matrix)
    weights = np.asarray(weights[:, 0], np.complex128)
    missed = np.linalg.norm(weights @ np.asarray(matrix, np.complex128) - 1, axis=1)
    eps = np.finfo(np.float32).eps
    assert np.all(missed <= eps * np.linalg.norm(weights, axis=1))


def test_masks_are_decomposed_only_with_more_than_s_stragglers():
    """All others are solved by the dual code, which takes less time.

    Others are, too, if the weights of the dual code do not decode.
    """
    held = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], bool)
    code = jaxwgc.codes.any_placement(
        jax.random.key(0), held, num_stragglers=1, method="random_rows"
    )
    masks = every_pattern(3, 3)
    _, is_poor = _corrected(
        masks,
        code.decoders[0].rows,
        num_stragglers=1,
        matrix=code.encoding_matrix,
        target=np.ones((1, 3)),
    )
    np.testing.assert_array_equal(is_poor, masks.sum(1) < 2)
    rows = np.array(code.decoders[0].rows)
    rows[1:] = rows[:1]
    _, is_poor = _corrected(
        masks,
        rows,
        num_stragglers=1,
        matrix=code.encoding_matrix,
        target=np.ones((1, 3)),
    )
    np.testing.assert_array_equal(is_poor, masks.sum(1) < 3)
