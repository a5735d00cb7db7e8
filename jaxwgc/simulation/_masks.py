"""Distinct masks of the messages that arrived, and their decoding."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.tolerances import ROUNDING
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived, Decoding
from jaxwgc.simulation._program_arguments import QUICKLY_COMPILED, with_one_decoder

# Number of masks in each call, so that studies of all sizes share compiled programs.
_BATCH = 1024


class DecodedMasks(NamedTuple):
    """Results of distinct masks, float64 (masks,).

    Attributes:
      residual: Norm of aᵀB - target over that of the target.
      error: Squared residual; 0 if the residual is rounding.
      share: Share of the gradient recovered; 1 if the residual is rounding.
      messages: Number of messages that arrived.
    """

    residual: np.ndarray
    error: np.ndarray
    share: np.ndarray
    messages: np.ndarray


def decode_packed(code: GradientCode, packed: np.ndarray) -> DecodedMasks:
    """Decodes masks by the first decoder of a code.

    Args:
      code: Gradient code.
      packed: Masks of messages as packed bits, uint8 (masks, bytes).
    """
    weight = _equal_weight(code)
    batches = [_decode(weight, code, batch) for batch in _in_batches(packed)]
    residuals, shares = zip(*jax.device_get(batches), strict=True)
    residual = np.concatenate(residuals, dtype=np.float64)[: len(packed)]
    share = np.concatenate(shares, dtype=np.float64)[: len(packed)]
    num_bits = jnp.finfo(residuals[0].dtype).bits
    is_rounding = residual <= ROUNDING[num_bits]
    return DecodedMasks(
        residual=residual,
        error=np.where(is_rounding, 0, residual**2),
        share=np.where(is_rounding, 1, share),
        messages=np.bitwise_count(packed).sum(axis=1, dtype=np.float64),
    )


def _in_batches(packed: np.ndarray) -> np.ndarray:
    """Returns masks in batches of equal size, padded by masks of all messages."""
    padding = [(0, -len(packed) % _BATCH), (0, 0)]
    padded = np.pad(packed, padding, constant_values=255)
    return padded.reshape(-1, _BATCH, packed.shape[1])


def _equal_weight(code: GradientCode) -> float | None:
    """Returns the weight of every part, None if weights differ."""
    target = np.asarray(code.target)
    return float(target[0]) if np.all(target == target[0]) else None


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    weight: float | None, code: GradientCode, packed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns relative residuals and shares of packed masks.

    Args:
      weight: Weight of every part, None if they differ. Programs for equal weights are
        smaller.
      code: Gradient code.
      packed: Packed masks of messages, uint8 (masks, bytes).
    """
    if weight is not None:
        target = np.full(code.num_parts, weight)
        code = dataclasses.replace(code, target=target)
    decoded = _decode_bits(code, packed)
    return decoded.relative_residual, decoded.share


class DecodedRounds(NamedTuple):
    """Decoded rounds.

    Attributes:
      error_of_masks: Decoding error over the squared norm of the target, by mask.
      weights_of_masks: Weights of the parts in the gradient, (masks, num_parts).
      masks: Index of the mask of each round, (rounds,).
    """

    error_of_masks: np.ndarray
    weights_of_masks: np.ndarray
    masks: np.ndarray


def decode_rounds(
    code: GradientCode, masks: Sequence[np.ndarray], *, is_few: bool
) -> list[DecodedRounds]:
    """Decodes rounds by the default decoder of a code, distinct masks once.

    Args:
      code: Gradient code.
      masks: Masks of the messages of several series of rounds, as packed bits, uint8
        (rounds, bytes) each, and equally many rounds in all.
      is_few: Whether to compile quickly, for few rounds of many codes.

    Returns:
      The decoded rounds of each series.
    """
    decode = _WEIGHTS_OF_FEW if is_few else _WEIGHTS_OF_MANY
    code = with_one_decoder(code)
    distinct, places = distinct_rows(np.concatenate(masks))
    batches = jax.device_get([decode(code, batch) for batch in _in_batches(distinct)])
    errors, weights = zip(*batches, strict=True)
    error_of_masks = np.concatenate(errors, dtype=np.float64)
    weights_of_masks = np.concatenate(weights, dtype=np.float64)
    return [
        DecodedRounds(
            error_of_masks=error_of_masks,
            weights_of_masks=weights_of_masks,
            masks=places_of_series,
        )
        for places_of_series in np.split(places, len(masks))
    ]


def _weights(code: GradientCode, packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns relative errors and effective weights of packed masks."""
    decoded = _decode_bits(code, packed)
    residual = decoded.relative_residual
    is_rounding = residual <= ROUNDING[jnp.finfo(residual.dtype).bits]
    return jnp.where(is_rounding, 0, residual**2), decoded.effective_weights


_WEIGHTS_OF_MANY = jax.jit(_weights)
_WEIGHTS_OF_FEW = jax.jit(_weights, compiler_options=QUICKLY_COMPILED)


def _decode_bits(code: GradientCode, packed: jax.Array) -> Decoding:
    """Decodes packed masks of messages, uint8 (masks, bytes)."""
    bits = jnp.unpackbits(packed, axis=-1, count=code.num_messages)
    return Arrived(bits.astype(bool)).decode(code, code.choose_decoder())


def distinct_rows(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct rows of bytes (rows, bytes), and the index of each row."""
    width = packed.shape[1]
    if width <= 8:
        # Integers are sorted several times faster than bytes.
        padded = np.pad(packed, [(0, 0), (0, 8 - width)])
        keys = np.ascontiguousarray(padded).view(np.uint64)
    else:
        keys = np.ascontiguousarray(packed).view(f"V{width}")
    _, first, places = np.unique(keys[:, 0], return_index=True, return_inverse=True)
    return packed[first], places.astype(np.int32)
