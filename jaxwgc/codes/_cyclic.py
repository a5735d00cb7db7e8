"""Exact codes in which each worker holds neighbouring parts of a ring."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.codes._constructors import exact_code, ring_distances
from jaxwgc.codes._gradient_code import GradientCode


def cyclic_repetition(
    key: jax.Array, num_workers: int, num_stragglers: int
) -> GradientCode:
    """Returns an exact code with random coefficients around a ring of workers.

    Worker i holds parts i, ..., i + s around a ring. H is a random s x n Gaussian
    matrix with rows that sum to zero. Row i of B has B_ii = 1, and its other
    entries put it into the null space of H. With probability one, any n - s rows
    span that null space, which contains the vector of ones. The code is
    ill-conditioned: float32 suffices only for few stragglers (about 2). For more,
    use `reed_solomon`.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. If the key is traced (under `jit`, or `vmap` over keys),
        linear systems are solved in JAX's working precision, otherwise in float64.
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, from 0 to n - 1.

    Returns:
      A real code.

    Raises:
      ValueError: If s is negative or not less than n.
      TypeError: If an integer is not an int or key is not a PRNG key.

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
    num_stragglers = validation.check_stragglers(num_stragglers, num_workers)
    workers = np.arange(num_workers)[:, None]
    others = (workers + np.arange(1, num_stragglers + 1)) % num_workers
    assignment = ring_distances(num_workers) <= num_stragglers
    return exact_code(_null_space_rows(key, others), assignment, num_stragglers)


def _null_space_rows(key: jax.Array, others: np.ndarray) -> jax.Array | np.ndarray:
    """Computes rows of the encoding matrix in the null space of a random matrix.

    Rows bᵢ have bᵢᵢ = 1, support {i} and others[i], and H bᵢ = 0.
    """
    num_workers, num_stragglers = others.shape
    # Draws in float32 give the same code at every precision setting.
    draws = jax.random.normal(key, (num_stragglers, num_workers - 1), jnp.float32)
    xp = jnp if array_validation.is_traced(draws) else np
    draws = xp.asarray(draws, jnp.result_type(float) if xp is jnp else np.float64)
    parity = xp.concatenate([draws, -draws.sum(1, keepdims=True)], axis=1)
    systems = parity[:, others].transpose(1, 0, 2)
    tails = xp.linalg.solve(systems, -parity.T[..., None])
    identity = np.eye(num_workers, dtype=draws.dtype)
    return identity + (tails * identity[others]).sum(1)


def cyclic_mds(num_workers: int, num_stragglers: int) -> GradientCode:
    """Returns an exact code around a ring of workers, with small rounding errors.

    Worker i holds parts i, ..., i + s around a ring. Every row of the encoding
    matrix is the first row, rotated. The first row has the coefficients of g(x) =
    ∏ⱼ (x - ωʲ), ω = exp(2πi / n), over s consecutive exponents around n / 2. This
    generates a cyclic code of distance s + 1, so any n - s rows are a basis of it.
    It contains the vector of ones, since g(1) is not zero.

    The assignment is the one of `cyclic_repetition`. Coefficients are better
    conditioned than the random ones there, and typical patterns amplify rounding
    little. Bursts of neighbouring stragglers, such as a lost rack, are ill-conditioned:
    float32 cannot decode a burst of 10 out of 50 workers, and float64 cannot decode one
    of 20 out of 300. `reed_solomon` is much better for bursts.

    Args:
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, from 0 to n - 1.

    Returns:
      A real code with positive entries if n + s is odd, otherwise a complex one. Rows
      sum to s + 1: if all workers respond, every weight is 1 / (s + 1).

    Raises:
      ValueError: If s is negative or not less than n.
      TypeError: If a parameter is not an int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(5, num_stragglers=2)
      >>> code.encoding_matrix.round(2)
      array([[0.83, 1.34, 0.83, 0.  , 0.  ],
             [0.  , 0.83, 1.34, 0.83, 0.  ],
             [0.  , 0.  , 0.83, 1.34, 0.83],
             [0.83, 0.  , 0.  , 0.83, 1.34],
             [1.34, 0.83, 0.  , 0.  , 0.83]])

    References:
      Raviv, Tamo, Tandon, Dimakis, "Gradient coding from cyclic MDS codes and expander
      graphs", ICML 2018, section 3.
    """
    num_stragglers = validation.check_stragglers(num_stragglers, num_workers)
    coefficients = _coefficients(num_workers, num_stragglers)
    first_row = np.pad(coefficients, (0, num_workers - len(coefficients)))
    distances = ring_distances(num_workers)
    return exact_code(first_row[distances], distances <= num_stragglers, num_stragglers)


def _coefficients(num_workers: int, num_stragglers: int) -> np.ndarray:
    """Returns the coefficients of the generating polynomial, scaled.

    By the q-binomial theorem the coefficient of x^(s - t) is (-ω^c)^t times a product
    of ratios of sines, with c the middle of the exponents. The product is accurate to
    the last bits; multiplying out the factors would lose all digits (s = 98, n = 100).
    """
    sines = np.sin(np.pi * np.arange(1, num_stragglers + 1) / num_workers)
    # The coefficients are symmetric in t and s - t, so the powers may be reversed.
    coefficients = np.concatenate([[1.0], np.cumprod(sines[::-1] / sines)])
    if (num_workers + num_stragglers) % 2 == 0:
        # c is (n - 1) / 2 in this branch. If n + s is odd, c is n / 2 and -omega^c is
        # one.
        powers = np.arange(num_stragglers, -1, -1)
        coefficients = coefficients * np.exp(-1j * np.pi * powers / num_workers)
    return coefficients * ((num_stragglers + 1) / coefficients.sum())
