"""Decoding any exact code with its dual code, found when the code was made."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import working
from jaxwgc._pytrees import Static
from jaxwgc._some_masks import masked_map
from jaxwgc._targets import rounding
from jaxwgc.decoders._accuracy import is_uniform, systems_of
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._decomposition import decompose_some
from jaxwgc.decoders._dual import DualCode, dual_weights

# By how much rows may be off, of the largest entry of the target.
_EXACT = 1e-6
# Masks that are decoded side by side.
_CHUNK = 32


class Dual(Decoder):
    """Takes from what all would give what the stragglers hold, by the dual code.

    The first row of C decodes when all workers answer, and the others, the dual code,
    add nothing: CB = (1, 0, ..., 0)ᵀ 1ᵀ. What makes the weights of stragglers zero is a
    combination of the latter, from a system of the size of s a mask. As accurate as
    `LeastSquares` with a decomposition of every mask, and faster where s is less
    than n.

    Masks with more stragglers than s are decomposed, and so are those on which weights
    miss the target by more than 1e-4 in float32 (1e-10 in float64). Weighted codes are
    decoded as by `LeastSquares`.

    Attributes:
      rows: C, (1 + m, num_workers), real or complex: the first of least norm, and the
        others orthonormal.
      num_stragglers: s, at most m.

    Example:
      >>> import jax, numpy as np, jaxwgc
      >>> held = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], bool)
      >>> code = jaxwgc.codes.any_placement(
      ...     jax.random.key(0), held, num_stragglers=1, method="random_rows"
      ... )
      >>> code.decoders[0].rows.shape
      (2, 3)
      >>> jaxwgc.effective_weights(code, np.array([True, False, True])).round(3)
      Array([1., 1., 1.], dtype=float32)

    References:
      Wang, Guo, Tang, Li, Li, "Heterogeneity-aware gradient coding for straggler
      tolerance", ICDCS 2019 (rows whose combinations decode).
    """

    rows: Array
    num_stragglers: Static[int]

    needs: ClassVar[str] = "whose dual code is known, such as codes.any_placement"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        sizes = {"num_rows": "any", "num_workers": len(matrix)}
        rows = _validation.as_array("rows", self.rows, "numbers or bools", **sizes)
        name, number = "num_stragglers + 1", self.num_stragglers + 1
        _validation.check_up_to(name, number, rows=len(rows))
        self.check_matrix(np.iscomplexobj(rows) <= np.iscomplexobj(matrix), matrix)
        if any(isinstance(array, jax.Array) for array in (rows, matrix, target)):
            return
        first = np.arange(len(rows))[:, None] == 0
        slack = _EXACT * np.abs(target).max()
        is_right = np.allclose(rows @ matrix, first * target, 0, slack)
        self.check_matrix(is_right, matrix)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        weights, is_poor, systems = _weights(
            self, mask, matrix, target, is_uniform(target)
        )
        return decompose_some(is_poor, weights, mask, systems)


@functools.partial(jax.jit, static_argnames="is_uniform")
def _weights(decoder, mask, matrix, target, is_uniform):
    systems = systems_of(matrix, target, is_uniform)
    plain, dtype = systems.at(0), systems.matrix.dtype
    rows = jnp.asarray(working(decoder.rows), dtype)
    dual, num_stragglers = DualCode(rows[0], rows[1:].T), decoder.num_stragglers
    solve = functools.partial(dual_weights, num_stragglers=num_stragglers)

    is_short = (~mask).sum(-1) > num_stragglers
    weights = jnp.where(mask, dual.of_all, 0)[..., None, :]
    if num_stragglers:
        mapped, shared = (weights, mask), (plain, dual)
        weights = masked_map(~is_short, solve, weights, mapped, shared, _CHUNK)
    is_poor = is_short | ~(plain.miss(weights) <= rounding(dtype))
    return weights, is_poor, systems
