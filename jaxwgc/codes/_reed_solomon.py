"""Balanced Reed-Solomon code, interleaved so that float32 can decode it."""

import functools
import math

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import check_works
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._roots_of_unity import (
    best_step,
    norm_of_products,
    positions,
    vanishing_products,
)
from jaxwgc.decoders import Lagrange, LeastSquares


def reed_solomon(
    num_workers: int, num_parts: int, replication: int, interleave: bool = True
) -> GradientCode:
    """Returns the balanced Reed-Solomon code over the n-th roots of unity.

    Every part goes to `replication` (d) workers, and every worker holds
    num_parts * replication / num_workers parts. Any num_workers - replication + 1
    responses give the exact gradient. Column j of the encoding matrix holds the values
    of the polynomial ∏ₗ (1 - x / αₗ), l over the workers without part j. It vanishes at
    these workers, and its constant term, which decoding interpolates at x = 0, is one.

    In the published order of the evaluation points, the zeros of a column are
    neighbours on the circle, and the entries of B grow like a binomial coefficient.
    From about 50 workers on, float32 is useless, from about 200 float64 (unless d
    divides n - 1: parts then share their holders, as in fractional repetition). With
    worker i at the point number m * i mod n, gcd(m, n) = 1, the zeros are spread.
    `interleave` picks the m with the smallest Frobenius norm of B, since this norm
    amplifies rounding.

    Args:
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      replication: Replication factor d, from 1 to n; n must divide k * d. Tolerates
        s = d - 1 stragglers.
      interleave: False keeps the published order of the points, m = 1, for comparison.

    Returns:
      A complex code. Its messages pack two halves of a real gradient as real and
      imaginary parts, so that they have as many bytes as the gradient.

    Raises:
      ValueError: If a parameter is out of range.
      TypeError: If a parameter is not an int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(num_workers=50, num_parts=20, replication=30)
      >>> code.num_stragglers, int(code.parts_per_worker[0])
      (29, 12)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018; the paper's section 4.
    """
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    _validation.check_up_to("replication", replication, num_workers=num_workers)
    _validation.check_bool("interleave", interleave)
    works = range(0, num_workers + 1, num_workers // math.gcd(num_workers, num_parts))
    rule = "make num_parts * replication a multiple of num_workers"
    check_works("replication", replication, works.__contains__, rule, 1, num_workers)
    assignment = _balanced_assignment(num_workers, num_parts, replication)
    step = _best_step(num_workers, num_parts, replication) if interleave else 1
    points = positions(num_workers, step)
    return GradientCode(
        encoding_matrix=vanishing_products(assignment, points),
        assignment=assignment,
        target=np.ones(num_parts),
        num_stragglers=replication - 1,
        decoders=(
            Lagrange(points, replication - 1),
            LeastSquares(replication - 1),
        ),
    )


def _balanced_assignment(
    num_workers: int, num_parts: int, replication: int
) -> np.ndarray:
    """Assigns copy i of part j to worker (i + jd + t) mod n, t = floor((i + jd) / n).

    The shift t prevents repeated supports if n divides a multiple of d.
    """
    position = np.arange(replication) + replication * np.arange(num_parts)[:, None]
    workers = (position + position // num_workers) % num_workers
    assignment = np.zeros((num_workers, num_parts), bool)
    assignment[workers, np.arange(num_parts)[:, None]] = True
    return assignment


@functools.lru_cache(maxsize=256)
def _best_step(num_workers: int, num_parts: int, replication: int) -> int:
    """Returns the step m between points of neighbours that minimises the norm of B."""
    assignment = _balanced_assignment(num_workers, num_parts, replication)

    def norm(step: int) -> float:
        return norm_of_products(assignment, positions(num_workers, step))

    return best_step(num_workers, norm)
