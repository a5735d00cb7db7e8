"""Decoding of many masks from the host, in batches of equal shape."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import squares, working
from jaxwgc._targets import effective, mixing, segment_target, squared_error
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike

# Number of masks decoded per call.
BATCH = 128


class DecodedMasks(NamedTuple):
    """Weights and errors of decoded masks, in float64.

    Attributes:
      effective_weights: (number, num_parts).
      errors: Decoding errors, (number,).
      noise: Squared noise if the noise of a message is proportional to its size,
        (number,).
    """

    effective_weights: np.ndarray
    errors: np.ndarray
    noise: np.ndarray


def decode_masks(
    code: GradientCode,
    masks: np.ndarray,
    decoder: DecoderLike = None,
) -> DecodedMasks:
    """Decodes masks in batches; codes of equal shapes share compiled programs.

    Args:
      code: Gradient code.
      masks: bool (number, num_messages).
      decoder: See `jaxwgc.decoding`.
    """
    arrays = working(code.encoding_matrix), working(code.target)
    chosen = code.choose_decoder(decoder)
    batches = []
    for start in range(0, len(masks), BATCH):
        batch = masks[start : start + BATCH]
        padding = [(0, BATCH - len(batch)), (0, 0)]
        padded = np.pad(batch, padding, constant_values=True)
        # Concrete codes give concrete errors, even in a function that is being traced.
        with jax.ensure_compile_time_eval():
            values = _decode(padded, *arrays, chosen, code.num_segments)
        batches.append([value[: len(batch)] for value in jax.device_get(values)])
    leaves = map(np.concatenate, zip(*batches, strict=True))
    return DecodedMasks(*(leaf.astype(np.float64) for leaf in leaves))


@functools.partial(jax.jit, static_argnames="num_segments")
def _decode(masks, matrix, target, decoder, num_segments):
    weights = decoder.checked_weights(
        matrix, segment_target(target, num_segments), masks
    )
    mixed = mixing(matrix, weights)
    matrix = jnp.asarray(matrix)
    sizes = jnp.sum(squares(matrix), axis=1)
    noise = jnp.sum(squares(weights) * sizes, axis=(-2, -1))
    errors = squared_error(mixed, target)
    return effective(mixed), errors, noise / num_segments
