"""Decoding with the dual code: what all would give, less what the stragglers hold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._product import product
from jaxwgc.decoders._accuracy import best_weights

# The ridge, in eps of the largest singular value: below it weights gain no accuracy.
_RIDGE = 0.5
# The weights of all workers are rounded by more than those of a mask have to be;
# refinement takes that back.
_STEPS = 5


class DualFactors(NamedTuple):
    """What all masks of a code share; n workers, rank r.

    Attributes:
      inverse: (c, n), the pseudo-inverse of B.
      null: (n, n - r), orthonormal weights that add nothing: the dual code.
      costs: (n, n), the squared norm of aᵀB is a^T costs^+ conj(a) for the others.
      ridge: scalar, squared, in the units of squared singular values.
    """

    inverse: jax.Array
    null: jax.Array
    costs: jax.Array
    ridge: jax.Array


def dual_factors(matrix: jax.Array, num_stragglers: int) -> DualFactors:
    """Of a code that decodes without any `num_stragglers`, by one decomposition."""
    rank = min(matrix.shape[0] - num_stragglers, matrix.shape[1])
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=True)
    left, null = left[:, :rank].conj(), left[:, rank:].conj()
    # Fewer than `rank` where columns are zero, as of parts that do not count.
    is_kept = singular[:rank] > 100 * jnp.finfo(matrix.dtype).eps * singular[0]
    scaled = jnp.where(is_kept, left / jnp.where(is_kept, singular[:rank], 1), 0)
    return DualFactors(
        inverse=product(right[:rank].conj().T, scaled.T),
        null=null,
        costs=product(scaled, scaled.conj().T),
        ridge=(_RIDGE * jnp.finfo(matrix.dtype).eps * singular[0]) ** 2,
    )


def dual_weights(
    weights: jax.Array,
    received: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    *factors: jax.Array,
    num_stragglers: int,
) -> jax.Array:
    """Weights of one mask, or those that were given where these are better.

    The weights of all workers, plus the combination of the dual code that makes them
    zero at the stragglers: a system as large as there are stragglers, whose condition
    is that of the mask. Its singular vectors tell near-singular directions apart, in
    which the target would take large weights: there the ridge weighs what they are
    rounded by against missing the target. Accurate however near to singular a mask is,
    since no small number comes from the difference of large ones.

    Args:
      weights: (1, n), with which to compare.
      received: bool (n,), at most `num_stragglers` of them False.
      matrix: (n, c), its rows of norm about one.
      target: (1, c).
      factors: those of `DualFactors`.
      num_stragglers: the most stragglers.

    Returns:
      (1, n), zero at stragglers.
    """
    inverse, null, costs, ridge = factors
    lost = jnp.argsort(received, stable=True)[:num_stragglers]
    unused = received[lost, None]
    own_null = jnp.where(unused, 0, null[lost])
    vectors, singular, turn = jnp.linalg.svd(own_null, full_matrices=False)
    vectors = jnp.where(unused, 0, vectors)
    reach = product(costs[:, lost], vectors)
    # Graded: with a diagonal of ones it is well conditioned. Singular vectors that
    # belong to no straggler, where there are fewer, have become zero.
    system = ridge * product(vectors.conj().T, reach[lost]) + jnp.diag(singular**2)
    diagonal = jnp.diagonal(system).real
    scale = jnp.where(
        diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0
    )
    system = system * scale[:, None] * scale + jnp.diag(jnp.where(diagonal > 0, 0, 1))
    root = jax.lax.linalg.triangular_solve(
        jax.lax.linalg.cholesky(system),
        jnp.diag(scale).astype(system.dtype),
        left_side=True,
        lower=True,
    )
    # From what of_all has at the stragglers to what makes it zero there.
    remove = product(null, turn.conj().T * singular) + ridge * reach
    remove = product(product(remove, product(root.conj().T, root)), vectors.conj().T)

    def refine(found, _):
        of_all = product(target - product(found, matrix), inverse)
        found = found + jnp.where(
            received, of_all - product(of_all[:, lost], remove.T), 0
        )
        return found, found

    # The miss is rounding in the end, which differs from step to step.
    start = jnp.where(received, jnp.zeros((1, 1), weights.dtype), 0)
    _, found = jax.lax.scan(refine, start, None, length=_STEPS)
    return best_weights(jnp.concatenate([found[::-1], weights[None]]), matrix, target)
