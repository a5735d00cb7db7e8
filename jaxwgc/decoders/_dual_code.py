"""Correction of decoding weights by the dual code: weights that decode to zero."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxwgc._common.arrays import product
from jaxwgc.decoders._systems import System, refine

# Ridge in machine epsilons. A smaller one is not more accurate.
_RIDGE = 0.5
# Number of refinement steps. They remove rounding errors of the decomposition.
_STEPS = 5


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
    null_of_lost = jnp.where(unused, 0, null[lost])
    vectors, singular, turn = jnp.linalg.svd(null_of_lost, full_matrices=False)
    # If there are fewer stragglers than s, the singular vectors of the padding become
    # zero.
    vectors = jnp.where(unused, 0, vectors)
    # Along each of these vectors, the dual code removes the weights of stragglers as
    # far as the ridge allows. The rest becomes a residual.
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
    """Returns the change towards weights that decode, and vanish at stragglers.

    Weights that decode differ from the weights of all workers by weights of the dual
    code.
    """
    weights = iterate[0] / norms
    missing = dual.of_all - weights
    missing = missing + product(dual.null, product(dual.null.conj().T, weights))
    change = missing - product(remove, missing[lost])
    return (jnp.where(received, change, 0) * norms)[None]
