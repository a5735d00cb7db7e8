"""Polynomials at the n-th roots of unity, one root a worker, in an order that helps."""

import math
from collections.abc import Callable

import numpy as np

# Every step is tried up to this many workers; above, as many evenly spread ones.
_MAX_CANDIDATES = 64


def positions(num_workers: int, step: int) -> np.ndarray:
    """The pᵢ = step * i mod n of the workers' points exp(2πi pᵢ / n)."""
    return step * np.arange(num_workers) % num_workers


def vanishing_products(assignment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """∏ₗ (1 - αᵢ / αₗ) over the workers l without part j, for all i, j.

    A factor has modulus 2 sin(pi delta / n) and phase pi (2 delta - n) / (2n) with
    delta = (pᵢ - pₗ) mod n: log-moduli add, and phases are integers modulo 4n,
    which add exactly.

    Args:
      assignment: bool (num_workers, num_parts).
      points: int (num_workers,), the pᵢ, a permutation of 0, ..., n - 1.

    Returns:
      Complex (num_workers, num_parts), zero where the worker is without the part.
    """
    num_workers = len(assignment)
    difference = (points[:, None] - points) % num_workers
    phase = np.where(difference != 0, 2 * difference - num_workers, 0)
    total_phase = (phase @ (~assignment).astype(np.float64)) % (4 * num_workers)
    angle = np.pi * total_phase / (2 * num_workers)
    return np.where(assignment, _moduli(assignment, points) * np.exp(1j * angle), 0)


def _moduli(assignment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The moduli of `vanishing_products`, where the worker has the part."""
    num_workers = len(assignment)
    difference = (points[:, None] - points) % num_workers
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = np.log(modulus, where=difference != 0, out=np.zeros_like(modulus))
    # The factors of all other workers have the product n.
    log_held = log_modulus @ assignment.astype(np.float64)
    return num_workers * np.exp(
        -log_held, where=assignment, out=np.zeros_like(log_held)
    )


def norm_of_products(assignment: np.ndarray, points: np.ndarray) -> float:
    """The Frobenius norm of `vanishing_products`, at a fraction of its price."""
    return float(np.linalg.norm(_moduli(assignment, points)))


def steps_between_points(num_workers: int) -> list[int]:
    """Steps m that reach all points, some tens of them at most; m and n - m are one."""
    steps = [
        step
        for step in range(1, num_workers // 2 + 1)
        if math.gcd(step, num_workers) == 1
    ]
    if len(steps) > _MAX_CANDIDATES:
        chosen = np.linspace(0, len(steps) - 1, _MAX_CANDIDATES).round().astype(int)
        steps = [steps[index] for index in chosen]
    return steps


def best_step(num_workers: int, norm: Callable[[int], float]) -> int:
    """The step between the points of neighbours that has the least norm.

    Args:
      num_workers: n; steps have no factor in common with it.
      norm: of the encoding matrix, for a step. m and n - m must have the same, as they
        give conjugate matrices.
    """
    steps = steps_between_points(num_workers)
    if len(steps) < 2:
        return 1
    norms = [norm(step) for step in steps]
    # Ties are decided for the smallest step whatever the rounding of the norms.
    return next(
        step
        for step, norm_of_step in zip(steps, norms, strict=True)
        if norm_of_step <= min(norms) * (1 + 1e-9)
    )
