"""Hypothesis strategies that all codes share, and what NumPy makes of their draws.

`python -m pytest tests/test_any_round.py --hypothesis-profile=thorough` draws 10,000
examples for each property.
"""

from typing import NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import codes

NUM_MASKS = 4
NUM_PARAMETERS = 11

_key = jax.random.key(0)
_rows = np.array([1e-3, 1, 1e3])[:, None]

# One of each construction, small; integers are the segments of a message.
CODES = {
    "reed_solomon": codes.reed_solomon(6, 6, 3),
    "reed_solomon, slack": codes.reed_solomon(6, 3, 4),
    "cyclic_mds": codes.cyclic_mds(5, 2),
    "cyclic_repetition": codes.cyclic_repetition(_key, 5, 1),
    "fractional_repetition": codes.fractional_repetition(6, 2),
    "binary": codes.binary(5, 2),
    "communication_efficient": codes.communication_efficient(6, 2, 2),
    "communication_efficient, odd": codes.communication_efficient(6, 1, 3),
    "clustered": codes.clustered(codes.cyclic_mds(3, 1), 2),
    "multi_message": codes.multi_message(codes.fractional_repetition(4, 1)),
    "partial": codes.partial(codes.cyclic_mds(3, 1), 1),
    "bernoulli": codes.bernoulli(_key, 6, 6, replication=2),
    "ldgm": codes.ldgm(_key, 8, 6, 2),
    "rows of all sizes": jaxwgc.GradientCode.from_matrix(
        _rows * [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]], num_stragglers=1
    ),
}


class Round(NamedTuple):
    """A code with weights, the masks of some rounds, and partial gradients."""

    name: str
    weights: np.ndarray
    received: np.ndarray
    gradients: np.ndarray


@st.composite
def rounds(draw):
    """Weights of every spread and scale, masks of every kind."""
    name = draw(st.sampled_from(sorted(CODES)))
    code = CODES[name]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1.0, 3.0, 1e3, 1e6]))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e-20, 1e15]))
    weights = scale * spread ** generator.random(code.num_parts)
    if draw(st.booleans()):
        weights *= generator.choice([-1, 0, 1], code.num_parts, p=[0.1, 0.1, 0.8])
    received = np.ones((NUM_MASKS, code.num_workers), bool)
    for mask in received:
        beyond = draw(st.integers(-2, 2))
        lost = np.clip(code.num_stragglers + beyond, 0, code.num_workers)
        mask[generator.permutation(code.num_workers)[:lost]] = False
    gradients = generator.normal(size=(code.num_parts, NUM_PARAMETERS))
    return Round(name, weights, received, gradients)


def packed(code, gradients):
    """Partial gradients (k * m, length): segments, halves as complex numbers."""
    halves = 2 if code.is_complex else 1
    count = code.num_segments * halves
    length = -(-NUM_PARAMETERS // count)
    padded = np.zeros((code.num_parts, count * length))
    padded[:, :NUM_PARAMETERS] = gradients
    blocks = padded.reshape(code.num_parts * code.num_segments, halves, length)
    return blocks[:, 0] + 1j * blocks[:, 1] if code.is_complex else blocks[:, 0]


def unpacked(code, segments):
    """The inverse for a sum (..., m, length): (..., NUM_PARAMETERS)."""
    if code.is_complex:
        segments = np.stack([segments.real, segments.imag], axis=-2)
    flat = segments.reshape(*segments.shape[: -3 if code.is_complex else -2], -1)
    return flat[..., :NUM_PARAMETERS]


def target_rows(code, weights):
    """What a^T B should be, (m, k * m)."""
    rows = weights[:, None] * np.eye(code.num_segments)[:, None, :]
    return rows.reshape(code.num_segments, -1)


def message_masks(code, received):
    """Which messages arrive, (..., num_messages)."""
    return np.repeat(received, code.messages_per_worker, axis=-1)


def least_miss(matrix, target, mask):
    """The least norm of a^T B - target over weights that are rounded as `matrix` is.

    The best of NumPy's least squares, its rows of norm one, with cut-offs that fit the
    rounding of `matrix`; as in `numpy.linalg.lstsq`, in double precision inside.
    """
    rows = np.asarray(matrix)[mask]
    wide = rows.astype(np.result_type(rows, np.float64))
    norms = np.linalg.norm(wide, axis=1)
    norms[norms == 0] = 1
    missed = [np.linalg.norm(target)]
    eps = np.finfo(rows.dtype).eps
    for cutoff in (max(rows.shape) * eps, 100 * eps) if len(rows) else ():
        solved = np.linalg.lstsq(
            (wide / norms[:, None]).T, target.T.astype(wide.dtype), rcond=cutoff
        )[0].T
        rounded = (solved / norms).astype(rows.dtype)
        missed.append(np.linalg.norm(rounded.astype(wide.dtype) @ wide - target))
    return min(missed)
