"""Decodes many masks of arrived messages, and finds the distinct masks."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.arrays import squares, working
from jaxwgc._common.tolerances import ROUNDING
from jaxwgc.codes import GradientCode
from jaxwgc.coding._decoding import measures_of
from jaxwgc.simulation._program_arguments import QUICKLY_COMPILED, with_one_decoder

# Fixed number of masks per call of a compiled program, so that studies of all sizes
# share the program.
_BATCH = 1024


class DecodedMasks(NamedTuple):
    """Results of decoding masks: errors, and the weights of parts in the gradient.

    Attributes:
      residual: Norm of aᵀB - target over that of the target.
      error: Squared residual; 0 if the residual is rounding.
      share: Share of the gradient recovered; 1 if the residual is rounding.
      noise: Squared noise over the squared norm of the target, if the noise of a
        message is proportional to its size.
      weights: Weights of the parts in the gradient, (masks, num_parts).
    """

    residual: np.ndarray
    error: np.ndarray
    share: np.ndarray
    noise: np.ndarray
    weights: np.ndarray


def decode_packed(
    code: GradientCode,
    packed: np.ndarray,
    *,
    batch_size: int = _BATCH,
    is_few: bool = False,
) -> DecodedMasks:
    """Decodes masks of messages with the default decoder of a code.

    Some decoders compute weights on the host, others by a compiled program in batches.
    Codes of equal shapes with equal decoders share the program.

    Args:
      code: Gradient code.
      packed: Masks of messages as packed bits, uint8 (masks, bytes).
      batch_size: Number of masks in each call of a compiled program.
      is_few: Whether to compile quickly, for few masks of many codes.
    """
    bits = np.unpackbits(packed, axis=1, count=code.num_messages)
    mask: Any = bits.astype(bool)
    matrix = working(np.asarray(code.encoding_matrix))
    target = working(np.asarray(code.target))
    decoder = code.choose_decoder()
    if decoder.runs_on_host:
        weights = decoder.weights(matrix, working(code.segment_targets), mask)
    else:
        weights = _compiled_weights(code, packed, batch_size, is_few)
    measures = measures_of(weights, mask, matrix, target)
    residual = np.asarray(measures.relative_residual)
    is_rounding = residual <= ROUNDING[jnp.finfo(residual.dtype).bits]
    residual = residual.astype(np.float64)
    sizes = np.sum(squares(matrix), axis=1)
    target_size = code.num_segments * np.sum(target**2)
    noise = np.sum(squares(weights) * sizes, axis=(-2, -1))
    return DecodedMasks(
        residual=residual,
        error=np.where(is_rounding, 0, residual**2),
        share=np.where(is_rounding, 1, measures.share),
        noise=noise / (target_size if target_size > 0 else 1),
        weights=np.asarray(measures.effective_weights, np.float64),
    )


def _compiled_weights(
    code: GradientCode, packed: np.ndarray, batch_size: int, is_few: bool
) -> np.ndarray:
    """Computes decoding weights of masks in batches, with one compiled program."""
    code = with_one_decoder(code)
    num_masks = len(packed)
    # Pads the last batch with masks in which all messages arrived.
    padding = [(0, -num_masks % batch_size), (0, 0)]
    padded = np.pad(packed, padding, constant_values=255)
    decode = _WEIGHTS_OF_FEW if is_few else _WEIGHTS_OF_MANY
    # Leaves the trace of the caller, if any, so that the weights are concrete arrays.
    with jax.core.eval_context():
        batches = [
            decode(code, batch)
            for batch in padded.reshape(-1, batch_size, packed.shape[1])
        ]
        return np.concatenate(jax.device_get(batches))[:num_masks]


def _weights(code: GradientCode, packed: jax.Array) -> jax.Array:
    """Computes decoding weights of masks given as packed bits, under `jax.jit`."""
    bits = jnp.unpackbits(packed, axis=-1, count=code.num_messages)
    decoder = code.choose_decoder()
    return decoder.checked_weights(
        code.encoding_matrix, code.segment_targets, bits.astype(bool)
    )


_WEIGHTS_OF_MANY = jax.jit(_weights)
_WEIGHTS_OF_FEW = jax.jit(_weights, compiler_options=QUICKLY_COMPILED)


def distinct_rows(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct rows of an array, and for each row the index of its copy."""
    width = packed.shape[1]
    if width <= 8:
        # Rows become 64-bit integers, which are sorted several times faster than bytes.
        padded = np.pad(packed, [(0, 0), (0, 8 - width)])
        keys = np.ascontiguousarray(padded).view(np.uint64)
    else:
        keys = np.ascontiguousarray(packed).view(f"V{width}")
    _, first, places = np.unique(keys[:, 0], return_index=True, return_inverse=True)
    return packed[first], places.astype(np.int32)
