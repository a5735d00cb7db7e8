"""Maximum-likelihood estimates of delay laws: closed forms, or a search."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.stragglers._independent_delay import IndependentDelay, Sample

# Starting points of the search: multiples of 1 and of the median time for a parameter
# without an upper bound, and shares of the interval for one with two bounds.
_FACTORS = (0.25, 1.0, 4.0)
_SHARES = (0.1, 0.5, 0.9)
# Maximum number of starting points whose cost is computed to choose the best.
_MOST_STARTS = 729
# Size of the first simplex: from a starting point, or estimates for similar times.
_STEP = 0.3
_SMALL_STEP = 0.02
# Maximum number of cost evaluations per fitted parameter.
_EVALUATIONS = 150
# Probabilities of the quantiles over which the Fisher information on the scale is
# averaged, and the changes of log-times for its finite differences.
_LEVELS = (np.arange(40) + 0.5) / 40
_CHANGES_OF_SCALE = (-0.01, 0.0, 0.01)
# Tolerances of parameters and of the mean log-likelihood, which end a search.
_CLOSE = 1e-4
_CLOSE_COST = 1e-7
# Cost of parameters under which a measured time is impossible.
IMPOSSIBLE = 1e10


class _Axis(NamedTuple):
    """Range of a parameter, mapped to the real line for the search.

    Attributes:
      low: Lower bound, -infinity if there is none.
      high: Upper bound, infinity if there is none.
    """

    low: float
    high: float

    @classmethod
    def of(cls, rule: Mapping[str, float]) -> "_Axis":
        """Returns the range that a rule of `IndependentDelay.rules` allows."""
        low = 0.0 if rule.get("positive") else rule.get("minimum", -math.inf)
        high = rule.get("maximum", math.inf)
        return cls(low=float(low), high=float(high))

    def to_real(self, number: float) -> float:
        """Maps a parameter to the real line."""
        if math.isinf(self.low):
            return number
        if math.isinf(self.high):
            return math.log(max(number - self.low, 1e-12))
        share = (number - self.low) / (self.high - self.low)
        return float(scipy.special.logit(min(max(share, 1e-6), 1 - 1e-6)))

    def from_real(self, place: float) -> float:
        """Maps a number on the real line to the parameter."""
        if math.isinf(self.low):
            return place
        if math.isinf(self.high):
            return self.low + math.exp(min(place, 700.0))
        return self.low + (self.high - self.low) * float(scipy.special.expit(place))

    def starts(self, median: float) -> list[float]:
        """Returns values of the parameter from which the search starts."""
        sizes = [*_FACTORS, *(factor * median for factor in _FACTORS)]
        if math.isinf(self.low):
            return [min(size, self.high) for size in (0.0, *sizes)]
        if math.isinf(self.high):
            return [self.low + size for size in sizes]
        return [self.low + share * (self.high - self.low) for share in _SHARES]


def maximum_likelihood(
    family: type[IndependentDelay], sample: Sample, start: tuple[float, ...] | None
) -> tuple[float, ...]:
    """Computes maximum-likelihood estimates of the fields of a law.

    If `family.estimate` has no closed form, the likelihood is maximised by the method
    of Nelder and Mead. If speeds of the workers were estimated from the same times, the
    adjusted profile likelihood takes the place of the likelihood.

    Args:
      family: Subclass of `IndependentDelay`. The estimate of its field `least_time`, if
        there is one, is the minimum time. Other fields are estimated from longer times.
      sample: Times, weights, and which times are complete.
      start: Estimates for similar times, where the search begins. None to begin at the
        best of several points.

    References:
      Nelder, Mead, "A simplex method for function minimization", 1965; Cox, Reid,
      "Parameter orthogonality and approximate conditional inference", 1987, for the
      adjustment.
    """
    closed_form = family.estimate(sample)
    if closed_form is not None:
        return closed_form
    names = family.field_names()
    known = {}
    is_used = sample.counts
    if family.least_time is not None:
        known = {family.least_time: sample.least_time}
        # The shortest time is left out, because its density may be infinite.
        is_used = is_used & (sample.times > sample.least_time)
    sample = Sample(
        times=sample.times[is_used],
        weights=sample.weights[is_used],
        is_whole=sample.is_whole[is_used],
        kept=sample.kept,
    )
    searched = [name for name in names if name not in known]
    axes = {name: _Axis.of(family.rules.get(name, {})) for name in searched}

    def law_at(point):
        fields = dict(known)
        for name, place in zip(searched, point, strict=True):
            fields[name] = float(axes[name].from_real(place))
        return family(**fields)

    def cost(point):
        try:
            law = law_at(point)
        except ValueError:
            return IMPOSSIBLE
        likelihood = _log_likelihood(law, sample)
        return -likelihood if np.isfinite(likelihood) else IMPOSSIBLE

    if start is None:
        step = _STEP
        first = min(_points(list(axes.values()), sample), key=cost)
    else:
        step = _SMALL_STEP
        estimates = dict(zip(names, start, strict=True))
        first = [axes[name].to_real(estimates[name]) for name in searched]
    steps = np.full(len(first), step)
    law = law_at(minimum(cost, np.asarray(first), steps, _EVALUATIONS * len(first)))
    return tuple(float(getattr(law, name)) for name in names)


def minimum(
    cost: Callable[[np.ndarray], float],
    first: np.ndarray,
    steps: np.ndarray,
    num_evaluations: int,
    bounds: Sequence[tuple[float, float]] | None = None,
) -> np.ndarray:
    """Returns the point that minimises a cost, by the Nelder-Mead method.

    Args:
      cost: Function of a point.
      first: First point, and corner of the first simplex.
      steps: Steps to the other corners, one along each axis.
      num_evaluations: Maximum number of evaluations.
      bounds: Lower and upper bound of each number, if there are any.
    """
    if not len(first):
        return first
    options = {
        "initial_simplex": np.vstack([first, first + np.diag(steps)]),
        "maxfev": num_evaluations,
        "xatol": _CLOSE,
        "fatol": _CLOSE_COST,
    }
    return scipy.optimize.minimize(
        cost, first, method="Nelder-Mead", bounds=bounds, options=options
    ).x


def _points(axes: list[_Axis], sample: Sample) -> Iterator[list[float]]:
    """Yields starting points of the search, with parameters on the real line."""
    median = float(np.median(sample.times))
    starts = [axis.starts(median) for axis in axes]
    num_starts = math.prod(len(numbers) for numbers in starts)
    step = max(num_starts // _MOST_STARTS, 1)
    for numbers in itertools.islice(itertools.product(*starts), 0, None, step):
        yield [axis.to_real(number) for axis, number in zip(axes, numbers)]


def _log_likelihood(law: IndependentDelay, sample: Sample) -> float:
    """Computes the mean log-likelihood of a law, adjusted for estimated speeds."""
    times = sample.times
    weights = sample.weights
    whole = sample.is_whole
    count = np.sum(weights * whole)
    with np.errstate(all="ignore"):
        total = weights[whole] @ law.logpdf(times[whole])
        if not whole.all():
            total += weights[~whole] @ law.logsf(times[~whole])
        mean = total / count
        if sample.kept < 1:
            mean -= (1 - sample.kept) * np.log(_information_on_scale(law)) / 2
    return float(mean)


def _information_on_scale(law: IndependentDelay) -> float:
    """Computes the Fisher information of a time on its log-scale, up to a factor.

    The information is minus the mean over quantiles of the second difference of the
    log-density. The factor is the square of the step.
    """
    times = law.isf(_LEVELS)
    changed = [law.logpdf(times * math.exp(change)) for change in _CHANGES_OF_SCALE]
    return -float(np.mean(np.diff(changed, 2, axis=0)))
