"""Delay models without a minimum time, fitted by logarithms of times."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxwgc.stragglers._distributions import Sample
from jaxwgc.stragglers._independent_delay import (
    IndependentDelay,
    exponential_time,
    log_times,
)

_SMALLEST_DEVIATION = 1e-6
_ITERATIONS = 100
_CONVERGED = 1e-9


@dataclasses.dataclass(frozen=True)
class weibull(IndependentDelay):
    """Times load * scale * W, W Weibull: P(W > t) = exp(-(t ** shape)).

    Args:
      scale: Scale of the time at load 1, in seconds; positive. 63% of times are below.
      shape: Positive. Times are exponential for 1, with heavier tails below and lighter
        tails above.

    Raises:
      ValueError, TypeError: If a parameter is invalid.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.weibull(scale=2.0, shape=1.5)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.ones(4))
      >>> times.shape, float(delay.law(1.0).sf(2.0).round(3))
      ((4,), 0.368)

    References:
      Reisizadeh, Prakash, Pedarsani, Avestimehr, "Coded computation over heterogeneous
      clusters", 2019, section V (Weibull run times).
    """

    scale: Any
    shape: Any
    _rules: ClassVar[Any] = {"scale": {"positive": True}, "shape": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return jax.random.weibull_min(key, self.scale, self.shape, shape)

    def logpdf(self, x):
        """Returns the log-density at x."""
        logs = log_times(x) - np.log(self.scale)
        return np.log(self.shape / self.scale) + (self.shape - 1) * logs + self.logsf(x)

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        logs = log_times(x) - np.log(self.scale)
        return -np.exp(np.minimum(self.shape * logs, 700))

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.scale * exponential_time(q) ** (1 / self.shape)

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, float]:
        """Returns the maximum-likelihood estimates of scale and shape.

        The shape is found by Newton's method, with the scale in closed form.
        """
        logs = log_times(sample.times)
        whole = sample.weights * sample.is_whole
        count = whole.sum()
        mean = np.sum(whole * logs) / count
        deviation = np.sqrt(np.sum(whole * (logs - mean) ** 2) / count)
        shape = 1.28 / max(deviation, _SMALLEST_DEVIATION)
        weights, logs = sample.weights[sample.counts], logs[sample.counts]
        largest = logs.max()
        for _ in range(_ITERATIONS):
            powers = weights * np.exp(shape * (logs - largest))
            total, first, second = (np.sum(powers * logs**order) for order in range(3))
            value = first / total - sample.kept / shape - mean
            slope = second / total - (first / total) ** 2 + sample.kept / shape**2
            step = value / slope
            # At most halved, so that it stays positive.
            shape -= min(step, shape / 2)
            if abs(step) < _CONVERGED * shape:
                break
        total = np.sum(weights * np.exp(shape * (logs - largest)))
        return np.exp(largest + np.log(total / count) / shape), shape


@dataclasses.dataclass(frozen=True)
class log_normal(IndependentDelay):
    """Times load * median * exp(deviation * Z), Z standard normal.

    Args:
      median: Median of the time at load 1, in seconds; positive.
      deviation: Standard deviation of the logarithm of times; positive.

    Raises:
      ValueError, TypeError: If a parameter is invalid.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.log_normal(median=2.0, deviation=0.1)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.ones(4))
      >>> times.shape, float(delay.law(1.0).sf(2.0))
      ((4,), 0.5)

    References:
      Ben-Yehuda, Schuster, Sharov, Silberstein, Iosup, "ExPERT: Pareto-efficient task
      replication on grids and a cloud", 2012, for similar empirical times.
    """

    median: Any
    deviation: Any
    _rules: ClassVar[Any] = dict.fromkeys(("median", "deviation"), {"positive": True})

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.median * jnp.exp(self.deviation * jax.random.normal(key, shape))

    def logpdf(self, x):
        """Returns the log-density at x."""
        standard = self._standard(x)
        scale = np.log(self.deviation * np.sqrt(2 * np.pi))
        return -(standard**2) / 2 - scale - log_times(x)

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        return scipy.special.log_ndtr(-self._standard(x))

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.median * np.exp(-self.deviation * scipy.special.ndtri(q))

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, float]:
        """Returns the maximum-likelihood estimates of median and deviation.

        They have a closed form; censored times use expectation maximisation.
        """
        logs = log_times(sample.times)
        weights = sample.weights
        whole = weights * sample.is_whole
        mean = np.sum(whole * logs) / whole.sum()
        variance = np.sum(whole * (logs - mean) ** 2) / (sample.kept * whole.sum())
        is_censored = ~sample.is_whole
        deviation = max(np.sqrt(variance), _SMALLEST_DEVIATION)
        if is_censored.any():
            after, censored = logs[is_censored], weights[is_censored]
            for _ in range(_ITERATIONS):
                # Moments of a normal number above a bound.
                bound = (after - mean) / deviation
                log_tail = scipy.special.log_ndtr(-bound)
                ratio = np.exp(-(bound**2) / 2 - np.log(2 * np.pi) / 2 - log_tail)
                first = mean + deviation * ratio
                second = deviation**2 * (1 + bound * ratio - ratio**2)
                new = (np.sum(whole * logs) + np.sum(censored * first)) / weights.sum()
                squares = np.sum(whole * (logs - new) ** 2)
                squares += np.sum(censored * (second + (first - new) ** 2))
                change = abs(new - mean)
                mean, deviation = new, np.sqrt(squares / (sample.kept * weights.sum()))
                if change < _CONVERGED * deviation:
                    break
        return np.exp(mean), max(deviation, _SMALLEST_DEVIATION)

    def _standard(self, x):
        return (log_times(x) - np.log(self.median)) / self.deviation
