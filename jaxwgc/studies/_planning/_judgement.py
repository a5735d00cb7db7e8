"""Statistics of the choices of a plan: step times, decoding errors and bias."""

import math
from collections.abc import Sequence

import numpy as np
import scipy

from jaxwgc.stragglers import fastest
from jaxwgc.studies._planning._choice import BUSY, Choice, Estimate, RoundStatistics
from jaxwgc.studies._planning._convergence import Weights, leave_one_out
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
    is_known = [
        own is not None and choice.is_exact for choice, own in zip(choices, times)
    ]
    unknown = [choice for choice, known in zip(choices, is_known) if not known]
    storing = [choice for choice in choices if choice.memory]
    rounds, descents = map(iter, simulate(unknown, storing, drawn))
    return [
        _statistics(choice, own, None if known else next(rounds), drawn)._replace(
            descent=next(descents) if choice.memory else None
        )
        for choice, own, known in zip(choices, times, is_known)
    ]


def _statistics(choice, times, rounds, drawn):
    """Computes statistics of a choice; `rounds` is None if a closed form exists."""

    def by_group(values):
        return values.reshape(drawn.num_runs, -1).mean(1, dtype=np.float64)

    is_closed_form, ones = times is not None, np.ones(drawn.num_runs)
    if times is None:
        elapsed = rounds.elapsed.astype(np.float64)
        times = by_group(elapsed), _quantile(elapsed, by_group)
    error, weights = 0 * ones, Weights(*np.zeros((5, 1 + drawn.num_runs)))
    if rounds is None:
        answers = choice.wait.num_required
        if not choice.code.allows_requests:
            answers *= choice.code.messages_per_worker
    else:
        if not choice.is_exact:
            error, weights = by_group(rounds.error), _weights(choice, rounds, drawn)
        answers = np.mean(rounds.num_answers + choice.memory * rounds.num_late)
    seconds, quantile = times[0] * ones, times[1]
    return RoundStatistics(
        seconds, quantile, is_closed_form, float(answers), error, weights
    )


def _weights(choice, rounds, drawn):
    """Computes moments of effective weights, from all groups and without one group."""
    target = np.asarray(choice.code.target, np.float64)
    weights = rounds.effective_weights.astype(np.float64)
    scale = weights @ target / (target @ target)
    deviations = weights - scale[..., None] * target
    deviations /= math.sqrt(np.mean(target**2))
    num_runs = drawn.num_runs if drawn.has_state else 1
    bias, lasting, correlation = _persistent(
        deviations.reshape(num_runs, -1, len(target)),
        drawn.num_measured,
        choice.code.num_workers,
    )
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
        correlation=np.full_like(scale, correlation),
    )


def _closed_form(choice, delay):
    """Returns the mean and the quantile of the time in closed form, or None."""
    wait, loads = choice.wait, np.asarray(choice.code.loads, np.float64)
    is_busy = choice.late == BUSY and wait != fastest(len(loads))
    law = None if is_busy or np.ptp(loads) else delay.law(float(loads[0]))
    if law is None:
        return None
    mean = wait.expected_time(law, len(loads))
    quantile = wait.time_quantile(law, len(loads), LEVEL)
    return None if mean is None or quantile is None else (mean, Estimate(quantile, 0.0))


def _quantile(values, by_group):
    """Estimates a quantile; its error follows from the share of values below it."""

    def at(level):
        return float(np.quantile(values, np.clip(level, 0, 1), method="inverted_cdf"))

    quantile = at(LEVEL)
    shares = by_group((values <= quantile).astype(float))
    spread = shares.std(ddof=1) / math.sqrt(len(shares))
    low, high = at(LEVEL - spread), at(LEVEL + spread)
    return Estimate(quantile, (high - low) / 2 if math.isfinite(high) else math.nan)


def _persistent(runs, num_measured=math.inf, num_workers=1):
    """Estimates the bias and the persistent noise in deviations (runs, rounds, parts).

    Its bias is the product of the means over the first and second half of each run,
    which is unbiased for noise that is forgotten in between. If few measured rounds
    were resampled, the bias that chance explains is subtracted. The common deviation of
    the parts at one position of all workers is tested separately, since it shows in
    fewer rounds: the last parts of workers are missed more often.

    Returns:
      The bias, and the share and the lag-1 correlation of the persistent noise.
    """
    around = runs - runs.mean(1, keepdims=True)
    square = np.mean(around**2)
    if square <= _ROUNDING * np.mean(runs**2):
        return float(np.mean(runs.mean(1) ** 2)), 0.0, 0.0
    first, second = (
        np.mean(around[:, lag:] * around[:, :-lag]) / square for lag in (1, 2)
    )
    # An estimate below this bound is consistent with noise without memory.
    if first < _DEVIATIONS / math.sqrt(runs.size):
        share, correlation = 0.0, 0.0
    else:
        correlation = float(np.clip(second / first, 0, _MOST_CORRELATED))
        share = float(min(first / max(correlation, first), 1))
    growth = 1 + 2 * share * correlation / (1 - correlation)
    num_parts = runs.shape[-1]
    if num_workers == 1 or num_parts == num_workers or num_parts % num_workers:
        return _bias(runs, growth, num_measured), share, correlation
    places = runs.reshape(*runs.shape[:2], num_workers, -1)
    in_common = places.mean(2)
    apart = (places - in_common[:, :, None]).reshape(runs.shape)
    bias = sum(_bias(each, growth, num_measured) for each in (in_common, apart))
    return bias, share, correlation


def _bias(runs, growth, num_measured):
    """Returns the mean square bias of deviations; 0 if chance explains the bias."""
    num_rounds, num_parts = runs.shape[1:]
    square = np.mean((runs - runs.mean(1, keepdims=True)) ** 2)
    halves = runs[:, : num_rounds // 2], runs[:, num_rounds // 2 :]
    bias = float(np.mean(halves[0].mean(1) * halves[1].mean(1)))
    deviation = 2 * square * growth / num_rounds / math.sqrt(runs[:, 0].size)
    # By chance, the sum of squared means over rounds is chi-square distributed, with
    # one degree of freedom per part.
    chance = square / num_measured
    chance *= scipy.special.chdtri(num_parts, _CHANCE) / num_parts
    return bias if bias > _DEVIATIONS * deviation + chance else 0.0
