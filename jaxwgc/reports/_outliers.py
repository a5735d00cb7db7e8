"""Few rounds in which most of the time is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxwgc._common.text import workers_named

if TYPE_CHECKING:
    from jaxwgc.reports._straggler_report import StragglerReport

# Share of the round time from which on a sentence mentions it.
WORTH = 0.02
# Largest share of the rounds that are reported separately, if most of the time is lost
# in them. Then the minimum number of rounds of the trace for a single such round: in
# shorter traces, the longest round often loses most of the time by chance.
_FEW_ROUNDS = 0.01
_LEAST_ROUNDS = 10
# A round also belongs to them if it loses at least this fraction of the time that the
# smallest of them loses.
_SIMILAR = 0.5
# Maximum number of such rounds in the text.
_NUM_NAMED_ROUNDS = 3


def outlying_rounds(report: StragglerReport) -> np.ndarray:
    """Returns the few rounds in which most of the time is lost, the worst one first.

    Among the worst 1% of the rounds, these are the fewest after which the others lose
    less than all further rounds. Rounds that lose nearly as much are added. The result
    is empty if they matter little.
    """
    num_rounds = np.isfinite(report.round_medians).sum()
    num_candidates = int(_FEW_ROUNDS * num_rounds)
    if num_rounds >= _LEAST_ROUNDS:
        num_candidates = max(num_candidates, 1)
    if not num_candidates:
        return np.array([], dtype=int)
    longest = np.nan_to_num(report.longest)
    relative = longest / longest.max()
    lost = np.nan_to_num(1 - report.round_medians / longest) * relative
    candidates = np.argpartition(-lost, num_candidates - 1)[:num_candidates]
    candidates = candidates[np.argsort(-lost[candidates])]
    worst = lost[candidates]
    lost_elsewhere = np.delete(lost, candidates).sum()
    # Time lost in the candidates without the 0, 1, ... worst ones.
    remaining = np.append(np.cumsum(worst[::-1])[::-1], 0)
    num_outliers = np.argmax(remaining <= lost_elsewhere)
    if not num_outliers:
        return np.array([], dtype=int)
    outliers = np.flatnonzero(lost >= _SIMILAR * worst[num_outliers - 1])
    outliers = outliers[np.argsort(-lost[outliers], kind="stable")]
    if lost[outliers].sum() <= WORTH * relative.sum():
        return np.array([], dtype=int)
    return outliers


def about_outliers(report: StragglerReport, outliers: np.ndarray) -> str:
    """Names rounds that take much of the time, and the workers that were last."""
    longest = np.nan_to_num(report.longest)
    relative = longest / longest.max()
    share = relative[outliers].sum() / relative.sum()
    places = []
    for place in outliers[:_NUM_NAMED_ROUNDS]:
        is_last = report.times[place] == longest[place]
        last_workers = workers_named(report.names[is_last])
        places.append(f"{last_workers} in {report.noun} {report.steps[place]}")
    num_more = len(outliers) - len(places)
    if num_more:
        places.append(f"{num_more} more")
    if len(outliers) == 1:
        subject = "One round takes"
        without = "Without this round:"
    else:
        subject = f"{len(outliers)} rounds take"
        without = "Without these rounds:"
    return f"{subject} {share:.0%} of the total time: {', '.join(places)}. {without}"
