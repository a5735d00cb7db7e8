"""Exact codes for data as they lie: who holds what is given, entries are found."""

from typing import Any

import jax
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._roots_of_unity import (
    norm_of_products,
    positions,
    steps_between_points,
    vanishing_products,
)
from jaxwgc.codes._worst_rounding import worst_rounding
from jaxwgc.decoders import Dual, Lagrange, LeastSquares

# Orders of the workers around the circle, and exchanges of two workers that are tried
# on the best of them.
_NUM_ORDERS, _NUM_EXCHANGES = 64, 400
# Of random rows.
_NUM_DRAWS = 32
# Patterns of stragglers by which methods are compared, times squared workers.
_MOST_WORK = 4_000_000
# Misses below that are rounding, in float32.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
# Singular values below that share of the largest are rounding.
_RANK = 1e-10


def any_placement(
    key: jax.Array, assignment: Any, num_stragglers: int, method: str | None = None
) -> GradientCode:
    """Returns an exact code for data as they lie, s + 1 holders a part at least.

    Workers may hold different numbers of parts, and parts have more holders than s + 1,
    which all take part then. Either of two methods, whichever misses the target by less
    in float32 where it misses most (`worst_rounding`), and random rows where both miss
    by rounding alone: polynomials mostly for few stragglers, and random rows for many.
    Where sets of s + 1 workers hold the same parts, `fractional_repetition` and
    `binary` need no such entries.

    **Polynomials** with given zeros: column j of B has the values at roots of unity of
    ∏ₗ (1 - x / αₗ), l over the workers without part j. As its degree is at most
    n - s - 1, any n - s answers give its value at 0, which is one. Which worker sits at
    which root decides how large entries become: the best of some tens of orders is
    taken, and bettered by exchanges.

    **Random rows**: C is Gaussian, (s + 1) x n, its columns of norm one, and column j
    of B the least one on the holders of part j with C b = 1. So every row of C decodes
    when all answer, and one of their combinations does without any s of them. The best
    of some tens of draws is taken.

    Args:
      key: PRNG key of either kind, of orders and draws. Not traced.
      assignment: bool (num_workers, num_parts), who holds what; for instance of
        `proportional_placement`. Not traced.
      num_stragglers: s, whichever workers fail to answer; less than num_workers.
      method: "polynomials", "random_rows", or None for the better one, which takes
        seconds for a hundred workers and parts.

    Returns:
      A code of polynomials is complex, so that its messages pack two halves of a
      gradient, and has a decoder `Lagrange`; one of random rows is real, and its
      decoder is `Dual`. In NumPy float64 or complex128.

    Raises:
      ValueError: where a part has fewer than s + 1 holders, s is negative or not less
        than the number of workers, or the method is unknown.
      TypeError: where an argument has the wrong type or is traced.

    Example:
      Three of five workers are twice as fast as the others, and hold twice as much:

      >>> import jax, jaxwgc
      >>> held = jaxwgc.codes.proportional_placement([2, 2, 2, 1, 1], 8, copies=2)
      >>> code = jaxwgc.codes.any_placement(jax.random.key(0), held, num_stragglers=1)
      >>> code.parts_per_worker, code.is_complex
      (array([4, 4, 4, 2, 2]), False)
      >>> jaxwgc.effective_weights(code, ~(jax.numpy.arange(5) == 1)).round(3)
      Array([1., 1., 1., 1., 1., 1., 1., 1.], dtype=float32)

      How well either method does, and for which answers it does worst:

      >>> miss, received = jaxwgc.codes.worst_rounding(code)
      >>> bool(miss < 1e-6), int(received.sum())
      (True, 4)

    References:
      Wang, Guo, Tang, Li, Li, "Heterogeneity-aware gradient coding for straggler
      tolerance", ICDCS 2019 (random rows); Halbawi, Azizan, Salehi, Hassibi,
      "Improving distributed gradient descent using Reed-Solomon codes", ISIT 2018
      (polynomials with given zeros, there for balanced placements).
    """
    sizes = {"num_workers": "any", "num_parts": "any"}
    assignment = _validation.host_array("assignment", assignment, "bools", **sizes)
    num_workers = len(assignment)
    num_stragglers = _validation.check_stragglers(num_stragglers, num_workers)
    copies = assignment.sum(0)
    rule = f"have num_stragglers + 1 = {num_stragglers + 1} holders of every part"
    given = f"{copies.min()} holders of part {copies.argmin()}"
    _validation.require(copies.min() > num_stragglers, "assignment", rule, given)
    names = tuple(_METHODS)
    if method is not None:
        names = (_validation.check_choice("method", method, names),)
    _validation.check_concrete("key", key, "a code is chosen by its values")
    bits = np.asarray(jax.random.key_data(key))
    made = [
        _METHODS[name](np.random.default_rng(bits), assignment, num_stragglers)
        for name in names
    ]
    if len(made) == 1:
        return made[0]
    # What is rounding alone makes no difference, but real messages do.
    return min(made, key=_miss)


def _miss(code):
    num_patterns = max(_MOST_WORK // code.num_workers**2, 1)
    return max(worst_rounding(code, min(num_patterns, 1000))[0], _ROUNDING)


def _polynomials(generator, assignment, num_stragglers):
    num_workers = len(assignment)
    orders = [
        positions(num_workers, step) for step in steps_between_points(num_workers)
    ]
    orders += [generator.permutation(num_workers) for _ in range(_NUM_ORDERS)]
    norms = [norm_of_products(assignment, order) for order in orders]
    points, least = orders[np.argmin(norms)], min(norms)
    for pair in generator.integers(num_workers, size=(_NUM_EXCHANGES, 2)):
        exchanged = points.copy()
        exchanged[pair] = points[pair[::-1]]
        norm = norm_of_products(assignment, exchanged)
        if norm < least:
            points, least = exchanged, norm
    matrix = vanishing_products(assignment, points)
    dual = _dual(matrix, num_stragglers)
    decoders = [Lagrange(points, num_stragglers), dual]
    # Where parts share their holders, there are smaller weights than Lagrange's.
    if len(dual.rows) > num_stragglers + 1:
        decoders.reverse()
    return _code_of(matrix, assignment, num_stragglers, *decoders)


def _random_rows(generator, assignment, num_stragglers):
    shape = _NUM_DRAWS, num_stragglers + 1, len(assignment)
    drawn = generator.normal(size=shape)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    matrices = [_columns(rows, assignment) for rows in drawn]
    matrix = matrices[np.argmin([np.linalg.norm(matrix) for matrix in matrices])]
    dual = _dual(matrix, num_stragglers)
    return _code_of(matrix, assignment, num_stragglers, dual)


# Of equally good ones the first is taken, whose messages are real.
_METHODS = {"random_rows": _random_rows, "polynomials": _polynomials}


def _columns(rows, assignment):
    """The least b on the holders of each part that solve C b = 1, side by side."""
    turn, triangle = np.linalg.qr(np.where(assignment.T[:, :, None], rows.T, 0))
    ones = np.ones((len(rows), 1))
    columns = turn @ np.linalg.solve(triangle.transpose(0, 2, 1), ones)
    # What is rounding at workers without the part.
    return np.where(assignment, columns[..., 0].T, 0)


def _dual(matrix, num_stragglers):
    """Whatever adds nothing, of which there may be more than the code was made of."""
    vectors, singular, _ = np.linalg.svd(matrix)
    rank = int(np.sum(singular > _RANK * singular[0]))
    of_all = np.linalg.lstsq(matrix.T, np.ones(matrix.shape[1]), rcond=_RANK)[0]
    null = vectors[:, rank:].conj().T
    return Dual(np.concatenate([of_all[None], null]), num_stragglers)


def _code_of(matrix, assignment, num_stragglers, *decoders):
    return GradientCode(
        encoding_matrix=matrix,
        assignment=assignment,
        target=np.ones(assignment.shape[1]),
        num_stragglers=num_stragglers,
        decoders=(*decoders, LeastSquares(num_stragglers)),
    )
