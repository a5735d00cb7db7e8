"""Placements of parts on workers, exact codes for them, and their accuracy."""

from collections.abc import Sequence

import jax
import numpy as np
import scipy
from numpy.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc.codes._constructors import exact_code, shares
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._reed_solomon import (
    norm_of_products,
    positions,
    steps_between_points,
    vanishing_products,
)
from jaxwgc.codes._tolerance import patterns_lost
from jaxwgc.decoders import Dual, Lagrange

# Number of random orders of the workers on the circle, and of tried exchanges of two
# workers, which improve the best order.
_NUM_ORDERS = 64
_NUM_EXCHANGES = 400
# Number of draws of random rows. The draw with the smallest norm of B is kept.
_NUM_DRAWS = 32
# Bound of the work of a comparison of codes: number of straggler patterns times the
# squared number of workers.
_MOST_WORK = 4_000_000
# Largest residual that counts as rounding in float32.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
# Singular values below this fraction of the largest one count as rounding errors.
_RANK = 1e-10


def proportional_placement(
    speeds: Sequence[float] | np.ndarray, num_parts: int, copies: int
) -> np.ndarray:
    """Returns an assignment with loads proportional to speeds, for `any_placement`.

    The parts lie on a ring. Each worker takes its share of all copies, from where the
    previous worker ended: so all workers need about equal time, and no worker has a
    part twice. Shares are rounded by less than one part: use several times as many
    parts as workers.

    Args:
      speeds: Speed of each worker, e.g. in parts per second, (num_workers,).
      num_parts: k, at least 1.
      copies: Number d of copies, from 1 to n; s + 1 for a code that tolerates s
        stragglers.

    Returns:
      Bool (num_workers, num_parts) in NumPy. If the share of a fast worker exceeds all
      parts, it holds all of them, and the others share the rest.

    Raises:
      ValueError: If speeds are not positive and finite, num_parts is below 1, or copies
        are below 1 or above the number of workers.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.codes.proportional_placement([2, 2, 1, 1], 6, copies=1).astype(int)
      array([[1, 1, 0, 0, 0, 0],
             [0, 0, 1, 1, 0, 0],
             [0, 0, 0, 0, 1, 0],
             [0, 0, 0, 0, 0, 1]])

    References:
      Wang, Guo, Tang, Li, Li, "Heterogeneity-aware gradient coding for straggler
      tolerance", ICDCS 2019.
    """
    speeds = array_validation.host_array(
        "speeds", speeds, "real numbers", num_workers="any"
    )
    validation.check_entries("speeds", speeds, speeds > 0, "positive")
    num_workers = len(speeds)
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    copies = validation.check_up_to("copies", copies, num_workers=num_workers)
    num_copies = num_parts * copies
    loads = shares(speeds.astype(np.float64), num_copies, maximum=num_parts)
    worker = np.arange(num_workers).repeat(loads)
    part = np.arange(num_copies) % num_parts
    assignment = np.zeros((num_workers, num_parts), bool)
    assignment[worker, part] = True
    return assignment


def any_placement(
    key: jax.Array,
    assignment: ArrayLike,
    num_stragglers: int,
    method: str | None = None,
) -> GradientCode:
    """Returns an exact code for given holders of the parts.

    Every part needs at least s + 1 holders. Workers may hold different numbers of
    parts, and parts may have different numbers of copies, which are all used. Of
    two methods, the one with the smaller residual in float32 (`worst_rounding`) is
    chosen, and random rows if both residuals are rounding errors. Polynomials are
    mostly better for few stragglers, and random rows for many. If sets of s + 1
    workers hold equal parts, use the simpler `fractional_repetition` or `binary`.

    **Polynomials** with given zeros: column j of B has the values at roots of unity of
    ∏ₗ (1 - x / αₗ), l over the workers without part j. The degree is at most n - s - 1,
    so any n - s responses determine its value at 0, which is one. The order of workers
    on the roots determines the size of the entries: the best of 64 random orders is
    taken and improved by exchanges.

    **Random rows**: C is Gaussian, (s + 1) x n, with columns of norm one. Column j of B
    is the minimum-norm solution of C b = 1 on the holders of part j. So every row of C
    decodes if all workers respond, and for any s stragglers a combination of rows
    decodes without them. The best of 32 draws is taken.

    Args:
      key: PRNG key of either kind, for orders and draws. Not traced.
      assignment: Which worker holds which part, bool (num_workers, num_parts), e.g.
        from `proportional_placement`. Not traced.
      num_stragglers: s, less than num_workers; decoding is exact for any s stragglers.
      method: "polynomials", "random_rows", or None for the better one; the comparison
        takes seconds for a hundred workers and parts.

    Returns:
      A code in NumPy. With polynomials it is complex128, its messages pack two halves
      of a gradient, and its decoder is `Lagrange`. With random rows it is float64 and
      its decoder is `Dual`.

    Raises:
      ValueError: If a part has fewer than s + 1 copies, s is negative or not less than
        the number of workers, or the method is unknown.
      TypeError: If an argument has the wrong type or is traced.

    Example:
      Three of five workers are twice as fast as the others, and hold twice as many
      parts:

      >>> import jax, jaxwgc
      >>> held = jaxwgc.codes.proportional_placement([2, 2, 2, 1, 1], 8, copies=2)
      >>> code = jaxwgc.codes.any_placement(jax.random.key(0), held, num_stragglers=1)
      >>> code.parts_per_worker, code.is_complex
      (array([4, 4, 4, 2, 2]), False)
      >>> jaxwgc.decoding(code, ~(jax.numpy.arange(5) == 1)).effective_weights.round(3)
      Array([1., 1., 1., 1., 1., 1., 1., 1.], dtype=float32)

      The worst residual of each method, and the responses for which it occurs:

      >>> residual, received = jaxwgc.codes.worst_rounding(code)
      >>> bool(residual < 1e-6), int(received.sum())
      (True, 4)

    References:
      Wang, Guo, Tang, Li, Li, "Heterogeneity-aware gradient coding for straggler
      tolerance", ICDCS 2019 (random rows); Halbawi, Azizan, Salehi, Hassibi,
      "Improving distributed gradient descent using Reed-Solomon codes", ISIT 2018
      (polynomials with given zeros, there for balanced placements).
    """
    held = array_validation.host_array(
        "assignment", assignment, "bools", num_workers="any", num_parts="any"
    )
    num_stragglers = validation.check_stragglers(num_stragglers, len(held))
    copies = held.sum(0)
    if copies.min() <= num_stragglers:
        raise ValueError(
            f"assignment must have num_stragglers + 1 = {num_stragglers + 1} holders "
            f"of every part; got {copies.min()} holders of part {copies.argmin()}"
        )
    names = tuple(_METHODS)
    if method is not None:
        names = (validation.check_choice("method", method, names),)
    array_validation.check_concrete("key", key, "a code is chosen by its values")
    bits = np.asarray(jax.random.key_data(key))
    candidates = []
    for name in names:
        make_code = _METHODS[name]
        generator = np.random.default_rng(bits)
        candidates.append(make_code(generator, held, num_stragglers))
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=_worst_residual)


def _worst_residual(code: GradientCode) -> float:
    """Computes the residual of `worst_rounding` for at most 1,000 patterns.

    Residuals at rounding level count as equal, so that the simpler code with real
    messages is chosen.
    """
    num_patterns = max(_MOST_WORK // code.num_workers**2, 1)
    residual, _ = worst_rounding(code, min(num_patterns, 1000))
    return max(residual, _ROUNDING)


def worst_rounding(
    code: GradientCode, num_patterns: int = 1000
) -> tuple[float, np.ndarray]:
    """Finds the responses with the largest rounding error of decoding in float32.

    Least-squares weights are computed in float64, and rounded to float32 like the
    encoding matrix. The result measures the conditioning of a code, independently of
    the decoder: it is about what a good decoder reaches.

    Args:
      code: Gradient code. Not traced.
      num_patterns: Maximum number of patterns of s stragglers. If there are more, this
        many are drawn at random, with a fixed seed.

    Returns:
      The norm of aᵀB - target relative to the norm of the target, and a mask
      `received`, bool (num_workers,) in NumPy.

    Raises:
      ValueError: If num_patterns is below 1.
      TypeError: If code is not a GradientCode or is traced, or num_patterns is not an
        int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(12, num_parts=12, copies=4)
      >>> published = jaxwgc.codes.reed_solomon(12, 12, 4, interleave=False)
      >>> residual, received = jaxwgc.codes.worst_rounding(published)
      >>> bool(residual > 5 * jaxwgc.codes.worst_rounding(code)[0]), int(received.sum())
      (True, 9)
    """
    GradientCode.check(code, concrete="patterns are tried on the host")
    num_patterns = validation.check_int("num_patterns", num_patterns, minimum=1)
    matrix = np.asarray(code.encoding_matrix)
    target = code.segment_targets
    single = np.complex64 if code.is_complex else np.float32
    rounded = matrix.astype(single).astype(matrix.dtype)
    scale = np.linalg.norm(target) or 1.0
    worst_residual = -1.0
    worst_received = np.ones(code.num_workers, bool)
    for lost in patterns_lost(code.num_workers, code.num_stragglers, num_patterns):
        received = np.ones(code.num_workers, bool)
        received[list(lost)] = False
        sent = received.repeat(code.messages_per_worker)
        weights = scipy.linalg.lstsq(
            matrix[sent].T, target.T, lapack_driver="gelsy", check_finite=False
        )[0]
        weights = weights.astype(single).astype(matrix.dtype)
        residual = float(np.linalg.norm(weights.T @ rounded[sent] - target) / scale)
        if not residual <= worst_residual:
            worst_residual = residual
            worst_received = received
    return worst_residual, worst_received


def _polynomials(
    generator: np.random.Generator, assignment: np.ndarray, num_stragglers: int
) -> GradientCode:
    """Returns a code of polynomials, with points chosen for a small norm of B."""
    num_workers = len(assignment)
    steps = steps_between_points(num_workers)
    orders = [positions(num_workers, step) for step in steps]
    orders += [generator.permutation(num_workers) for _ in range(_NUM_ORDERS)]
    norms = [norm_of_products(assignment, order) for order in orders]
    points = orders[np.argmin(norms)]
    smallest_norm = min(norms)
    for pair in generator.integers(num_workers, size=(_NUM_EXCHANGES, 2)):
        exchanged = points.copy()
        exchanged[pair] = points[pair[::-1]]
        norm = norm_of_products(assignment, exchanged)
        if norm < smallest_norm:
            points = exchanged
            smallest_norm = norm
    matrix = vanishing_products(assignment, points)
    dual = _dual(matrix, num_stragglers)
    decoders = [Lagrange(points, num_stragglers), dual]
    # If parts share their holders, the dual decoder finds smaller weights than
    # Lagrange.
    if len(dual.rows) > num_stragglers + 1:
        decoders.reverse()
    return exact_code(matrix, assignment, num_stragglers, *decoders)


def _random_rows(
    generator: np.random.Generator, assignment: np.ndarray, num_stragglers: int
) -> GradientCode:
    """Returns the code with the smallest norm of B among codes of random rows."""
    shape = (_NUM_DRAWS, num_stragglers + 1, len(assignment))
    drawn = generator.normal(size=shape)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    matrices = [_columns(rows, assignment) for rows in drawn]
    norms = [np.linalg.norm(matrix) for matrix in matrices]
    matrix = matrices[np.argmin(norms)]
    dual = _dual(matrix, num_stragglers)
    return exact_code(matrix, assignment, num_stragglers, dual)


# The first method wins ties, because its messages are real.
_METHODS = {"random_rows": _random_rows, "polynomials": _polynomials}


def _columns(rows: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """Computes the encoding matrix with columns of minimum norm.

    They are b with C b = 1 on the holders of a part.
    """
    held_rows = np.where(assignment.T[:, :, None], rows.T, 0)
    turn, triangle = np.linalg.qr(held_rows)
    ones = np.ones((len(rows), 1))
    columns = turn @ np.linalg.solve(triangle.transpose(0, 2, 1), ones)
    # Entries at workers without the part are rounding errors. They are set to zero.
    return np.where(assignment, columns[..., 0].T, 0)


def _dual(matrix: np.ndarray, num_stragglers: int) -> Dual:
    """Returns a `Dual` decoder for an encoding matrix."""
    vectors, singular, _ = np.linalg.svd(matrix)
    rank = int(np.sum(singular > _RANK * singular[0]))
    target = np.ones(matrix.shape[1])
    of_all, *_ = np.linalg.lstsq(matrix.T, target, rcond=_RANK)
    null = vectors[:, rank:].conj().T
    return Dual(np.concatenate([of_all[None], null]), num_stragglers)
