"""Distributions of finish times, and of the f-th smallest of such times."""

import abc
import dataclasses
import functools
import math

import numpy as np
import scipy

# Log-odds of the probability of a longer time, from 1 - 1e-16 down to 1e-18. Their
# quantiles are the edges of cells, over which integrals are summed.
_LOG_ODDS = np.linspace(36.75, -41.5, 8001)
# Nodes of Gauss-Legendre quadrature, as positions in a cell from 0 to 1.
_NODES = 0.5 + np.array([[-0.5], [0.5]]) / math.sqrt(3)
# Probability below which an infinite time is ignored, so that the mean stays finite.
_NEVER = 1e-9


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
    def sf(self, x: float | np.ndarray) -> np.ndarray:
        """Returns the probability of a time above x."""

    @abc.abstractmethod
    def isf(self, q: float | np.ndarray) -> np.ndarray:
        """Returns the smallest time that is exceeded with probability at most q."""

    def logpdf(self, x: float | np.ndarray) -> np.ndarray:
        """Returns the log-density at x; required for fitting."""
        raise NotImplementedError(
            f"{type(self).__name__} must define logpdf; got {self!r} without it"
        )

    def fastest_mean(
        self, num_required: int, num_workers: int, at_most: float = math.inf
    ) -> float:
        """Returns the mean of the f-th smallest of n independent finish times.

        The mean is the integral over t of the probability that fewer than f workers
        finish by t. It is computed by Gauss-Legendre quadrature between quantiles, so
        that jumps of the distribution are exact. Survival functions are computed once
        for all f and n.

        Args:
          num_required: Number of awaited workers, f.
          num_workers: Number of workers, n.
          at_most: Upper bound to which times are clipped.

        Returns:
          The mean; infinity if the integral diverges, or if the time is infinite with a
          probability above 1e-9.
        """
        num_later = num_workers - num_required + 1
        times, longer = self._cells
        # Mean over each cell of the probability that the f-th smallest time is longer.
        chances = scipy.special.betainc(num_later, num_required, longer).mean(0)
        widths = np.diff(np.minimum(times, at_most))
        is_endless = np.isinf(widths)
        if np.any(chances[is_endless] > _NEVER):
            return math.inf
        within_cells = chances @ np.where(is_endless, 0, widths)
        mean = float(min(times[0], at_most) + within_cells)
        if at_most < math.inf or np.isinf(times[-1]):
            return mean
        # Beyond the last cell, the survival function is extrapolated by a power law.
        lowest = scipy.special.expit(_LOG_ODDS[-1])
        last, earlier = self.isf(lowest * np.array([1, 10]))
        exponent = math.log10(last / earlier) if earlier > 0 else 0.0
        if exponent >= num_later * (1 - 1e-9):
            return math.inf
        chance = scipy.special.betainc(num_later, num_required, lowest)
        beyond_cells = chance * last * exponent / (num_later - exponent)
        return mean + float(beyond_cells)

    def fastest_quantile(
        self, num_required: int, num_workers: int, level: float
    ) -> float:
        """Returns a quantile of the f-th smallest of n independent finish times.

        Args:
          num_required: Number of awaited workers, f.
          num_workers: Number of workers, n.
          level: Probability of a time that is at most the quantile, between 0 and 1.
        """
        num_later = num_workers - num_required + 1
        probability = scipy.special.betaincinv(num_later, num_required, 1 - level)
        return float(self.isf(probability))

    @functools.cached_property
    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns edges of time intervals, and survival probabilities inside."""
        times = np.unique(self.isf(scipy.special.expit(_LOG_ODDS)))
        first = times[:-1]
        last = times[1:]
        # In a cell that ends at infinity, the first edge represents all nodes.
        widths = np.where(np.isinf(last), 0, last - first)
        return times, self.sf(first + _NODES * widths)


@dataclasses.dataclass(frozen=True)
class Moved(Distribution):
    """Distribution of shift + scale * X, with X distributed by `law`."""

    law: Distribution
    shift: float
    scale: float

    def sf(self, x: float | np.ndarray) -> np.ndarray:
        """Returns the probability of a time above x."""
        return self.law.sf((np.asarray(x) - self.shift) / self.scale)

    def isf(self, q: float | np.ndarray) -> np.ndarray:
        """Returns the smallest time that is exceeded with probability at most q."""
        return self.shift + self.scale * self.law.isf(q)

    def logpdf(self, x: float | np.ndarray) -> np.ndarray:
        """Returns the log-density at x."""
        standard = (np.asarray(x) - self.shift) / self.scale
        return self.law.logpdf(standard) - np.log(self.scale)
