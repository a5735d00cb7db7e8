"""Families of delay models, fitted by maximum likelihood on the host, in float64.

Every estimate is for times of one unit of work, weighted, some of which are known only
to be longer than they say (censored).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxwgc.stragglers._delays import (
    log_normal,
    pareto,
    shifted_exponential,
    weibull,
)
from jaxwgc.stragglers._types import DelayModel

# Times of smaller weight count as not there.
NO_WEIGHT = 1e-9
_SMALLEST_DEVIATION = 1e-6
_ITERATIONS = 100
_CONVERGED = 1e-9


class Sample(NamedTuple):
    """Times to fit.

    Attributes:
      times: their values.
      weights: of each.
      is_whole: whether it is the whole time.
      kept: the share of the times that is not used up by speeds of the workers, each of
        which follows from the same times: the shape has so many fewer.
    """

    times: np.ndarray
    weights: np.ndarray
    is_whole: np.ndarray
    kept: float = 1.0


class Family(NamedTuple):
    """A family of laws of positive times.

    Attributes:
      delay: the constructor of its delay models, whose parameters these are.
      parameters: their names.
      estimate: the parameters of largest likelihood, `estimate(sample)`.
      log_density: `log_density(times, parameters)`.
      log_survival: `log_survival(times, parameters)`, of a longer time.
      has_least_time: whether the first parameter is the end of the law, which the
        likelihood takes to the least time and is not smooth in.
    """

    delay: Callable[..., DelayModel]
    parameters: tuple[str, str]
    estimate: Callable[[Sample], tuple[float, float]]
    log_density: Callable[[np.ndarray, tuple[float, float]], np.ndarray]
    log_survival: Callable[[np.ndarray, tuple[float, float]], np.ndarray]
    has_least_time: bool

    @property
    def name(self) -> str:
        """The name of the constructor."""
        return self.delay.__name__


def _least_time(sample):
    counts = sample.is_whole & (sample.weights > NO_WEIGHT)
    return np.min(sample.times, where=counts, initial=np.inf)


def _rate(sample, excess):
    """Of the exponential times beyond the least one."""
    total = np.sum(sample.weights * np.maximum(excess, 0))
    count = sample.kept * np.sum(sample.weights * sample.is_whole)
    return count / max(total, 1e-300)


def _exponential(sample):
    shift = _least_time(sample)
    return shift, _rate(sample, sample.times - shift)


def _exponential_log_density(times, parameters):
    shift, rate = parameters
    excess = times - shift
    density = np.log(rate) - rate * np.maximum(excess, 0)
    return np.where(excess >= 0, density, -np.inf)


def _exponential_log_survival(times, parameters):
    shift, rate = parameters
    return -rate * np.maximum(times - shift, 0)


def _logs(times):
    return np.log(np.maximum(times, 1e-300))


def _pareto(sample):
    scale = _least_time(sample)
    return scale, _rate(sample, _logs(sample.times) - np.log(scale))


def _pareto_log_density(times, parameters):
    # The logarithm of the time is exponential.
    logs = _logs(times)
    end = np.log(parameters[0]), parameters[1]
    return _exponential_log_density(logs, end) - logs


def _pareto_log_survival(times, parameters):
    end = np.log(parameters[0]), parameters[1]
    return _exponential_log_survival(_logs(times), end)


def _weibull(sample):
    """Newton's method for the shape, with the scale in closed form."""
    logs = _logs(sample.times)
    whole = sample.weights * sample.is_whole
    count = whole.sum()
    mean = np.sum(whole * logs) / count
    deviation = np.sqrt(np.sum(whole * (logs - mean) ** 2) / count)
    shape = 1.28 / max(deviation, _SMALLEST_DEVIATION)
    counts = sample.weights > NO_WEIGHT
    weights, logs = sample.weights[counts], logs[counts]
    largest = logs.max()
    for _ in range(_ITERATIONS):
        powers = weights * np.exp(shape * (logs - largest))
        total, first, second = (np.sum(powers * logs**order) for order in range(3))
        value = first / total - sample.kept / shape - mean
        slope = second / total - (first / total) ** 2 + sample.kept / shape**2
        step = value / slope
        # At most by half, so that it stays positive.
        shape -= min(step, shape / 2)
        if abs(step) < _CONVERGED * shape:
            break
    total = np.sum(weights * np.exp(shape * (logs - largest)))
    return np.exp(largest + np.log(total / count) / shape), shape


def _weibull_log_density(times, parameters):
    scale, shape = parameters
    logs = _logs(times) - np.log(scale)
    power = np.exp(np.minimum(shape * logs, 700))
    return np.log(shape / scale) + (shape - 1) * logs - power


def _weibull_log_survival(times, parameters):
    scale, shape = parameters
    logs = _logs(times) - np.log(scale)
    return -np.exp(np.minimum(shape * logs, 700))


def _log_normal(sample):
    """Closed form; with censored times by expectation and maximisation."""
    from scipy import special

    logs = _logs(sample.times)
    weights = sample.weights
    whole = weights * sample.is_whole
    mean = np.sum(whole * logs) / whole.sum()
    variance = np.sum(whole * (logs - mean) ** 2) / (sample.kept * whole.sum())
    is_censored = ~sample.is_whole
    deviation = max(np.sqrt(variance), _SMALLEST_DEVIATION)
    if is_censored.any():
        after, own = logs[is_censored], weights[is_censored]
        for _ in range(_ITERATIONS):
            # Moments of a normal number that is known to be larger.
            bound = (after - mean) / deviation
            log_tail = special.log_ndtr(-bound)
            ratio = np.exp(-(bound**2) / 2 - np.log(2 * np.pi) / 2 - log_tail)
            first = mean + deviation * ratio
            second = deviation**2 * (1 + bound * ratio - ratio**2)
            new = (np.sum(whole * logs) + np.sum(own * first)) / weights.sum()
            squares = np.sum(whole * (logs - new) ** 2)
            squares += np.sum(own * (second + (first - new) ** 2))
            change = abs(new - mean)
            mean, deviation = new, np.sqrt(squares / (sample.kept * weights.sum()))
            if change < _CONVERGED * deviation:
                break
    return np.exp(mean), max(deviation, _SMALLEST_DEVIATION)


def _log_normal_log_density(times, parameters):
    median, deviation = parameters
    logs = _logs(times)
    standard = (logs - np.log(median)) / deviation
    return -(standard**2) / 2 - np.log(deviation * np.sqrt(2 * np.pi)) - logs


def _log_normal_log_survival(times, parameters):
    from scipy import special

    median, deviation = parameters
    return special.log_ndtr((np.log(median) - _logs(times)) / deviation)


FAMILIES = (
    Family(
        shifted_exponential,
        ("shift", "rate"),
        _exponential,
        _exponential_log_density,
        _exponential_log_survival,
        has_least_time=True,
    ),
    Family(
        pareto,
        ("scale", "shape"),
        _pareto,
        _pareto_log_density,
        _pareto_log_survival,
        has_least_time=True,
    ),
    Family(
        weibull,
        ("scale", "shape"),
        _weibull,
        _weibull_log_density,
        _weibull_log_survival,
        has_least_time=False,
    ),
    Family(
        log_normal,
        ("median", "deviation"),
        _log_normal,
        _log_normal_log_density,
        _log_normal_log_survival,
        has_least_time=False,
    ),
)
