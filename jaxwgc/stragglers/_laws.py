"""Delay laws: independent times, proportional to the load."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxwgc._common.pytrees import register
from jaxwgc.stragglers._independent_delay import IndependentDelay, Rules, Sample

# Smallest estimate of the standard deviation of the logarithms of times.
_SMALLEST_DEVIATION = 1e-6
# Maximum number of Newton iterations, and relative change that ends iterations.
_ITERATIONS = 100
_CONVERGED = 1e-9


def _log_times(times: float | np.ndarray) -> np.ndarray:
    """Computes logarithms of times; zero and negative times count as 1e-300."""
    return np.log(np.maximum(times, 1e-300))


def _exponential_time(q: float | np.ndarray) -> np.ndarray:
    """Computes the standard exponential time that is exceeded with probability q."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log(q)


def _log_density(excess: float | np.ndarray, rate: float) -> np.ndarray:
    """Computes the log-density of exponential times, -infinity below zero."""
    density = np.log(rate) - rate * np.maximum(excess, 0)
    return np.where(excess >= 0, density, -np.inf)


def _rate_of(sample: Sample, excess: np.ndarray) -> float:
    """Estimates the rate of exponential times from their excess over the minimum."""
    total = np.sum(sample.weights * np.maximum(excess, 0))
    count = sample.kept * np.sum(sample.weights * sample.is_whole)
    return count / max(total, 1e-300)


@register
@dataclasses.dataclass(frozen=True)
class shifted_exponential(IndependentDelay):
    """Delay model with shifted exponential times, proportional to the load.

    Times are load * (shift + X / rate), with X standard exponential.

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
    rules: ClassVar[Rules] = {"shift": {"minimum": 0}, "rate": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.shift + jax.random.exponential(key, shape) / self.rate

    def logpdf(self, x):
        """Returns the log-density at x."""
        return _log_density(x - self.shift, self.rate)

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        return -self.rate * np.maximum(x - self.shift, 0)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.shift + _exponential_time(q) / self.rate

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, ...]:
        """Returns the maximum-likelihood estimates of shift and rate."""
        shift = sample.least_time
        return shift, _rate_of(sample, sample.times - shift)


@register
@dataclasses.dataclass(frozen=True)
class pareto(IndependentDelay):
    """Delay model with heavy-tailed Pareto times, proportional to the load.

    Times are load * scale * X with P(X > t) = t ** -shape for t at least 1.

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
    rules: ClassVar[Rules] = {"scale": {"positive": True}, "shape": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.scale * jax.random.pareto(key, self.shape, shape)

    def logpdf(self, x):
        """Returns the log-density at x."""
        # The logarithm of a Pareto time has a shifted exponential distribution.
        logs = _log_times(x)
        return _log_density(logs - np.log(self.scale), self.shape) - logs

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        return -self.shape * np.maximum(_log_times(x) - np.log(self.scale), 0)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.scale * np.exp(_exponential_time(q) / self.shape)

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, ...]:
        """Returns the maximum-likelihood estimates of scale and shape."""
        scale = sample.least_time
        return scale, _rate_of(sample, _log_times(sample.times) - np.log(scale))


@register
@dataclasses.dataclass(frozen=True)
class weibull(IndependentDelay):
    """Delay model with Weibull times, proportional to the load.

    Times are load * scale * X with P(X > t) = exp(-(t ** shape)).

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
    rules: ClassVar[Rules] = {"scale": {"positive": True}, "shape": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return jax.random.weibull_min(key, self.scale, self.shape, shape)

    def logpdf(self, x):
        """Returns the log-density at x."""
        logs = _log_times(x) - np.log(self.scale)
        return np.log(self.shape / self.scale) + (self.shape - 1) * logs + self.logsf(x)

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        logs = _log_times(x) - np.log(self.scale)
        return -np.exp(np.minimum(self.shape * logs, 700))

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.scale * _exponential_time(q) ** (1 / self.shape)

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, ...]:
        """Returns the maximum-likelihood estimates of scale and shape.

        The shape is found by Newton's method, with the scale in closed form.
        """
        logs = _log_times(sample.times)
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


@register
@dataclasses.dataclass(frozen=True)
class log_normal(IndependentDelay):
    """Delay model with log-normal times, proportional to the load.

    Times are load * median * exp(deviation * X), with X standard normal.

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
    rules: ClassVar[Rules] = {
        "median": {"positive": True},
        "deviation": {"positive": True},
    }

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.median * jnp.exp(self.deviation * jax.random.normal(key, shape))

    def logpdf(self, x):
        """Returns the log-density at x."""
        standard = self._standard(x)
        scale = np.log(self.deviation * np.sqrt(2 * np.pi))
        return -(standard**2) / 2 - scale - _log_times(x)

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        return scipy.special.log_ndtr(-self._standard(x))

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.median * np.exp(-self.deviation * scipy.special.ndtri(q))

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, ...] | None:
        """Returns the maximum-likelihood estimates of median and deviation.

        None if some times are censored: the estimates then have no closed form.
        """
        if not sample.is_whole.all():
            return None
        logs = _log_times(sample.times)
        mean = np.average(logs, weights=sample.weights)
        variance = np.average((logs - mean) ** 2, weights=sample.weights)
        deviation = np.sqrt(variance / sample.kept)
        return np.exp(mean), max(deviation, _SMALLEST_DEVIATION)

    def _standard(self, x):
        return (_log_times(x) - np.log(self.median)) / self.deviation


@register
@dataclasses.dataclass(frozen=True)
class gamma(IndependentDelay):
    """Delay model with gamma times, proportional to the load.

    Times are load * scale * X, with X gamma of the given shape. The sum of k
    exponential times, e.g. of k requests one after the other, has shape k.

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
    rules: ClassVar[Rules] = {"scale": {"positive": True}, "shape": {"positive": True}}

    def draw(self, key, shape):
        """Draws times at load 1."""
        return self.scale * jax.random.gamma(key, self.shape, shape)

    def logpdf(self, x):
        """Returns the log-density at x."""
        standard = np.maximum(x, 0) / self.scale
        constant = scipy.special.gammaln(self.shape) + np.log(self.scale)
        logs = _log_times(x) - np.log(self.scale)
        return (self.shape - 1) * logs - standard - constant

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        longer = scipy.special.gammaincc(self.shape, np.maximum(x, 0) / self.scale)
        return _log_times(longer)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.scale * scipy.special.gammainccinv(self.shape, q)

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, ...] | None:
        """Returns the maximum-likelihood estimates of scale and shape.

        The shape is the zero of one function, with the scale in closed form. None if
        some times are censored or 0.
        """
        times = sample.times[sample.counts]
        weights = sample.weights[sample.counts]
        if not sample.is_whole.all() or times.min() <= 0:
            return None
        mean = np.average(times, weights=weights)
        spread = np.log(mean) - np.average(np.log(times), weights=weights)
        spread = max(spread, _SMALLEST_DEVIATION**2 / 2)

        def excess(shape):
            # Cox-Reid adjustment for estimated speeds: the derivative of half the
            # logarithm of the Fisher information on the log-scale, which is the shape.
            adjustment = (1 - sample.kept) / (2 * shape)
            return np.log(shape) - scipy.special.digamma(shape) - adjustment - spread

        # log(s) - digamma(s) is between 1 / (2s) and 1 / s, which bounds the zero. The
        # bounds are wider by a factor of 2, because of rounding.
        low = sample.kept / (4 * spread)
        shape = scipy.optimize.brentq(excess, low, 2 / spread)
        return mean / shape, shape


@register
@dataclasses.dataclass(frozen=True)
class bernoulli_slowdown(IndependentDelay):
    """Delay model in which workers are slow at random, by a fixed factor.

    Times are load * time, multiplied by `slowdown` with the given probability.

    Args:
      probability: Probability that a worker is slow, independently; from 0 to 1.
      slowdown: Factor of a slow worker, at least 1; infinity for a lost worker.
      time: Time at load 1, in seconds; positive.

    Raises:
      ValueError: If probability is not from 0 to 1, slowdown is below 1, or time is not
        positive.
      TypeError: If a parameter is not a real number.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.bernoulli_slowdown(probability=1.0, slowdown=5.0)
      >>> delay.sample(jax.random.key(0), (), jax.numpy.ones(3))[0]
      Array([5., 5., 5.], dtype=float32)

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for flexible straggler
      mitigation in distributed learning", 2019 (independent stragglers).
    """

    probability: float
    slowdown: float
    time: float = 1.0
    rules: ClassVar[Rules] = {
        "probability": {"minimum": 0, "maximum": 1},
        "slowdown": {"minimum": 1},
        "time": {"positive": True},
    }

    def draw(self, key, shape):
        """Draws times at load 1."""
        slow = jax.random.bernoulli(key, self.probability, shape)
        return self.time * jnp.where(slow, self.slowdown, 1.0)

    def sf(self, x):
        """Returns the probability of a time above x."""
        is_before = np.asarray(x) < self.time * self.slowdown
        return np.where(np.asarray(x) < self.time, 1.0, is_before * self.probability)

    def isf(self, q):
        """Returns the smallest time that is exceeded with probability at most q."""
        is_slow = np.asarray(q) < self.probability
        return self.time * np.where(is_slow, self.slowdown, 1.0)
