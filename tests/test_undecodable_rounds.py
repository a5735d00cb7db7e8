"""Rounds with too few responses: all paths give one gradient, up to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from tests import oracles

KEY = jax.random.key(0)
LENGTH = 24
CODES = {
    "reed_solomon": codes.reed_solomon(12, 12, 4),
    "reed_solomon, contiguous": codes.reed_solomon(20, 20, 8, False),
    "cyclic_mds, complex": codes.cyclic_mds(12, 4),
    "cyclic_mds": codes.cyclic_mds(20, 11),
    "communication_efficient": codes.communication_efficient(8, 2, 2),
    "cyclic_repetition": codes.cyclic_repetition(KEY, 12, 3),
    "bernoulli": codes.bernoulli(KEY, 12, 12, 3),
}
every_code = pytest.mark.parametrize("name", CODES)


def rounds_of(code, number, max_beyond=None):
    """Random masks with more stragglers than tolerated, by at most `max_beyond`."""
    random = np.random.default_rng(0)
    masks = np.ones((number, code.num_workers), bool)
    end = code.num_workers
    if max_beyond is not None:
        end = code.num_stragglers + max_beyond + 1
    for mask in masks:
        lost = random.integers(code.num_stragglers + 1, end)
        mask[random.permutation(code.num_workers)[:lost]] = False
    return masks


def wide(array):
    return np.asarray(array, np.complex128 if np.iscomplexobj(array) else np.float64)


@jax.jit
def weights_of(code, masks):
    return jaxwgc.decoding(code, masks).weights


@jax.jit
def collapse_all(code, masks, weights, gradients):
    def of_round(mask, weights):
        return jaxwgc.Decoding(code, mask, weights).collapse(gradients)

    return jax.vmap(of_round)(masks, weights)


def by_both_paths(code, masks):
    """Gradients by messages, by partial gradients and by NumPy, and their rounding."""
    random = np.random.default_rng(1)
    gradients = random.normal(size=(code.num_parts, LENGTH))
    gradients = gradients.astype(jnp.result_type(float))
    weights = weights_of(code, masks)
    decoding = jaxwgc.Decoding(code, masks, weights)
    messages = jaxwgc.encode(code, gradients)
    by_messages = decoding.combine(messages, np.zeros(LENGTH, gradients.dtype))
    by_parts = collapse_all(code, masks, weights, gradients)
    matrix = wide(code.encoding_matrix)
    blocks = oracles.packed(code, gradients.astype(float))
    exact = oracles.unpacked(code, wide(weights) @ (matrix @ blocks), LENGTH)
    amounts = np.abs(wide(weights)) @ (np.abs(matrix) @ np.abs(blocks))
    eps = float(jnp.finfo(gradients.dtype).eps)
    return by_messages, by_parts, exact, eps * amounts.max((1, 2))[:, None]


@every_code
def test_messages_and_partial_gradients_agree(name, x64):
    code = CODES[name]
    masks = rounds_of(code, 1000)
    by_messages, by_parts, exact, rounding = by_both_paths(code, masks)
    is_failed = np.asarray(jaxwgc.decoding(code, masks).failed())
    assert is_failed.mean() > 0.9
    for one, other in (
        (by_messages, by_parts),
        (by_messages, exact),
        (by_parts, exact),
    ):
        # Messages also clear what is below the bound of rounding, as if it were zero.
        errors = np.abs(wide(one) - wide(other))
        assert np.all(errors[is_failed] <= 60 * rounding[is_failed])


def test_nearly_decoded_rounds_agree():
    """A residual below the tolerance is in the messages, and in the partial gradients.

    In these rounds, decoding clears entries that the residual may explain.
    """
    code = codes.reed_solomon(50, 20, 30)
    masks = rounds_of(code, 1000, max_beyond=2)
    decoding = jaxwgc.decoding(code, masks)
    relative = np.asarray(decoding.residual) / np.linalg.norm(code.target)
    is_near = (relative > 2e-5) & ~np.asarray(decoding.failed())
    assert is_near.sum() > 100
    by_messages, by_parts, _, rounding = by_both_paths(code, masks)
    is_kept = is_near[:, None] & (np.asarray(by_messages) != 0)
    errors = np.abs(wide(by_messages) - wide(by_parts))
    assert np.all(
        errors[is_kept] <= np.broadcast_to(10 * rounding, errors.shape)[is_kept]
    )
    # The error of a cleared entry is a few times the residual.
    is_cleared = is_near[:, None] & (np.asarray(by_messages) == 0)
    scale = np.abs(wide(by_parts)).max(1)
    bound = np.broadcast_to((30 * relative * scale)[:, None], errors.shape)
    assert np.all(errors[is_cleared] <= bound[is_cleared])


def test_zeros_of_nearly_decoded_rounds_stay_zero():
    code = codes.reed_solomon(50, 20, 30)
    masks = rounds_of(code, 1000, max_beyond=2)
    decoding = jaxwgc.decoding(code, masks)
    is_near = ~np.asarray(decoding.failed(0.99e-3))
    gradients = np.ones((code.num_parts, LENGTH), np.float32)
    gradients[:, LENGTH // 2 :] = 0
    for decoded in (
        collapse_all(code, masks, decoding.weights, gradients),
        decoding.combine(jaxwgc.encode(code, gradients), gradients[0]),
    ):
        assert not np.any(np.asarray(decoded)[is_near, LENGTH // 2 :])


@every_code
def test_weights_do_not_depend_on_the_batch(name, x64):
    """They differ by rounding, times the condition number."""
    code = CODES[name]
    masks = rounds_of(code, 200)
    matrix = np.asarray(code.encoding_matrix)
    matrix = wide(matrix.astype(jax.dtypes.canonicalize_dtype(matrix.dtype)))
    decode = functools.partial(weights_of, code)
    batch = wide(decode(masks))
    others = {
        "blocks": jnp.concatenate(
            [decode(masks[i : i + 20]) for i in range(0, 200, 20)]
        ),
        "single": jnp.stack([decode(mask) for mask in masks]),
        "vmap": jax.jit(jax.vmap(decode))(masks),
        "eager": jnp.stack([jaxwgc.decoding(code, mask).weights for mask in masks[:3]]),
    }
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    residuals = np.linalg.norm(batch @ matrix - oracles.targets(code), axis=(1, 2))
    units = []
    for mask, weights, residual in zip(masks, batch, residuals, strict=True):
        singular = np.linalg.svd(matrix[mask], compute_uv=False)
        singular = singular[singular > 1e-6 * singular[0]]
        size = np.linalg.norm(weights) * singular[0]
        units.append(singular[0] / singular[-1] * residual + size)
    for path, weights in others.items():
        moved = (wide(weights) - batch[: len(weights)]) @ matrix
        moved = np.linalg.norm(moved, axis=(1, 2))
        assert np.all(moved <= 300 * eps * np.array(units[: len(weights)])), path
