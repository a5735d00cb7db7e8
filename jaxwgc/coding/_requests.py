"""Requests: decoding weights travel to the workers, in the place of their messages."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxwgc import _flat_vectors, _validation
from jaxwgc._arrays import product, promoted


def answer_request(request: jax.Array, messages: jax.Array) -> jax.Array:
    """Returns what a worker sends that was asked for a sum of its messages.

    One vector, however many messages it has finished; `decode_answers` adds up those of
    all workers.

    Args:
      request: real (..., messages_per_worker), the worker's row of `Decoding.requests`.
      messages: real (..., messages_per_worker, length), rows of
        `jaxwgc.coding.form_messages`. Those that are not asked for may hold anything.

    Returns:
      (..., length), in at least float32.

    Raises:
      ValueError: where there are not as many messages as numbers in the request.
      TypeError: where one of them is not real.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.replicated(2, num_parts=4)
      >>> gradients = jnp.array([[1.0], [2.0], [4.0], [8.0]])
      >>> messages = jaxwgc.encode(code, gradients).reshape(2, 4, 1)
      >>> requests = jaxwgc.decoding(code, finished=jnp.array([1, 3])).requests
      >>> requests
      Array([[1., 0., 0., 0.],
             [1., 1., 1., 0.]], dtype=float32)
      >>> answers = jaxwgc.coding.answer_request(requests, messages)
      >>> jaxwgc.coding.decode_answers(answers, params=jnp.zeros(1))
      Array([15.], dtype=float32)

    References:
      The library's.
    """
    request = _validation.as_array("request", request, "real numbers or bools")
    messages = _validation.as_array("messages", messages, "real numbers or bools")
    is_right = messages.ndim > 1 and request.shape[-1:] == messages.shape[-2:-1]
    rule = "have shape (..., messages_per_worker, length), as request without length"
    given = f"{messages.shape} and {request.shape}"
    _validation.require(is_right, "messages", rule, given)
    return _weighted_sum(request, messages)


def decode_answers(answers: jax.Array, params: Any) -> Any:
    """Returns the gradient from the workers' answers to their requests.

    Args:
      answers: (..., num_workers, length), from `answer_request`; zero of workers that
        were asked for nothing.
      params: a pytree like the gradient, as for `jaxwgc.decode`.

    Returns:
      A pytree like params, leaves with the batch axes in front.

    Raises:
      ValueError: where answers are not as long as params.
      TypeError: where answers are not real, or params are not floats.

    Example:
      Two workers were asked for what they have of four parts:

      >>> import jax.numpy as jnp, jaxwgc
      >>> answers = jnp.array([[1.0, 0.0], [14.0, 2.0]])
      >>> jaxwgc.coding.decode_answers(answers, params={"w": jnp.zeros(2)})
      {'w': Array([15.,  2.], dtype=float32)}

    References:
      The library's.
    """
    _validation.check_dtypes("params", params, "real or complex floats", True)
    kind, length = "real numbers or bools", _flat_vectors.raveled_size(params)
    sizes = {"num_workers": "any", "length": length}
    answers = _validation.as_array("answers", answers, kind, "...", **sizes)
    return _flat_vectors.unravel(promoted(answers).sum(-2), params)


@jax.jit
def _weighted_sum(request, messages):
    messages = promoted(messages)
    messages = jnp.where(request[..., None] != 0, messages, 0)
    return product(request.astype(messages.dtype)[..., None, :], messages)[..., 0, :]
