"""Reed-Solomon codes, and polynomials at roots of unity with given zeros."""

import functools
import math
from collections.abc import Callable

import numpy as np

from jaxwgc._common import validation
from jaxwgc.codes._constructors import exact_code
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Lagrange

# Maximum number of steps between points that are tried. If there are more, only every
# second, third, ... step is tried.
_MAX_CANDIDATES = 64


def positions(num_workers: int, step: int) -> np.ndarray:
    """Returns the positions of the workers' points on the unit circle.

    They are pᵢ = step * i mod n for points exp(2πi pᵢ / n).
    """
    return step * np.arange(num_workers) % num_workers


def vanishing_products(assignment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Computes the values of polynomials that vanish at workers without a part.

    They are ∏ₗ (1 - αᵢ / αₗ) over the workers l without part j, for all i, j. With
    delta = (pᵢ - pₗ) mod n, a factor has modulus 2 sin(pi delta / n) and phase pi
    (2 delta - n) / (2n). Log-moduli add, and phases are integers modulo 4n, which
    add exactly.

    Args:
      assignment: bool (num_workers, num_parts).
      points: int (num_workers,), the pᵢ, a permutation of 0, ..., n - 1.

    Returns:
      Complex (num_workers, num_parts), zero if the worker does not hold the part.
    """
    num_workers = len(assignment)
    difference = (points[:, None] - points) % num_workers
    phase = np.where(difference != 0, 2 * difference - num_workers, 0)
    total_phase = (phase @ (~assignment).astype(np.float64)) % (4 * num_workers)
    angle = np.pi * total_phase / (2 * num_workers)
    return np.where(assignment, _moduli(assignment, points) * np.exp(1j * angle), 0)


def _moduli(assignment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Computes the absolute values of the entries of `vanishing_products`."""
    num_workers = len(assignment)
    difference = (points[:, None] - points) % num_workers
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = np.log(modulus, where=difference != 0, out=np.zeros_like(modulus))
    # The product of the factors of all other workers is n. Dividing n by the factors of
    # the holders leaves those of the workers without the part.
    log_held = log_modulus @ assignment.astype(np.float64)
    return num_workers * np.exp(
        -log_held, where=assignment, out=np.zeros_like(log_held)
    )


def norm_of_products(assignment: np.ndarray, points: np.ndarray) -> float:
    """Computes the norm of `vanishing_products`, without the phases."""
    return float(np.linalg.norm(_moduli(assignment, points)))


def steps_between_points(num_workers: int) -> list[int]:
    """Returns the steps between points to try: those that reach every point.

    At most 64 steps are returned; n - m is equivalent to m.
    """
    numbers = range(1, max(num_workers // 2, 1) + 1)
    steps = [number for number in numbers if math.gcd(number, num_workers) == 1]
    stride = math.ceil(len(steps) / _MAX_CANDIDATES)
    return steps[::stride]


def best_step(num_workers: int, norm: Callable[[int], float]) -> int:
    """Returns the step between points with the smallest norm of the encoding matrix.

    Args:
      num_workers: n; steps have no common factor with it.
      norm: Norm of the encoding matrix for a step. It must be equal for m and n - m,
        which give conjugate matrices.
    """
    steps = steps_between_points(num_workers)
    norms = np.array([norm(step) for step in steps])
    # Norms that are equal up to rounding are ties, which the smallest step wins.
    is_smallest = norms <= norms.min() * (1 + 1e-9)
    return steps[int(is_smallest.argmax())]


def reed_solomon(
    num_workers: int, num_parts: int, copies: int, interleave: bool = True
) -> GradientCode:
    """Returns an exact code for any number of parts, with equal loads.

    It is the balanced Reed-Solomon code over the n-th roots of unity. Every part
    goes to `copies` (d) workers, and every worker holds num_parts * copies /
    num_workers parts. In exact arithmetic, any num_workers - copies + 1 responses
    give the exact gradient. The rounding error depends on the pattern of
    stragglers. There is no bound for every pattern, and `worst_pattern` searches
    for a bad one. Column j of the encoding matrix holds the values of the
    polynomial ∏ₗ (1 - x / αₗ), l over the workers without part j. It vanishes at
    these workers, and its constant term, which decoding interpolates at x = 0, is
    one.

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
      copies: Number d of copies, from 1 to n; n must divide k * d. Tolerates
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
      >>> code = jaxwgc.codes.reed_solomon(num_workers=50, num_parts=20, copies=30)
      >>> code.num_stragglers, int(code.parts_per_worker[0])
      (29, 12)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018, for the code and its points; Charalambides,
      Pilanci, Hero, "Weighted gradient coding with leverage score sampling", ICASSP
      2020, section 4. The interleaving is new here.
    """
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    validation.check_up_to("copies", copies, num_workers=num_workers)
    validation.check_bool("interleave", interleave)
    if num_parts * copies % num_workers != 0:
        raise ValueError(
            f"num_parts * copies must be a multiple of num_workers = {num_workers}; "
            f"got num_parts = {num_parts} and copies = {copies}"
        )
    assignment = _balanced_assignment(num_workers, num_parts, copies)
    step = _best_step(num_workers, num_parts, copies) if interleave else 1
    points = positions(num_workers, step)
    matrix = vanishing_products(assignment, points)
    decoder = Lagrange(points, copies - 1)
    return exact_code(matrix, assignment, copies - 1, decoder)


def _balanced_assignment(num_workers: int, num_parts: int, copies: int) -> np.ndarray:
    """Assigns copies of parts to workers in turn, so that all loads are equal.

    Copy i of part j goes to worker (i + jd + t) mod n, t = floor((i + jd) / n). The
    shift t prevents repeated supports if n divides a multiple of d.
    """
    place_of_copy = np.arange(copies)
    parts = np.arange(num_parts)[:, None]
    position = place_of_copy + copies * parts
    workers = (position + position // num_workers) % num_workers
    assignment = np.zeros((num_workers, num_parts), bool)
    assignment[workers, parts] = True
    return assignment


@functools.lru_cache(maxsize=256)
def _best_step(num_workers: int, num_parts: int, copies: int) -> int:
    """Returns the step between points with the smallest norm of the encoding matrix."""
    assignment = _balanced_assignment(num_workers, num_parts, copies)

    def norm(step: int) -> float:
        return norm_of_products(assignment, positions(num_workers, step))

    return best_step(num_workers, norm)
