"""Each choice of a plan judged: its time a step, what it decodes to, steps needed."""

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
# How likely chance alone may make a bias of the few rounds of a trace: many choices of
# many plans are tested.
_CHANCE = 1e-6
# How likely a trace hides more of a bias than is feared where workers may stall, too.
_UNSEEN = 0.05
# Of a round with the next: what lasts longer is as good as a bias.
_MOST_CORRELATED = 0.98
# Of the squares of deviations.
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
    """Returns statistics of exact rounds whose times have a closed form."""
    ones = np.ones(drawn.num_runs)
    answers = choice.wait.num_required * ones
    if not choice.code.allows_requests:
        answers *= choice.code.messages_per_worker
    seconds, quantile = times[0] * ones, times[1]
    return RoundStatistics(
        seconds, quantile, True, answers, 0 * ones, ones, ones, 0 * ones
    )


def _statistics(choice, times, rounds, remembered, drawn):
    """Returns statistics of simulated rounds."""

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
    """The last fields of the statistics: what the messages that came decode to."""
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
        # Neither is a bias ruled out that the rounds of a trace may hide by chance.
        num_parts = deviations.shape[1]
        hidden = scipy.special.chdtri(num_parts, _UNSEEN) / num_parts
        bias += float(deviation.mean()) * hidden / drawn.num_measured
    return (
        by_group(rounds.error),
        by_group(scale),
        by_group(scale**2),
        deviation,
        bias,
        # Who is late in a round often is in the next, too, if nobody stops it.
        lasting if drawn.has_state or choice.late == BUSY else 0.0,
        correlation,
    )


def _closed_form(choice, delay):
    """Mean time and its quantile if there are formulas of them, or None."""
    wait, loads = choice.wait, np.asarray(choice.code.loads, np.float64)
    is_busy = choice.late == BUSY and wait != fastest(len(loads))
    law = None if is_busy or np.ptp(loads) else delay.law(float(loads[0]))
    if law is None:
        return None
    mean = wait.expected_time(law, len(loads))
    quantile = wait.time_quantile(law, len(loads), LEVEL)
    return None if mean is None or quantile is None else (mean, Estimate(quantile, 0.0))


def _quantile(values, by_group):
    """With the standard error that the share of values below it has (Woodruff)."""

    def at(level):
        return float(np.quantile(values, np.clip(level, 0, 1), method="inverted_cdf"))

    quantile = at(LEVEL)
    shares = by_group((values <= quantile).astype(float))
    spread = shares.std(ddof=1) / math.sqrt(len(shares))
    low, high = at(LEVEL - spread), at(LEVEL + spread)
    return Estimate(quantile, (high - low) / 2 if math.isfinite(high) else math.nan)


def _persistent(deviations, num_runs, num_measured=math.inf, num_workers=1):
    """How much of the deviations (rounds, parts) stays: bias, share and correlation.

    The bias is the product of the means of the first and of the second half of each
    run, which noise that has passed in between does not change on average. What it may
    be by chance where few rounds were measured, and then drawn again, is left out. What
    the parts at one place of all workers have in common is looked at by itself, since
    it shows in fewer rounds: the last parts of each are missed more often.
    """
    runs = deviations.reshape(num_runs, -1, deviations.shape[-1])
    around = runs - runs.mean(1, keepdims=True)
    square = np.mean(around**2)
    if square <= _ROUNDING * np.mean(runs**2):
        return float(np.mean(runs.mean(1) ** 2)), 0.0, 0.0
    first, second = (
        np.mean(around[:, lag:] * around[:, :-lag]) / square for lag in (1, 2)
    )
    # Of noise that forgets at once, what is found is less than that.
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
    """Mean square of what stays of (runs, rounds, parts); 0 where it may be chance."""
    num_rounds, num_parts = runs.shape[1:]
    square = np.mean((runs - runs.mean(1, keepdims=True)) ** 2)
    halves = runs[:, : num_rounds // 2], runs[:, num_rounds // 2 :]
    bias = float(np.mean(halves[0].mean(1) * halves[1].mean(1)))
    deviation = 2 * square * growth / num_rounds / math.sqrt(runs[:, 0].size)
    # Means of so many rounds, squared: chi-square, with a degree of freedom a part.
    chance = square / num_measured
    chance *= scipy.special.chdtri(num_parts, _CHANCE) / num_parts
    return bias if bias > _DEVIATIONS * deviation + chance else 0.0
