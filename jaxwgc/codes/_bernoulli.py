"""Bernoulli gradient codes: workers hold parts independently at random."""

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.codes import _random_matrices
from jaxwgc.codes._constructors import code_of_sums
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, OneStep, Peeling


def bernoulli(
    key: jax.Array, num_workers: int, num_parts: int, replication: int
) -> GradientCode:
    """Returns a code with independent entries, 1 with probability d / n, else 0.

    A part has d copies on average, and none with probability (1 - d / n)ⁿ. No number of
    stragglers is tolerated with certainty. One-step decoding with r random responses
    uses the weights a = n / (r d). It is unbiased, and its mean squared decoding error
    is k n / (r d) (1 - d / n).

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      replication: Expected replication factor d, from 1 to n.

    Returns:
      A real code with entries 0 and 1, decoded by least squares by default.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.bernoulli(jax.random.key(0), 100, 50, replication=10)
      >>> code.encoding_matrix.shape, code.decoders[1].scale
      ((100, 50), 10.0)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 (Bernoulli gradient codes, for k = n).
    """
    _validation.check_int("num_parts", num_parts, minimum=1)
    _validation.check_up_to("replication", replication, num_workers=num_workers)
    shape = num_workers, num_parts
    probability = replication / num_workers
    assignment = _random_matrices.bernoulli_matrix(key, shape, probability)
    return _code(assignment, replication)


def regularized_bernoulli(
    key: jax.Array, num_workers: int, num_parts: int, replication: int
) -> GradientCode:
    """Returns a Bernoulli code with at most 2 d copies of each part.

    A part that `bernoulli` gives to more than 2 d workers keeps d of them, chosen
    uniformly at random. This bounds the loads due to rare columns, and the error bounds
    of Charles et al. then hold for sparse codes, too.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      replication: d, from 1 to n.

    Returns:
      A real code with entries 0 and 1, decoded by least squares by default.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> key = jax.random.key(0)
      >>> code = jaxwgc.codes.regularized_bernoulli(key, 100, 1000, replication=1)
      >>> int(code.assignment.sum(0).max())
      2

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 (regularized Bernoulli gradient codes, for k = n).
    """
    _validation.check_int("num_parts", num_parts, minimum=1)
    _validation.check_up_to("replication", replication, num_workers=num_workers)
    shape = num_workers, num_parts
    entries_key, thinning_key = jax.random.split(key)
    probability = replication / num_workers
    columns = _random_matrices.bernoulli_matrix(entries_key, shape, probability).T
    weights = columns.sum(axis=-1)
    sizes = jnp.where(weights > 2 * replication, replication, weights)
    thinned = _random_matrices.random_subsets(
        thinning_key, sizes, columns.shape, eligible=columns
    )
    return _code(thinned.T, replication)


def _code(assignment: jax.Array, replication: int) -> GradientCode:
    known = _random_matrices.known(assignment)
    one_step = OneStep(len(assignment) / replication)
    return code_of_sums(known, LeastSquares(), one_step, Peeling(known))
