"""Decoding with the dual code: what all would give, less what the stragglers hold."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc.decoders._accuracy import best_weights

# The ridge, in eps: below it weights gain no accuracy.
_RIDGE = 0.5
# The singular value decomposition is rounded by more than weights have to be;
# refinement takes that back.
_STEPS = 5


def dual_weights(
    weights: jax.Array,
    received: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    norms: jax.Array,
    positions: jax.Array,
    num_stragglers: int,
) -> jax.Array:
    """Returns weights of one mask, or those that were given where these are better.

    A code of polynomials of degree n - s - 1 at the n-th roots of unity has a dual in
    closed form: at αᵢ, weights αᵢ / √n, ..., αᵢˢ / √n add nothing, and 1 / n decodes
    from all workers. What makes that zero at the stragglers is a combination of the
    former: a system as large as there are stragglers, whose condition is that of the
    mask. Its singular vectors tell near-singular directions apart, in which weights
    would be large: there a ridge weighs what they are rounded by against missing the
    target. Accurate however near to singular a mask is, since no small number comes
    from the difference of large ones.

    Args:
      weights: (1, n), with which to compare.
      received: bool (n,), at most `num_stragglers` of them False.
      matrix: (n, c), its rows of norm about one.
      target: (1, c).
      norms: (n,), by which the rows of B were divided.
      positions: int (n,), those of the points on the circle.
      num_stragglers: s.

    Returns:
      (1, n), zero at stragglers.
    """
    number = len(received)
    ridge = (_RIDGE * jnp.finfo(matrix.dtype).eps) ** 2
    powers = np.arange(number)[:, None] * np.arange(1, num_stragglers + 1) % number
    roots = np.exp(2j * np.pi * powers / number) / np.sqrt(number)
    null = jnp.asarray(roots, matrix.dtype)[positions]
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
        of_all = 1 / number - solution
        of_all = of_all + product(null, product(null.conj().T, solution))
        step = of_all - product(remove, of_all[lost])
        solution = solution + jnp.where(received, step, 0)
        return solution, solution

    # The miss is rounding in the end, which differs from step to step.
    start = jnp.where(received, jnp.zeros((), matrix.dtype), 0)
    _, solutions = jax.lax.scan(refine, start, None, length=_STEPS)
    candidates = jnp.concatenate([solutions[::-1, None], weights[None]])
    return best_weights(candidates * norms, matrix, target) / norms
