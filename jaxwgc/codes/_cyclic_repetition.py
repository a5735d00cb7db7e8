"""Cyclic repetition: every worker holds the next s + 1 parts around a ring."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares


def cyclic_repetition(
    key: jax.Array, num_workers: int, num_stragglers: int
) -> GradientCode:
    """Worker i holds parts i, ..., i + s around a ring, randomly mixed (Tandon et al.).

    H is a random s x n Gaussian matrix with rows that sum to zero. Row i of B has
    B_ii = 1 and otherwise the coefficients that put it in the null space of H. Any
    n - s rows then span that null space, which holds the vector of ones, with
    probability one. The code is badly conditioned: float32 is enough for few
    stragglers only (s = 2 or so), and `reed_solomon` is the better choice for more.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. With a traced key, so under `jit` or `vmap` over keys, the
        linear systems are solved in JAX's working precision, otherwise in float64.
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, from 0 to n - 1.

    Returns:
      A real code.

    Raises:
      ValueError: where s is negative or not less than n.
      TypeError: where the integers are not ints or the key is no PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), 5, num_stragglers=2)
      >>> code.assignment.astype(int)
      array([[1, 1, 1, 0, 0],
             [0, 1, 1, 1, 0],
             [0, 0, 1, 1, 1],
             [1, 0, 0, 1, 1],
             [1, 1, 0, 0, 1]])

    References:
      Tandon, Lei, Dimakis, Karampatziakis, "Gradient coding: avoiding stragglers in
      distributed learning", ICML 2017, section 4, algorithm 2.
    """
    num_stragglers = _validation.check_stragglers(num_stragglers, num_workers)
    first = np.arange(num_workers)
    others = (first[:, None] + np.arange(1, num_stragglers + 1)) % num_workers
    assignment = np.eye(num_workers, dtype=bool)
    assignment[first[:, None], others] = True
    return GradientCode(
        encoding_matrix=_null_space_rows(key, others),
        assignment=assignment,
        target=np.ones(num_workers),
        num_stragglers=num_stragglers,
        decoders=(LeastSquares(num_stragglers),),
    )


def _null_space_rows(key: jax.Array, others: np.ndarray) -> jax.Array | np.ndarray:
    """Rows bᵢ with bᵢᵢ = 1, support {i} and others[i], and H bᵢ = 0."""
    num_workers, num_stragglers = others.shape
    # The draws are float32 whatever the precision setting, so the code is too.
    draws = jax.random.normal(key, (num_stragglers, num_workers - 1), jnp.float32)
    xp = jnp if _validation.is_traced(draws) else np
    draws = xp.asarray(draws, jnp.result_type(float) if xp is jnp else np.float64)
    parity = xp.concatenate([draws, -draws.sum(1, keepdims=True)], axis=1)
    systems = parity[:, others].transpose(1, 0, 2)
    tails = xp.linalg.solve(systems, -parity.T[..., None])
    identity = np.eye(num_workers, dtype=draws.dtype)
    return identity + (tails * identity[others]).sum(1)
