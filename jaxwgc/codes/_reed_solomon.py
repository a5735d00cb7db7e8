"""The balanced Reed-Solomon code, interleaved so that float32 can decode it."""

import functools
import math

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import GradientCode

# Every step is tried up to this many workers; above, as many evenly spread ones.
_MAX_CANDIDATES = 64


def reed_solomon(
    num_workers: int, num_parts: int, replication: int, interleave: bool = True
) -> GradientCode:
    """Balanced Reed-Solomon code over the n-th roots of unity (Halbawi et al.).

    Every part goes to `replication` (d) workers and every worker holds
    num_parts * replication / num_workers (w) parts; any num_workers - replication + 1
    answers give the gradient exactly. Column j of the encoding matrix holds the
    values of the polynomial prod_l (1 - x / alpha_l), l over the workers without
    part j: it vanishes at them, and its constant term, which decoding interpolates
    at x = 0, is one.

    With the published order of the evaluation points the zeros of a column are
    neighbours on the circle and the entries of B grow like a binomial coefficient:
    float32 is useless from about 50 workers, float64 from about 200. The same code
    with worker i at the point number m * i mod n, gcd(m, n) = 1, spreads the zeros;
    `interleave` picks the m of least spectral norm of B.

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
      >>> code.num_stragglers, int(code.loads[0])
      (29, 12)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018; the paper's section 4.
    """
    num_workers = _validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    replication = _validation.check_int("replication", replication)
    if not 1 <= replication <= num_workers:
        raise ValueError(
            "replication must be from 1 to num_workers; got "
            f"replication = {replication} and num_workers = {num_workers}"
        )
    if (num_parts * replication) % num_workers:
        load = num_parts * replication // num_workers
        raise ValueError(
            "num_workers * load must equal num_parts * replication for an integer "
            f"load; got {num_workers} * {load} = {num_workers * load} or "
            f"{num_workers} * {load + 1} = {num_workers * (load + 1)} and "
            f"{num_parts} * {replication} = {num_parts * replication}"
        )
    assignment = _balanced_assignment(num_workers, num_parts, replication)
    step = 1
    if interleave:
        step = _best_step(num_workers, num_parts, replication)
    return GradientCode(
        encoding_matrix=_encoding_matrix(assignment, step),
        assignment=assignment,
        target=np.ones(num_parts),
        num_stragglers=replication - 1,
        decoder="lagrange",
        point_step=step,
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


def _encoding_matrix(assignment: np.ndarray, step: int) -> np.ndarray:
    """B_ij = prod_l (1 - alpha_i / alpha_l) over the workers l without part j.

    A factor has modulus 2 sin(pi delta / n) and phase pi (2 delta - n) / (2n) with
    delta = (p_i - p_l) mod n: log-moduli add, and phases are integers modulo 4n,
    which add exactly.
    """
    num_workers = len(assignment)
    points = step * np.arange(num_workers) % num_workers
    difference = (points[:, None] - points) % num_workers
    off_diagonal = difference != 0
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = np.log(modulus, where=off_diagonal, out=np.zeros_like(modulus))
    phase = np.where(off_diagonal, 2 * difference - num_workers, 0)
    without = (~assignment).astype(np.float64)
    total_phase = (phase @ without) % (4 * num_workers)
    matrix = np.exp(
        log_modulus @ without + 1j * np.pi * total_phase / (2 * num_workers)
    )
    return np.where(assignment, matrix, 0)


@functools.lru_cache(maxsize=256)
def _best_step(num_workers: int, num_parts: int, replication: int) -> int:
    """The step m between the points of neighbours that minimises the norm of B."""
    # m and n - m give conjugate matrices, so half of the steps suffice.
    steps = [
        step
        for step in range(1, num_workers // 2 + 1)
        if math.gcd(step, num_workers) == 1
    ]
    if len(steps) > _MAX_CANDIDATES:
        chosen = np.linspace(0, len(steps) - 1, _MAX_CANDIDATES).round().astype(int)
        steps = [steps[index] for index in chosen]
    if len(steps) < 2:
        return 1
    assignment = _balanced_assignment(num_workers, num_parts, replication)
    norms = [np.linalg.norm(_encoding_matrix(assignment, step), 2) for step in steps]
    # Ties are decided for the smallest step whatever the rounding of the norms.
    return next(
        step
        for step, norm in zip(steps, norms, strict=True)
        if norm <= min(norms) * (1 + 1e-9)
    )
