"""Evaluation of the choices of a plan: step times, decoding errors, persistence."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from jaxwgc.stragglers import fastest
from jaxwgc.studies._planning._choice import (
    BUSY,
    Choice,
    Estimate,
    RoundStatistics,
)
from jaxwgc.studies._planning._remembered import follow
from jaxwgc.studies._planning._simulated_rounds import Drawn, simulate

LEVEL = 0.9
# z-score above which a persistent deviation counts as bias, not as noise.
_DEVIATIONS = 3.0
# Probability that chance makes a bias from the few rounds of a trace: small, since many
# choices of many plans are tested.
_CHANCE = 1e-6
# Probability that a trace hides a larger bias than assumed with stalls.
_UNSEEN = 0.05
# Lag-1 autocorrelation above which a deviation is treated as bias.
_MOST_CORRELATED = 0.98
# Squares of deviations that count as rounding, relative to the squares of weights.
_ROUNDING = 1e-12


def judge(choices: Sequence[Choice], drawn: Drawn) -> list[RoundStatistics]:
    """Judges choices: times in closed form if there is one, the rest by simulation."""
    closed = [_closed_form(choice, drawn.delay) for choice in choices]
    simulated = [
        choice
        for choice, times in zip(choices, closed)
        if times is None or not choice.is_exact
    ]
    rounds = iter(simulate(simulated, drawn))
    remembered = iter(follow([each for each in choices if each.memory], drawn))
    return [
        _closed_statistics(choice, times, drawn)
        if times is not None and choice.is_exact
        else _statistics(
            choice,
            times,
            next(rounds),
            next(remembered) if choice.memory else None,
            drawn,
        )
        for choice, times in zip(choices, closed)
    ]


def _closed_statistics(choice, times, drawn):
    """Computes statistics of exact rounds with times in closed form."""
    ones = np.ones(drawn.num_runs)
    answers = choice.wait.num_required * ones
    if not choice.code.allows_requests:
        answers *= choice.code.messages_per_worker
    seconds, quantile = times[0] * ones, times[1]
    return RoundStatistics(
        seconds, quantile, True, answers, 0 * ones, ones, ones, 0 * ones
    )


def _statistics(choice, times, rounds, remembered, drawn):
    """Computes statistics of simulated rounds."""

    def by_group(values):
        return values.reshape(drawn.num_runs, -1).mean(1, dtype=np.float64)

    if times is None:
        elapsed = rounds.elapsed.astype(np.float64)
        seconds, quantile = by_group(elapsed), _quantile(elapsed, by_group)
    else:
        seconds, quantile = times[0] * np.ones(drawn.num_runs), times[1]
    ones = np.ones(drawn.num_runs)
    weights: tuple[Any, ...] = 0 * ones, ones, ones, 0 * ones
    if not choice.is_exact:
        weights = _decoded(choice, rounds, drawn, by_group)
    answers = by_group(rounds.num_answers)
    if choice.memory:
        answers += by_group(rounds.num_late)
    is_closed_form = times is not None
    judged = RoundStatistics(seconds, quantile, is_closed_form, answers, *weights)
    return judged._replace(remembered=remembered)


def _decoded(choice, rounds, drawn, by_group):
    """Computes the last fields of the statistics: decoding of the received messages."""
    target = np.asarray(choice.code.target, np.float64)
    weights = rounds.effective_weights.reshape(-1, len(target)).astype(np.float64)
    scale = weights @ target / (target @ target)
    deviations = weights - scale[:, None] * target
    deviations /= math.sqrt(np.mean(target**2))
    num_runs = drawn.num_runs if drawn.has_state else 1
    bias, lasting, correlation = _persistent(
        deviations, num_runs, drawn.num_measured, choice.code.num_workers
    )
    deviation = by_group(np.mean(deviations**2, axis=1))
    if drawn.has_stalls:
        # A trace does not rule out a bias that its rounds may hide by chance.
        num_parts = deviations.shape[1]
        hidden = scipy.special.chdtri(num_parts, _UNSEEN) / num_parts
        bias += float(deviation.mean()) * hidden / drawn.num_measured
    return (
        by_group(rounds.error),
        by_group(scale),
        by_group(scale**2),
        deviation,
        bias,
        # A worker that is late often remains late in the next round, unless cancelled.
        lasting if drawn.has_state or choice.late == BUSY else 0.0,
        correlation,
    )


def _closed_form(choice, delay):
    """Returns the mean time and its quantile if they have formulas, otherwise None."""
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


def _persistent(deviations, num_runs, num_measured=math.inf, num_workers=1):
    """Returns the persistent part of deviations (rounds, parts).

    Its bias is the product of the means over the first and second half of each run,
    which is unbiased for noise that is forgotten in between. If few measured rounds
    were resampled, the bias that chance explains is subtracted. The common deviation of
    the parts at one position of all workers is tested separately, since it shows in
    fewer rounds: the last parts of workers are missed more often.

    Returns:
      The bias, and the share and the lag-1 correlation of the persistent noise.
    """
    runs = deviations.reshape(num_runs, -1, deviations.shape[-1])
    around = runs - runs.mean(1, keepdims=True)
    square = np.mean(around**2)
    if square <= _ROUNDING * np.mean(runs**2):
        return float(np.mean(runs.mean(1) ** 2)), 0.0, 0.0
    first, second = (
        np.mean(around[:, lag:] * around[:, :-lag]) / square for lag in (1, 2)
    )
    # For noise without memory, the estimate is below this bound.
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
    """Returns the mean square bias of (runs, rounds, parts); 0 if due to chance."""
    num_rounds, num_parts = runs.shape[1:]
    square = np.mean((runs - runs.mean(1, keepdims=True)) ** 2)
    halves = runs[:, : num_rounds // 2], runs[:, num_rounds // 2 :]
    bias = float(np.mean(halves[0].mean(1) * halves[1].mean(1)))
    deviation = 2 * square * growth / num_rounds / math.sqrt(runs[:, 0].size)
    # Squared means over rounds: chi-square with one degree of freedom per part.
    chance = square / num_measured
    chance *= scipy.special.chdtri(num_parts, _CHANCE) / num_parts
    return bias if bias > _DEVIATIONS * deviation + chance else 0.0
