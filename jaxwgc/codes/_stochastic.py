"""Stochastic gradient coding: unbiased if workers straggle at random."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes import _random_matrices
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.decoders import LeastSquares, OneStep


def stochastic(
    key: jax.Array,
    num_workers: int,
    num_parts: int,
    replication: int | Sequence[int],
    straggler_probability: jax.typing.ArrayLike,
) -> GradientCode:
    """Returns the stochastic gradient code with coefficients 1 / (d_j (1 - p)).

    Part j has d_j copies, and responses are summed. If every worker straggles
    independently with probability p, the sum is an unbiased gradient: the weight of
    part j has mean 1 and variance p / ((1 - p) d_j). Decoding solves no system and
    waits for no number of responses; training is stochastic gradient descent.

    The published scheme requires pairwise balance: parts i and j share d_i d_j / n
    workers. Few parameters allow this exactly (e.g. symmetric block designs). Here the
    d_j workers of each part are drawn uniformly without replacement, which is balanced
    on average.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      replication: Replication factor d from 1 to n, an int, or num_parts ints if
        important parts have more copies.
      straggler_probability: p, at least 0 and less than 1: a number, or (num_workers,)
        if workers differ (`unequal` then has a smaller error). May be traced.

    Returns:
      A real code, decoded in one step with weight 1 for every response.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int, the probability is not real or key is not
        a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> key = jax.random.key(0)
      >>> code = jaxwgc.codes.stochastic(key, 10, 4, 2, straggler_probability=0.2)
      >>> code.assignment.sum(0), float(code.encoding_matrix.max())
      (array([2, 2, 2, 2]), 0.625)

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for straggler mitigation
      in distributed learning", IEEE Journal on Selected Areas in Information Theory,
      2020.
    """
    num_workers = _validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    replications = _check_replications(replication, num_workers, num_parts)
    response = _response_probability(straggler_probability, num_workers)
    assignment = _random_matrices.known(
        _random_matrices.random_subsets(key, replications, (num_parts, num_workers)).T
    )
    coefficients = 1 / (replications * response[..., None])
    return GradientCode(
        encoding_matrix=_random_matrices.zeros_and_ones(assignment) * coefficients,
        assignment=assignment,
        target=np.ones(num_parts),
        num_stragglers=0,
        decoders=(OneStep(1.0, shared=False), LeastSquares()),
    )


def _check_replications(
    replication: int | Sequence[int], num_workers: int, num_parts: int
) -> np.ndarray:
    """Returns the replication factors d_j, (num_parts,)."""
    sizes = {"or_number": True, "num_parts": num_parts}
    given = _validation.concrete_array("replication", replication, "integers", **sizes)
    given = np.broadcast_to(given, num_parts)
    rule = f"from 1 to num_workers = {num_workers}"
    is_right = (given >= 1) & (given <= num_workers)
    _validation.check_entries("replication", given, is_right, rule)
    return given


def _response_probability(probability: jax.typing.ArrayLike, num_workers: int) -> Array:
    """Returns 1 - p, in float64, or in JAX's working precision if it is traced."""
    name = "straggler_probability"
    sizes = {"or_number": True, "num_workers": num_workers}
    given = _validation.as_array(name, probability, "real numbers", **sizes)
    if _validation.is_traced(given):
        return 1 - jnp.asarray(given, jnp.result_type(float))
    values, rule = np.asarray(given, np.float64), "at least 0 and less than 1"
    _validation.check_entries(name, values, (values >= 0) & (values < 1), rule)
    return 1 - values
