"""Arbitration between workers with different copies of one message."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Bound of the difference of honest copies, and of sums and differences of copies, as a
# multiple of the noise.
_NOISE = 8.0


class Arbitration(NamedTuple):
    """Outcome of a dispute.

    Attributes:
      wrong: Which workers contradict recomputed parts, bool (num_disputed,).
      settled: Whether all other workers agree, or only one of them is left.
      num_exchanges: Number of queries to pairs of workers, and of recomputed parts.

    Example:
      The second of two workers sent a wrong sum:

      >>> import numpy as np
      >>> from jaxwgc import coding
      >>> correct = np.array([[1.0], [2.0]])
      >>> claims = np.array([[[1.0], [2.0]], [[1.0], [9.0]]])
      >>> outcome = coding.arbitrate(
      ...     claims.sum(axis=1),
      ...     parts=[0, 1],
      ...     ask=lambda workers, parts: claims[workers][:, parts].sum(axis=1),
      ...     recompute=lambda part: correct[part],
      ...     noise=1e-7,
      ... )
      >>> outcome.wrong, outcome.settled
      (array([False,  True]), True)
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
    """Finds the corrupted workers among those that sent different copies of a message.

    Two workers that differ are queried for the sum over half of their parts; the sum
    over the other half follows from their messages. The half in which they differ more
    is bisected until one part is left. That part is recomputed, and a worker that
    contradicts it is corrupted. All vectors are replaced by random projections of a few
    numbers, drawn after the messages arrived.

    The responses of a worker add up to its message. A worker that sent a corrupted
    message therefore contradicts itself, or an honest worker in the recomputed part,
    whatever it responds. If both workers are corrupted, in different parts, at least
    one of them is found.

    Args:
      totals: Projections of the messages, (num_disputed, num_columns).
      parts: Parts of the message, which is their sum.
      ask: `ask(workers, parts)` returns projections (2, num_columns) of the sums over
        `parts` of two workers, given as indices into `totals`.
      recompute: `recompute(part)` returns the projection (num_columns,) of the correct
        partial gradient.
      noise: Difference of honest copies, relative to the norms of their terms.

    Returns:
      An `Arbitration`. For two workers it needs at most ceil(log2(len(parts))) + 1
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
    largest = np.linalg.norm(totals[~wrong], axis=1).max(initial=0)
    arbiter = _Arbiter(ask=ask, recompute=recompute, noise=noise, largest=largest)
    while True:
        left = np.flatnonzero(~wrong)
        differences = np.linalg.norm(totals[left, None] - totals[left], axis=2)
        if differences.max(initial=0) <= arbiter.largest_rounding:
            return Arbitration(wrong, len(left) > 0, arbiter.num_exchanges)
        first, second = np.unravel_index(differences.argmax(), differences.shape)
        pair = left[[first, second]]
        is_wrong = arbiter.judge(pair, totals[pair], parts)
        if not is_wrong.any():
            return Arbitration(wrong, False, arbiter.num_exchanges)
        wrong[pair] = is_wrong


@dataclasses.dataclass
class _Arbiter:
    """Comparison of two workers, part by part.

    Attributes:
      ask: Function that queries two workers for sums of parts, as in `arbitrate`.
      recompute: Function that recomputes the projection of a part.
      noise: Difference of honest copies, relative to the norms of their terms.
      largest: Largest norm so far of a sum or difference of messages. Rounding errors
        are proportional to it.
      num_exchanges: Number of calls of `ask` and `recompute` so far.
    """

    ask: Callable[[np.ndarray, Sequence[int]], np.ndarray]
    recompute: Callable[[int], np.ndarray]
    noise: float
    largest: float
    num_exchanges: int = 0

    @property
    def largest_rounding(self) -> float:
        """Bound of the difference of honest copies, and of their sums."""
        return _NOISE * self.noise * self.largest

    def judge(
        self, pair: np.ndarray, claims: np.ndarray, parts: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Returns which of two workers are corrupted, bool (2,).

        Halves the disputed parts until one is left, and recomputes its message.

        Args:
          pair: The two workers.
          claims: Their different sums over `parts`, (2, length).
          parts: Parts that both hold.
        """
        disputed = list(parts)
        while len(disputed) > 1:
            half = disputed[: len(disputed) // 2]
            responses = np.asarray(self.ask(pair, half), claims.dtype)
            self.num_exchanges += 1
            is_finite = np.isfinite(responses).all(1)
            if not is_finite.all():
                return ~is_finite
            others = claims - responses
            norms = np.linalg.norm([responses, others], axis=2)
            self.largest = max(self.largest, norms.max())
            gap, other_gap = np.linalg.norm(
                [responses[0] - responses[1], others[0] - others[1]], axis=1
            )
            if gap >= other_gap:
                claims = responses
                disputed = half
            else:
                claims = others
                disputed = disputed[len(half) :]
        message = np.asarray(self.recompute(disputed[0]), claims.dtype)
        self.num_exchanges += 1
        self.largest = max(self.largest, float(np.linalg.norm(message)))
        return np.linalg.norm(claims - message, axis=1) > self.largest_rounding
