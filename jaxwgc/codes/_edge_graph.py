"""Codes of graphs whose edges are workers."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import array_module
from jaxwgc.codes._constructors import check_works, code_of_sums, is_prime
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.codes._graphs import lps_graph, random_regular_graph
from jaxwgc.decoders import Components, LeastSquares, OneStep, Peeling


def edge_graph(key: jax.Array, num_parts: int, degree: int) -> GradientCode:
    """Parts are vertices of a random regular graph, workers its edges.

    Every worker holds two parts and sends their sum; d workers hold each part. Random
    stragglers leave nearly everything in one component with odd cycles, which is
    decoded exactly, and an adversary has to cut off parts one by one. About as good as
    fractional repetition with d copies at random stragglers, at two parts a worker
    whatever d, and half its error under attack.

    Args:
      key: PRNG key of either kind. The same key gives the same code whatever JAX's
        precision setting. May be traced.
      num_parts: k, at least 2.
      degree: d, how many workers hold each part, from 1 to k - 1, with k * d even.

    Returns:
      A real code of zeros and ones with k d / 2 workers, decoded by connected
      components (`jaxwgc.decoders.Components`) unless asked otherwise.

    Raises:
      ValueError: where the parameters break one of the rules above.
      TypeError: where the integers are not ints or the key is no PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.edge_graph(jax.random.key(0), 10, degree=6)
      >>> (
      ...     code.num_workers,
      ...     set(code.parts_per_worker.tolist()),
      ...     code.assignment.sum(0).tolist(),
      ... )
      (30, {2}, [6, 6, 6, 6, 6, 6, 6, 6, 6, 6])

    References:
      Glasgow, Wootters, "Approximate gradient coding with optimal decoding", IEEE
      Journal on Selected Areas in Information Theory, 2021.
    """
    names = "num_parts", "degree"
    return _code_of_edges(random_regular_graph(key, num_parts, degree, names), degree)


def ramanujan_graph(prime: int, modulus: int) -> GradientCode:
    """Workers are edges of the Ramanujan graph X of Lubotzky, Phillips and Sarnak.

    As `edge_graph`, of degree p + 1, on a graph that expands as well as any: the
    absolute eigenvalues of its adjacency matrix but the largest are at most 2 √p (and
    the smallest -(p + 1) where p is no square modulo q: those graphs have two sides).
    Large: the smallest, of p = 5 and q = 13, has 2,184 parts and 6,552 workers.

    Args:
      prime: p, a prime with remainder 1 modulo 4: 5, 13, 17, 29, ...
      modulus: q, another such prime, larger than 2 √p.

    Returns:
      A real code of zeros and ones with q (q² - 1) parts, half as many where p is a
      square modulo q, and (p + 1) / 2 times as many workers.

    Raises:
      ValueError: where the parameters are no such primes.
      TypeError: where they are not ints.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.ramanujan_graph(17, 13)
      >>> code.num_workers, code.num_parts
      (9828, 1092)

    References:
      Lubotzky, Phillips, Sarnak, "Ramanujan graphs", Combinatorica, 1988; for codes as
      `edge_graph`.
    """
    rule = "be a prime with remainder 1 modulo 4"
    for name, number in (("prime", prime), ("modulus", modulus)):
        _validation.check_int(name, number)
        check_works(name, number, _is_prime_of_two_squares, rule, 5)
    is_right = prime != modulus and modulus**2 > 4 * prime
    rule = "be another prime than prime, larger than 2 * sqrt(prime)"
    given = f"modulus = {modulus} and prime = {prime}"
    _validation.require(is_right, "modulus", rule, given)
    return _code_of_edges(lps_graph(prime, modulus), prime + 1)


def _is_prime_of_two_squares(number: int) -> bool:
    return number % 4 == 1 and is_prime(number)


def _code_of_edges(adjacency: Array, degree: int) -> GradientCode:
    xp = array_module(adjacency)
    num_parts = len(adjacency)
    num_workers = num_parts * degree // 2
    upper = xp.triu(adjacency)
    if xp is jnp:
        edges = jnp.stack(jnp.nonzero(upper, size=num_workers), axis=-1)
    else:
        edges = np.argwhere(upper)
    # The places of each part in the list of ends, of which every part has as many.
    incident = xp.argsort(edges.ravel(), stable=True).reshape(num_parts, degree) // 2
    assignment = (edges[:, :, None] == xp.arange(num_parts)).any(1)
    return code_of_sums(
        assignment,
        Components(incident),
        LeastSquares(),
        OneStep(num_workers / degree),
        Peeling(assignment),
    )
