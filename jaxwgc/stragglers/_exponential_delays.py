"""Delay models with a least time, beyond which times or their logs are exponential."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from jaxwgc.stragglers._distributions import Sample
from jaxwgc.stragglers._independent_delay import (
    IndependentDelay,
    exponential_time,
    log_times,
)


@dataclasses.dataclass(frozen=True)
class shifted_exponential(IndependentDelay):
    """Times load * (shift + E / rate), E standard exponential.

    Args:
      shift: the least time at load 1, in seconds; at least 0.
      rate: loads a second beyond the shift; positive.

    Raises:
      ValueError, TypeError: where a parameter breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.shifted_exponential(shift=1.0, rate=2.0)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.full(4, 3.0))
      >>> times.shape, bool(times.min() >= 3.0)
      ((4,), True)

    References:
      Lee et al., 2018, section IV; Halbawi et al., ISIT 2018.
    """

    shift: Any
    rate: Any
    has_least_time: ClassVar[bool] = True
    _rules: ClassVar[Any] = {"shift": {"minimum": 0}, "rate": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.shift + jax.random.exponential(key, shape) / self.rate

    def logpdf(self, x):
        """Returns the logarithm of the density at x."""
        return _log_density(x - self.shift, self.rate)

    def logsf(self, x):
        """Returns the logarithm of the probability of a longer time than x."""
        return -self.rate * np.maximum(x - self.shift, 0)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.shift + exponential_time(q) / self.rate

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, float]:
        """Returns the shift and rate of largest likelihood."""
        shift = _least_time(sample)
        return shift, _rate(sample, sample.times - shift)


@dataclasses.dataclass(frozen=True)
class pareto(IndependentDelay):
    """Times load * scale * P, P Pareto: P(P > t) = t ** -shape for t at least 1.

    Args:
      scale: the least time at load 1, in seconds; positive.
      shape: the tail index; positive. Means are finite above 1, variances above 2.

    Raises:
      ValueError, TypeError: where a parameter breaks its rule.

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

    scale: Any
    shape: Any
    has_least_time: ClassVar[bool] = True
    _rules: ClassVar[Any] = {"scale": {"positive": True}, "shape": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.scale * jax.random.pareto(key, self.shape, shape)

    def logpdf(self, x):
        """Returns the logarithm of the density at x."""
        # The logarithm of the time is exponential.
        logs = log_times(x)
        return _log_density(logs - np.log(self.scale), self.shape) - logs

    def logsf(self, x):
        """Returns the logarithm of the probability of a longer time than x."""
        return -self.shape * np.maximum(log_times(x) - np.log(self.scale), 0)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.scale * np.exp(exponential_time(q) / self.shape)

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, float]:
        """Returns the scale and shape of largest likelihood."""
        scale = _least_time(sample)
        return scale, _rate(sample, log_times(sample.times) - np.log(scale))


def _log_density(excess, rate):
    density = np.log(rate) - rate * np.maximum(excess, 0)
    return np.where(excess >= 0, density, -np.inf)


def _least_time(sample):
    return np.min(sample.times, where=sample.is_whole & sample.counts, initial=np.inf)


def _rate(sample, excess):
    """Returns the rate of the exponential times beyond the least one."""
    total = np.sum(sample.weights * np.maximum(excess, 0))
    count = sample.kept * np.sum(sample.weights * sample.is_whole)
    return count / max(total, 1e-300)
