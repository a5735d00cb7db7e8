"""Arbitration: who of those with copies of one message is wrong, in which part."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Honest copies, and what is made of them by adding and subtracting, differ by no more
# than so many times the noise.
_NOISE = 8.0


class Arbitration(NamedTuple):
    """The outcome of a dispute.

    Attributes:
      wrong: bool (num_disputed,), who contradicts what was recomputed.
      settled: whether all who are not wrong agree, or one is left of at least two.
      num_exchanges: times that two workers were asked, and parts recomputed.
    """

    wrong: np.ndarray
    settled: bool
    num_exchanges: int


def arbitrate(
    totals: np.ndarray,
    parts: Sequence[int] | np.ndarray,
    ask: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    recompute: Callable[[int], np.ndarray],
    noise: float,
) -> Arbitration:
    """Finds who is wrong among workers that have sent different copies of one message.

    Two that differ are asked for the sum over half of their parts; what they say of the
    other half follows from what they have sent. The half in which they differ more is
    halved again, until one part is left. That one is recomputed, and whoever
    contradicts it is wrong. All of this is done with random projections of the vectors,
    a few numbers each, drawn after the messages were there.

    What a worker says of all parts adds up to what it has sent. So one who has sent
    something wrong contradicts itself, or an honest one in the part that is recomputed,
    whatever it answers. Two may be wrong in different parts: then one of them is found.

    Args:
      totals: (num_disputed, num_columns), projections of what each of them has sent.
      parts: those of which the message is a sum.
      ask: `ask(workers, parts)` gives projections (2, num_columns) of the sums of two
        workers, places in `totals`, over some of the parts.
      recompute: `recompute(part)` gives the projection (num_columns,) of the right one.
      noise: how much honest copies differ, relative to the norms of what they are made
        of.

    Returns:
      An `Arbitration`. With two workers, of at most ceil(log2(len(parts))) + 1
      exchanges.

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
      Arbitration(wrong=array([False,  True]), settled=True, num_exchanges=3)

    References:
      Gupta, Vaidya, "Randomized reactive redundancy for Byzantine fault-tolerance in
      parallelized learning", 2019; Hofmeister, Maßny, Yaakobi, Bitar, "Byzantine-
      resilient gradient coding through local gradient computations", 2024.
    """
    totals = np.asarray(totals)
    totals = totals.astype(np.promote_types(totals.dtype, np.float64))
    wrong = ~np.isfinite(totals).all(1)
    num_exchanges = 0
    # What is added and subtracted is rounded as its largest terms are.
    largest = np.linalg.norm(totals[~wrong], axis=1).max(initial=0)
    while True:
        left = np.flatnonzero(~wrong)
        differences = np.linalg.norm(totals[left, None] - totals[left], axis=2)
        if differences.max(initial=0) <= _NOISE * noise * largest:
            return Arbitration(wrong, len(left) > 0, num_exchanges)
        first, second = np.unravel_index(differences.argmax(), differences.shape)
        pair = left[[first, second]]
        claims, some = totals[pair], list(parts)
        while len(some) > 1:
            half = some[: len(some) // 2]
            answers = np.asarray(ask(pair, half), totals.dtype)
            num_exchanges += 1
            is_bad = ~np.isfinite(answers).all(1)
            if is_bad.any():
                break
            others = claims - answers
            norms = np.linalg.norm([answers, others], axis=2)
            largest = max(largest, norms.max())
            gap, other_gap = np.linalg.norm(
                [answers[0] - answers[1], others[0] - others[1]], axis=1
            )
            if gap >= other_gap:
                claims, some = answers, half
            else:
                claims, some = others, some[len(half) :]
        else:
            right = np.asarray(recompute(some[0]), totals.dtype)
            num_exchanges += 1
            largest = max(largest, np.linalg.norm(right))
            is_bad = np.linalg.norm(claims - right, axis=1) > _NOISE * noise * largest
        if not is_bad.any():
            return Arbitration(wrong, False, num_exchanges)
        wrong[pair] = is_bad
