"""The balanced Reed-Solomon code, interleaved so that float32 can decode it."""

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
    """Balanced Reed-Solomon code over the n-th roots of unity (Halbawi et al.).

    Every part goes to `replication` (d) workers and every worker holds
    num_parts * replication / num_workers (w) parts; any num_workers - replication + 1
    answers give the gradient exactly. Column j of the encoding matrix holds the
    values of the polynomial ∏ₗ (1 - x / αₗ), l over the workers without
    part j: it vanishes at them, and its constant term, which decoding interpolates
    at x = 0, is one.

    With the published order of the evaluation points the zeros of a column are
    neighbours on the circle and the entries of B grow like a binomial coefficient:
    float32 is useless from about 50 workers, float64 from about 200 (unless d divides
    n - 1: parts then share their holders, much as in fractional repetition). The same
    code with worker i at the point number m * i mod n, gcd(m, n) = 1, spreads the
    zeros; `interleave` picks the m of least Frobenius norm of B, which is what
    amplifies rounding.

    Args:
      num_workers: n, at least 1.
      num_parts: k, at least 1.
      replication: d, from 1 to n, with n dividing k * d. Tolerates s = d - 1
        stragglers.
      interleave: False keeps the published order of the points, m = 1. It is there
        for comparison.

    Returns:
      A complex code. Its messages pack two halves of a real gradient as real and
      imaginary parts, so they cost the bytes of the gradient itself.

    Raises:
      ValueError: where the parameters break one of the rules above.
      TypeError: where they are not ints.

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
    """Copy i of part j goes to worker (i + jd + t) mod n, t = floor((i + jd) / n).

    The shift t keeps supports from repeating when n divides a multiple of d.
    """
    position = np.arange(replication) + replication * np.arange(num_parts)[:, None]
    workers = (position + position // num_workers) % num_workers
    assignment = np.zeros((num_workers, num_parts), bool)
    assignment[workers, np.arange(num_parts)[:, None]] = True
    return assignment


@functools.lru_cache(maxsize=256)
def _best_step(num_workers: int, num_parts: int, replication: int) -> int:
    """The step m between the points of neighbours that minimises the norm of B."""
    assignment = _balanced_assignment(num_workers, num_parts, replication)

    def norm(step: int) -> float:
        return norm_of_products(assignment, positions(num_workers, step))

    return best_step(num_workers, norm)
