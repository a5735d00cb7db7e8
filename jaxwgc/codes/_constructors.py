"""Helpers of constructors: codes of plain sums, proportional loads, primes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxwgc._common import array_validation
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.decoders import Decoder, LeastSquares


def known(values: jax.Array) -> Array:
    """Returns a NumPy array if the values are known, otherwise the tracer."""
    return values if array_validation.is_traced(values) else np.asarray(values)


def as_floats(values: Array) -> Array:
    """Converts to float64 on the host, or to JAX's precision if values are traced."""
    if array_validation.is_traced(values):
        return values.astype(jnp.result_type(float))
    return np.asarray(values, np.float64)


def unweighted(
    matrix: Array, assignment: Array, *decoders: Decoder, num_stragglers: int = 0
) -> GradientCode:
    """Returns the code of an encoding matrix, with all parts of weight one."""
    return GradientCode(
        encoding_matrix=matrix,
        assignment=assignment,
        target=np.ones(assignment.shape[1]),
        num_stragglers=num_stragglers,
        decoders=decoders,
    )


def code_of_sums(assignment: Array, *decoders: Decoder, **options: int) -> GradientCode:
    """Returns the code of workers that send sums of their partial gradients."""
    return unweighted(as_floats(assignment), assignment, *decoders, **options)


def exact_code(
    matrix: Array, assignment: np.ndarray, num_stragglers: int, *decoders: Decoder
) -> GradientCode:
    """Returns a code for s stragglers, with `LeastSquares` as last decoder."""
    return unweighted(
        matrix,
        assignment,
        *decoders,
        LeastSquares(num_stragglers),
        num_stragglers=num_stragglers,
    )


def ring_distances(size: int) -> np.ndarray:
    """Returns (j - i) mod n: distances around a ring from row i to column j, (n, n)."""
    return (np.arange(size) - np.arange(size)[:, None]) % size


def shares(loads: np.ndarray, total: int, maximum: int | None = None) -> np.ndarray:
    """Returns integers that sum to `total`, proportional to loads (largest remainder).

    No integer exceeds `maximum`; the excess is distributed among the others.

    Args:
      loads: float (num_workers,), at least 0, not all 0. If `maximum` is given, they
        are positive, and num_workers * maximum is at least the total.
      total: Sum of the integers.
      maximum: Upper bound of each integer, or None.
    """
    # Loads are scaled so that their sum does not overflow.
    loads = loads / loads.max()
    exact = loads / loads.sum() * total
    if maximum is not None:
        is_full = np.zeros(len(loads), bool)
        while np.any(exact > maximum):
            is_full |= exact >= maximum
            others = np.where(is_full, 0, loads)
            rest = total - maximum * is_full.sum()
            exact = np.where(is_full, maximum, others / (others.sum() or 1) * rest)
    # The addend restores integers that rounding has decreased slightly.
    whole = np.floor(exact + 1e-9).astype(int)
    num_remaining = total - whole.sum()
    largest_first = np.argsort(whole - exact, kind="stable")
    whole[largest_first[:num_remaining]] += 1
    return whole


def owned_parts(num_workers: int, num_parts: int, loads: ArrayLike) -> np.ndarray:
    """Checks loads, and returns the number of parts that each worker owns."""
    known_loads = array_validation.host_array(
        "loads", loads, "real numbers", num_workers=num_workers
    )
    if np.any(known_loads < 0) or not np.any(known_loads):
        raise ValueError(f"loads must be at least 0, and not all 0; got {known_loads}")
    return shares(known_loads.astype(np.float64), num_parts)


def is_prime(number: int) -> bool:
    """Returns whether a number is prime, by trial division."""
    if number < 2:
        return False
    divisors = range(2, math.isqrt(number) + 1)
    return all(number % divisor != 0 for divisor in divisors)
