"""Pareto times, with heavy tails."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jaxwgc.stragglers._distributions import Sample
from jaxwgc.stragglers._independent_delay import IndependentDelay, Rules
from jaxwgc.stragglers._laws._exponential_times import (
    exponential_time,
    log_density,
    log_times,
    rate_of,
)


@dataclasses.dataclass(frozen=True)
class pareto(IndependentDelay):
    """Finish times load * scale * X, X Pareto: P(X > t) = t ** -shape for t at least 1.

    Args:
      scale: Minimum time at load 1, in seconds; positive.
      shape: Tail index; positive. Means are finite above 1, variances above 2.

    Raises:
      ValueError: If a parameter is not positive.
      TypeError: If a parameter is not a real number.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.pareto(scale=1.0, shape=2.0)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.ones(4))
      >>> times.shape, bool(times.min() >= 1.0)
      ((4,), True)

    References:
      The heavy-tailed model of the straggler literature, as in Wang, Joshi, Wornell,
      "Efficient straggler replication in large-scale parallel computing", 2019.
    """

    scale: float
    shape: float
    least_time: ClassVar[str] = "scale"
    shares_programs: ClassVar[bool] = True
    rules: ClassVar[Rules] = {"scale": {"positive": True}, "shape": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.scale * jax.random.pareto(key, self.shape, shape)

    def logpdf(self, x):
        """Returns the log-density at x."""
        # The logarithm of a Pareto time has a shifted exponential distribution.
        logs = log_times(x)
        return log_density(logs - np.log(self.scale), self.shape) - logs

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        return -self.shape * np.maximum(log_times(x) - np.log(self.scale), 0)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.scale * np.exp(exponential_time(q) / self.shape)

    @classmethod
    def estimate(
        cls, sample: Sample, start: tuple[float, ...] | None = None
    ) -> tuple[float, ...]:
        """Returns the maximum-likelihood estimates of scale and shape."""
        scale = sample.least_time
        return scale, rate_of(sample, log_times(sample.times) - np.log(scale))
