"""Arbitration between workers with different copies of one message."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxwgc._common import array_validation

# Bound of the rounding error of a sum or difference of honest copies, as a multiple of
# the noise.
_NOISE = 8.0


class Arbitration(NamedTuple):
    """Outcome of a dispute between workers, see `arbitrate`."""

    wrong: np.ndarray
    settled: bool


def arbitrate(
    totals: np.ndarray,
    parts: Sequence[int] | np.ndarray,
    ask: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    recompute: Callable[[int], np.ndarray],
    noise: float,
) -> Arbitration:
    """Finds the corrupted workers among those that sent different copies of a message.

    Two workers that differ are queried for the sum over half of their parts; the sum
    over the other half follows from their messages. The half in which they differ more
    is bisected until one part is left. That part is recomputed, and a worker that
    contradicts it is corrupted. All vectors are replaced by random projections of a few
    numbers, drawn after the messages arrived.

    The responses of a worker add up to its message. A worker that sent a corrupted
    message therefore contradicts itself, or an honest worker in the recomputed part,
    whatever it responds. If both workers are corrupted, in different parts, at least
    one of them is found, and the other is compared with the workers that are left.
    Rounding errors are judged by the norms of a worker's own sums, so that a large
    corruption hides no other.

    A settled verdict is right if at least one of the workers is not corrupted: the last
    one that is left cannot be compared with another.

    Args:
      totals: Projections of the messages, (num_disputed, num_columns).
      parts: Parts of the message, which is their sum.
      ask: `ask(workers, parts)` returns projections (2, num_columns) of the sums over
        `parts` of two workers, given as indices into `totals`.
      recompute: `recompute(part)` returns the projection (num_columns,) of the correct
        partial gradient.
      noise: Difference of honest copies, relative to the norms of their terms.

    Returns:
      A NamedTuple: `wrong`, bool (num_disputed,), tells which workers contradict
      recomputed parts. `settled` tells whether all other workers agree up to rounding,
      or only one of them is left. Two workers are asked at most ceil(log2(len(parts)))
      times, and one part is recomputed.

    Raises:
      ValueError: If totals have another shape, there are no parts, or noise is not
        finite and at least 0.

    Example:
      >>> import numpy as np
      >>> from jaxwgc.coding import arbitrate
      >>> gradients = np.array([[1.0], [2.0], [3.0], [4.0]])
      >>> claims = np.stack([gradients, gradients])
      >>> claims[1, 2] = 30
      >>> arbitrate(
      ...     claims.sum(1),
      ...     range(4),
      ...     lambda workers, parts: claims[workers][:, parts].sum(1),
      ...     lambda part: gradients[part],
      ...     noise=1e-7,
      ... )
      Arbitration(wrong=array([False,  True]), settled=True)

    References:
      Gupta, Vaidya, "Randomized reactive redundancy for Byzantine fault-tolerance in
      parallelized learning", 2019; Hofmeister, Maßny, Yaakobi, Bitar, "Byzantine-
      resilient gradient coding through local gradient computations", 2024.
    """
    array_validation.check_number("noise", noise, minimum=0, finite=True)
    totals = np.asarray(totals)
    if totals.ndim != 2 or not len(parts):
        raise ValueError(
            "totals must have shape (num_disputed, num_columns), and parts at least "
            f"one part; got totals {totals.shape} and {len(parts)} parts"
        )
    totals = totals.astype(np.promote_types(totals.dtype, np.float64))
    wrong = ~np.isfinite(totals).all(1)
    totals = np.where(wrong[:, None], 0, totals)
    norms = np.linalg.norm(totals, axis=1)
    differences = np.linalg.norm(totals[:, None] - totals, axis=2)
    # Bound of the difference of each pair that rounding explains.
    allowed = _NOISE * noise * np.minimum(norms[:, None], norms)
    is_compared = np.zeros_like(differences, dtype=bool)
    while True:
        is_pair = ~wrong & ~wrong[:, None]
        is_disputed = is_pair & (differences > allowed)
        is_open = is_disputed & ~is_compared
        if not is_open.any():
            is_settled = bool(~wrong.all() and not is_disputed.any())
            return Arbitration(wrong, is_settled)
        largest = np.where(is_open, differences, -1).argmax()
        pair = np.array(np.unravel_index(largest, differences.shape))
        comparison = _compare(
            totals[pair], parts, functools.partial(ask, pair), recompute, noise
        )
        wrong[pair] = comparison.wrong
        first, second = pair
        for place in ((first, second), (second, first)):
            is_compared[place] = True
            allowed[place] = max(allowed[place], comparison.rounding.min())


class _Comparison(NamedTuple):
    """Outcome of a comparison of two workers.

    Attributes:
      wrong: Which of them contradict a recomputed part, or sent numbers that are not
        finite, bool (2,).
      rounding: Bound of the rounding errors of each worker, (2,). It is relative to the
        norms of the worker's own sums: another worker cannot enlarge it.
    """

    wrong: np.ndarray
    rounding: np.ndarray


def _compare(
    claims: np.ndarray,
    parts: Sequence[int] | np.ndarray,
    ask: Callable[[Sequence[int]], np.ndarray],
    recompute: Callable[[int], np.ndarray],
    noise: float,
) -> _Comparison:
    """Compares two workers on the part in which their messages differ most.

    Disputed parts are halved until one is left, which is recomputed.

    Args:
      claims: Their different sums over `parts`, (2, num_columns).
      parts: Parts that both hold.
      ask: Function that queries both workers for their sums over parts.
      recompute: As in `arbitrate`.
      noise: As in `arbitrate`.
    """
    disputed = list(parts)
    largest = np.linalg.norm(claims, axis=1)
    while len(disputed) > 1:
        half = disputed[: len(disputed) // 2]
        responses = np.asarray(ask(half), claims.dtype)
        is_finite = np.isfinite(responses).all(1)
        if not is_finite.all():
            return _Comparison(~is_finite, _NOISE * noise * largest)
        others = claims - responses
        largest = np.maximum(largest, np.linalg.norm(responses, axis=1))
        largest = np.maximum(largest, np.linalg.norm(others, axis=1))
        gap = np.linalg.norm(responses[0] - responses[1])
        other_gap = np.linalg.norm(others[0] - others[1])
        if gap >= other_gap:
            claims = responses
            disputed = half
        else:
            claims = others
            disputed = disputed[len(half) :]
    message = np.asarray(recompute(disputed[0]), claims.dtype)
    largest = np.maximum(largest, np.linalg.norm(message))
    rounding = _NOISE * noise * largest
    errors = np.linalg.norm(claims - message, axis=1)
    return _Comparison(errors > rounding, rounding)
