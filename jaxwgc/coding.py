"""What is done with any gradient code: encode, decode, and weigh the parts.

All functions are pure, and work under `jax.jit` and `jax.vmap`. They compute in JAX's
default precision. Decoding weights are constants to `jax.grad`: they do not depend on
parameters. They do depend on the weights and the entries of a code where a round cannot
be decoded exactly; derivatives of the decoded gradient with respect to those leave this
out (those of `decoding_error` lose nothing by it).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _combining, _decoders, _messages, _validation
from jaxwgc._decoders import product
from jaxwgc.codes import GradientCode

__all__ = [
    "decode",
    "decoding_error",
    "decoding_weights",
    "effective_weights",
    "encode",
    "weighted",
]

DECODERS = ("lagrange", "least_squares")


def encode(code: GradientCode, partial_gradients: Any) -> jax.Array:
    """The message of every worker: row i is the sum over j of B_ij g_j.

    A NaN in a partial gradient reaches every message, since the product takes it times
    zero. (One in a message that is not received reaches nothing: see `decode`.)

    Args:
      code: a gradient code.
      partial_gradients: a pytree; leaves (num_parts, ...), entry j of each belongs
        to g_j.

    Returns:
      (num_workers, length), the raveled gradient. For a real code it is real and
      length is P, the number of parameters; for a complex code it is complex and
      length is ceil(P / 2), the two halves of the gradient as real and imaginary
      parts. In the widest dtype of the leaves and at least float32.

    Raises:
      ValueError: where a leaf's leading axis is not num_parts.

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
    gradients = _messages.ravel(partial_gradients, num_batch_axes=1)
    matrix = jnp.asarray(code.encoding_matrix)
    if not code.is_complex:
        return product(matrix.astype(gradients.dtype), gradients)
    rows = _messages.halves(gradients)
    half = rows.shape[-1]
    mixer = _messages.real_form(matrix).astype(gradients.dtype)
    mixed = product(
        mixer.reshape(2 * code.num_workers, -1), rows.reshape(2 * code.num_parts, half)
    ).reshape(code.num_workers, 2, half)
    return jax.lax.complex(mixed[:, 0], mixed[:, 1])


def decoding_weights(
    code: GradientCode, received: jax.Array, decoder: str | None = None
) -> jax.Array:
    """The a that makes a^T B the target, or as near as can be, for each mask.

    Args:
      code: a gradient code.
      received: bool (..., num_workers), the workers that answered.
      decoder: None for the code's own. `"lagrange"`, for Reed-Solomon codes, is a
        closed form that costs one matrix product for a whole batch of masks. It turns
        to least squares for the masks with fewer than n - s answers and for the rare
        ones with slack that amplify rounding to 1e-4, one by one. `"least_squares"` is
        the solution of least norm, by a rank-revealing decomposition of every mask.

    Returns:
      (..., num_workers), complex for a complex code, zero at stragglers.

    Raises:
      ValueError: where received has the wrong shape, or the decoder does not fit the
        code.
      TypeError: where received is not bool.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decoding_weights(code, received).round(3)
      Array([1. , 0.5, 0. , 0.5], dtype=float32)

    References:
      The paper's section 2.2 and theorem 4.1; Halbawi et al., ISIT 2018.
    """
    check_code(code)
    received = _validation.check_received(received, code.num_workers)
    decoder = check_decoder(code, decoder)
    matrix = jax.lax.stop_gradient(jnp.asarray(code.encoding_matrix))
    target = jax.lax.stop_gradient(jnp.asarray(code.target)).astype(matrix.dtype)
    if decoder == "least_squares":
        return _decoders.least_squares(received, matrix, target)
    num_required = code.num_workers - code.num_stragglers
    return _decoders.lagrange_or_least_squares(
        received, matrix, target, num_required, code.point_step
    )


def check_decoder(code: GradientCode, decoder: str | None) -> str:
    """The decoder by name, the code's own for None."""
    decoder = code.decoder if decoder is None else decoder
    _validation.check_choice("decoder", decoder, DECODERS)
    if decoder == "lagrange" and code.point_step is None:
        raise ValueError(
            "decoder 'lagrange' needs a code evaluated at roots of unity, such as "
            f"codes.reed_solomon; got {code}"
        )
    return decoder


def effective_weights(
    code: GradientCode, received: jax.Array, decoder: str | None = None
) -> jax.Array:
    """What multiplies each partial gradient in the decoded one: c = a^T B.

    All ones, or the weights of a weighted code, as long as no more than s workers
    fail. For a complex code this is the real part. The imaginary part is rounding as
    long as decoding is exact; beyond, it is what the two packed halves of the gradient
    leak into each other, which `decode`, `coded_aggregate` and
    `decoded_value_and_grad` all account for, and so does `decoding_error`.

    Args:
      code: a gradient code.
      received: bool (..., num_workers).
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
    return mixing_weights(code, decoding_weights(code, received, decoder)).real


def mixing_weights(code: GradientCode, weights: jax.Array) -> jax.Array:
    """a^T B as it stands, complex for a complex code; see `effective_weights`."""
    return product(weights, jnp.asarray(code.encoding_matrix))


def decoding_error(
    code: GradientCode, received: jax.Array, decoder: str | None = None
) -> jax.Array:
    """The squared decoding error of each mask, the squared norm of a^T B - target.

    Zero to rounding as long as no more than s workers fail; divided by the number of
    parts, the part of the gradient that is missed. Differentiable in the entries of
    B, at the decoding weights of least squares: those minimise it, so that their own
    change does not count to first order.

    Args:
      code: a gradient code.
      received: bool (..., num_workers).
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
    mixing = mixing_weights(code, decoding_weights(code, received, decoder))
    return squared_error(code, mixing)


def squared_error(code: GradientCode, mixing: jax.Array) -> jax.Array:
    """The squared norm of c - target over the last axis, real."""
    miss = mixing - code.target
    return jnp.sum(miss.real**2 + miss.imag**2, axis=-1)


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
      messages: (..., num_workers, length), from `encode`.
      received: bool (..., num_workers). Its batch axes and those of the messages are
        broadcast against each other.
      params: a pytree of arrays (or `jax.ShapeDtypeStruct`) with the structure, shapes
        and dtypes of the gradient.
      decoder: as for `decoding_weights`.

    Returns:
      The decoded gradient, the sum over j of c_j g_j with the weights c of
      `effective_weights`: a pytree like params, leaves with the batch axes in front.
      For a complex code and too few answers, with what the two halves of the gradient
      leak into each other besides.

    Raises:
      ValueError: where messages or received have the wrong shape.
      TypeError: where received is not bool, or messages are complex for a real code or
        real for a complex one.

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
    messages = jnp.asarray(messages)
    received = _validation.check_received(received, code.num_workers)
    _check_messages(code, messages, params)
    weights = decoding_weights(code, received, decoder)
    return _combining.combine_messages(code, weights, messages, received, params)


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
      ValueError: where weights has the wrong shape.
      TypeError: where weights is complex.

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
    if jnp.iscomplexobj(factors):
        raise TypeError(f"weights must be real; got {factors.dtype}")
    return dataclasses.replace(
        code,
        encoding_matrix=code.encoding_matrix * factors,
        target=code.target * factors,
    )


def check_code(code: Any) -> None:
    """A gradient code, and nothing else."""
    if not isinstance(code, GradientCode):
        raise TypeError(f"code must be a GradientCode; got {code!r}")


def _as_array(leaf: Any) -> Any:
    """`leaf`, or a NumPy array of it where it is a Python number or list."""
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def _check_messages(code, messages, params):
    size = _messages.raveled_size(params)
    length = -(-size // 2) if code.is_complex else size
    expected = (code.num_workers, length)
    if messages.ndim < 2 or messages.shape[-2:] != expected:
        raise ValueError(
            f"messages must have shape (..., num_workers, length) = (..., "
            f"{expected[0]}, {expected[1]}) for {size} parameters; got {messages.shape}"
        )
    if jnp.iscomplexobj(messages) != code.is_complex:
        kind = "complex" if code.is_complex else "real"
        raise TypeError(f"messages must be {kind} for {code}; got {messages.dtype}")
