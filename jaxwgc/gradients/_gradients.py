"""Partial gradients of a loss, and the decoded gradient in one backward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, arrays, validation
from jaxwgc._common.arrays import product
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.decoders._decoder import DecoderLike


def partial_value_and_grad(loss: Callable[..., Any], has_aux: bool = False) -> Callable:
    """Returns a function that computes the loss and gradient of every part.

    Args:
      loss: `loss(params, part) -> scalar`, summed (not averaged) over the rows of the
        part, so that the sum over parts is the total loss.
      has_aux: Whether `loss` returns `(scalar, aux)`.

    Returns:
      A function of `params` (pytree of floats) and `parts` (pytree with leaves
      (num_parts, ...)). It returns `(values, gradients)`: values (num_parts,) and
      gradients like params with leaves (num_parts, ...). With has_aux it returns
      `((values, aux), gradients)`, leaves of aux (num_parts, ...).

    Raises:
      ValueError: If leaves of parts have different leading axes, or params has no
        leaves.
      TypeError: If loss does not return a real float scalar, or params are not floats.

    Example:
      Two parts with one row each:

      >>> import jax.numpy as jnp, jaxwgc
      >>> loss = lambda params, part: jnp.sum((part @ params["w"]) ** 2)
      >>> parts = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]])
      >>> params = {"w": jnp.ones(2)}
      >>> values, gradients = jaxwgc.partial_value_and_grad(loss)(params, parts)
      >>> values
      Array([1., 4.], dtype=float32)
      >>> gradients["w"]
      Array([[2., 0.],
             [0., 8.]], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.1 (partial gradients gⱼ).
    """
    checked_loss(loss, has_aux)

    def partial(params, parts):
        check_params(params)
        array_validation.check_parts("parts", parts, "num_parts")
        array_validation.check_dtypes("parts", parts, "numbers, bools or keys")
        (values, aux), gradients = _by_part(loss, has_aux, params, parts)
        if has_aux:
            return (values, aux), gradients
        return values, gradients

    return partial


@functools.partial(jax.jit, static_argnums=(0, 1))
def _by_part(
    loss: Callable[..., Any], has_aux: bool, params: Any, parts: Any
) -> tuple[tuple[jax.Array, Any], Any]:
    """Computes loss values, aux and gradients of all parts, in one compiled program."""
    checked = checked_loss(loss, has_aux)
    value_and_grad = jax.value_and_grad(checked, has_aux=True)
    return jax.vmap(value_and_grad, in_axes=(None, 0))(params, parts)


def decoded_value_and_grad(
    loss: Callable[..., Any],
    code: GradientCode,
    has_aux: bool = False,
    decoder: DecoderLike = None,
) -> Callable:
    """Returns a function that computes decoded loss and gradient in one backward pass.

    No messages are formed. The decoded gradient is the gradient of the sum over j of
    cⱼ lossⱼ with effective weights c. The result equals `decode` of `encode` up to
    rounding, at about the cost of a plain gradient.

    Args:
      loss: `loss(params, part) -> scalar`, a real float, summed (not averaged) over the
        rows of the part.
      code: Gradient code with num_parts parts.
      has_aux: Whether `loss` returns `(scalar, aux)`.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.

    Returns:
      A function of `params` (pytree of floats), `parts` (pytree with leaves
      (num_parts, ...)) and `received`, the bool mask (num_workers,) of the workers that
      responded. For codes with several messages per worker, `finished` may take the
      place of `received`: the number of parts that each worker has finished, int
      (num_workers,). The function returns `(value, gradient)`: the scalar sum over j of
      cⱼ lossⱼ, and a pytree like params. With has_aux it returns
      `((value, aux), gradient)`, leaves of aux (num_parts, ...).

    Note:
      A complex code with too many stragglers needs a second backward pass, for leakage
      between the packed halves. The gradient then differs slightly from the gradient
      of the value.

      The gradient of a loss in float16 overflows if its weight is above 65504.

      A NaN in a part reaches the gradient even if only lost workers hold that part,
      since the backward pass multiplies it by zero. `Decoding.collapse` and
      `distributed.mesh_value_and_grad` exclude such parts.

    Raises:
      ValueError: If the leading axis of parts is not num_parts, params has no leaves,
        or received has the wrong shape.
      TypeError: If code is not a GradientCode, received is not bool, loss does not
        return a real float scalar, or params are not floats.

    Example:
      The gradient of all three parts, without the response of worker 1:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> loss = lambda params, part: jnp.sum((part @ params["w"]) ** 2)
      >>> code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), 3, num_stragglers=1)
      >>> step = jax.jit(jaxwgc.decoded_value_and_grad(loss, code))
      >>> parts = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 0.0]]])
      >>> received = jnp.array([True, False, True])
      >>> value, gradient = step({"w": jnp.ones(2)}, parts, received)
      >>> gradient["w"].round(3)
      Array([20.,  8.], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2 (c = aᵀB).
    """
    GradientCode.check(code)
    decoder = code.choose_decoder(decoder)
    losses = jax.vmap(checked_loss(loss, has_aux), in_axes=(None, 0))

    def decode(params, parts, received=None, *, finished=None):
        check_params(params)
        array_validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
        array_validation.check_dtypes("parts", parts, "numbers, bools or keys")
        values, backward, aux = jax.vjp(
            lambda params: losses(params, parts), params, has_aux=True
        )

        arrived = Arrived.of(code, received, finished, one_round=True)
        round_decoding = arrived.decode(code, decoder)
        wide = arrays.promoted(values)
        value = product(round_decoding.effective_weights.astype(wide.dtype), wide)
        value = value.astype(values.dtype)
        gradient = round_decoding.collapse(
            lambda weights: backward(weights.astype(values.dtype))[0]
        )
        if has_aux:
            return (value, aux), gradient
        return value, gradient

    return decode


def scalar_loss(loss: Callable[..., Any]) -> Callable:
    """Wraps a loss without aux to raise TypeError unless its value is a real scalar."""
    checked = checked_loss(loss)
    return lambda params, part: checked(params, part)[0]


def checked_loss(loss: Callable[..., Any], has_aux: bool = False) -> Callable:
    """Wraps a loss to return (value, aux), and to raise TypeError for invalid results.

    The value must be a real scalar. Without has_aux, aux is None.
    """
    validation.check_callable("loss", loss)
    validation.check_bool("has_aux", has_aux)

    def checked(params, part):
        outputs = loss(params, part)
        if has_aux:
            if not _is_pair(outputs) or not jax.tree_util.all_leaves(outputs[:1]):
                raise TypeError(
                    "loss must return (scalar, aux) if has_aux=True; got "
                    f"{jax.tree.structure(outputs)}"
                )
            value, aux = outputs
            return _real_scalar(value), aux
        if not jax.tree_util.all_leaves([outputs]):
            raise TypeError(
                f"loss must return a scalar; got {jax.tree.structure(outputs)}"
            )
        return _real_scalar(outputs), None

    return checked


def _is_pair(outputs: Any) -> bool:
    return isinstance(outputs, tuple) and len(outputs) == 2


def _real_scalar(value: Any) -> jax.Array:
    """Converts the value of a loss to an array; raises TypeError unless real scalar."""
    if np.shape(value):
        raise TypeError(f"loss must return a scalar; got an array of {np.shape(value)}")
    array_validation.check_dtypes("loss's result", value, "real floats")
    return jnp.asarray(value)


def check_params(params: Any) -> None:
    """Raises ValueError if params have no arrays, TypeError if some are not floats."""
    if not jax.tree.leaves(params):
        raise ValueError(f"params must have at least one array; got {params}")
    array_validation.check_dtypes("params", params, "real or complex floats")
