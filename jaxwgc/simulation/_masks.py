"""Distinct masks of the messages that arrived, and their decoding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.arrays import squares
from jaxwgc._common.tolerances import ROUNDING
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.simulation._program_arguments import QUICKLY_COMPILED, with_one_decoder

# Number of masks in each call, so that studies of all sizes share compiled programs.
_BATCH = 1024


class DecodedMasks(NamedTuple):
    """Results of masks, float64 (masks,).

    Attributes:
      residual: Norm of aᵀB - target over that of the target.
      error: Squared residual; 0 if the residual is rounding.
      share: Share of the gradient recovered; 1 if the residual is rounding.
      noise: Squared noise over the squared norm of the target, if the noise of a
        message is proportional to its size.
      weights: Weights of the parts in the gradient, (masks, num_parts); None unless
        they were asked for.
    """

    residual: np.ndarray
    error: np.ndarray
    share: np.ndarray
    noise: np.ndarray
    weights: np.ndarray | None


def decode_packed(
    code: GradientCode,
    packed: np.ndarray,
    *,
    batch_size: int = _BATCH,
    with_weights: bool = False,
    is_few: bool = False,
) -> DecodedMasks:
    """Decodes masks by the default decoder of a code, in batches.

    Codes of equal shapes with equal decoders share compiled programs.

    Args:
      code: Gradient code.
      packed: Masks of messages as packed bits, uint8 (masks, bytes).
      batch_size: Number of masks in each call.
      with_weights: Whether the result has the weights of the parts.
      is_few: Whether to compile quickly, for few masks of many codes.
    """
    code = with_one_decoder(code)
    num_masks = len(packed)
    # The padding has masks of all messages.
    padding = [(0, -num_masks % batch_size), (0, 0)]
    padded = np.pad(packed, padding, constant_values=255)
    decode = _DECODE_FEW if is_few else _DECODE_MANY
    # Results are concrete, even if this runs while a function is traced.
    with jax.ensure_compile_time_eval():
        batches = []
        for batch in padded.reshape(-1, batch_size, packed.shape[1]):
            decoded = decode(code, batch)
            batches.append(decoded if with_weights else decoded[:-1])
        batches = jax.device_get(batches)
    is_rounding_below = ROUNDING[jnp.finfo(batches[0][0].dtype).bits]
    residual, share, noise, *weights = (
        np.concatenate(arrays, dtype=np.float64)[:num_masks]
        for arrays in zip(*batches, strict=True)
    )
    is_rounding = residual <= is_rounding_below
    return DecodedMasks(
        residual=residual,
        error=np.where(is_rounding, 0, residual**2),
        share=np.where(is_rounding, 1, share),
        noise=noise,
        weights=weights[0] if with_weights else None,
    )


def _decode(
    code: GradientCode, packed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns residual, share, noise and weights of masks; see `DecodedMasks`."""
    bits = jnp.unpackbits(packed, axis=-1, count=code.num_messages)
    decoded = Arrived(bits.astype(bool)).decode(code, code.choose_decoder())
    sizes = jnp.sum(squares(jnp.asarray(code.encoding_matrix)), axis=1)
    noise = jnp.sum(squares(decoded.weights) * sizes, axis=(-2, -1))
    target_size = code.num_segments * jnp.sum(jnp.asarray(code.target) ** 2)
    noise = noise / jnp.where(target_size > 0, target_size, 1)
    return decoded.relative_residual, decoded.share, noise, decoded.effective_weights


_DECODE_MANY = jax.jit(_decode)
_DECODE_FEW = jax.jit(_decode, compiler_options=QUICKLY_COMPILED)


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
