"""Rounds in which most of the time is lost, and workers that cause the loss."""

from typing import NamedTuple

import numpy as np

from jaxwgc.reports._kinds import likeliest_change
from jaxwgc.reports._statistics import (
    FALSE_ALARMS,
    LEAST_RESPONSES,
    MARGIN,
    Rounds,
    common_variance_factor,
    sampled_rounds,
)

# Share of the round time that a loss or a saving must exceed to be mentioned.
WORTH = 0.02
# Largest share of the rounds that count as outlying, and minimum number of rounds in a
# trace with an outlying round. In shorter traces, the longest round often loses most of
# the time by chance.
_FEW_ROUNDS = 0.01
_LEAST_ROUNDS = 10
# A further round is outlying if it loses at least this fraction of the time that the
# smallest outlying round loses.
_SIMILAR = 0.5
# Workers are named if they cause more than this share of the time lost.
_MOST = 0.5
# Share of `FALSE_ALARMS` that is spent on the tests of lost times. In simulations,
# false alarms of these tests and of the tests of kinds together are below
# `FALSE_ALARMS`.
_SHARE_OF_ALARMS = 0.1
# Exponents of Chernoff bounds, for weights of at most 1. The exponent with the smallest
# bound is used.
_TILTS = np.geomspace(1e-3, 50, 100)


def outlying_rounds(rounds: Rounds) -> np.ndarray:
    """Finds the few rounds in which most of the time is lost.

    Candidates are the worst 1% of the rounds. The fewest of the worst candidates are
    chosen after which the remaining candidates lose at most as much time as all other
    rounds. Rounds that lose at least half as much as a chosen round are added. The
    result is empty if these rounds lose at most 2% of the total time.
    """
    num_rounds = np.isfinite(rounds.medians).sum()
    num_candidates = int(_FEW_ROUNDS * num_rounds)
    if num_rounds >= _LEAST_ROUNDS:
        num_candidates = max(num_candidates, 1)
    relative = np.nan_to_num(rounds.longest) / np.nanmax(rounds.longest)
    lost = np.nan_to_num(1 - rounds.medians / rounds.longest) * relative
    order = np.argsort(-lost, kind="stable")
    worst = lost[order[:num_candidates]]
    lost_elsewhere = lost[order[num_candidates:]].sum()
    # Entry k is the time lost in the candidates without the k worst candidates.
    remaining = np.append(np.cumsum(worst[::-1])[::-1], 0)
    num_outliers = np.argmax(remaining <= lost_elsewhere)
    if not num_outliers:
        return order[:0]
    outliers = order[lost[order] >= _SIMILAR * worst[num_outliers - 1]]
    if lost[outliers].sum() <= WORTH * relative.sum():
        return order[:0]
    return outliers


class LastWorkers(NamedTuple):
    """Workers that are last more often, or cost more time, than chance explains.

    Attributes:
      is_last_often: Workers that are last in significantly more rounds than others,
        bool (workers,).
      is_costly: Workers to which significantly more time is lost than to others, bool
        (workers,). All False unless they cause most of the lost time together.
      lost_share: Share of the lost time that is lost to costly workers.
      lost_time: Mean time per round that is lost to costly workers.
      rounds: Indices of the rounds in which most of this time is lost, int (n,).
    """

    is_last_often: np.ndarray
    is_costly: np.ndarray
    lost_share: float = 0.0
    lost_time: float = 0.0
    rounds: np.ndarray = np.array([], dtype=int)


def last_workers(times: np.ndarray, medians: np.ndarray) -> LastWorkers:
    """Finds workers that are last more often, or cost more time, than by chance.

    If workers are alike, each one is last in a round with the same probability.

    Args:
      times: (rounds, workers), NaN for no response, with a response in each round.
      medians: Time of the median worker of each round, (rounds,).
    """
    places = sampled_rounds(len(times))
    times = times[places]
    medians = medians[places]
    ordered = np.sort(np.where(np.isnan(times), 0.0, times), axis=1)
    longest = ordered[:, -1]
    # If a worker responds alone, the median is its own time, so no time is lost to it.
    second = np.maximum(ordered[:, -2], medians)
    # The longest time is the unit, so that sums do not overflow.
    gaps = (longest - second) / longest.max()
    excess = (longest - medians) / longest.max()
    lost = np.where(longest > np.exp(MARGIN) * medians, gaps, 0.0)
    per_round = _LastOfRounds(
        last=np.nanargmax(times, axis=1),
        chances=1 / np.isfinite(times).sum(axis=1),
        residuals=likeliest_change(np.log(times) - np.log(medians)[:, None]).residuals,
    )
    is_last_often = _p_values(per_round, weights=np.sign(gaps)) < FALSE_ALARMS
    is_costly = _p_values(per_round, weights=lost) < _SHARE_OF_ALARMS * FALSE_ALARMS
    is_lost_here = is_costly[per_round.last] & (lost > 0)
    lost_share = float(lost[is_lost_here].sum() / max(gaps.sum(), 1e-300))
    if lost_share <= _MOST:
        return LastWorkers(is_last_often, is_costly=np.zeros_like(is_costly))
    # Rounds that each lose at least `typical` together lose half of the lost time.
    ordered_excess = np.sort(excess[is_lost_here])[::-1]
    sums = np.cumsum(ordered_excess)
    typical = ordered_excess[np.searchsorted(sums, sums[-1] / 2)]
    return LastWorkers(
        is_last_often=is_last_often,
        is_costly=is_costly,
        lost_share=lost_share,
        lost_time=float(longest.max() * lost[is_lost_here].sum() / len(lost)),
        rounds=places[is_lost_here & (excess > typical / 2)],
    )


class _LastOfRounds(NamedTuple):
    """Last worker of each round, and probabilities of being last by chance.

    Attributes:
      last: Worker that is last, int (rounds,).
      chances: Probability of being last for each worker that responds, (rounds,).
      residuals: Log-slowdowns minus their means before and after a change, (rounds,
        workers). NaN for no response.
    """

    last: np.ndarray
    chances: np.ndarray
    residuals: np.ndarray


def _p_values(per_round: _LastOfRounds, weights: np.ndarray) -> np.ndarray:
    """Computes p-values of the total weight of the rounds in which a worker is last.

    Correlated rounds count as fewer rounds. The correlation is estimated from workers
    that would not be significant in independent rounds. So a worker is significant only
    if its spells are longer than the spells of others.

    Args:
      per_round: Last workers of rounds.
      weights: Weights of the rounds, at least 0, (rounds,).

    Returns:
      P-values corrected for the number of workers, (workers,).
    """
    num_responses = np.isfinite(per_round.residuals).sum(axis=0)
    num_workers = len(num_responses)
    log_bounds = _log_bounds(per_round, weights)
    is_other = num_workers * np.exp(log_bounds) >= FALSE_ALARMS
    is_tested = num_responses >= LEAST_RESPONSES
    factor = common_variance_factor(per_round.residuals[:, is_other & is_tested])
    return np.minimum(num_workers * np.exp(log_bounds / factor), 1.0)


def _log_bounds(per_round: _LastOfRounds, weights: np.ndarray) -> np.ndarray:
    """Computes logarithms of Chernoff bounds on the p-values of workers.

    A p-value is the probability that the sum of weights of a worker is by chance at
    least as large as observed. The bound holds for any weights, e.g. if one weight
    exceeds all others.
    """
    num_workers = per_round.residuals.shape[1]
    largest = weights.max()
    if largest <= 0:
        return np.zeros(num_workers)
    scaled = weights / largest
    sums = np.bincount(per_round.last, weights=scaled, minlength=num_workers)
    growth = per_round.chances * np.expm1(_TILTS[:, None] * scaled)
    log_moments = np.log1p(growth).sum(axis=1)
    bounds = log_moments[:, None] - _TILTS[:, None] * sums
    return np.minimum(bounds.min(axis=0), 0.0)
