"""Distributions of finish times on the host, and the f-th fastest of such times."""

import abc
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxwgc._validation import require

# Each halves an interval, so that nothing is left of it in float64.
_BISECTIONS = 60
# On the scale of log(q / (1 - q)), q the probability of a longer time: from q = 1e-18
# to where all but 1e-16 are longer.
_EDGES = np.linspace(-41.5, 36.75, 8001)
# Cells in which times differ by more than that factor, where a distribution jumps, are
# cut into so many, again and again; not those of what is steep everywhere.
_JUMP, _PIECES, _LEVELS, _MAX_JUMPS = 1.05, 16, 4, 50
# Of a round. What is less likely counts as if it never happened.
_NEVER = 1e-9
# Times of smaller weight count as not there.
NO_WEIGHT = 1e-9
# Of times and probabilities that have to be in order.
_ROUNDING = 1e-9


class Sample(NamedTuple):
    """Times that a distribution is fitted to.

    Attributes:
      times: their values.
      weights: of each.
      is_whole: whether it is the whole time; of others it is known only that they are
        longer (censored).
      kept: the share of the times that is not used up by speeds of the workers, each of
        which follows from the same times: the shape has so many fewer.
    """

    times: np.ndarray
    weights: np.ndarray
    is_whole: np.ndarray
    kept: float = 1.0

    @property
    def counts(self) -> np.ndarray:
        """Returns which components have a weight above zero."""
        return self.weights > NO_WEIGHT


class Distribution(abc.ABC):
    """The distribution of a worker's finish time, in float64 on the host.

    One of one's own defines `sf` and `isf`, with the names and meaning of SciPy's.

    Example:
      The second fastest of three workers, whose times are exponential of mean one:

      >>> import jaxwgc
      >>> law = jaxwgc.stragglers.shifted_exponential(shift=0.0, rate=1.0).law(1.0)
      >>> round(law.fastest_mean(2, num_workers=3), 4)
      0.8333
    """

    @abc.abstractmethod
    def sf(self, x: Any) -> Any:
        """Returns the probability of a longer time than x."""

    @abc.abstractmethod
    def isf(self, q: Any) -> Any:
        """Returns the least time that is exceeded with probability q at most."""

    def logpdf(self, x: Any) -> Any:
        """Returns the logarithm of the density at x, of one that is to be fitted."""
        raise NotImplementedError(f"logpdf is not defined by {self!r}")

    def fastest_mean(
        self, num_required: int, num_workers: int, at_most: float = math.inf
    ) -> float:
        """Returns the mean of the f-th fastest of n independent times.

        With q the probability of a longer time, that of the f-th fastest of n is Beta(n
        - f + 1, f) distributed: means are sums of times over cells of q with the
        probabilities of these. All f and n share the times, which are what costs.

        Args:
          num_required: f.
          num_workers: n.
          at_most: where less than the time, it takes its place.

        Returns:
          Infinity where the integral of the tail is, or where answers that never come
          are waited for with a probability above 1e-9.
        """
        later = num_workers - num_required + 1
        edges, times = self._cells
        below = scipy.special.betainc(later, num_required, edges)
        shares = np.diff(below, prepend=0.0, append=1.0)
        # Beyond both ends of the cells their first and last times.
        times = np.concatenate([times[:1], times, times[-1:]])
        if at_most < math.inf:
            return float(shares @ np.minimum(times, at_most))
        endless = np.isinf(times)
        if shares[endless].sum() > _NEVER:
            return math.inf
        if endless.any():
            return float(shares[~endless] @ times[~endless])
        return float(shares[1:] @ times[1:]) + self._tail(edges[0], later, shares[0])

    def fastest_quantile(
        self, num_required: int, num_workers: int, level: float
    ) -> float:
        """Returns the time that the f-th fastest takes at most, with probability level.

        Args:
          num_required: f.
          num_workers: n.
          level: between 0 and 1.
        """
        later = num_workers - num_required + 1
        probability = scipy.special.betaincinv(later, num_required, 1 - level)
        return float(self.isf(probability))

    @functools.cached_property
    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of longer times (cells + 1,), and the times between them."""
        edges = _EDGES
        for _ in range(_LEVELS):
            times = self._checked_times(scipy.special.expit(edges))
            with np.errstate(divide="ignore", invalid="ignore"):
                jumps = np.flatnonzero(times[:-1] > _JUMP * times[1:])
            if not 0 < len(jumps) <= _MAX_JUMPS:
                break
            cuts = [
                np.linspace(edges[jump], edges[jump + 1], _PIECES + 1)[1:-1]
                for jump in jumps
            ]
            edges = np.sort(np.concatenate([edges, *cuts]))
        middles = scipy.special.expit((edges[:-1] + edges[1:]) / 2)
        return scipy.special.expit(edges), np.asarray(self.isf(middles), np.float64)

    def _checked_times(self, probabilities: np.ndarray) -> np.ndarray:
        times = np.asarray(self.isf(probabilities), np.float64)
        is_right = times.shape == probabilities.shape and np.all(times >= 0)
        rule = "have times of at least 0, one for each probability"
        require(is_right, "law", rule, self)
        with np.errstate(invalid="ignore"):
            grows = times[1:] > times[:-1] * (1 + _ROUNDING)
            grows |= np.diff(self.sf(times)) < -_ROUNDING
        rule = "have a survival function that does not grow"
        require(not grows.any(), "law", rule, self)
        return times

    def _tail(self, lowest: float, later: int, share: float) -> float:
        """Returns what times before the first cell add, which go like a power of q."""
        first, second = self.isf(np.array([lowest, 10 * lowest]))
        exponent = math.log10(first / second) if second > 0 else 0.0
        if exponent >= later * (1 - 1e-9):
            return math.inf
        return float(share * first * later / (later - exponent))


@dataclasses.dataclass(frozen=True)
class Moved(Distribution):
    """The distribution of shift + scale * X."""

    law: Distribution
    shift: float
    scale: float

    def sf(self, x: Any) -> np.ndarray:
        """Returns the probability of a longer time than x."""
        return self.law.sf((np.asarray(x) - self.shift) / self.scale)

    def isf(self, q: Any) -> np.ndarray:
        """Returns the least time that is exceeded with probability q at most."""
        return self.shift + self.scale * self.law.isf(q)

    def logpdf(self, x: Any) -> np.ndarray:
        """Returns the logarithm of the density at x."""
        standard = (np.asarray(x) - self.shift) / self.scale
        return self.law.logpdf(standard) - np.log(self.scale)


@dataclasses.dataclass(frozen=True)
class Mixture(Distribution):
    """The distribution of a time that is of a second one with some probability."""

    first: Distribution
    second: Distribution
    probability: float

    def sf(self, x: Any) -> np.ndarray:
        """Returns the probability of a longer time than x."""
        return (1 - self.probability) * self.first.sf(x) + (
            self.probability * self.second.sf(x)
        )

    def logpdf(self, x: Any) -> np.ndarray:
        """Returns the logarithm of the density at x."""
        return np.logaddexp(
            np.log1p(-self.probability) + self.first.logpdf(x),
            np.log(self.probability) + self.second.logpdf(x),
        )

    def isf(self, q: Any) -> np.ndarray:
        """Returns the time by bisection: it lies between those of both."""
        q = np.asarray(q, np.float64)
        ends = np.stack([self.first.isf(q), self.second.isf(q)])
        low, high = ends.min(0), ends.max(0)
        # Where the second is endless the first has to account for the others.
        others = (q - self.probability) / max(1 - self.probability, 1e-300)
        last = self.first.isf(np.clip(others, 0, 1))
        bound = np.where(q < self.probability, np.inf, last)
        high = np.where(np.isinf(high), bound, high)
        low = np.minimum(low, high)
        for _ in range(_BISECTIONS):
            # The later one is right where times are not continuous.
            middle = np.where(low < high, low / 2 + high / 2, high)
            is_later = self.sf(middle) > q
            low = np.where(is_later, middle, low)
            high = np.where(is_later, high, middle)
        return high
