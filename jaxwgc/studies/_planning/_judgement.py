"""Each choice of a plan judged: its time a step, what it decodes to, steps needed."""

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from jaxwgc.stragglers import fastest
from jaxwgc.studies._planning._candidates import Candidate
from jaxwgc.studies._planning._remembered import FOLLOWED, RememberedDescent
from jaxwgc.studies._planning._simulated_rounds import (
    BUSY,
    SimulatedRounds,
    decode,
)

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


class Estimate(NamedTuple):
    """A number and what is known of it.

    Attributes:
      value: the number.
      standard_error: by Monte Carlo; 0 where the value is a closed form, NaN where it
        is infinite.
    """

    value: float
    standard_error: float


class ChoiceStatistics(NamedTuple):
    """Statistics of a candidate's rounds; arrays are means of groups, (groups,).

    Attributes:
      seconds: of a step.
      quantile: of these, 90%.
      is_closed_form: whether both are.
      answers: messages that are waited for; on request, sums of them at most.
      error: squared, over the squared norm of the target.
      scale: of the effective weights, along the target.
      scale_square: its square.
      deviation: mean square of the effective weights around their scale.
      bias: mean square, over the parts, of the mean deviation of each. A scalar.
      lasting: the share of the other deviations that does not pass at once. A scalar.
      correlation: of that share in a round with that in the next. A scalar.
      remembered: how descent goes with late answers, a row a group; None without.
    """

    seconds: np.ndarray
    quantile: Estimate
    is_closed_form: bool
    answers: np.ndarray
    error: np.ndarray
    scale: np.ndarray
    scale_square: np.ndarray
    deviation: np.ndarray
    bias: float = 0.0
    lasting: float = 0.0
    correlation: float = 0.0
    remembered: RememberedDescent | None = None


def judge(candidate: Candidate, rounds: SimulatedRounds) -> ChoiceStatistics:
    """Times in closed form where order statistics have one; the rest by simulation."""
    code, wait = candidate.code, candidate.wait
    is_busy = candidate.late == BUSY and wait != fastest(code.num_workers)
    loads = np.asarray(code.loads, np.float64)
    closed = None if is_busy else _closed_form(wait, loads, rounds.law)
    ones = np.ones(rounds.num_runs)
    weights: tuple[Any, ...] = 0 * ones, ones, ones, 0 * ones

    def by_group(values):
        return values.reshape(rounds.num_runs, -1).mean(1)

    if closed is not None and candidate.is_exact:
        assert isinstance(wait, fastest)
        answers = wait.num_required
        if not code.allows_requests:
            answers *= code.messages_per_worker
        return ChoiceStatistics(
            closed[0] * ones, closed[1], True, answers * ones, *weights
        )
    answers, remembered = None, None
    if is_busy or candidate.memory:
        followed = FOLLOWED if candidate.memory else 0
        each = rounds.in_a_row(code, wait, candidate.late, followed)
        elapsed, mask = each.elapsed.ravel(), each.received.reshape(-1, len(loads))
        if candidate.memory:
            remembered = RememberedDescent.of(code, each)
            answers = by_group(each.received.sum(2) + each.late.sum(2))
    else:
        elapsed, mask = rounds.end(code, wait)
    if closed is None:
        seconds, quantile = by_group(elapsed), _quantile(elapsed, by_group)
    else:
        seconds, quantile = closed[0] * ones, closed[1]
    if not candidate.is_exact:
        weights = _decoded(candidate, mask, rounds, by_group)
    if code.allows_requests:
        # One sum of each worker that has finished something.
        mask = mask.reshape(len(mask), code.num_workers, -1).any(2)
    if answers is None:
        answers = by_group(mask.sum(1))
    judged = ChoiceStatistics(seconds, quantile, closed is not None, answers, *weights)
    return judged._replace(remembered=remembered)


def _decoded(candidate, mask, rounds, by_group):
    """The last fields of the statistics: what the messages that came decode to."""
    target = np.asarray(candidate.code.target, np.float64)
    weights, errors = decode(candidate.code, mask)
    scale = weights @ target / (target @ target)
    deviations = weights - scale[:, None] * target
    deviations /= math.sqrt(np.mean(target**2))
    num_runs = rounds.num_runs if rounds.has_state else 1
    bias, lasting, correlation = _persistent(
        deviations, num_runs, rounds.num_measured, candidate.code.num_workers
    )
    deviation = by_group(np.mean(deviations**2, axis=1))
    if rounds.has_stalls:
        # Neither is a bias ruled out that the rounds of a trace may hide by chance.
        num_parts = deviations.shape[1]
        hidden = scipy.special.chdtri(num_parts, _UNSEEN) / num_parts
        bias += float(deviation.mean()) * hidden / rounds.num_measured
    return (
        by_group(errors),
        by_group(scale),
        by_group(scale**2),
        deviation,
        bias,
        # Who is late in a round often is in the next, too, if nobody stops it.
        lasting if rounds.has_state or candidate.late == BUSY else 0.0,
        correlation,
    )


def _closed_form(wait, loads, law):
    """Mean time and its quantile where there is one, or None."""
    of_one = law(float(loads[0])) if np.all(loads == loads[0]) else None
    if of_one is None:
        return None
    mean = wait.expected_time(of_one, len(loads))
    quantile = wait.time_quantile(of_one, len(loads), LEVEL)
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
