"""How long the f-th fastest of equal workers takes, by the law of one worker's time."""

import math

import numpy as np
from scipy import special

from jaxwgc.stragglers import Law

# On the scale of log(q / (1 - q)), q the probability of a longer time: from q = 1e-18
# to where all but 1e-16 are longer.
_EDGES = np.linspace(-41.5, 36.75, 8001)
# Cells in which times differ by more than that factor, where a law jumps, are cut into
# so many, again and again; not those of laws that are steep everywhere.
_JUMP, _PIECES, _LEVELS, _MAX_JUMPS = 1.05, 16, 4, 50
# Of a round. What is less likely counts as if it never happened.
_NEVER = 1e-9


class OrderStatistics:
    """Of independent times that all have one law.

    With q the probability of a longer time, that of the f-th fastest of n is Beta(n - f
    + 1, f) distributed: means are sums of times over cells of q with the probabilities
    of these, and quantiles are the times at its quantiles. All numbers f share the
    times, which are what costs.
    """

    def __init__(self, law: Law, num_workers: int):
        self._law, self._num_workers = law, num_workers
        edges = _EDGES
        for _ in range(_LEVELS):
            times = law.isf(special.expit(edges))
            with np.errstate(divide="ignore", invalid="ignore"):
                jumps = np.flatnonzero(times[:-1] > _JUMP * times[1:])
            if not 0 < len(jumps) <= _MAX_JUMPS:
                break
            cuts = [
                np.linspace(edges[own], edges[own + 1], _PIECES + 1)[1:-1]
                for own in jumps
            ]
            edges = np.sort(np.concatenate([edges, *cuts]))
        self._edges = special.expit(edges)
        middles = special.expit((edges[:-1] + edges[1:]) / 2)
        self._times = np.asarray(law.isf(middles), np.float64)

    def mean(self, num_required: int, at_most: float = math.inf) -> float:
        """Of the f-th fastest time, or of that and `at_most`, whichever is less.

        Infinite where the integral of the tail is, or where answers that never come are
        waited for with a probability above 1e-9.
        """
        later = self._num_workers - num_required + 1
        below = special.betainc(later, num_required, self._edges)
        shares = np.diff(below, prepend=0.0, append=1.0)
        # Beyond both ends of the cells their first and last times.
        times = np.concatenate([self._times[:1], self._times, self._times[-1:]])
        if at_most < math.inf:
            return float(shares @ np.minimum(times, at_most))
        endless = np.isinf(times)
        if shares[endless].sum() > _NEVER:
            return math.inf
        if endless.any():
            return float(shares[~endless] @ times[~endless])
        return float(shares[1:] @ times[1:]) + self._tail(later, shares[0])

    def quantile(self, num_required: int, level: float) -> float:
        """The time that the f-th fastest takes at most, with probability `level`."""
        later = self._num_workers - num_required + 1
        probability = special.betaincinv(later, num_required, 1 - level)
        return float(self._law.isf(probability))

    def _tail(self, later: int, share: float) -> float:
        """What times before the first cell add, where they go like a power of q."""
        lowest = self._edges[0]
        first, second = self._law.isf(np.array([lowest, 10 * lowest]))
        exponent = math.log10(first / second) if second > 0 else 0.0
        if exponent >= later * (1 - 1e-9):
            return math.inf
        return share * first * later / (later - exponent)
