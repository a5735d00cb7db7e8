"""Tests of missing responses: which workers miss more of them than the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from jaxwgc._common.text import workers_named
from jaxwgc.reports._levels import FALSE_ALARMS
from jaxwgc.traces import missing_at_end

if TYPE_CHECKING:
    from jaxwgc.reports._straggler_report import StragglerReport
    from jaxwgc.reports._wait_report import WaitReport

# Share of the responses of a worker, or of the rounds, above which the advice mentions
# that they are missing.
MISSING = 0.01
# Number of tests of each worker.
_NUM_TESTS = 2


class MissingResponses(NamedTuple):
    """Significance of missing responses.

    Attributes:
      p_value: Significance of missing more responses than others, or all of the last
        ones, corrected for workers and tests, (workers,).
      never_responds: Which workers never responded, bool (workers,).
      is_gone: Which workers responded, but not in the last rounds, by no chance, bool
        (workers,).
      first_at_end: First of these rounds, or the last round without any, int
        (workers,).
    """

    p_value: np.ndarray
    never_responds: np.ndarray
    is_gone: np.ndarray
    first_at_end: np.ndarray


def missing_responses(is_response: np.ndarray) -> MissingResponses:
    """Tests whether workers miss more responses than others, or all of the last ones.

    Args:
      is_response: Whether there is a response, bool (rounds, workers), with a response
        in each round.
    """
    num_rounds, num_workers = is_response.shape
    num_missing = num_rounds - is_response.sum(axis=0)
    start, p_end = missing_at_end(is_response)
    never_responds = start == 0
    num_missing_before = num_missing - (num_rounds - start)
    num_tests = _NUM_TESTS * num_workers
    is_gone = (p_end * num_tests < FALSE_ALARMS) & ~never_responds
    # Rounds after a worker has gone say nothing about chance.
    num_by_chance = np.where(is_gone, num_missing_before, num_missing)
    p_values = np.minimum(_p_values_of_counts(num_by_chance), p_end)
    return MissingResponses(
        p_value=np.minimum(p_values * num_tests, 1.0),
        never_responds=never_responds,
        is_gone=is_gone,
        first_at_end=np.minimum(start, num_rounds - 1),
    )


def _p_values_of_counts(num_missing: np.ndarray) -> np.ndarray:
    """Returns p-values of numbers of missing responses, (workers,).

    If workers are alike, each missing response is equally likely at every worker. The
    worker with the most is compared first. If it is significant, it is left out of the
    next comparison, so that it does not hide others.
    """
    num_workers = len(num_missing)
    p_values = np.ones(num_workers)
    order = np.argsort(-num_missing)
    for rank, worker in enumerate(order[:-1]):
        total = num_missing[order[rank:]].sum()
        chance = 1 / (num_workers - rank)
        p_value = scipy.special.bdtrc(num_missing[worker] - 1, total, chance)
        if p_value * _NUM_TESTS * num_workers >= FALSE_ALARMS:
            break
        p_values[worker] = p_value
    return p_values


def kinds_with_missing(
    kinds: np.ndarray, missing: MissingResponses, first_missing: np.ndarray, noun: str
) -> np.ndarray:
    """Returns kinds with "missing" and "missing since round 151" where they apply.

    Args:
      kinds: Kind of each worker, str (workers,).
      missing: Significance of missing responses.
      first_missing: Number of the round `missing.first_at_end`, int (workers,).
      noun: What is counted, "round" or "step".
    """
    kinds_of_gone = f"missing since {noun} " + first_missing.astype(str)
    with_gone = np.where(missing.is_gone, kinds_of_gone, kinds)
    return np.where(missing.never_responds, "missing", with_gone)


def stopped_responding(report: StragglerReport | WaitReport) -> np.ndarray:
    """Returns which workers have no response since a round, bool (workers,)."""
    return np.char.startswith(report.kinds, "missing since")


def misses_often(report: StragglerReport | WaitReport) -> np.ndarray:
    """Returns which other workers miss more responses than chance explains."""
    misses_many = report.missing > MISSING * report.num_rounds
    is_significant = report.missing_p_value < FALSE_ALARMS
    never_responds = report.kinds == "missing"
    is_often = (is_significant & misses_many) | never_responds
    return is_often & ~stopped_responding(report)


def workers_to_check(report: StragglerReport | WaitReport) -> list[str]:
    """Names workers with significantly many missing responses."""
    sentences = []
    is_gone = stopped_responding(report)
    if is_gone.any():
        # The name of a kind ends with the first round without a response.
        starts = [kind.split()[-1] for kind in report.kinds[is_gone]]
        if len(set(starts)) == 1:
            since = f"{report.noun} {starts[0]}"
        else:
            since = f"{report.noun}s {', '.join(starts)}"
        names = workers_named(report.names[is_gone])
        sentences.append(f"Check {names}: no response since {since}.")
    is_often = misses_often(report)
    if is_often.any():
        at_most = "up to " if is_often.sum() > 1 else ""
        names = workers_named(report.names[is_often])
        sentences.append(
            f"Check {names}: no response in {at_most}{report.missing[is_often].max()} "
            f"of {report.num_rounds} rounds."
        )
    return sentences
