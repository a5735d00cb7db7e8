"""Weibull times."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jaxwgc.stragglers._distributions import Sample
from jaxwgc.stragglers._independent_delay import IndependentDelay, Rules
from jaxwgc.stragglers._laws._exponential_times import exponential_time, log_times

_SMALLEST_DEVIATION = 1e-6
_ITERATIONS = 100
_CONVERGED = 1e-9


@dataclasses.dataclass(frozen=True)
class weibull(IndependentDelay):
    """Finish times load * scale * X, with X Weibull: P(X > t) = exp(-(t ** shape)).

    Args:
      scale: Scale of the time at load 1, in seconds; positive. 63% of times are below.
      shape: Positive. Times are exponential for 1, with heavier tails below and lighter
        tails above.

    Raises:
      ValueError: If a parameter is not positive.
      TypeError: If a parameter is not a real number.

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

    scale: float
    shape: float
    shares_programs: ClassVar[bool] = True
    rules: ClassVar[Rules] = {"scale": {"positive": True}, "shape": {"positive": True}}

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
    def estimate(
        cls, sample: Sample, start: tuple[float, ...] | None = None
    ) -> tuple[float, ...]:
        """Returns the maximum-likelihood estimates of scale and shape.

        The shape is found by Newton's method, with the scale in closed form.
        """
        logs = log_times(sample.times)
        whole = sample.weights * sample.is_whole
        count = whole.sum()
        mean = np.sum(whole * logs) / count
        deviation = np.sqrt(np.sum(whole * (logs - mean) ** 2) / count)
        shape = 1.28 / max(deviation, _SMALLEST_DEVIATION)
        weights = sample.weights[sample.counts]
        logs = logs[sample.counts]
        largest = logs.max()
        for _ in range(_ITERATIONS):
            powers = weights * np.exp(shape * (logs - largest))
            total = np.sum(powers)
            first_moment = np.sum(powers * logs) / total
            second_moment = np.sum(powers * logs**2) / total
            value = first_moment - sample.kept / shape - mean
            slope = second_moment - first_moment**2 + sample.kept / shape**2
            step = value / slope
            # The shape is at most halved, so that it stays positive.
            shape -= min(step, shape / 2)
            if abs(step) < _CONVERGED * shape:
                break
        total = np.sum(weights * np.exp(shape * (logs - largest)))
        log_scale = largest + np.log(total / count) / shape
        return np.exp(log_scale), shape
