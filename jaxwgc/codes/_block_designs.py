"""Codes from symmetric block designs: one error for every pattern of one size."""

import itertools

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import check_works, code_of_sums, is_prime
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, OneStep, Peeling


def projective_plane(order: int) -> GradientCode:
    """Parts are the points of a projective plane, workers its lines (Kadhe et al.).

    The plane over the integers modulo a prime q has v = q² + q + 1 points and as many
    lines. Every line has q + 1 points, every point is on q + 1 lines, and two lines
    meet in one point. From any f answers the least-squares weights are the same at
    each of them, κ / (κ - λ + λ f) with κ = q + 1 and λ = 1,
    and the squared decoding error is v - κ² f / (κ - λ + λ f),
    whichever workers straggle: an adversary can do no harm that chance does not.

    Args:
      order: q, a prime. There are planes of prime-power orders, too, but they are not
        built here.

    Returns:
      A real code with v workers and parts and entries 0 and 1, decoded by least squares
      unless asked otherwise.

    Raises:
      ValueError: where the order is no prime.
      TypeError: where it is not an int.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.projective_plane(2)
      >>> received = jnp.array([True, True, True, False, False, True, False])
      >>> jaxwgc.decoding_weights(code, received).round(3)
      Array([0.5, 0.5, 0.5, 0. , 0. , 0.5, 0. ], dtype=float32)

    References:
      Kadhe, Koyluoglu, Ramchandran, "Gradient coding based on block designs for
      mitigating adversarial stragglers", ISIT 2019.
    """
    order = _validation.check_int("order", order)
    check_works("order", order, is_prime, "be a prime", 2)
    # A point of the plane is a line through the origin of the space: the vector on it
    # whose first non-zero coordinate is one. The lines of the plane are the planes
    # through the origin, each named by its normal in the same way.
    residues = range(order)
    points = np.array(
        [(0, 0, 1)]
        + [(0, 1, last) for last in residues]
        + [(1, *coordinates) for coordinates in itertools.product(residues, repeat=2)]
    )
    return _code_of_design(points @ points.T % order == 0)


def paley(num_workers: int) -> GradientCode:
    """Worker i holds the parts i + r mod v, r the squares modulo v (Kadhe et al.).

    For a prime v = 3 mod 4 the non-zero squares modulo v are a difference set: this is
    a symmetric design with κ = (v - 1) / 2 parts a worker, of which two workers
    share λ = (v - 3) / 4. Decoding and its error are as for `projective_plane`:
    v - κ² f / (κ - λ + λ f) from any f answers.

    Args:
      num_workers: v, a prime that leaves the remainder 3 when divided by 4; also the
        number of parts.

    Returns:
      A real code with entries 0 and 1, decoded by least squares unless asked otherwise.

    Raises:
      ValueError: where num_workers is no such prime.
      TypeError: where it is not an int.

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
    num_workers = _validation.check_int("num_workers", num_workers)
    rule = "be a prime with remainder 3 modulo 4"
    check_works("num_workers", num_workers, _is_paley_prime, rule, 3)
    numbers = np.arange(num_workers)
    is_square = np.zeros(num_workers, bool)
    is_square[numbers[1:] ** 2 % num_workers] = True
    return _code_of_design(is_square[(numbers - numbers[:, None]) % num_workers])


def _code_of_design(incidence: np.ndarray) -> GradientCode:
    one_step = OneStep(len(incidence) / int(incidence[0].sum()))
    return code_of_sums(incidence, LeastSquares(), one_step, Peeling(incidence))


def _is_paley_prime(number: int) -> bool:
    return number % 4 == 3 and is_prime(number)
