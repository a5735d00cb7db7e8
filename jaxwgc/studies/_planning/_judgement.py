"""Statistics of the choices of a plan: step times, decoding errors and bias."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import fastest
from jaxwgc.studies._planning._choice import BUSY, Choice, Estimate, RoundStatistics
from jaxwgc.studies._planning._convergence import StaleDescent, Weights, leave_one_out
from jaxwgc.studies._planning._simulated_rounds import Drawn, simulate

LEVEL = 0.9
# z-score above which a persistent deviation counts as bias, not as noise.
_DEVIATIONS = 3.0
# Accepted probability that chance, in the few rounds of a trace, counts as bias. It is
# small, since many choices of many plans are tested.
_CHANCE = 1e-6
# Accepted probability that a trace hides a larger bias than is assumed with stalls.
_UNSEEN = 0.05
# Lag-1 autocorrelation above which a deviation is treated as bias.
_MOST_CORRELATED = 0.98
# Mean squared deviation that counts as rounding, relative to mean squared weights.
_ROUNDING = 1e-12


def judge(choices: Sequence[Choice], drawn: Drawn) -> list[RoundStatistics]:
    """Computes statistics of choices in closed form, otherwise by simulation."""
    times = [_closed_form(choice, drawn.delay) for choice in choices]
    is_known = [own and choice.is_exact for choice, own in zip(choices, times)]
    unknown = np.flatnonzero(~np.array(is_known, bool))
    rounds, descents = simulate(choices, unknown, drawn)
    return [_statistics(*each, drawn) for each in zip(choices, times, rounds, descents)]


def _statistics(choice, times, rounds, descent, drawn):
    """Computes statistics of a choice; `rounds` is None if a closed form exists."""
    num_means = 1 + drawn.num_runs
    error = np.zeros(num_means)
    weights = Weights(*np.zeros((5, num_means)))
    if times is None:
        seconds = leave_one_out(rounds.elapsed.mean(1))
        quantile = _quantile(rounds.elapsed)
    else:
        seconds = np.full(num_means, times[0])
        quantile = Estimate(times[1], 0.0)
    if rounds is None:
        answers = choice.wait.num_required
        if not choice.code.allows_requests:
            answers *= choice.code.messages_per_worker
    else:
        answers = np.mean(rounds.num_answers + choice.memory * rounds.num_late)
        if not choice.is_exact:
            error = leave_one_out(rounds.error.mean(1))
            weights = _weights(choice, rounds, drawn)
    if descent is not None:
        descent = StaleDescent(*map(leave_one_out, descent))
    return RoundStatistics(
        seconds,
        quantile,
        is_closed_form=times is not None,
        num_answers=float(answers),
        error=error,
        weights=weights,
        descent=descent,
    )


def _weights(choice, rounds, drawn):
    """Computes moments of effective weights, from all groups and without one group."""
    target = np.asarray(choice.code.target, np.float64)
    weights = rounds.effective_weights
    scale = weights @ target / (target @ target)
    deviations = weights - scale[..., None] * target
    deviations /= math.sqrt(np.mean(target**2))
    num_runs = drawn.num_runs if drawn.has_state else 1
    runs = deviations.reshape(num_runs, -1, len(target))
    noise = _persistent_noise(runs)
    bias = max(
        _mean_square_bias(runs, noise, drawn.num_measured),
        _bias_of_lost_parts(choice.code, weights, noise, drawn),
    )
    lasting = noise.share
    # Lateness persists between rounds only if the delay has a state or late workers
    # stay busy.
    if not drawn.has_state and choice.late != BUSY:
        lasting = 0.0
    scale, square, deviation = (
        leave_one_out(values.mean(1))
        for values in (scale, scale**2, np.mean(deviations**2, axis=2))
    )
    if drawn.has_stalls:
        # The bias that the rounds of a trace may hide by chance is added.
        hidden = scipy.special.chdtri(len(target), _UNSEEN) / len(target)
        bias += float(deviation[0]) * hidden / drawn.num_measured
    # A scale of 0 gives NaN: without decoded gradients, the target is never reached.
    size = np.where(scale > 0, scale, np.nan) ** 2
    return Weights(
        noise=np.maximum(deviation - bias, 0) / size,
        bias=np.minimum(bias, deviation) / size,
        scale_variance=np.maximum(square - scale**2, 0) / size,
        lasting=np.full_like(scale, lasting),
        correlation=np.full_like(scale, noise.correlation),
    )


def _closed_form(choice, delay):
    """Returns the mean and the quantile of the time in closed form, or None."""
    wait = choice.wait
    loads = np.asarray(choice.code.loads, np.float64)
    is_busy = choice.late == BUSY and wait != fastest(len(loads))
    law = None if is_busy or np.ptp(loads) else delay.law(float(loads[0]))
    if law is None:
        return None
    mean = wait.expected_time(law, len(loads))
    quantile = wait.time_quantile(law, len(loads), LEVEL)
    return None if mean is None or quantile is None else (mean, quantile)


def _quantile(elapsed):
    """Estimates a quantile; its error follows from the quantiles of the groups."""
    whole, groups = (
        np.quantile(elapsed, LEVEL, axis, method="inverted_cdf") for axis in (None, 1)
    )
    is_finite = np.isfinite(groups).all()
    error = groups.std(ddof=1) / math.sqrt(len(groups)) if is_finite else math.nan
    return Estimate(float(whole), float(error))


class _PersistentNoise(NamedTuple):
    """Noise of weights that lasts from round to round.

    Attributes:
      square: Mean square of the deviations of weights around their means over rounds.
      share: Share of the noise that lasts.
      correlation: Correlation of this share in successive rounds.
    """

    square: float
    share: float
    correlation: float

    @property
    def growth(self) -> float:
        """Factor by which it increases the variance of a mean over rounds."""
        return 1 + 2 * self.share * self.correlation / (1 - self.correlation)


def _persistent_noise(runs: np.ndarray) -> _PersistentNoise:
    """Estimates the noise in deviations (runs, rounds, parts)."""
    around = runs - runs.mean(1, keepdims=True)
    square = np.mean(around**2)
    if square <= _ROUNDING * np.mean(runs**2):
        return _PersistentNoise(0.0, 0.0, 0.0)
    first, second = (
        np.mean(around[:, lag:] * around[:, :-lag]) / square for lag in (1, 2)
    )
    # An estimate below this bound is consistent with noise without memory.
    if first < _DEVIATIONS / math.sqrt(runs.size):
        return _PersistentNoise(square, 0.0, 0.0)
    correlation = float(np.clip(second / first, 0, _MOST_CORRELATED))
    share = float(min(first / max(correlation, first), 1))
    return _PersistentNoise(square, share, correlation)


def _mean_square_bias(
    runs: np.ndarray, noise: _PersistentNoise, num_measured: float
) -> float:
    """Estimates the mean square bias of deviations (runs, rounds, parts).

    It is the product of the means over the first and second half of each run, which is
    unbiased for noise that is forgotten in between. If few measured rounds were
    resampled, a bias that chance explains counts as 0.
    """
    if noise.square == 0:
        return float(np.mean(runs.mean(1) ** 2))
    num_rounds, num_parts = runs.shape[1:]
    first_half = runs[:, : num_rounds // 2].mean(1)
    second_half = runs[:, num_rounds // 2 :].mean(1)
    bias = float(np.mean(first_half * second_half))
    deviation = 2 * noise.square * noise.growth / num_rounds
    deviation /= math.sqrt(runs[:, 0].size)
    # By chance, the sum of squared means over rounds is chi-square distributed, with
    # one degree of freedom per part.
    chance = noise.square / num_measured
    chance *= scipy.special.chdtri(num_parts, _CHANCE) / num_parts
    return bias if bias > _DEVIATIONS * deviation + chance else 0.0


def _bias_of_lost_parts(
    code: GradientCode, weights: np.ndarray, noise: _PersistentNoise, drawn: Drawn
) -> float:
    """Computes the mean square bias from parts that never arrive, or hardly ever.

    The noise of a rule under which few parts arrive hides this bias from a test of all
    parts together. So each part is tested alone: by its weights, and by the responses
    of the workers that hold it.

    Args:
      code: Gradient code.
      weights: Effective weights, (runs, rounds, parts).
      noise: Noise of the weights, which reduces the number of independent rounds.
      drawn: Simulated finish times.
    """
    target = np.asarray(code.target, np.float64)
    is_used = target != 0
    relative = weights[..., is_used] / target[is_used]
    largest = relative.max()
    # A weight below 0 is noise: the bound does not hold, and no part is just lost.
    if largest <= 0 or relative.min() < 0:
        return 0.0
    means = relative.mean((0, 1)) / largest
    responses = np.isfinite(drawn.times[drawn.place(code)]).mean((0, 1))
    is_there = ~_is_low(responses, drawn, growth=1.0)
    is_held = np.asarray(code.assignment)[is_there].any(0)[is_used]
    is_lost = _is_low(means, drawn, noise.growth) | ~is_held
    if not is_lost.any() or is_lost.all():
        return 0.0
    shares = target[is_used] ** 2 / np.sum(target**2)
    scale = shares @ means
    deviations = np.where(is_lost, means - scale, 0)
    # The other parts are too heavy together by as much as lost parts are too light.
    excess = -(shares @ deviations)
    rest = 1 - shares[is_lost].sum()
    square = shares @ deviations**2 + excess**2 / rest
    return float(square * largest**2)


def _is_low(means: np.ndarray, drawn: Drawn, growth: float) -> np.ndarray:
    """Returns which means over rounds, of numbers from 0 to 1, are too low for chance.

    By Hoeffding's bound for means of independent numbers, with a correction for the
    number of means. A mean of 0 counts as too low if the simulation does not explain
    it, although chance in the few measured rounds may.

    Args:
      means: (number,).
      drawn: Simulated finish times.
      growth: Factor by which rounds that depend on each other increase variances.
    """
    mean = means.mean()
    information = scipy.special.kl_div(means, mean)
    information += scipy.special.kl_div(1 - means, 1 - mean)
    needed = growth * math.log(len(means) / _CHANCE)
    num_simulated = drawn.times[0, :, :, 0].size
    is_low = (means < mean) & (information > needed / num_simulated)
    return is_low & ((information > needed / drawn.num_measured) | (means == 0))
