"""Shared steps of the comparisons between a decoded sum and the correct sum."""

import operator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwgc import coding
from jaxwgc.codes import GradientCode

# Largest relative difference that counts as a rounding error, even in bfloat16.
TOLERANCE = 0.02
# Smallest denominator, so that a norm of zero causes no division by zero.
TINY = 1e-150


class Finding(NamedTuple):
    """Result of the comparison of a decoded sum with the correct sum.

    Attributes:
      terms: Terms of the parts, pytree with leaves (num_parts, ...).
      ratio: Norm of the decoded sum if all workers respond, over the norm of the
        correct sum.
      error: Largest relative error of a decoded sum.
      problem: The first problem; "" if there is none.
    """

    terms: Any
    ratio: float
    error: float
    problem: str


class DecodedSums(NamedTuple):
    """Decoded sums without stragglers, and with as many as the code tolerates.

    Attributes:
      sums: (2, size), without stragglers and with them.
      are_exact: Whether the code guarantees that both equal the sum over parts.
    """

    sums: np.ndarray
    are_exact: bool


def flat(tree: Any) -> np.ndarray:
    """Concatenates the leaves of a gradient to one complex128 vector."""
    leaves = [np.asarray(leaf).astype(complex) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves])


def flat_by_part(terms: Any, num_parts: int) -> np.ndarray:
    """Returns a complex128 matrix with one row per part: its flattened term."""
    rows = [
        flat(jax.tree.map(operator.itemgetter(part), terms))
        for part in range(num_parts)
    ]
    return np.stack(rows)


def decoded_sums(code: GradientCode, of_parts: np.ndarray) -> DecodedSums:
    """Computes the decoded sum without stragglers and with all tolerated stragglers."""
    num_lost = np.array([[0], [code.num_stragglers]])
    decoding = coding.decoding(code, np.arange(code.num_workers) >= num_lost)
    return DecodedSums(
        sums=np.asarray(decoding.effective_weights, np.float64) @ of_parts,
        # A code that tolerates no stragglers may be approximate. Its sums are exact
        # only if decoding all messages does not fail.
        are_exact=bool(code.num_stragglers > 0 or not decoding.failed()[0]),
    )


def problem_of_code(
    decoded: DecodedSums, total: np.ndarray, rounding: float, code: GradientCode
) -> str:
    """Returns a problem as text if decoded sums differ from the sum over parts.

    Without a problem, returns an empty string.
    """
    difference = np.linalg.norm(decoded.sums - total)
    if not decoded.are_exact or difference <= rounding:
        return ""
    error = difference / max(np.linalg.norm(total), TINY)
    return (
        "the decoded gradient differs from the sum over the parts: relative error "
        f"{error:.2g}, with at most {code.num_stragglers} stragglers. Does "
        "jaxwgc.simulation.diagnose(code) fail?"
    )
