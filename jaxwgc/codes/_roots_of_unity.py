"""Polynomials at the n-th roots of unity, with one root per worker."""

import math
from collections.abc import Callable

import numpy as np

# Up to this many workers every step is tried; above, this many evenly spread ones.
_MAX_CANDIDATES = 64


def positions(num_workers: int, step: int) -> np.ndarray:
    """Returns pᵢ = step * i mod n of the workers' points exp(2πi pᵢ / n)."""
    return step * np.arange(num_workers) % num_workers


def vanishing_products(assignment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Computes ∏ₗ (1 - αᵢ / αₗ) over the workers l without part j, for all i, j.

    With delta = (pᵢ - pₗ) mod n, a factor has modulus 2 sin(pi delta / n) and phase
    pi (2 delta - n) / (2n). Log-moduli add, and phases are integers modulo 4n, which
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
    """Computes the moduli of `vanishing_products`, for parts that the worker holds."""
    num_workers = len(assignment)
    difference = (points[:, None] - points) % num_workers
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = np.log(modulus, where=difference != 0, out=np.zeros_like(modulus))
    # The product of the factors of all other workers is n.
    log_held = log_modulus @ assignment.astype(np.float64)
    return num_workers * np.exp(
        -log_held, where=assignment, out=np.zeros_like(log_held)
    )


def norm_of_products(assignment: np.ndarray, points: np.ndarray) -> float:
    """Computes the Frobenius norm of `vanishing_products` at a fraction of the cost."""
    return float(np.linalg.norm(_moduli(assignment, points)))


def steps_between_points(num_workers: int) -> list[int]:
    """Returns at most 64 steps m that reach all points; n - m is equivalent to m."""
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
    """Returns the step between points of neighbours with the smallest norm.

    Args:
      num_workers: n; steps have no common factor with it.
      norm: Norm of the encoding matrix for a step. It must be equal for m and n - m,
        which give conjugate matrices.
    """
    steps = steps_between_points(num_workers)
    if len(steps) < 2:
        return 1
    norms = [norm(step) for step in steps]
    # Ties go to the smallest step, despite rounding of the norms.
    return next(
        step
        for step, norm_of_step in zip(steps, norms, strict=True)
        if norm_of_step <= min(norms) * (1 + 1e-9)
    )
