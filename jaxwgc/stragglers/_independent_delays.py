"""Delay models with independent times, proportional to the load."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxwgc import _validation
from jaxwgc.stragglers._distributions import Distribution, Moved, Sample
from jaxwgc.stragglers._models import DelayModel, loads_of

_SMALLEST_DEVIATION = 1e-6
_ITERATIONS = 100
_CONVERGED = 1e-9


@dataclasses.dataclass(frozen=True)
class IndependentDelay(DelayModel, Distribution):
    """Base class of independent delays; also the distribution of the time at load 1.

    To add one, write a frozen dataclass with `draw` and `isf`. For use in `fit_delays`,
    also define `logsf`, `logpdf` and `estimate`, otherwise `sf`.

    Attributes:
      has_least_time: Whether the first field is the lower end of the distribution. The
        likelihood estimates it by the minimum time, and is not smooth in it.
    """

    has_least_time: ClassVar[bool] = False
    # Bounds of the fields: keyword arguments of `_validation.check_number`.
    _rules: ClassVar[Any] = {}

    def __post_init__(self):
        _validation.check_fields(self, **self._rules)

    @abc.abstractmethod
    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws times at load 1."""

    def sample(self, key, state, loads):
        """Draws the times of a round, (num_workers,)."""
        loads = loads_of(loads)
        times = self.draw(key, loads.shape)
        # Zero load takes no time, even if the worker is lost (infinite time at load 1).
        return jnp.where(loads == 0, 0, loads * times), state

    def law(self, load: float) -> Distribution:
        """Returns the distribution of the time at a load."""
        return Moved(self, 0.0, load)

    def logsf(self, x: Any) -> Any:
        """Returns the log-probability of a time above x."""
        raise NotImplementedError(f"logsf is not defined by {self!r}")

    def sf(self, x: Any) -> Any:
        """Returns the probability of a time above x."""
        return np.exp(self.logsf(np.asarray(x)))


def _log_times(times: Any) -> np.ndarray:
    """Returns logarithms of times, with a finite bound for times of at most zero."""
    return np.log(np.maximum(times, 1e-300))


def _exponential_time(q: Any) -> np.ndarray:
    """Returns the standard exponential time that is exceeded with probability q."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log(q)


@dataclasses.dataclass(frozen=True)
class shifted_exponential(IndependentDelay):
    """Finish times load * (shift + X / rate), with X standard exponential.

    Args:
      shift: Minimum time at load 1, in seconds; at least 0.
      rate: Loads per second beyond the shift; positive.

    Raises:
      ValueError, TypeError: If a parameter is invalid.

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
        """Returns the log-density at x."""
        return _log_density(x - self.shift, self.rate)

    def logsf(self, x):
        """Returns the log-probability of a time above x."""
        return -self.rate * np.maximum(x - self.shift, 0)

    def isf(self, q):
        """Returns the time that is exceeded with probability q."""
        return self.shift + _exponential_time(q) / self.rate

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, float]:
        """Returns the maximum-likelihood estimates of shift and rate."""
        shift = _least_time(sample)
        return shift, _rate(sample, sample.times - shift)


@dataclasses.dataclass(frozen=True)
class pareto(IndependentDelay):
    """Finish times load * scale * X, X Pareto: P(X > t) = t ** -shape for t at least 1.

    Args:
      scale: Minimum time at load 1, in seconds; positive.
      shape: Tail index; positive. Means are finite above 1, variances above 2.

    Raises:
      ValueError, TypeError: If a parameter is invalid.

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
    def estimate(cls, sample: Sample) -> tuple[float, float]:
        """Returns the maximum-likelihood estimates of scale and shape."""
        scale = _least_time(sample)
        return scale, _rate(sample, _log_times(sample.times) - np.log(scale))


def _log_density(excess, rate):
    density = np.log(rate) - rate * np.maximum(excess, 0)
    return np.where(excess >= 0, density, -np.inf)


def _least_time(sample):
    return np.min(sample.times, where=sample.is_whole & sample.counts, initial=np.inf)


def _rate(sample, excess):
    """Estimates the rate of exponential times from their excess over the minimum."""
    total = np.sum(sample.weights * np.maximum(excess, 0))
    count = sample.kept * np.sum(sample.weights * sample.is_whole)
    return count / max(total, 1e-300)


@dataclasses.dataclass(frozen=True)
class weibull(IndependentDelay):
    """Finish times load * scale * X, with X Weibull: P(X > t) = exp(-(t ** shape)).

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
    def estimate(cls, sample: Sample) -> tuple[float, float]:
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
            total, first, second = (np.sum(powers * logs**order) for order in range(3))
            value = first / total - sample.kept / shape - mean
            slope = second / total - (first / total) ** 2 + sample.kept / shape**2
            step = value / slope
            # The shape is at most halved, so that it stays positive.
            shape -= min(step, shape / 2)
            if abs(step) < _CONVERGED * shape:
                break
        total = np.sum(weights * np.exp(shape * (logs - largest)))
        return np.exp(largest + np.log(total / count) / shape), shape


@dataclasses.dataclass(frozen=True)
class log_normal(IndependentDelay):
    """Finish times load * median * exp(deviation * X), with X standard normal.

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
        return -(standard**2) / 2 - scale - _log_times(x)

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
        logs = _log_times(sample.times)
        is_censored = ~sample.is_whole
        after = logs[is_censored]
        censored = sample.weights[is_censored]
        whole = sample.weights * sample.is_whole
        total = sample.weights.sum()
        mean = np.average(logs, weights=whole)
        variance = np.average((logs - mean) ** 2, weights=whole)
        deviation = max(np.sqrt(variance), _SMALLEST_DEVIATION)
        for _ in range(_ITERATIONS):
            # Moments of a normal variable, given that it is above the bound.
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
        return (_log_times(x) - np.log(self.median)) / self.deviation


@dataclasses.dataclass(frozen=True)
class bernoulli_slowdown(IndependentDelay):
    """Finish times load * time, multiplied by `slowdown` with a given probability.

    Args:
      probability: Probability that a worker is slow, independently; from 0 to 1.
      slowdown: Factor of a slow worker, at least 1; infinity for a lost worker.
      time: Time at load 1, in seconds; positive.

    Raises:
      ValueError, TypeError: If a parameter is invalid.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.bernoulli_slowdown(probability=1.0, slowdown=5.0)
      >>> delay.sample(jax.random.key(0), (), jax.numpy.ones(3))[0]
      Array([5., 5., 5.], dtype=float32)

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for flexible straggler
      mitigation in distributed learning", 2019 (independent stragglers).
    """

    probability: Any
    slowdown: Any
    time: Any = 1.0
    _rules: ClassVar[Any] = {
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
