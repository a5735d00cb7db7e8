"""Bernoulli gradient codes: every worker holds every part with equal probability."""

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
    """Independent entries, 1 with probability d / n and 0 otherwise (Charles et al.).

    A part is on d workers on average, and on none with probability (1 - d / n)ⁿ. No
    number of stragglers is survived for certain. With r random responders and weights
    a = n / (r d) at every answer, one-step decoding, the decoded gradient is right on
    average, and the squared decoding error is k n / (r d) (1 - d / n) on average.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      replication: d, from 1 to n; the expected number of workers that hold a part.

    Returns:
      A real code with entries 0 and 1, decoded by least squares unless asked
      otherwise.

    Raises:
      ValueError: where the parameters break one of the rules above.
      TypeError: where the integers are not ints or the key is no PRNG key.

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
    """A Bernoulli code whose heavy columns are thinned (Charles et al.).

    A part that `bernoulli` gives to more than 2 d workers stays on d of these, chosen
    uniformly at random. That bounds the loads that rare columns cause, and makes the
    error bounds of the paper hold for sparse codes, too.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      replication: d, from 1 to n.

    Returns:
      A real code with entries 0 and 1, decoded by least squares unless asked
      otherwise. No part is on more than 2 d workers.

    Raises:
      ValueError: where the parameters break one of the rules above.
      TypeError: where the integers are not ints or the key is no PRNG key.

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
