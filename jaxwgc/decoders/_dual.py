"""Decoding by the dual code: combinations of messages that are zero.

Any n - s responses determine the s lost messages.
"""

import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import product, working
from jaxwgc._common.pytrees import Static
from jaxwgc._common.some_rows import in_batches
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._systems import System, refine, solve_poor, systems_of

# Number of masks decoded at a time.
_CHUNK = 32
# Ridge in machine epsilons. A smaller one is not more accurate.
_RIDGE = 0.5
# Number of refinement steps. They remove rounding errors of the decomposition.
_STEPS = 5


class Dual(Decoder):
    """Decodes by removing stragglers from weights of all workers, for few stragglers.

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
      >>> jaxwgc.decoding(code, np.array([True, False, True])).effective_weights.round(
      ...     3
      ... )
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
    """Computes weights by the dual code; returns also which are inaccurate."""
    [system] = systems_of(matrix, target, is_unweighted=True)
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


class DualCode(NamedTuple):
    """The dual code, and weights that decode if all workers respond.

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
    """Computes the weights of one mask, or keeps the given weights if they are better.

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
    null_of_lost = jnp.where(unused, 0, null[lost])
    vectors, singular, turn = jnp.linalg.svd(null_of_lost, full_matrices=False)
    # If there are fewer stragglers than s, the singular vectors of the padding become
    # zero.
    vectors = jnp.where(unused, 0, vectors)
    # Along each of these vectors, weights of stragglers become zero as far as the ridge
    # allows. What is left of them is a residual.
    remove = product(null, turn.conj().T * singular) * (1 - ridge)
    remove = remove / (singular**2 + ridge * (1 - singular**2))
    remove = product(remove, vectors.conj().T)
    correct = Partial(
        _without_lost,
        received=received,
        lost=lost,
        remove=remove,
        dual=dual,
        norms=system.norms,
    )
    return refine(correct, weights, system, num_steps=_STEPS)


def _without_lost(
    iterate: jax.Array,
    _: jax.Array,
    received: jax.Array,
    lost: jax.Array,
    remove: jax.Array,
    dual: DualCode,
    norms: jax.Array,
) -> jax.Array:
    """Computes the change of weights that makes those of stragglers zero.

    Weights that decode differ from the weights of all workers by weights of the dual
    code.
    """
    weights = iterate[0] / norms
    missing = dual.of_all - weights
    missing = missing + product(dual.null, product(dual.null.conj().T, weights))
    change = missing - product(remove, missing[lost])
    return (jnp.where(received, change, 0) * norms)[None]
