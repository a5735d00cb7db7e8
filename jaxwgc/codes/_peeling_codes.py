"""Random codes of sums for peeling: LDGM and batch raptor codes."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import validation
from jaxwgc.codes._constructors import code_of_sums, known
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._random_codes import random_subsets
from jaxwgc.decoders import LeastSquares, Peeling

# Constants c and δ of the robust soliton distribution: the number of messages of low
# degree, and the failure probability in Luby's analysis.
_RIPPLE = 0.03
_FAILURE = 0.5


def ldgm(
    key: jax.Array, num_workers: int, num_parts: int, parity_degree: int
) -> GradientCode:
    """Returns a code of single parts and random parities, decoded by peeling.

    Worker i < k is systematic: it holds only part i. Each of the n - k others sends the
    sum of `parity_degree` parts, drawn uniformly without replacement. Peeling decodes:
    a parity with one unknown part gives that part. The recovered parts are exact, and
    are scaled up for the lost ones. This is unbiased, but the error is not small:
    `decoders.LeastSquares` has the smallest error.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, greater than k.
      num_parts: k, at least 1.
      parity_degree: Number of parts per parity, from 1 to k.

    Returns:
      A real code with entries 0 and 1, decoded by peeling. One straggler is tolerated
      with certainty if each parity holds all parts, otherwise none.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.ldgm(jax.random.key(0), 6, num_parts=4, parity_degree=2)
      >>> code.encoding_matrix[:4]
      array([[1., 0., 0., 0.],
             [0., 1., 0., 0.],
             [0., 0., 1., 0.],
             [0., 0., 0., 1.]])
      >>> code.parts_per_worker.tolist()
      [1, 1, 1, 1, 2, 2]

    References:
      Horii, Yoshida, Kobayashi, Matsushima, "Distributed stochastic gradient descent
      using LDGM codes", ISIT 2019.
    """
    num_workers = validation.check_int("num_workers", num_workers)
    validation.check_up_to("parity_degree", parity_degree, num_parts=num_parts)
    if num_workers <= num_parts:
        raise ValueError(
            f"num_workers must be greater than num_parts = {num_parts}; got "
            f"{num_workers}"
        )
    parities = random_subsets(key, parity_degree, (num_workers - num_parts, num_parts))
    assignment = known(jnp.concatenate([jnp.eye(num_parts, dtype=bool), parities]))
    num_stragglers = 1 if parity_degree == num_parts else 0
    return code_of_sums(
        assignment,
        Peeling(assignment),
        LeastSquares(num_stragglers),
        num_stragglers=num_stragglers,
    )


def batch_raptor(
    key: jax.Array,
    num_workers: int,
    num_parts: int,
    batch_size: int = 1,
    max_degree: int | None = None,
) -> GradientCode:
    """Returns a code of sums of random batches, decoded by peeling.

    Degrees have the robust soliton distribution. The parts form batches of
    `batch_size` adjacent parts. Each worker draws a degree from the robust soliton
    distribution over 1, ..., K, with K the number of batches. It sends the sum of
    that many batches, drawn uniformly without replacement. Peeling decodes: a
    message with one unknown batch gives that batch. The recovered batches are
    exact, and are scaled up for the lost ones. With few workers, few batches are
    recovered, and the error exceeds that of a zero gradient;
    `decoders.LeastSquares` has the smallest error.

    The ideal soliton distribution is 1 / K at degree 1 and 1 / (i (i - 1)) at degree
    i. The robust one adds R / (i K) below degree K / R and R log(R / δ) / K at it, with
    R = c log(K / δ) √K, c = 0.03 and δ = 0.5, and is normalised. If K / R exceeds K,
    the term at K / R is dropped.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      batch_size: Number of parts per batch, a divisor of k.
      max_degree: Maximum degree, from 1 to K (default): the distribution is truncated
        there and normalised. The load of a worker is at most max_degree * batch_size
        parts.

    Returns:
      A real code with entries 0 and 1, decoded by peeling. No number of stragglers is
      tolerated with certainty.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int, or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> key = jax.random.key(0)
      >>> code = jaxwgc.codes.batch_raptor(key, 30, 20, batch_size=2, max_degree=4)
      >>> parts = code.parts_per_worker
      >>> bool((parts % 2 == 0).all()), int(parts.max())
      (True, 8)

    References:
      Wang, Liu, Shroff, "Fundamental limits of approximate gradient coding",
      Proceedings of the ACM on Measurement and Analysis of Computing Systems, 2019;
      Luby, "LT codes", FOCS 2002 (the robust soliton distribution).
    """
    num_workers = validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    batch_size = validation.check_int("batch_size", batch_size, minimum=1)
    if num_parts % batch_size != 0:
        raise ValueError(
            f"batch_size must divide num_parts = {num_parts}; got {batch_size}"
        )
    num_batches = num_parts // batch_size
    max_degree = num_batches if max_degree is None else max_degree
    validation.check_up_to("max_degree", max_degree, num_batches=num_batches)
    probabilities = robust_soliton(num_batches, max_degree)
    degree_key, batch_key = jax.random.split(key)
    # Degrees are quantiles at random numbers. These are 32-bit integers, so that a key
    # gives the same code in every precision.
    cumulative = np.cumsum(probabilities)[:-1]
    thresholds = np.minimum(cumulative * 2**32, 2**32 - 1)
    draws = jax.random.bits(degree_key, (num_workers,), jnp.uint32)
    thresholds = jnp.asarray(thresholds.astype(np.uint32))
    degrees = 1 + jnp.searchsorted(thresholds, draws, side="right")
    batches = random_subsets(batch_key, degrees, (num_workers, num_batches))
    assignment = known(jnp.repeat(batches, batch_size, axis=1))
    peeling = Peeling(known(batches))
    return code_of_sums(assignment, peeling, LeastSquares())


def robust_soliton(num_batches: int, max_degree: int) -> np.ndarray:
    """Returns the robust soliton distribution of the number of batches in a message."""
    degrees = np.arange(1, num_batches + 1)
    of_higher_degrees = 1 / (degrees[1:] * degrees[:-1])
    weights = np.concatenate([[1 / num_batches], of_higher_degrees])
    ripple = _RIPPLE * math.log(num_batches / _FAILURE) * math.sqrt(num_batches)
    # With few batches, the spike lies beyond all degrees.
    spike = round(num_batches / ripple)
    weights += np.where(degrees < spike, ripple / (degrees * num_batches), 0)
    if spike <= num_batches:
        weights[spike - 1] += ripple * math.log(ripple / _FAILURE) / num_batches
    kept = weights[:max_degree]
    return kept / kept.sum()
