"""Results of the comparison of a decoded sum with the correct sum."""

import operator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwgc import coding
from jaxwgc.codes import GradientCode

# Relative rounding error of a gradient, also in bfloat16.
TOLERANCE = 0.02
# Replaces a norm of zero in a denominator.
TINY = 1e-150


class Finding(NamedTuple):
    """Result of the comparison of a decoded sum with the correct sum.

    Attributes:
      terms: Terms of the parts, pytree with leaves (num_parts, ...).
      ratio: Norm of the decoded sum if all workers respond, relative to what is meant.
      error: Largest relative difference of the two.
      problem: The first problem; "" if there is none.
    """

    terms: Any
    ratio: float
    error: float
    problem: str


class DecodedSums(NamedTuple):
    """Decoded sums without stragglers, and with as many as are tolerated.

    Attributes:
      sums: (2, size).
      are_exact: Whether the code guarantees that they equal the sum over parts.
    """

    sums: np.ndarray
    are_exact: bool


def flat(tree: Any) -> np.ndarray:
    """Concatenates the leaves of a gradient, in float64."""
    leaves = [np.asarray(leaf).astype(complex) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves])


def flat_by_part(terms: Any, num_parts: int) -> np.ndarray:
    """Returns the terms of parts as rows of a matrix."""
    rows = [
        flat(jax.tree.map(operator.itemgetter(part), terms))
        for part in range(num_parts)
    ]
    return np.stack(rows)


def decoded_sums(code: GradientCode, of_parts: np.ndarray) -> DecodedSums:
    """Computes decoded sums of the terms of parts."""
    num_lost = np.array([[0], [code.num_stragglers]])
    decoding = coding.decoding(code, np.arange(code.num_workers) >= num_lost)
    return DecodedSums(
        sums=np.asarray(decoding.effective_weights, np.float64) @ of_parts,
        # Approximate codes do not guarantee the exact sum.
        are_exact=bool(code.num_stragglers > 0 or not decoding.failed()[0]),
    )


def problem_of_code(
    decoded: DecodedSums, total: np.ndarray, rounding: float, code: GradientCode
) -> str:
    """Returns a problem if decoded sums differ from the sum over parts."""
    difference = np.linalg.norm(decoded.sums - total)
    if not decoded.are_exact or difference <= rounding:
        return ""
    error = difference / max(np.linalg.norm(total), TINY)
    return (
        "the decoded gradient differs from the sum over the parts: relative error "
        f"{error:.2g}, with at most {code.num_stragglers} stragglers. Does "
        "jaxwgc.simulation.diagnose(code) fail?"
    )
