"""Partitions of a data set, and the probabilities of their parts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import is_kind
from jaxwgc._common.conversions import gathered
from jaxwgc._common.probabilities import distribution


def partition(data: Any, num_parts: int) -> tuple[Any, Array]:
    """Splits a data set into contiguous parts of equal shape; also returns row weights.

    Part sizes differ by at most one. The first N mod K parts have one row more than the
    others, which are padded with a row of zeros. If K divides N, there is no padding,
    and the parts are a reshape of the data. Rows keep their order: shuffle them first
    if neighbours are similar.

    Args:
      data: A pytree of arrays of any dtype that share a leading axis of N rows.
      num_parts: K, an int from 1 to N.

    Returns:
      A pair `(parts, row_weights)`. The leaves of `parts` have shape (K, ceil(N / K),
      ...) and the dtypes of `data`. `row_weights` has shape (K, ceil(N / K)): 1 for a
      row of the data, 0 for padding. It has the widest float dtype of the leaves (at
      least float32), or the default float dtype if no leaf is a float.

    Raises:
      ValueError: If there is no leaf, a leaf has no leading axis, leaves disagree on N,
        or num_parts is not from 1 to N.
      TypeError: If num_parts is not an int.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> parts, row_weights = jaxwgc.partition({"x": jnp.arange(1, 6)}, num_parts=2)
      >>> print(parts["x"])
      [[1 2 3]
       [4 5 0]]
      >>> print(row_weights)
      [[1. 1. 1.]
       [1. 1. 0.]]

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 3.2, for K that divides N.
    """
    array_validation.check_all_dense("data", data)
    array_validation.check_dtypes("data", data, "numbers, bools or keys")
    data = jax.tree.map(lambda leaf: gathered(jnp.asarray(leaf)), data)
    num_rows = array_validation.check_parts("data", data, "N")
    num_parts = validation.check_up_to("num_parts", num_parts, num_rows=num_rows)
    parts = jax.tree.map(lambda leaf: _split(leaf, num_parts), data)
    row_weights = np.ones(num_rows, _dtype_of_weights(data))
    return parts, _split(row_weights, num_parts)


def _dtype_of_weights(data: Any) -> np.dtype:
    """Returns the dtype of row weights: the widest float dtype in the data.

    It is at least float32, or the default float dtype if no leaf is a float.
    """
    leaves = jax.tree.leaves(data)
    dtypes = [leaf.dtype for leaf in leaves if is_kind(leaf, "real floats")]
    if not dtypes:
        return jnp.result_type(float)
    return jnp.result_type(jnp.float32, *dtypes)


@functools.partial(jax.jit, static_argnames="num_parts")
def _split(rows: Array, num_parts: int) -> Array:
    """Splits rows into parts of equal size; shorter parts are padded with zeros.

    The shape of a part is (ceil(N / num_parts), ...).
    """
    size, num_longer = divmod(rows.shape[0], num_parts)
    if num_longer == 0:
        return rows.reshape(num_parts, size, *rows.shape[1:])
    boundary = num_longer * (size + 1)
    longer = rows[:boundary].reshape(num_longer, size + 1, *rows.shape[1:])
    shorter = rows[boundary:].reshape(num_parts - num_longer, size, *rows.shape[1:])
    padding = [(0, 0), (0, 1)] + [(0, 0)] * (rows.ndim - 1)
    return jnp.concatenate([longer, jnp.pad(shorter, padding)])


def partition_probabilities(scores: ArrayLike, num_parts: int) -> Array:
    """Computes the sampling probability of every part from scores of its rows.

    Πⱼ is the sum of the scores of the rows in part j over the sum of all scores, with
    the parts of `partition`. Any non-negative scores are allowed. With scores of 1,
    probabilities are in proportion to the sizes of the parts.

    Args:
      scores: (N,), one number per row, such as `leverage_scores`. Integers are
        converted to the default float dtype.
      num_parts: K, an int from 1 to N.

    Returns:
      (K,), sums to 1. If traced scores are invalid, all are NaN.

    Raises:
      ValueError: If scores do not have one axis, num_parts is not from 1 to N, or
        (unless traced) a score is negative, NaN or infinite, or all are zero.
      TypeError: If num_parts is not an int, or scores are not real.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> scores = jnp.array([0.5, 0.5, 0.25, 0.25, 0.5])
      >>> print(jaxwgc.parts.partition_probabilities(scores, num_parts=2))
      [0.625 0.375]

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 3.2, Πᵢ.
    """
    shares, valid = distribution("scores", scores)
    parts, _ = partition(shares, num_parts)
    return jnp.where(valid, jnp.sum(parts, axis=1), jnp.nan)
