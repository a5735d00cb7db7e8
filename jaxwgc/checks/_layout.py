"""How parts lie to the data that they were made of."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _updates, _validation
from jaxwgc.sketching import partition


class Layout(NamedTuple):
    """Rows of the data as a loss takes them, and which rows of the parts are padding.

    Attributes:
      rows: all rows of the data as if they were one part; leaves (N, ...).
      num_rows: N.
      row_weights: (num_parts, m) of the parts, in NumPy; None where the data have the
        structure of a part themselves.
      is_padding: bool (num_parts, m), rows that were filled up.
    """

    rows: Any
    num_rows: int
    row_weights: np.ndarray | None
    is_padding: np.ndarray


def layout_of(data: Any, parts: Any) -> Layout:
    """The layout of `(parts, row_weights)` from `partition(data, num_parts)`.

    Or of parts that have the structure of the data, with row weights among them or
    without any.
    """
    leaves = jax.tree.leaves(parts)
    num_parts, has_rows = len(leaves[0]), all(np.ndim(leaf) > 1 for leaf in leaves)
    data = jax.tree.map(jnp.asarray, data)
    shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
    num_rows = shapes[0][0] if shapes and shapes[0] else 0
    _validation.check_leading_axis("data", data, num_rows, "N")
    structure = jax.tree.structure(parts)
    if has_rows and structure == jax.tree.structure((data, 0)):
        row_weights = np.asarray(parts[1], np.float64)
        rows = data, jnp.ones(num_rows, parts[1].dtype)
        return Layout(rows, num_rows, row_weights, row_weights == 0)
    if not has_rows or structure != jax.tree.structure(data):
        raise ValueError(
            "parts must be (parts, row_weights) of jaxwgc.partition(data, num_parts), "
            "or like data with a leading axis of num_parts in front; got "
            f"{_updates.shapes_of(parts)} and data {_updates.shapes_of(data)}"
        )
    is_padding = np.asarray(partition(np.ones(num_rows), num_parts)[0]) == 0
    if np.shape(leaves[0])[:2] != is_padding.shape:
        # Made in another way, so that nothing is known of padding.
        is_padding = np.zeros(np.shape(leaves[0])[:2], bool)
    return Layout(data, num_rows, None, is_padding)
