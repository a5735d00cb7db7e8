"""Distributions of finish times on the host, and order statistics of such times."""

import abc
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxwgc._validation import require

# Number of bisections: enough for float64.
_BISECTIONS = 60
# Grid of log(q / (1 - q)), with q the probability of a longer time: from q = 1e-18 to
# q = 1 - 1e-16.
_EDGES = np.linspace(-41.5, 36.75, 8001)
# A cell is split into _PIECES cells, at most _LEVELS times, if the times at its edges
# differ by more than the factor _JUMP. Nothing is split if more than _MAX_JUMPS cells
# would be.
_JUMP, _PIECES, _LEVELS, _MAX_JUMPS = 1.05, 16, 4, 50
# Probability per round below which an event is ignored.
_NEVER = 1e-9
# Weight below which a time is ignored in fits.
NO_WEIGHT = 1e-9
# Relative tolerance in checks that times and probabilities are sorted.
_ROUNDING = 1e-9


class Sample(NamedTuple):
    """Times to which a distribution is fitted.

    Attributes:
      times: Values of the times.
      weights: Weights of the times.
      is_whole: Whether the time is complete; otherwise it is a lower bound (censored).
      kept: Fraction of the degrees of freedom that is not used up by the speeds of the
        workers, which are estimated from these times, too.
    """

    times: np.ndarray
    weights: np.ndarray
    is_whole: np.ndarray
    kept: float = 1.0

    @property
    def counts(self) -> np.ndarray:
        """Mask of the times with a weight above `NO_WEIGHT`."""
        return self.weights > NO_WEIGHT


class Distribution(abc.ABC):
    """Distribution of a worker's finish time, in float64 on the host.

    To write your own, define `sf` and `isf`, with names and meaning as in SciPy.

    Example:
      The second fastest of three workers with exponential times of mean one:

      >>> import jaxwgc
      >>> law = jaxwgc.stragglers.shifted_exponential(shift=0.0, rate=1.0).law(1.0)
      >>> round(law.fastest_mean(2, num_workers=3), 4)
      0.8333
    """

    @abc.abstractmethod
    def sf(self, x: Any) -> Any:
        """Returns the probability of a time above x."""

    @abc.abstractmethod
    def isf(self, q: Any) -> Any:
        """Returns the smallest time that is exceeded with probability at most q."""

    def logpdf(self, x: Any) -> Any:
        """Returns the log-density at x; required for fitting."""
        raise NotImplementedError(f"logpdf is not defined by {self!r}")

    def fastest_mean(
        self, num_required: int, num_workers: int, at_most: float = math.inf
    ) -> float:
        """Returns the mean of the f-th smallest of n independent finish times.

        Let q be the probability of a longer time. For the f-th fastest of n, q has the
        distribution Beta(n - f + 1, f). The mean is a sum of times over cells of q,
        weighted by the probabilities of the cells. Times are computed once for all f
        and n.

        Args:
          num_required: f.
          num_workers: n.
          at_most: Upper bound to which times are clipped.

        Returns:
          The mean; infinity if the integral diverges, or if the time is infinite with a
          probability above 1e-9.
        """
        later = num_workers - num_required + 1
        edges, times = self._cells
        below = scipy.special.betainc(later, num_required, edges)
        shares = np.diff(below, prepend=0.0, append=1.0)
        # Outside of all cells, the times of the first and the last cell are used.
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
        """Returns a quantile of the f-th smallest of n independent finish times.

        Args:
          num_required: f.
          num_workers: n.
          level: Probability of a time that is at most the quantile, between 0 and 1.
        """
        later = num_workers - num_required + 1
        probability = scipy.special.betaincinv(later, num_required, 1 - level)
        return float(self.isf(probability))

    @functools.cached_property
    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of cells, in probabilities of a longer time, and a time per cell."""
        edges = _EDGES
        for _ in range(_LEVELS):
            times = self._checked_times(scipy.special.expit(edges))
            with np.errstate(divide="ignore", invalid="ignore"):
                jumps = np.flatnonzero(times[:-1] > _JUMP * times[1:])
            if not 0 < len(jumps) <= _MAX_JUMPS:
                break
            cuts = np.linspace(edges[jumps], edges[jumps + 1], _PIECES + 1)[1:-1]
            edges = np.sort(np.append(edges, cuts))
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
        rule = "have a nonincreasing survival function"
        require(not grows.any(), "law", rule, self)
        return times

    def _tail(self, lowest: float, later: int, share: float) -> float:
        """Integrates over the probabilities below the first cell, by a power law."""
        first, second = self.isf(np.array([lowest, 10 * lowest]))
        exponent = math.log10(first / second) if second > 0 else 0.0
        if exponent >= later * (1 - 1e-9):
            return math.inf
        return float(share * first * later / (later - exponent))


@dataclasses.dataclass(frozen=True)
class Moved(Distribution):
    """Distribution of shift + scale * X, with X distributed by `law`."""

    law: Distribution
    shift: float
    scale: float

    def sf(self, x: Any) -> np.ndarray:
        """Returns the probability of a time above x."""
        return self.law.sf((np.asarray(x) - self.shift) / self.scale)

    def isf(self, q: Any) -> np.ndarray:
        """Returns the smallest time that is exceeded with probability at most q."""
        return self.shift + self.scale * self.law.isf(q)

    def logpdf(self, x: Any) -> np.ndarray:
        """Returns the log-density at x."""
        standard = (np.asarray(x) - self.shift) / self.scale
        return self.law.logpdf(standard) - np.log(self.scale)


@dataclasses.dataclass(frozen=True)
class Mixture(Distribution):
    """Mixture of two distributions, with the probability of the second."""

    first: Distribution
    second: Distribution
    probability: float

    def sf(self, x: Any) -> np.ndarray:
        """Returns the probability of a time above x."""
        first, second = self.first.sf(x), self.second.sf(x)
        return (1 - self.probability) * first + self.probability * second

    def logpdf(self, x: Any) -> np.ndarray:
        """Returns the log-density at x."""
        first = np.log1p(-self.probability) + self.first.logpdf(x)
        return np.logaddexp(first, np.log(self.probability) + self.second.logpdf(x))

    def isf(self, q: Any) -> np.ndarray:
        """Inverts the survival function by bisection between both parts' inverses."""
        q = np.asarray(q, np.float64)
        ends = np.stack([self.first.isf(q), self.second.isf(q)])
        low, high = ends.min(0), ends.max(0)
        # If times of the second distribution are infinite, all finite times are from
        # the first one.
        others = (q - self.probability) / max(1 - self.probability, 1e-300)
        last = self.first.isf(np.clip(others, 0, 1))
        bound = np.where(q < self.probability, np.inf, last)
        high = np.where(np.isinf(high), bound, high)
        low = np.minimum(low, high)
        for _ in range(_BISECTIONS):
            # At a jump of the distribution, the upper end of the interval is correct.
            middle = np.where(low < high, low / 2 + high / 2, high)
            is_later = self.sf(middle) > q
            low = np.where(is_later, middle, low)
            high = np.where(is_later, high, middle)
        return high
