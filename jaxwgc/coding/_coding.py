"""Encoding, decoding and weighting, for any gradient code."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _combining, _messages, _validation, _weights
from jaxwgc._decoders import product
from jaxwgc.codes import GradientCode
from jaxwgc.codes._gradient_code import check_code


def encode(code: GradientCode, partial_gradients: Any) -> jax.Array:
    """The message of every worker: row i is the sum over j of B_ij g_j.

    A NaN in a partial gradient reaches every message, since the product takes it times
    zero. (One in a message that is not received reaches nothing: see `decode`.)

    Args:
      code: a gradient code.
      partial_gradients: a pytree; leaves (num_parts, ...), entry j of each belongs
        to g_j.

    Returns:
      (num_messages, length), the raveled gradient; num_messages is num_workers, except
      for codes of several messages a worker. For a real code it is real and length is
      P, the number of parameters; for a complex code it is complex and length is
      ceil(P / 2), the two halves of the gradient as real and imaginary parts. A code
      with m segments divides these lengths by m. In the widest dtype of the leaves and
      at least float32.

    Raises:
      ValueError: where a leaf's leading axis is not num_parts.
      TypeError: where a leaf is not of numbers.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> jaxwgc.encode(code, {"w": jnp.arange(4.0)})
      Array([[1.],
             [5.],
             [1.],
             [5.]], dtype=float32)

    References:
      The paper's section 2.2; the packing is the library's.
    """
    check_code(code)
    _validation.check_leading_axis(
        "partial_gradients", partial_gradients, code.num_parts, "num_parts"
    )
    _validation.check_dtypes("partial_gradients", partial_gradients, "numbers or bools")
    gradients = _messages.ravel(partial_gradients, num_batch_axes=1)
    matrix = _weights.working(code.encoding_matrix)
    num_blocks = code.num_segments * (2 if code.is_complex else 1)
    rows = _messages.blocks(gradients, num_blocks)
    rows = rows.reshape(code.num_parts * num_blocks, rows.shape[-1])
    if not code.is_complex:
        return product(matrix.astype(gradients.dtype), rows)
    mixer = _messages.real_form(matrix).astype(gradients.dtype)
    mixed = product(mixer.reshape(2 * code.num_messages, len(rows)), rows)
    mixed = mixed.reshape(code.num_messages, 2, rows.shape[-1])
    return jax.lax.complex(mixed[:, 0], mixed[:, 1])


def decoding_weights(
    code: GradientCode, received: jax.Array, decoder: str | None = None
) -> jax.Array:
    """The a that makes a^T B the target, or as near as can be, for each mask.

    Least squares and Lagrange decode a weighted code as the code itself, for which all
    parts count alike, so that the error of each part is relative to its own weight; and
    fit the target only where that misses by more than a thousandth.

    Args:
      code: a gradient code.
      received: bool (..., num_workers), the workers that answered. For a code of
        several messages a worker also integers, the number of its parts that each
        worker has finished (`Arrivals.finished` of a straggler model); a traced number
        of more parts than it has counts as no answer.
      decoder: None for the code's own, or one by name that fits the code:

        - `"least_squares"`, any code: the weights of least norm among those of least
          error ("optimal decoding"). The norm is that of the weights times the norms of
          the rows of B, these as powers of two, so that the scale of a message does not
          matter. Many masks share the products of conjugate gradients; masks on which
          these do not converge are decomposed one by one.
        - `"lagrange"`, Reed-Solomon codes: a closed form that costs one matrix product
          for a whole batch of masks. Where its weights are so large that they miss the
          target by more than rounding, as on masks whose stragglers are neighbours on
          the circle of points, smaller ones come from a system of the size of s; and
          masks with fewer than n - s answers get least squares, one by one.
        - `"one_step"`, codes whose parts have about equally many copies: every answer
          counts the same, scaled so that the sum is right on average.
        - `"peeling"`, codes of zeros and ones: parts that are alone in a message, then
          those alone beside known ones; the sum of the k' recovered parts times k / k'.
          That factor makes up for lost parts on average, at the price of a larger
          error: where few parts are recovered, larger than without any gradient.
        - `"group"`, codes of groups of workers that send the same: the sum of the first
          answer of each group, exact to the last bit.

    Returns:
      (..., num_messages), complex for a complex code, zero at stragglers; num_messages
      is num_workers, except for codes of several messages a worker. For a code with
      segments (..., num_segments, num_messages), the weights for each segment.

    Raises:
      ValueError: where received has the wrong shape or counts more parts than there
        are, or the decoder does not fit the code.
      TypeError: where received is not bool, nor integers for a code of several
        messages.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decoding_weights(code, received).round(3)
      Array([1., 1., 0., 0.], dtype=float32)
      >>> jaxwgc.decoding_weights(code, received, decoder="least_squares").round(3)
      Array([1. , 0.5, 0. , 0.5], dtype=float32)

    References:
      The paper's section 2.2 and theorem 4.1; Halbawi et al., ISIT 2018; Charles,
      Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random graphs",
      2017 (one-step and optimal decoding); Horii, Yoshida, Kobayashi, Matsushima,
      "Distributed stochastic gradient descent using LDGM codes", 2019 (peeling).
    """
    weights = _solve(code, received, decoder)
    return weights[..., 0, :] if code.num_segments == 1 else weights


def _solve(code, received, decoder):
    check_code(code)
    received = _weights.check_received(code, received)
    decoder = _weights.check_decoder(code, decoder)
    return _weights.solve(code, _weights.message_mask(code, received), decoder)


def effective_weights(
    code: GradientCode, received: jax.Array, decoder: str | None = None
) -> jax.Array:
    """What multiplies each partial gradient in the decoded one: c = a^T B.

    All ones, or the weights of a weighted code, as long as no more than s workers
    fail. For a complex code this is the real part. The imaginary part is rounding as
    long as decoding is exact; beyond, it is what the two packed halves of the gradient
    leak into each other, which `decode`, `coded_aggregate` and
    `decoded_value_and_grad` all account for, and so does `decoding_error`. For a code
    with segments, which leak into each other in the same way, it is their mean.

    Args:
      code: a gradient code.
      received: as for `decoding_weights`.
      decoder: as for `decoding_weights`.

    Returns:
      Real (..., num_parts).

    Raises:
      ValueError, TypeError: as for `decoding_weights`.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.effective_weights(code, jnp.array([True, False, True]))
      Array([1., 0., 1.], dtype=float32)

    References:
      The paper's section 2.2.
    """
    return _weights.effective(_mixing(code, received, decoder))


def _mixing(code, received, decoder):
    return _weights.mixing(code, _solve(code, received, decoder))


def decoding_error(
    code: GradientCode, received: jax.Array, decoder: str | None = None
) -> jax.Array:
    """The squared decoding error of each mask, the squared norm of a^T B - target.

    Zero to rounding as long as no more than s workers fail; divided by the number of
    parts, the part of the gradient that is missed. (Of a code with segments, the mean
    over the segments.) Differentiable in the entries of
    B, at the decoding weights of least squares: those minimise it, so that their own
    change does not count to first order.

    Args:
      code: a gradient code.
      received: as for `decoding_weights`.
      decoder: as for `decoding_weights`.

    Returns:
      Real (...).

    Raises:
      ValueError, TypeError: as for `decoding_weights`.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.decoding_error(code, jnp.array([True, False, False]))
      Array(2., dtype=float32)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 ("optimal decoding").
    """
    return _weights.squared_error(code, _mixing(code, received, decoder))


def decode(
    code: GradientCode,
    messages: jax.Array,
    received: jax.Array,
    params: Any,
    decoder: str | None = None,
) -> Any:
    """The gradient from the messages that were received.

    A straggler's message is selected away, so it may hold anything, NaN included.

    Args:
      code: the gradient code of the messages.
      messages: (..., num_messages, length), from `encode`. Decoded in at least float32,
        whatever their dtype.
      received: as for `decoding_weights`. Its batch axes and those of the messages are
        broadcast against each other.
      params: a pytree of arrays of floats (or `jax.ShapeDtypeStruct`) with the
        structure, shapes and dtypes of the gradient.
      decoder: as for `decoding_weights`.

    Returns:
      The decoded gradient, the sum over j of c_j g_j with the weights c of
      `effective_weights`: a pytree like params, leaves with the batch axes in front.
      For a complex code and too few answers, with what the two halves of the gradient
      leak into each other besides.

    Raises:
      ValueError: where messages or received have the wrong shape.
      TypeError: where received is not bool, params are not floats, or messages are not
        numbers, or complex for a real code, or real for a complex one.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(4, num_parts=4, replication=2)
      >>> messages = jaxwgc.encode(code, {"w": jnp.arange(8.0).reshape(4, 2)})
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decode(code, messages, received, {"w": jnp.zeros(2)})["w"].round()
      Array([12., 16.], dtype=float32)

    References:
      The paper's section 2.2.
    """
    check_code(code)
    params = jax.tree.map(_as_array, params)
    messages = _as_array(messages)
    received = _weights.check_received(code, received)
    _check_messages(code, messages, params)
    decoder = _weights.check_decoder(code, decoder)
    mask = _weights.message_mask(code, received)
    weights = _weights.solve(code, mask, decoder)
    return _combining.combine_messages(code, weights, messages, mask, params)


def weighted(code: GradientCode, weights: jax.typing.ArrayLike) -> GradientCode:
    """The code whose decoded gradient is the sum over j of w_j g_j.

    Scales the columns of B and the target of decoding together. Works for every code,
    also for one that is weighted already (the weights multiply).

    Args:
      code: a gradient code.
      weights: real (num_parts,), such as the counts of a sample.

    Returns:
      A code with encoding matrix B diag(w).

    Raises:
      ValueError: where weights has the wrong shape, or (where not traced) a NaN or
        infinite entry.
      TypeError: where weights are not real numbers.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.weighted(jaxwgc.codes.uncoded(3), jnp.array([2.0, 1.0, 3.0]))
      >>> jaxwgc.effective_weights(code, jnp.array([True, True, True]))
      Array([2., 1., 3.], dtype=float32)

    References:
      The paper's theorem 4.1.
    """
    check_code(code)
    factors = _as_array(weights)
    if jnp.shape(factors) != (code.num_parts,):
        raise ValueError(
            f"weights must have shape (num_parts,) = ({code.num_parts},); got "
            f"{jnp.shape(factors)}"
        )
    _validation.check_dtypes("weights", factors, "real numbers or bools")
    if not _validation.is_traced(factors):
        # On the host, where a code that was made there keeps its precision.
        factors = np.asarray(factors)
        if not np.isfinite(factors).all():
            raise ValueError(f"weights must be finite; got {factors}")
    columns = factors.repeat(code.num_segments) if code.num_segments > 1 else factors
    return dataclasses.replace(
        code,
        encoding_matrix=code.encoding_matrix * columns,
        target=code.target * factors,
    )


def _as_array(leaf: Any) -> Any:
    """`leaf`, or a NumPy array of it where it is a Python number or list."""
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def _check_messages(code, messages, params):
    _validation.check_dtypes("messages", messages, "numbers or bools")
    _validation.check_dtypes("params", params, "real or complex floats", abstract=True)
    size = _messages.raveled_size(params)
    length = -(-size // (code.num_segments * (2 if code.is_complex else 1)))
    expected = (code.num_messages, length)
    if messages.ndim < 2 or messages.shape[-2:] != expected:
        raise ValueError(
            f"messages must have shape (..., num_messages, length) = (..., "
            f"{expected[0]}, {expected[1]}) for {size} parameters; got {messages.shape}"
        )
    if jnp.iscomplexobj(messages) != code.is_complex:
        kind = "complex" if code.is_complex else "real"
        raise TypeError(f"messages must be {kind} for {code}; got {messages.dtype}")
