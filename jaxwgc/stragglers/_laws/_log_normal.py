"""Log-normal times."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxwgc.stragglers._distributions import Sample
from jaxwgc.stragglers._independent_delay import IndependentDelay, Rules
from jaxwgc.stragglers._laws._exponential_times import log_times

_SMALLEST_DEVIATION = 1e-6
_ITERATIONS = 100
_CONVERGED = 1e-9


@dataclasses.dataclass(frozen=True)
class log_normal(IndependentDelay):
    """Finish times load * median * exp(deviation * X), with X standard normal.

    Args:
      median: Median of the time at load 1, in seconds; positive.
      deviation: Standard deviation of the logarithm of times; positive.

    Raises:
      ValueError: If a parameter is not positive.
      TypeError: If a parameter is not a real number.

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

    median: float
    deviation: float
    shares_programs: ClassVar[bool] = True
    rules: ClassVar[Rules] = dict.fromkeys(("median", "deviation"), {"positive": True})

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
    def estimate(
        cls, sample: Sample, start: tuple[float, ...] | None = None
    ) -> tuple[float, ...]:
        """Returns the maximum-likelihood estimates of median and deviation.

        They have a closed form; censored times use expectation maximisation.
        """
        logs = log_times(sample.times)
        is_censored = ~sample.is_whole
        after = logs[is_censored]
        censored = sample.weights[is_censored]
        whole = sample.weights * sample.is_whole
        total = sample.weights.sum()
        mean = np.average(logs, weights=whole)
        variance = np.average((logs - mean) ** 2, weights=whole)
        deviation = max(np.sqrt(variance), _SMALLEST_DEVIATION)
        for _ in range(_ITERATIONS):
            # Moments of a normal variable above the bound.
            bound = (after - mean) / deviation
            log_tail = scipy.special.log_ndtr(-bound)
            ratio = np.exp(-(bound**2) / 2 - np.log(2 * np.pi) / 2 - log_tail)
            first = mean + deviation * ratio
            second = deviation**2 * (1 + bound * ratio - ratio**2)
            new = (whole @ logs + censored @ first) / total
            squares = whole @ (logs - new) ** 2
            squares += censored @ (second + (first - new) ** 2)
            deviation = np.sqrt(squares / (sample.kept * total))
            deviation = max(deviation, _SMALLEST_DEVIATION)
            change = abs(new - mean)
            mean = new
            if change < _CONVERGED * deviation:
                break
        return np.exp(mean), deviation

    def _standard(self, x):
        return (log_times(x) - np.log(self.median)) / self.deviation
