"""Messages of workers, and weighted sums of them on request."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxwgc._common import array_validation, flat_vectors
from jaxwgc._common.arrays import Array, product, promoted, working
from jaxwgc.codes import GradientCode


def encode(code: GradientCode, partial_gradients: Any) -> jax.Array:
    """Computes the message of every worker: a weighted sum of its partial gradients.

    Row i is the sum over j of Bᵢⱼ gⱼ. A NaN in a partial gradient reaches every
    message, since it is multiplied by zero. `decode` ignores a NaN in a message
    that is not received.

    Args:
      code: Gradient code.
      partial_gradients: Pytree of numbers with leaves (num_parts, ...); entry j of each
        leaf belongs to gⱼ.

    Returns:
      Messages (num_messages, length) in the widest dtype of the leaves, at least
      float32. For a real code, length is the number P of parameters. For a complex code
      it is ceil(P / 2), with the two halves of the gradient as real and imaginary
      parts. A code with m segments divides these lengths by m. num_messages is
      num_workers, except for codes with several messages per worker.

    Raises:
      ValueError: If the leading axis of a leaf is not num_parts.
      TypeError: If a leaf is not numeric.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> jaxwgc.encode(code, {"w": jnp.arange(4.0)})  # a message per worker
      Array([[1.],
             [5.],
             [1.],
             [5.]], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2. The packing is new here.
    """
    GradientCode.check(code)
    array_validation.check_leading_axis(
        "partial_gradients", partial_gradients, code.num_parts, "num_parts"
    )
    array_validation.check_dtypes(
        "partial_gradients", partial_gradients, "numbers or bools"
    )
    return _form(working(code.encoding_matrix), partial_gradients)


def form_messages(
    matrix_rows: jax.typing.ArrayLike, partial_gradients: Any
) -> jax.Array:
    """Computes the messages of a worker from its own rows and parts.

    Equals the rows of `encode`. Parts that the worker does not hold, and their columns
    of B, which are zero, are left out.

    Args:
      matrix_rows: Rows of the encoding matrix for these messages, without the columns
        of other parts, real or complex (num_rows, num_held * num_segments).
      partial_gradients: Pytree with leaves (num_held, ...).

    Returns:
      Messages (num_rows, length), in the dtype and length of those of `encode`.

    Raises:
      ValueError: If the number of columns is not a multiple of the number of parts, or
        leaves have different leading axes.
      TypeError: If matrix_rows or a leaf is not numeric.

    Example:
      Worker 1 of three holds the parts 1 and 2:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(3, num_stragglers=1)
      >>> held = code.assignment[1].nonzero()[0]
      >>> held
      array([1, 2])
      >>> gradients = jnp.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
      >>> messages = jaxwgc.coding.form_messages(
      ...     code.encoding_matrix[1:2, held], gradients[held]
      ... )
      >>> bool(jnp.allclose(messages[0], jaxwgc.encode(code, gradients)[1]))
      True

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2.
    """
    matrix = array_validation.as_array("matrix_rows", matrix_rows, "numbers or bools")
    array_validation.check_dtypes(
        "partial_gradients", partial_gradients, "numbers or bools"
    )
    num_held = array_validation.check_parts(
        "partial_gradients", partial_gradients, "num_held"
    )
    if matrix.ndim != 2 or matrix.shape[1] % num_held != 0:
        raise ValueError(
            "matrix_rows must have shape (num_rows, num_held * num_segments), num_held "
            f"= {num_held}; got {matrix.shape}"
        )
    return _form(working(matrix), partial_gradients)


def _form(matrix: Array, partial_gradients: Any) -> jax.Array:
    """Computes messages of checked partial gradients."""
    # Leaves are promoted here, because jit would truncate integers of 64 bits.
    leaves = [promoted(leaf) for leaf in jax.tree.leaves(partial_gradients)]
    return _form_of_leaves(matrix, leaves)


@jax.jit
def _form_of_leaves(matrix: jax.Array, leaves: list[jax.Array]) -> jax.Array:
    num_held = len(leaves[0])
    gradients = flat_vectors.ravel(leaves, num_batch_axes=1)
    is_complex = jnp.iscomplexobj(matrix)
    num_segments = matrix.shape[1] // num_held
    num_blocks = 2 * num_segments if is_complex else num_segments
    rows = flat_vectors.blocks(gradients, num_blocks)
    rows = rows.reshape(num_held * rows.shape[1], rows.shape[2])
    if not is_complex:
        return product(matrix.astype(gradients.dtype), rows)
    mixer = flat_vectors.real_form(matrix).astype(gradients.dtype)
    mixed = product(mixer.reshape(2 * len(matrix), len(rows)), rows)
    mixed = mixed.reshape(len(matrix), 2, rows.shape[-1])
    return jax.lax.complex(mixed[:, 0], mixed[:, 1])


def requested_sum(request: jax.Array, messages: jax.Array) -> jax.Array:
    """Computes the sum of messages that was requested from a worker.

    It is one vector for any number of finished messages. `decode_sums` adds the
    vectors of all workers.

    Args:
      request: The worker's row of `Decoding.requests`, real (..., messages_per_worker).
      messages: Rows of `jaxwgc.coding.form_messages`, real (..., messages_per_worker,
        length). Messages with factor 0 may hold anything.

    Returns:
      (..., length), in at least float32.

    Raises:
      ValueError: If the numbers of messages and factors differ.
      TypeError: If an argument is not real.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.replicated(2, num_parts=4)
      >>> gradients = jnp.array([[1.0], [2.0], [4.0], [8.0]])
      >>> messages = jaxwgc.encode(code, gradients).reshape(2, 4, 1)
      >>> requests = jaxwgc.decoding(code, finished=jnp.array([1, 3])).requests
      >>> requests
      Array([[1., 0., 0., 0.],
             [1., 1., 1., 0.]], dtype=float32)
      >>> sums = jaxwgc.coding.requested_sum(requests, messages)
      >>> jaxwgc.coding.decode_sums(sums, params=jnp.zeros(1))
      Array([15.], dtype=float32)

    References:
      Ramamoorthy, Meng, Girimaji, "Leveraging partial stragglers within gradient
      coding", NeurIPS 2024, arXiv:2405.19509, also combine the parts that a slow worker
      has finished. Here, any real code with one segment can be used, and its decoder
      determines the factors.
    """
    request = array_validation.as_array("request", request, "real numbers or bools")
    messages = array_validation.as_array("messages", messages, "real numbers or bools")
    if messages.ndim < 2 or request.shape[-1:] != messages.shape[-2:-1]:
        raise ValueError(
            "messages must have shape (..., messages_per_worker, length) for request "
            f"without length; got {messages.shape} and {request.shape}"
        )
    return _weighted_sum(request, messages)


def decode_sums(sums: jax.Array, params: Any) -> Any:
    """Decodes the gradient from the sums that were requested from workers.

    Args:
      sums: (..., num_workers, length), from `requested_sum`; zero for workers
        without a request.
      params: Pytree of floats, or of `jax.ShapeDtypeStruct`, with the structure, shapes
        and dtypes of the gradient.

    Returns:
      A pytree like params, with the batch axes in front.

    Raises:
      ValueError: If the length of `sums` does not match params.
      TypeError: If `sums` are not real, or params are not floats.

    Example:
      Sums of messages are requested from two workers:

      >>> import jax.numpy as jnp, jaxwgc
      >>> sums = jnp.array([[1.0, 0.0], [14.0, 2.0]])
      >>> jaxwgc.coding.decode_sums(sums, params={"w": jnp.zeros(2)})
      {'w': Array([15.,  2.], dtype=float32)}

    References:
      Ramamoorthy, Meng, Girimaji: see `requested_sum`.
    """
    array_validation.check_dtypes("params", params, "real or complex floats", True)
    sums = array_validation.as_array(
        "sums",
        sums,
        "real numbers or bools",
        "...",
        num_workers="any",
        length=flat_vectors.raveled_size(params),
    )
    return flat_vectors.unravel(promoted(sums).sum(-2), params)


@jax.jit
def _weighted_sum(request: jax.Array, messages: jax.Array) -> jax.Array:
    """Computes the requested sum, without messages of factor 0."""
    messages = promoted(messages)
    messages = jnp.where(request[..., None] != 0, messages, 0)
    factors = request.astype(messages.dtype)[..., None, :]
    return product(factors, messages)[..., 0, :]
