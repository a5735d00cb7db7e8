"""Judges candidates: statistics of step times, decoding errors and bias."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxwgc import stragglers
from jaxwgc.planning._candidates import BUSY, Candidate
from jaxwgc.planning._choice import Estimate, RoundStatistics
from jaxwgc.planning._clusters import Clusters
from jaxwgc.planning._convergence import Weights, leave_one_out
from jaxwgc.planning._noise_and_bias import moments_of_weights
from jaxwgc.planning._simulated_rounds import SimulatedRounds, simulate
from jaxwgc.planning._stale_descent import simulate_descents

LEVEL = 0.9


def judge(
    candidates: Sequence[Candidate], clusters: Clusters, advance: Callable[[], None]
) -> list[RoundStatistics]:
    """Computes statistics of candidates in closed form, otherwise by simulation.

    Calls `advance` for each candidate.
    """
    forms = [_closed_form(candidate, clusters.delay) for candidate in candidates]
    places_of_simulated = []
    places_with_memory = []
    for place, candidate in enumerate(candidates):
        if forms[place] is None or not _counts_exactly(candidate):
            places_of_simulated.append(place)
        if candidate.memory:
            places_with_memory.append(place)
    simulated = simulate([candidates[place] for place in places_of_simulated], clusters)
    rounds = dict(zip(places_of_simulated, simulated, strict=True))
    simulated_descents = simulate_descents(
        [candidates[place] for place in places_with_memory], clusters
    )
    descents = dict(zip(places_with_memory, simulated_descents, strict=True))
    all_statistics = []
    for place, candidate in enumerate(candidates):
        form = forms[place]
        if form is not None and place not in rounds:
            statistics = _statistics_in_closed_form(candidate, form, clusters)
        else:
            statistics = _simulated_statistics(candidate, form, rounds[place], clusters)
        if place in descents:
            descent = descents[place].without_each_cluster()
            statistics = statistics._replace(descent=descent)
        all_statistics.append(statistics)
        advance()
    return all_statistics


def _counts_exactly(candidate: Candidate) -> bool:
    """Returns whether each round is exact, with a known number of responses."""
    return candidate.is_exact and isinstance(candidate.wait, stragglers.fastest)


def _statistics_in_closed_form(
    candidate: Candidate, form: "_ClosedForm", clusters: Clusters
) -> RoundStatistics:
    """Returns the statistics of an exact candidate with a closed form."""
    num_settings = 1 + clusters.num_clusters
    # Only `fastest` waits for a known number of responses.
    assert isinstance(candidate.wait, stragglers.fastest)
    num_answers = candidate.wait.num_required
    if not candidate.code.allows_requests:
        num_answers *= candidate.code.messages_per_worker
    return RoundStatistics(
        seconds=np.full(num_settings, form.mean),
        quantile=Estimate(value=form.quantile, standard_error=0.0),
        is_closed_form=True,
        num_answers=float(num_answers),
        error=np.zeros(num_settings),
        weights=Weights.equal(num_settings),
    )


def _simulated_statistics(
    candidate: Candidate,
    form: "_ClosedForm | None",
    rounds: SimulatedRounds,
    clusters: Clusters,
) -> RoundStatistics:
    """Returns the statistics of simulated rounds, in closed form if known."""
    num_clusters = clusters.num_clusters
    num_settings = 1 + num_clusters
    error = np.zeros(num_settings)
    weights = Weights.equal(num_settings)
    decoded = rounds.decoded
    if decoded is not None:
        error_of_rounds = decoded.error.reshape(num_clusters, -1)
        error = leave_one_out(error_of_rounds.mean(axis=1))
        effective = decoded.effective_weights
        num_parts = effective.shape[-1]
        weights = moments_of_weights(
            candidate, effective.reshape(num_clusters, -1, num_parts), clusters
        )
    if form is None:
        elapsed = rounds.elapsed.reshape(num_clusters, -1)
        seconds = leave_one_out(elapsed.mean(axis=1))
        quantile = _quantile(elapsed)
    else:
        seconds = np.full(num_settings, form.mean)
        quantile = Estimate(value=form.quantile, standard_error=0.0)
    num_stored = rounds.num_late if candidate.memory else 0.0
    return RoundStatistics(
        seconds=seconds,
        quantile=quantile,
        is_closed_form=form is not None,
        num_answers=float(rounds.num_answers + num_stored),
        error=error,
        weights=weights,
    )


class _ClosedForm(NamedTuple):
    """Mean and 90% quantile of the duration of a round."""

    mean: float
    quantile: float


def _closed_form(
    candidate: Candidate, delay: stragglers.DelayModel
) -> _ClosedForm | None:
    """Returns the closed form of the duration of a round, or None."""
    wait = candidate.wait
    loads = np.asarray(candidate.code.loads, np.float64)
    is_busy = candidate.late == BUSY and wait != stragglers.fastest(len(loads))
    has_equal_loads = np.all(loads == loads[0])
    if is_busy or not has_equal_loads:
        return None
    law = delay.law(float(loads[0]))
    if law is None:
        return None
    mean = wait.expected_time(law, len(loads))
    quantile = wait.time_quantile(law, len(loads), LEVEL)
    if mean is None or quantile is None:
        return None
    return _ClosedForm(mean=mean, quantile=quantile)


def _quantile(elapsed: np.ndarray) -> Estimate:
    """Estimates a quantile; its error follows from the quantiles of the clusters.

    Args:
      elapsed: Durations, (clusters, rounds).
    """
    quantile = np.quantile(elapsed, LEVEL, method="inverted_cdf")
    of_clusters = np.quantile(elapsed, LEVEL, axis=1, method="inverted_cdf")
    error = math.nan
    if np.isfinite(of_clusters).all():
        error = of_clusters.std(ddof=1) / math.sqrt(len(of_clusters))
    return Estimate(value=float(quantile), standard_error=float(error))
