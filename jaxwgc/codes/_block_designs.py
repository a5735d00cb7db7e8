"""Codes from block designs: the error depends only on the number of stragglers."""

import itertools

import numpy as np

from jaxwgc.codes._constructors import check_prime, replicated_sums
from jaxwgc.codes._gradient_code import GradientCode


def projective_plane(order: int) -> GradientCode:
    """Returns a code with an error that depends only on the number of stragglers.

    Parts are points of a projective plane, and workers are its lines. The plane
    over the integers modulo a prime q has v = q² + q + 1 points and v lines. Every
    line has q + 1 points, every point is on q + 1 lines, and two lines meet in one
    point. With κ = q + 1, λ = 1 and f responses, all least-squares weights are κ /
    (κ - λ + λ f). The squared decoding error is v - κ² f / (κ - λ + λ f). It
    depends only on f, so adversarial stragglers are no worse than random ones.

    Args:
      order: q, a prime. Planes of prime-power orders exist, but are not implemented.

    Returns:
      A real code with v workers and parts and entries 0 and 1, decoded by least squares
      by default.

    Raises:
      ValueError: If the order is not a prime.
      TypeError: If the order is not an int.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.projective_plane(2)
      >>> received = jnp.array([True, True, True, False, False, True, False])
      >>> jaxwgc.decoding(code, received).weights.round(3)
      Array([[0.5, 0.5, 0.5, 0. , 0. , 0.5, 0. ]], dtype=float32)

    References:
      Kadhe, Koyluoglu, Ramchandran, "Gradient coding based on block designs for
      mitigating adversarial stragglers", ISIT 2019.
    """
    check_prime("order", order)
    # Points of the plane are lines through the origin of the space. Each is represented
    # by its vector with first nonzero coordinate 1. Lines of the plane are planes
    # through the origin, represented by their normals.
    residues = range(order)
    points = [(0, 0, 1)]
    for third in residues:
        points.append((0, 1, third))
    for second, third in itertools.product(residues, repeat=2):
        points.append((1, second, third))
    vectors = np.array(points)
    # A line contains the points that are orthogonal to its normal.
    incidence = vectors @ vectors.T % order == 0
    return replicated_sums(incidence, order + 1)


def paley(num_workers: int) -> GradientCode:
    """Returns a block-design code in which each worker holds half of the data.

    Worker i holds the parts i + r mod v of a Paley design. Here r are the non-zero
    squares modulo v. For a prime v = 3 mod 4 they are a difference set, which gives
    a symmetric design: κ = (v - 1) / 2 parts per worker, and λ = (v - 3) / 4 common
    parts of two workers. Weights and error are given by the formulas in
    `projective_plane`.

    Args:
      num_workers: v, a prime with remainder 3 modulo 4; also the number of parts.

    Returns:
      A real code with entries 0 and 1, decoded by least squares by default.

    Raises:
      ValueError: If num_workers is not such a prime.
      TypeError: If num_workers is not an int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.paley(7)
      >>> code.assignment[0].astype(int)
      array([0, 1, 1, 0, 1, 0, 0])

    References:
      Kadhe, Koyluoglu, Ramchandran, "Gradient coding based on block designs for
      mitigating adversarial stragglers", ISIT 2019; Paley, "On orthogonal matrices",
      1933.
    """
    check_prime("num_workers", num_workers, remainder=3)
    numbers = np.arange(num_workers)
    is_square = np.zeros(num_workers, bool)
    is_square[numbers[1:] ** 2 % num_workers] = True
    incidence = is_square[numbers - numbers[:, None]]
    return replicated_sums(incidence, (num_workers - 1) // 2)
