"""Helpers of constructors of codes."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.decoders import Decoder, LeastSquares, OneStep, Peeling


def known(values: jax.Array) -> Array:
    """Returns a NumPy array for known values, and a tracer unchanged."""
    return values if array_validation.is_traced(values) else np.asarray(values)


def as_floats(values: Array) -> Array:
    """Converts to float64 on the host; traced values to JAX's float dtype."""
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


def code_of_sums(
    assignment: Array, *decoders: Decoder, num_stragglers: int = 0
) -> GradientCode:
    """Returns the code of workers that send sums of their partial gradients."""
    matrix = as_floats(assignment)
    return unweighted(matrix, assignment, *decoders, num_stragglers=num_stragglers)


def replicated_sums(
    assignment: Array, copies: float, *first: Decoder, num_stragglers: int = 0
) -> GradientCode:
    """Returns a code of sums with a given mean number of copies per part.

    Its decoders are `first`, least squares, one step, and peeling.
    """
    return code_of_sums(
        assignment,
        *first,
        LeastSquares(num_stragglers),
        OneStep(len(assignment) / copies),
        Peeling(assignment),
        num_stragglers=num_stragglers,
    )


def exact_code(
    matrix: Array, assignment: np.ndarray, num_stragglers: int, *decoders: Decoder
) -> GradientCode:
    """Returns an exact code with `LeastSquares` as last decoder."""
    return unweighted(
        matrix,
        assignment,
        *decoders,
        LeastSquares(num_stragglers),
        num_stragglers=num_stragglers,
    )


def ring_distances(size: int) -> np.ndarray:
    """Returns distances around a ring, from each row to each column.

    They are (j - i) mod n from row i to column j, (n, n).
    """
    return (np.arange(size) - np.arange(size)[:, None]) % size


def shares(loads: np.ndarray, total: int, maximum: int | None = None) -> np.ndarray:
    """Rounds proportional shares of a total to integers, by largest remainder.

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


def is_prime(number: int) -> bool:
    """Returns whether a number is prime, by trial division."""
    if number < 2:
        return False
    divisors = range(2, math.isqrt(number) + 1)
    return all(number % divisor != 0 for divisor in divisors)


def check_prime(name: str, number: int, remainder: int | None = None) -> None:
    """Raises ValueError unless a number is a prime of a given remainder modulo 4."""
    validation.check_int(name, number)
    if remainder is None:
        if not is_prime(number):
            raise ValueError(f"{name} must be a prime; got {number}")
    elif number % 4 != remainder or not is_prime(number):
        raise ValueError(
            f"{name} must be a prime with remainder {remainder} modulo 4; got {number}"
        )
