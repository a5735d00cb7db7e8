"""Judges candidates: statistics of step times, decoding errors and bias."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwgc import stragglers
from jaxwgc.studies._planning._candidates import BUSY, Candidate
from jaxwgc.studies._planning._choice import Estimate, RoundStatistics
from jaxwgc.studies._planning._clusters import Clusters
from jaxwgc.studies._planning._convergence import StaleDescent, Weights, leave_one_out
from jaxwgc.studies._planning._noise_and_bias import moments_of_weights
from jaxwgc.studies._planning._simulated_rounds import SimulatedRounds, simulate
from jaxwgc.studies._planning._stale_descent import simulate_descents

LEVEL = 0.9


def judge(
    candidates: Sequence[Candidate], clusters: Clusters, advance: Callable[[], Any]
) -> list[RoundStatistics]:
    """Computes statistics of candidates in closed form, otherwise by simulation.

    Calls `advance` for each candidate.
    """
    forms = [_closed_form(one, clusters.delay) for one in candidates]
    unknown = [
        one
        for one, form in zip(candidates, forms, strict=True)
        if form is None or not _counts_exactly(one)
    ]
    rounds = dict(zip(map(id, unknown), simulate(unknown, clusters), strict=True))
    storing = [one for one in candidates if one.memory]
    descents = dict(
        zip(map(id, storing), simulate_descents(storing, clusters), strict=True)
    )
    statistics = []
    for one, form in zip(candidates, forms, strict=True):
        if form is not None and id(one) not in rounds:
            own = _statistics_in_closed_form(one, form, clusters)
        else:
            own = _simulated_statistics(one, form, rounds[id(one)], clusters)
        if one.memory:
            descent = StaleDescent(*map(leave_one_out, descents[id(one)]))
            own = own._replace(descent=descent)
        statistics.append(own)
        advance()
    return statistics


def _counts_exactly(candidate: Candidate) -> bool:
    """Returns whether each round is exact, with a known number of responses."""
    return candidate.is_exact and isinstance(candidate.wait, stragglers.fastest)


def _statistics_in_closed_form(
    candidate: Candidate, form: "_ClosedForm", clusters: Clusters
) -> RoundStatistics:
    """Returns the statistics of an exact candidate with a closed form."""
    no_error = np.zeros(1 + clusters.num_clusters)
    num_answers: Any = getattr(candidate.wait, "num_required", math.nan)
    if not candidate.code.allows_requests:
        num_answers *= candidate.code.messages_per_worker
    return RoundStatistics(
        seconds=np.full(1 + clusters.num_clusters, form.mean),
        quantile=Estimate(form.quantile, 0.0),
        is_closed_form=True,
        num_answers=float(num_answers),
        error=no_error,
        weights=Weights(*[no_error] * len(Weights._fields)),
    )


def _simulated_statistics(
    candidate: Candidate,
    form: "_ClosedForm | None",
    rounds: SimulatedRounds,
    clusters: Clusters,
) -> RoundStatistics:
    """Returns the statistics of simulated rounds, in closed form if known."""
    error = np.zeros(1 + clusters.num_clusters)
    weights = Weights(*[error] * len(Weights._fields))
    shape = clusters.num_clusters, -1
    decoded = rounds.decoded
    if decoded is not None:
        error = leave_one_out(decoded.error.reshape(shape).mean(1))
        effective = decoded.effective_weights
        effective = effective.reshape(*shape, effective.shape[-1])
        weights = moments_of_weights(candidate, effective, clusters)
    if form is None:
        elapsed = rounds.elapsed.reshape(shape)
        seconds = leave_one_out(elapsed.mean(1))
        quantile = _quantile(elapsed)
    else:
        seconds = np.full(1 + clusters.num_clusters, form.mean)
        quantile = Estimate(form.quantile, 0.0)
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
    law = None if is_busy or np.ptp(loads) else delay.law(float(loads[0]))
    if law is None:
        return None
    mean = wait.expected_time(law, len(loads))
    quantile = wait.time_quantile(law, len(loads), LEVEL)
    if mean is None or quantile is None:
        return None
    return _ClosedForm(mean, quantile)


def _quantile(elapsed):
    """Estimates a quantile; its error follows from the quantiles of the groups."""
    whole, groups = (
        np.quantile(elapsed, LEVEL, axis, method="inverted_cdf") for axis in (None, 1)
    )
    is_finite = np.isfinite(groups).all()
    error = groups.std(ddof=1) / math.sqrt(len(groups)) if is_finite else math.nan
    return Estimate(float(whole), float(error))
