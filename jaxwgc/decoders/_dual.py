"""Decoding by the dual code: n - s responses determine the s lost messages."""

import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxwgc import _validation
from jaxwgc._arrays import product, working
from jaxwgc._pytrees import Static
from jaxwgc._some_masks import in_batches
from jaxwgc._targets import ROUNDING
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._systems import System, refine, solve_poor, systems_of

# Ridge in eps: smaller ones do not improve the accuracy.
_RIDGE = 0.5
# Number of masks decoded at a time.
_CHUNK = 32


class DualCode(NamedTuple):
    """Weights that decode if all workers respond, and the dual code.

    Attributes:
      of_all: Decoding weights of least norm, (n,).
      null: Orthonormal columns of weights that decode to zero, (n, m).
    """

    of_all: jax.Array
    null: jax.Array


def dual_weights(
    weights: jax.Array,
    received: jax.Array,
    system: System,
    dual: DualCode,
    num_stragglers: int,
) -> jax.Array:
    """Computes weights of one mask, or returns the given ones if they are better.

    The weights of all workers are made zero at the stragglers by adding weights of the
    dual code, which decode to zero. This is a system of the size of the number of
    stragglers, with the condition number of the mask. In its nearly singular
    directions weights would be large: there, a ridge trades their rounding against the
    residual. The result is accurate for nearly singular masks, too, since no small
    number is the difference of large ones.

    Args:
      weights: (1, n), kept if they are better.
      received: bool (n,), with at most `num_stragglers` entries False.
      system: System of a code with one segment.
      dual: Dual code, with m at least s.
      num_stragglers: s.

    Returns:
      (1, n), zero at stragglers.
    """
    of_all, null = dual
    ridge = (_RIDGE * jnp.finfo(system.norms.dtype).eps) ** 2
    lost = jnp.argsort(received, stable=True)[:num_stragglers]
    unused = received[lost, None]
    vectors, singular, turn = jnp.linalg.svd(
        jnp.where(unused, 0, null[lost]), full_matrices=False
    )
    # With fewer stragglers than s, the singular vectors of the padding become zero.
    vectors = jnp.where(unused, 0, vectors)
    # The dual code removes the stragglers' weights along each of these vectors, as far
    # as the ridge allows. What the ridge leaves becomes a residual.
    remove = product(null, turn.conj().T * singular) * (1 - ridge)
    remove = remove / (singular**2 + ridge * (1 - singular**2))
    remove = product(remove, vectors.conj().T)
    # Solutions differ from the weights of all workers by weights of the dual code, and
    # vanish at stragglers.
    norms = system.norms
    identity = jnp.eye(len(null), dtype=null.dtype)
    outside = (identity - product(null.conj(), null.T)) / norms[:, None]
    equations = system._replace(matrix=outside, target=of_all[None])
    inverse = jnp.where(received, identity.at[lost].add(-remove.T), 0) * norms
    return refine(Partial(product, right=inverse), weights, system, equations)


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
        number = self.num_stragglers + 1
        _validation.check_up_to("num_stragglers + 1", number, rows=len(rows))

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        rows = working(self.rows)
        weights, is_poor = _corrected(mask, rows, self.num_stragglers, matrix, target)
        return solve_poor(is_poor, weights, mask, matrix, target)


@functools.partial(jax.jit, static_argnames="num_stragglers")
def _corrected(mask, rows, num_stragglers, matrix, target):
    """Returns weights, and which of them are inaccurate."""
    system, _ = systems_of(matrix, target)
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
    is_poor = is_short | ~(system.residual(weights) <= ROUNDING[jnp.finfo(dtype).bits])
    return weights, is_poor
