"""Decoding of exact codes with their dual code, computed with the code."""

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

# Tolerance of the rows, relative to the largest entry of the target.
_EXACT = 1e-6
# Number of masks decoded at a time.
_CHUNK = 32


class Dual(Decoder):
    """Corrects the weights of all workers by the dual code.

    The first row of C decodes if all workers respond. The other rows, the dual code,
    decode to zero: CB = (1, 0, ..., 0)ᵀ 1ᵀ. A combination of the latter makes the
    weights of stragglers zero; it solves a system of size s per mask. The accuracy is
    that of `LeastSquares` with a decomposition of every mask, and the time is less if
    s is less than n.

    Masks with more than s stragglers are decomposed. So are masks with a residual above
    1e-4 in float32 (1e-10 in float64). Weighted codes are decoded as in `LeastSquares`.

    Attributes:
      rows: C, real or complex (1 + m, num_workers): the first row of least norm, and
        the others orthonormal.
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

    needs: ClassVar[str] = "with a known dual code, such as codes.any_placement"
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
    is_poor = is_short | ~(plain.residual(weights) <= rounding(dtype))
    return weights, is_poor, systems
