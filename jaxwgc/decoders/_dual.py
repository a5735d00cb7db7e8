"""Decoding with the dual code: what all would give, less what the stragglers hold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product
from jaxwgc.decoders._accuracy import System, best_weights

# The ridge, in eps: below it weights gain no accuracy.
_RIDGE = 0.5
# The singular value decomposition is rounded by more than weights have to be;
# refinement takes that back.
_STEPS = 5


class DualCode(NamedTuple):
    """Weights that decode from all workers, and weights that decode nothing.

    Attributes:
      of_all: (n,), of least norm.
      null: (n, m), orthonormal columns.
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
    """Returns weights of one mask, or those that were given where these are better.

    What decodes from all workers is made zero at the stragglers by a combination of
    weights that add nothing: a system as large as there are stragglers, whose condition
    is that of the mask. Its singular vectors tell near-singular directions apart, in
    which weights would be large: there a ridge weighs what they are rounded by against
    missing the target. Accurate however near to singular a mask is, since no small
    number comes from the difference of large ones.

    Args:
      weights: (1, n), with which to compare.
      received: bool (n,), at most `num_stragglers` of them False.
      system: that of a code with one segment.
      dual: its dual code, with m at least s.
      num_stragglers: s.

    Returns:
      (1, n), zero at stragglers.
    """
    matrix, norms, target = system
    of_all, null = dual
    ridge = (_RIDGE * jnp.finfo(matrix.dtype).eps) ** 2
    lost = jnp.argsort(received, stable=True)[:num_stragglers]
    unused = received[lost, None]
    vectors, singular, turn = jnp.linalg.svd(
        jnp.where(unused, 0, null[lost]), full_matrices=False
    )
    # Singular vectors that belong to no straggler, where there are fewer, become zero.
    vectors = jnp.where(unused, 0, vectors)
    # What the stragglers hold in each of these directions is taken away by the dual
    # code, as far as the ridge lets it, and the rest at the price of a miss.
    remove = product(null, turn.conj().T * singular) * (1 - ridge)
    remove = remove / (singular**2 + ridge * (1 - singular**2))
    remove = product(remove, vectors.conj().T)

    def refine(solution, _):
        # What is missed of the target, in the space that the dual leaves.
        missing = of_all - solution
        missing = missing + product(null, product(null.conj().T, solution))
        step = missing - product(remove, missing[lost])
        solution = solution + jnp.where(received, step, 0)
        return solution, solution

    # The miss is rounding in the end, which differs from step to step.
    start = jnp.where(received, jnp.zeros((), matrix.dtype), 0)
    _, solutions = jax.lax.scan(refine, start, None, length=_STEPS)
    candidates = jnp.concatenate([solutions[::-1, None], weights[None]])
    return best_weights(candidates * norms, matrix, target) / norms
