"""Codes with random entries: Bernoulli, block and stochastic gradient codes."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.codes._constructors import (
    as_floats,
    code_of_sums,
    known,
    replicated_sums,
    unweighted,
)
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Decoder, LeastSquares, OneStep, Peeling

_LARGEST = np.uint32(2**32 - 1)


# Under jit, calls compile once per shape, not once per operation.
@functools.partial(jax.jit, static_argnames="shape")
def bernoulli_matrix(
    key: jax.Array, shape: tuple[int, ...], probability: jax.typing.ArrayLike
) -> jax.Array:
    """Draws independent bools with given probabilities of True."""
    # Draws in float32 give the same code in every precision.
    draws = jax.random.uniform(key, shape, jnp.float32)
    return draws < jnp.asarray(probability, jnp.float32)


@functools.partial(jax.jit, static_argnames="shape")
def random_subsets(
    key: jax.Array,
    sizes: jax.typing.ArrayLike,
    shape: tuple[int, ...],
    eligible: jax.Array | None = None,
) -> jax.Array:
    """Draws a random subset of given size for each row.

    Subsets are drawn uniformly without replacement. `sizes` is broadcast to the rows,
    and is at most the number of eligible items.
    """
    draws = jax.random.bits(key, shape, jnp.uint32)
    if eligible is not None:
        draws = jnp.where(eligible, draws // 2, _LARGEST)
    sizes = jnp.asarray(sizes, jnp.int32)
    sizes = jnp.broadcast_to(sizes, shape[:1])[:, None]
    # Sorting the values is several times faster than ranking by argsort.
    ascending = draws.sort(axis=-1)
    last = jnp.take_along_axis(ascending, jnp.maximum(sizes - 1, 0), axis=-1)
    smaller = draws < last
    # Of equal draws, the first are taken, so that there are exactly `sizes` items.
    tied = draws == last
    missing = sizes - smaller.sum(axis=-1, keepdims=True)
    return smaller | (tied & (tied.cumsum(axis=-1) <= missing))


def bernoulli(
    key: jax.Array, num_workers: int, num_parts: int, copies: int
) -> GradientCode:
    """Returns an approximate code in which each worker holds random parts.

    Entries are independent, 1 with probability d / n and else 0. A part has d
    copies on average, and none with probability (1 - d / n)ⁿ. No number of
    stragglers is tolerated with certainty. One-step decoding with r random
    responses uses the weights a = n / (r d). It is unbiased, and its mean squared
    decoding error is k n / (r d) (1 - d / n).

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      copies: Expected number d of copies, from 1 to n.

    Returns:
      A real code with entries 0 and 1, decoded by least squares by default.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.bernoulli(jax.random.key(0), 100, 50, copies=10)
      >>> code.encoding_matrix.shape, code.decoders[1].scale
      ((100, 50), 10.0)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 (Bernoulli gradient codes, for k = n).
    """
    validation.check_int("num_parts", num_parts, minimum=1)
    validation.check_up_to("copies", copies, num_workers=num_workers)
    probability = copies / num_workers
    assignment = bernoulli_matrix(key, (num_workers, num_parts), probability)
    return replicated_sums(known(assignment), copies)


def regularized_bernoulli(
    key: jax.Array, num_workers: int, num_parts: int, copies: int
) -> GradientCode:
    """Returns a Bernoulli code without parts of very many copies.

    Each part has at most 2 d copies. A part that `bernoulli` gives to more than 2 d
    workers keeps d of them, chosen uniformly at random. This bounds the loads due
    to rare columns, and the error bounds of Charles et al. then hold for sparse
    codes, too.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      copies: Number d of copies of a part, from 1 to n.

    Returns:
      A real code with entries 0 and 1, decoded by least squares by default.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If an integer is not an int or key is not a PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> key = jax.random.key(0)
      >>> code = jaxwgc.codes.regularized_bernoulli(key, 100, 1000, copies=1)
      >>> int(code.assignment.sum(0).max())
      2

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 (regularized Bernoulli gradient codes, for k = n).
    """
    validation.check_int("num_parts", num_parts, minimum=1)
    validation.check_up_to("copies", copies, num_workers=num_workers)
    entries_key, thinning_key = jax.random.split(key)
    probability = copies / num_workers
    entries = bernoulli_matrix(entries_key, (num_workers, num_parts), probability)
    columns = entries.T
    weights = columns.sum(axis=-1)
    sizes = jnp.where(weights > 2 * copies, copies, weights)
    thinned = random_subsets(thinning_key, sizes, columns.shape, eligible=columns)
    return replicated_sums(known(thinned.T), copies)


def stochastic_block(
    key: jax.Array,
    num_workers: int,
    num_parts: int,
    num_clusters: int,
    probability_inside: jax.typing.ArrayLike,
    probability_across: jax.typing.ArrayLike,
) -> GradientCode:
    """Returns an approximate code with random parts, mostly of the own cluster.

    Entries are independent, and likelier inside clusters. Workers and parts form
    equal clusters of adjacent indices. A worker holds a part of its own cluster
    with probability p, and a part of another cluster with probability q. p = 1 and
    q = 0 give fractional repetition, p = q a Bernoulli code. Values in between
    combine a small average error with robustness against adversaries.

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
    num_workers = validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    num_clusters = validation.check_int("num_clusters", num_clusters, minimum=1)
    if num_workers % num_clusters != 0 or num_parts % num_clusters != 0:
        raise ValueError(
            f"num_clusters must divide num_workers = {num_workers} and num_parts = "
            f"{num_parts}; got {num_clusters}"
        )
    array_validation.check_number(
        "probability_inside", probability_inside, minimum=0, maximum=1
    )
    array_validation.check_number(
        "probability_across", probability_across, minimum=0, maximum=1
    )
    cluster_of_worker = np.arange(num_workers) // (num_workers // num_clusters)
    cluster_of_part = np.arange(num_parts) // (num_parts // num_clusters)
    is_inside = cluster_of_worker[:, None] == cluster_of_part
    probabilities = jnp.where(
        is_inside,
        jnp.asarray(probability_inside, jnp.float32),
        jnp.asarray(probability_across, jnp.float32),
    )
    assignment = known(bernoulli_matrix(key, probabilities.shape, probabilities))
    decoders: list[Decoder] = [LeastSquares()]
    if not array_validation.is_traced(probability_inside, probability_across):
        inside = np.asarray(probability_inside, np.float64)
        across = np.asarray(probability_across, np.float64)
        total = float(inside + (num_clusters - 1) * across)
        if total:
            decoders.append(OneStep(num_clusters / total))
    return code_of_sums(assignment, *decoders, Peeling(assignment))


def stochastic(
    key: jax.Array,
    num_workers: int,
    num_parts: int,
    copies: int | Sequence[int],
    straggler_probability: jax.typing.ArrayLike,
) -> GradientCode:
    """Returns a code whose sum of responses is an unbiased gradient.

    Coefficients are 1 / (d_j (1 - p)). Part j has d_j copies, and responses are
    summed. If every worker straggles independently with probability p, the sum is
    an unbiased gradient: the weight of part j has mean 1 and variance p / ((1 - p)
    d_j). Decoding solves no system and waits for no number of responses; training
    is stochastic gradient descent.

    The published scheme requires pairwise balance: parts i and j share d_i d_j / n
    workers. Few parameters allow this exactly (e.g. symmetric block designs). Here the
    d_j workers of each part are drawn uniformly without replacement, which is balanced
    on average.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      copies: Number d of copies from 1 to n, an int, or num_parts ints if
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
    num_workers = validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    copies_of = array_validation.concrete_array(
        "copies", copies, "integers", or_number=True, num_parts=num_parts
    )
    validation.check_entries(
        "copies",
        copies_of,
        (copies_of >= 1) & (copies_of <= num_workers),
        f"from 1 to num_workers = {num_workers}",
    )
    copies_of = np.broadcast_to(copies_of, num_parts)
    probability = array_validation.as_array(
        "straggler_probability",
        straggler_probability,
        "real numbers",
        or_number=True,
        num_workers=num_workers,
    )
    if not array_validation.is_traced(probability):
        validation.check_entries(
            "straggler_probability",
            probability,
            (probability >= 0) & (probability < 1),
            "at least 0 and less than 1",
        )
    response = 1 - as_floats(probability)
    assignment = known(random_subsets(key, copies_of, (num_parts, num_workers)).T)
    matrix = as_floats(assignment) / (copies_of * response[..., None])
    return unweighted(matrix, assignment, OneStep(1.0, shared=False), LeastSquares())
