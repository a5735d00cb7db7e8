"""Conversion of the operators of lineax, which is imported only if they occur."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching._linalg.linear_operator import LinearOperator

if TYPE_CHECKING:
    import lineax


def operator_from_lineax(operator: "lineax.AbstractLinearOperator") -> LinearOperator:
    """Returns a `LinearOperator` of vectors in which pytrees are concatenated.

    Raises:
      TypeError: If a leaf of a structure is complex.
    """
    dtype = check_real(operator)
    split = _SplitOperator.of(operator)
    return LinearOperator(
        matvec=Partial(_mv, split),
        rmatvec=Partial(_rmv, split),
        shape=(operator.out_size(), operator.in_size()),
        dtype=dtype,
    )


def check_real(operator: "lineax.AbstractLinearOperator") -> np.dtype:
    """Returns the dtype of an operator, or raises TypeError if it is complex."""
    leaves = jax.tree.leaves((operator.in_structure(), operator.out_structure()))
    dtype = jnp.result_type(*leaves)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"operator must be real; got {dtype}")
    return dtype


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _SplitOperator:
    """An operator as a pytree of arrays, since its leaves may also be functions.

    Attributes:
      arrays: The leaves of the operator, with None for a leaf that is not an array.
      others: The leaves of the operator, with None for an array.
      structure: The pytree structure of the operator.
    """

    arrays: list[Any]
    others: Static[tuple[Any, ...]]
    structure: Static[Any]

    @classmethod
    def of(cls, operator: "lineax.AbstractLinearOperator") -> "_SplitOperator":
        """Splits an operator."""
        arrays = []
        others = []
        leaves, structure = jax.tree.flatten(operator)
        for leaf in leaves:
            is_array = isinstance(leaf, Array | np.ndarray)
            arrays.append(leaf if is_array else None)
            others.append(None if is_array else leaf)
        return cls(arrays, tuple(others), structure)

    def joined(self) -> "lineax.AbstractLinearOperator":
        """Returns the operator."""
        leaves = []
        for array, other in zip(self.arrays, self.others, strict=True):
            leaves.append(other if array is None else array)
        return jax.tree.unflatten(self.structure, leaves)


def _mv(split: _SplitOperator, vector: Array) -> Array:
    """Computes the product with a vector (p,), of shape (N,)."""
    return _product(split.joined(), vector)


def _rmv(split: _SplitOperator, vector: Array) -> Array:
    """Computes the product of the transpose with a vector (N,), of shape (p,)."""
    return _product(split.joined().transpose(), vector)


def _product(operator: "lineax.AbstractLinearOperator", vector: Array) -> Array:
    from lineax.internal import pack_structures, ravel_vector, unravel_solution

    structures = pack_structures(operator)
    image = operator.mv(unravel_solution(vector, structures))
    return ravel_vector(image, structures).astype(vector.dtype)
