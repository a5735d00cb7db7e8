"""Gamma times."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import scipy

from jaxwgc.stragglers._independent_delay import IndependentDelay, Rules
from jaxwgc.stragglers._laws._exponential_times import log_times


@dataclasses.dataclass(frozen=True)
class gamma(IndependentDelay):
    """Finish times load * scale * X, with X gamma of a given shape.

    The sum of k exponential times, e.g. of k requests one after the other, has shape k.

    Args:
      scale: Scale of the time at load 1, in seconds; positive. The mean is
        shape * scale.
      shape: Positive. Times are exponential for 1, with lighter tails above: their
        standard deviation is the mean divided by the square root of shape.

    Raises:
      ValueError: If a parameter is not positive.
      TypeError: If a parameter is not a real number.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.gamma(scale=0.5, shape=4.0)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.ones(4))
      >>> times.shape, float(delay.law(1.0).sf(2.0).round(3))
      ((4,), 0.433)

    References:
      Johnson, Kotz, Balakrishnan, "Continuous univariate distributions", volume 1,
      1994, chapter 17.
    """

    scale: float
    shape: float
    shares_programs: ClassVar[bool] = True
    rules: ClassVar[Rules] = {"scale": {"positive": True}, "shape": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.scale * jax.random.gamma(key, self.shape, shape)

    def logpdf(self, x):
        """Returns the log-density at x."""
        standard = np.maximum(x, 0) / self.scale
        constant = scipy.special.gammaln(self.shape) + np.log(self.scale)
        logs = log_times(x) - np.log(self.scale)
        return (self.shape - 1) * logs - standard - constant

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        longer = scipy.special.gammaincc(self.shape, np.maximum(x, 0) / self.scale)
        return log_times(longer)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.scale * scipy.special.gammainccinv(self.shape, q)
