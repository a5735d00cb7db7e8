"""Decodes many masks from the host, in batches of one shape, compiled once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import squares, working
from jaxwgc._targets import effective, mixing, segment_target, squared_error
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike

# Masks that are decoded in one call.
BATCH = 128


class DecodedMasks(NamedTuple):
    """The weights and errors that masks decode to, in float64.

    Attributes:
      effective_weights: (number, num_parts).
      errors: (number,), decoding errors.
      noise: (number,), squared noise for messages with noise of their own size.
      weights: (number, num_segments, num_messages), the decoding weights, which are
        complex where the code is.
    """

    effective_weights: np.ndarray
    errors: np.ndarray
    noise: np.ndarray
    weights: np.ndarray


def decode_masks(
    code: GradientCode,
    masks: np.ndarray,
    decoder: DecoderLike = None,
    batch_size: int = BATCH,
) -> DecodedMasks:
    """Decodes masks in batches; codes of one shape share what is compiled.

    Args:
      code: a gradient code.
      masks: bool (number, num_messages).
      decoder: as for `jaxwgc.decoding`.
      batch_size: masks that are decoded in one call.
    """
    arrays = working(code.encoding_matrix), working(code.target)
    chosen = code.choose_decoder(decoder)
    batches = []
    for start in range(0, len(masks), batch_size):
        batch = masks[start : start + batch_size]
        padding = [(0, batch_size - len(batch)), (0, 0)]
        padded = np.pad(batch, padding, constant_values=True)
        # Also in a function that is being traced, a concrete code has errors.
        with jax.ensure_compile_time_eval():
            values = _decode(padded, *arrays, chosen, code.num_segments)
        batches.append([value[: len(batch)] for value in jax.device_get(values)])
    effective_weights, errors, noise, weights = map(
        np.concatenate, zip(*batches, strict=True)
    )
    numbers = (leaf.astype(np.float64) for leaf in (effective_weights, errors, noise))
    return DecodedMasks(*numbers, weights=weights)


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
    return effective(mixed), errors, noise / num_segments, weights
