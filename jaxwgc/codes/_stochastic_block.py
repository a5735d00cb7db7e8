"""Codes from the stochastic block model: dense inside clusters, sparse across."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes import _random_matrices
from jaxwgc.codes._constructors import check_works, code_of_sums, divides
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, OneStep, Peeling


def stochastic_block(
    key: jax.Array,
    num_workers: int,
    num_parts: int,
    num_clusters: int,
    probability_inside: jax.typing.ArrayLike,
    probability_across: jax.typing.ArrayLike,
) -> GradientCode:
    """Returns a code of independent entries that are likelier inside clusters.

    Workers and parts form equal clusters of adjacent indices. A worker holds a part of
    its own cluster with probability p, and a part of another cluster with probability
    q. p = 1 and q = 0 give fractional repetition, p = q a Bernoulli code. Values in
    between combine a small average error with robustness against adversaries.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      num_clusters: C, a divisor of n and k.
      probability_inside: p, from 0 to 1. May be traced.
      probability_across: q, from 0 to 1. May be traced.

    Returns:
      A real code with entries 0 and 1, decoded by least squares by default. One-step
      decoding, with scale C / (p + (C - 1) q), is available if the probabilities are
      known and not both zero.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int, a probability is not a real scalar or key
        is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> key = jax.random.key(0)
      >>> code = jaxwgc.codes.stochastic_block(key, 4, 4, 2, 1.0, 0.0)
      >>> code.encoding_matrix
      array([[1., 1., 0., 0.],
             [1., 1., 0., 0.],
             [0., 0., 1., 1.],
             [0., 0., 1., 1.]])

    References:
      Charles, Papailiopoulos, "Gradient coding via the stochastic block model", 2018.
    """
    num_workers = _validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    num_clusters = _validation.check_int("num_clusters", num_clusters, minimum=1)
    common = math.gcd(num_workers, num_parts)
    rule = f"divide num_workers = {num_workers} and num_parts = {num_parts}"
    check_works("num_clusters", num_clusters, divides(common), rule, 1, common)
    in_range: Any = {"minimum": 0, "maximum": 1}
    _validation.check_number("probability_inside", probability_inside, **in_range)
    _validation.check_number("probability_across", probability_across, **in_range)
    cluster_of_worker = np.arange(num_workers) // (num_workers // num_clusters)
    cluster_of_part = np.arange(num_parts) // (num_parts // num_clusters)
    probabilities = jnp.where(
        cluster_of_worker[:, None] == cluster_of_part,
        jnp.asarray(probability_inside, jnp.float32),
        jnp.asarray(probability_across, jnp.float32),
    )
    assignment = _random_matrices.known(
        _random_matrices.bernoulli_matrix(key, probabilities.shape, probabilities)
    )
    one_step = _one_step(num_clusters, probability_inside, probability_across)
    return code_of_sums(assignment, LeastSquares(), *one_step, Peeling(assignment))


def _one_step(
    num_clusters: int,
    probability_inside: jax.typing.ArrayLike,
    probability_across: jax.typing.ArrayLike,
) -> tuple[OneStep, ...]:
    """Returns one-step decoding if the mean number of copies of a part is known."""
    if _validation.is_traced(probability_inside, probability_across):
        return ()
    inside = np.asarray(probability_inside, np.float64).item()
    across = np.asarray(probability_across, np.float64).item()
    total = inside + (num_clusters - 1) * across
    return (OneStep(num_clusters / total),) if total else ()
