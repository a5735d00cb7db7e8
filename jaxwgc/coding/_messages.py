"""Forming messages: what a worker sends."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxwgc import _flat_vectors, _validation
from jaxwgc._arrays import product, promoted, working
from jaxwgc.codes import GradientCode


def encode(code: GradientCode, partial_gradients: Any) -> jax.Array:
    """The message of every worker: row i is the sum over j of Bᵢⱼ gⱼ.

    A NaN in a partial gradient reaches every message, since the product takes it times
    zero. (One in a message that is not received reaches nothing: see `decode`.)

    Args:
      code: a gradient code.
      partial_gradients: a pytree; leaves (num_parts, ...), entry j of each belongs
        to gⱼ.

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
    GradientCode.check(code)
    name, num_parts = "partial_gradients", code.num_parts
    _validation.check_leading_axis(name, partial_gradients, num_parts, "num_parts")
    return form_messages(code.encoding_matrix, partial_gradients)


def form_messages(
    matrix_rows: jax.typing.ArrayLike, partial_gradients: Any
) -> jax.Array:
    """Messages of a worker that knows nothing but its own rows and parts.

    What `encode` gives for those rows of B, when the gradients of the parts that the
    worker does not hold, and their columns, are left out: both are zero there.

    Args:
      matrix_rows: real or complex (num_rows, num_held * num_segments), the rows of the
        encoding matrix that belong to the messages, without the columns of other parts.
      partial_gradients: a pytree; leaves (num_held, ...).

    Returns:
      (num_rows, length), as rows of what `encode` gives.

    Raises:
      ValueError: where the columns are no multiple of the parts, or leaves differ in
        their leading axis.
      TypeError: where matrix_rows or a leaf is not of numbers.

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
      The paper's section 2.2.
    """
    matrix = _validation.as_array("matrix_rows", matrix_rows, "numbers or bools")
    name = "partial_gradients"
    _validation.check_dtypes(name, partial_gradients, "numbers or bools")
    num_held = _validation.check_parts(name, partial_gradients, "num_held")
    rule = f"have shape (num_rows, num_held * num_segments), num_held = {num_held}"
    is_right = matrix.ndim == 2 and matrix.shape[1] % num_held == 0
    _validation.require(is_right, "matrix_rows", rule, matrix.shape)
    leaves = jax.tree.leaves(partial_gradients)
    return _form(working(matrix), [promoted(leaf) for leaf in leaves])


@jax.jit
def _form(matrix, leaves):
    num_held = len(leaves[0])
    gradients = _flat_vectors.ravel(leaves, num_batch_axes=1)
    is_complex = jnp.iscomplexobj(matrix)
    num_segments = matrix.shape[1] // num_held
    rows = _flat_vectors.blocks(gradients, num_segments * (2 if is_complex else 1))
    rows = rows.reshape(num_held * rows.shape[1], rows.shape[2])
    if not is_complex:
        return product(matrix.astype(gradients.dtype), rows)
    mixer = _flat_vectors.real_form(matrix).astype(gradients.dtype)
    mixed = product(mixer.reshape(2 * len(matrix), len(rows)), rows)
    mixed = mixed.reshape(len(matrix), 2, rows.shape[-1])
    return jax.lax.complex(mixed[:, 0], mixed[:, 1])
