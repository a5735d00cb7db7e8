"""Shifted exponential times."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jaxwgc.stragglers._distributions import Sample
from jaxwgc.stragglers._independent_delay import IndependentDelay, Rules
from jaxwgc.stragglers._laws._exponential_times import (
    exponential_time,
    log_density,
    rate_of,
)


@dataclasses.dataclass(frozen=True)
class shifted_exponential(IndependentDelay):
    """Finish times load * (shift + X / rate), with X standard exponential.

    Args:
      shift: Minimum time at load 1, in seconds; at least 0.
      rate: Loads per second beyond the shift; positive.

    Raises:
      ValueError: If shift is negative, or rate is not positive.
      TypeError: If a parameter is not a real number.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.shifted_exponential(shift=1.0, rate=2.0)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.full(4, 3.0))
      >>> times.shape, bool(times.min() >= 3.0)
      ((4,), True)

    References:
      Lee et al., 2018, section IV; Halbawi et al., ISIT 2018.
    """

    shift: float
    rate: float
    least_time: ClassVar[str] = "shift"
    shares_programs: ClassVar[bool] = True
    rules: ClassVar[Rules] = {"shift": {"minimum": 0}, "rate": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.shift + jax.random.exponential(key, shape) / self.rate

    def logpdf(self, x):
        """Returns the log-density at x."""
        return log_density(x - self.shift, self.rate)

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        return -self.rate * np.maximum(x - self.shift, 0)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.shift + exponential_time(q) / self.rate

    @classmethod
    def estimate(
        cls, sample: Sample, start: tuple[float, ...] | None = None
    ) -> tuple[float, ...]:
        """Returns the maximum-likelihood estimates of shift and rate."""
        shift = sample.least_time
        return shift, rate_of(sample, sample.times - shift)
