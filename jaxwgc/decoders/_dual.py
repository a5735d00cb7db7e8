"""Decoding by the dual code: n - s responses determine the s lost messages."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import working
from jaxwgc._common.pytrees import Static
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._dual_code import DualCode, dual_weights
from jaxwgc.decoders._some_masks import in_batches
from jaxwgc.decoders._systems import solve_poor, systems_of

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
        rows = array_validation.as_array(
            "rows",
            self.rows,
            "numbers or bools",
            num_rows="any",
            num_workers=len(matrix),
        )
        validation.check_int("num_stragglers", self.num_stragglers, minimum=0)
        validation.check_up_to(
            "num_stragglers + 1", self.num_stragglers + 1, rows=len(rows)
        )

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        rows = working(self.rows)
        weights, is_poor = _corrected(mask, rows, self.num_stragglers, matrix, target)
        return solve_poor(is_poor, weights, mask, matrix, target)


@functools.partial(jax.jit, static_argnames="num_stragglers")
def _corrected(
    mask: jax.Array,
    rows: jax.Array,
    num_stragglers: int,
    matrix: jax.Array,
    target: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns weights, and which of them are inaccurate."""
    system, _ = systems_of(matrix, target, is_unweighted=True)
    dtype = system.matrix.dtype
    rows = jnp.asarray(rows, dtype)
    dual = DualCode(of_all=rows[0], null=rows[1:].T)

    @jax.vmap
    def solve(mask):
        weights = jnp.where(mask, dual.of_all, 0)[None]
        if not num_stragglers:
            return weights
        return dual_weights(weights, mask, system, dual, num_stragglers)

    is_short = (~mask).sum(-1) > num_stragglers
    weights = in_batches(solve, mask, _CHUNK)
    is_poor = is_short | ~system.is_solved_by(weights)
    return weights, is_poor
