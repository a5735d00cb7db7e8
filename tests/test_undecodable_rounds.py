"""Rounds with too few responses: all paths give one gradient, up to rounding."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from tests import oracles
from tests.conftest import weekly
from tests.paths import wide
from tests.zoo import weekly_unless

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
NUM_ROUNDS = 1000


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


@jax.jit
def weights_of(code, masks):
    return jaxwgc.decoding(code, masks).weights


@jax.jit
def by_both_paths(code, masks, weights, gradients):
    """Computes gradients by messages and by partial gradients, and residuals."""
    messages = jaxwgc.encode(code, gradients)

    def of_round(mask, weights):
        decoding = jaxwgc.Decoding(code, mask, weights)
        by_messages = decoding.combine(messages, jnp.zeros_like(gradients[0]))
        by_parts = decoding.collapse(gradients)
        return by_messages, by_parts, decoding.residual, decoding.failed()

    return jax.vmap(of_round)(masks, weights)


class Rounds(NamedTuple):
    """Rounds that may not decode.

    Attributes:
      by_messages: Gradients that are decoded from messages, (rounds, LENGTH).
      by_parts: Weighted sums of partial gradients, (rounds, LENGTH).
      residual: Relative to the target, (rounds,).
      is_failed: Whether the residual is above the tolerance, (rounds,).
      exact: Gradients by NumPy, of the same weights, (rounds, LENGTH).
      rounding: Rounding of gradients, (rounds, 1).
    """

    by_messages: np.ndarray
    by_parts: np.ndarray
    residual: np.ndarray
    is_failed: np.ndarray
    exact: np.ndarray
    rounding: np.ndarray


def decoded_rounds(code, masks, is_dead=False):
    """Decodes random gradients, zero where `is_dead`."""
    random = np.random.default_rng(1)
    gradients = np.where(is_dead, 0, random.normal(size=(code.num_parts, LENGTH)))
    gradients = gradients.astype(jnp.result_type(float))
    weights = weights_of(code, masks)
    paths = by_both_paths(code, masks, weights, gradients)
    by_messages, by_parts, residual, is_failed = map(wide, paths)
    matrix = wide(code.encoding_matrix)
    blocks = oracles.packed(code, gradients.astype(float))
    amounts = np.abs(wide(weights)) @ (np.abs(matrix) @ np.abs(blocks))
    return Rounds(
        by_messages=by_messages,
        by_parts=by_parts,
        residual=residual / np.linalg.norm(code.target),
        is_failed=is_failed.astype(bool),
        exact=oracles.unpacked(code, wide(weights) @ (matrix @ blocks), LENGTH),
        rounding=jnp.finfo(gradients.dtype).eps * amounts.max((1, 2))[:, None],
    )


def modes(daily):
    """Every code in both float modes; in the 64-bit mode some are daily."""
    names = [(name, False) for name in CODES]
    for name in CODES:
        marks = () if name in daily else pytest.mark.weekly
        names.append(pytest.param(name, True, marks=marks))
    return pytest.mark.parametrize(("name", "x64"), names)


@modes(daily=["reed_solomon", "communication_efficient"])
def test_messages_and_partial_gradients_agree(name, x64):
    code = CODES[name]
    with jax.enable_x64(x64):
        rounds = decoded_rounds(code, rounds_of(code, NUM_ROUNDS))
    assert rounds.is_failed.mean() > 0.9
    failed = Rounds(*(values[rounds.is_failed] for values in rounds))
    for one, other in (
        (failed.by_messages, failed.by_parts),
        (failed.by_messages, failed.exact),
        (failed.by_parts, failed.exact),
    ):
        # Messages also clear what is below the bound of rounding, as if it were zero.
        assert np.all(np.abs(one - other) <= 60 * failed.rounding)


def test_nearly_decoded_rounds_agree():
    """A residual below the tolerance is in the messages, and in the partial gradients.

    In these rounds, decoding clears entries that the residual may explain.
    """
    code = codes.reed_solomon(50, 20, 30)
    is_dead = np.arange(LENGTH) >= LENGTH // 2
    masks = rounds_of(code, NUM_ROUNDS, max_beyond=2)
    rounds = decoded_rounds(code, masks, is_dead)
    is_near = (rounds.residual > 2e-5) & ~rounds.is_failed
    assert is_near.sum() > 100
    errors = np.abs(rounds.by_messages - rounds.by_parts)
    is_cleared = rounds.by_messages == 0
    # The error of a cleared entry is a few times the residual.
    scale = np.abs(rounds.by_parts).max(1)
    cleared = (30 * rounds.residual * scale)[:, None]
    bound = np.where(is_cleared, cleared, 10 * rounds.rounding)
    assert np.all(errors[is_near] <= bound[is_near])
    is_clearly_near = rounds.residual < 0.99e-3
    for decoded in rounds.by_messages, rounds.by_parts:
        assert not np.any(decoded[is_clearly_near][:, is_dead])


# Closed forms, conjugate gradients, segments, and conjugate gradients without a
# guarantee.
@pytest.mark.parametrize(
    "name",
    weekly_unless(
        CODES,
        daily=["reed_solomon", "cyclic_mds", "communication_efficient", "bernoulli"],
    ),
)
@pytest.mark.parametrize("x64", [False, weekly(True)], ids=["32", "64"])
def test_weights_do_not_depend_on_the_batch(name, x64):
    """They differ by rounding, times the condition number."""
    code = CODES[name]
    masks = rounds_of(code, NUM_ROUNDS)
    with jax.enable_x64(x64):
        # The batch has the program of the other test.
        batch = wide(weights_of(code, masks)[:200])
        masks = masks[:200]
        matrix = np.asarray(code.encoding_matrix)
        matrix = wide(matrix.astype(jax.dtypes.canonicalize_dtype(matrix.dtype)))
        in_lanes = jax.jit(jax.vmap(functools.partial(weights_of, code)))
        by_path = {
            "lanes of blocks": in_lanes(masks.reshape(10, 20, -1)).reshape(batch.shape),
            "single": [weights_of(code, mask) for mask in masks],
            "eager": [jaxwgc.decoding(code, mask).weights for mask in masks[:3]],
        }
        by_path = {path: wide(np.stack(weights)) for path, weights in by_path.items()}
        eps = float(jnp.finfo(jnp.result_type(float)).eps)
    residuals = np.linalg.norm(batch @ matrix - oracles.targets(code), axis=(1, 2))
    units = []
    for mask, weights, residual in zip(masks, batch, residuals, strict=True):
        singular = np.linalg.svd(matrix[mask], compute_uv=False)
        singular = singular[singular > 1e-6 * singular[0]]
        size = np.linalg.norm(weights) * singular[0]
        units.append(singular[0] / singular[-1] * residual + size)
    for path, weights in by_path.items():
        moved = (weights - batch[: len(weights)]) @ matrix
        moved = np.linalg.norm(moved, axis=(1, 2))
        assert np.all(moved <= 300 * eps * np.array(units[: len(weights)])), path
