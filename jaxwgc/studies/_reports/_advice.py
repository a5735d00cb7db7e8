"""Advice of a straggler report: the action that shortens rounds most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxwgc.studies._reports._kinds import MARGIN
from jaxwgc.studies._reports._statistics import longest_times, round_means
from jaxwgc.studies._reports._text import workers_named

if TYPE_CHECKING:
    from jaxwgc.studies._reports._straggler_report import StragglerReport

# Smallest shares of the round time for which advice is given: saved by acting on named
# workers or lost in a few rounds, and lost to different stragglers in each round
# (waiting for fewer workers saves a part of it).
_WORTH = 0.02
_WORTH_WAITING = 0.2
# Share of missing responses above which the first advice is to check the worker.
_MISSING = 0.05
# Largest share of the rounds that are reported on their own if most of the time is lost
# in them, and the minimum number of rounds for a single one. The longest of fewer
# rounds often holds most of the time by chance.
_FEW_ROUNDS = 0.01
_LEAST_ROUNDS = 10
# Maximum number of such rounds in the text.
_NUM_NAMED_ROUNDS = 3


def advice_of(report: StragglerReport) -> str:
    """Returns recommended actions: workers to check, and what shortens rounds."""
    sentences = []
    is_missing = report.missing > _MISSING * report.num_rounds
    if is_missing.any() and not report.after_barrier:
        at_most = "up to " if is_missing.sum() > 1 else ""
        sentences.append(
            f"Check {workers_named(report.names[is_missing])}: no response in "
            f"{at_most}{report.missing.max()} of {report.num_rounds} rounds."
        )
    outliers = _outlying_rounds(report)
    if len(outliers):
        sentences.append(_about_outliers(report, outliers))
        report = _without_rounds(report, outliers)
    if report.after_barrier:
        sentences.append(_about_barrier(report))
        return " ".join(sentences)
    remedy = _remedy(report)
    if remedy:
        sentences.append(remedy)
    elif not is_missing.any() or len(outliers):
        sentences.append(_without_remedy(report))
    return " ".join(sentences)


def _about_barrier(report: StragglerReport) -> str:
    """Says that times are those after a barrier, and what to measure."""
    longest = np.fmax.reduce(report.times, axis=1)
    shortest = np.fmin.reduce(report.times, axis=1)
    within = f"{np.nanmedian(1 - shortest / longest):.1%}"
    return (
        "These times seem to include the wait for the slowest worker, as after a "
        "barrier or a collective operation: in each round, all workers took the "
        f"same time (within {within}). They cannot show which worker is slow. "
        "Measure the times before the collective, or the times that each worker waits "
        "in it (waits=, on the command line --waits). If these are times before the "
        "collective (before_collective=True, --before-collective), the workers are "
        "equally fast."
    )


def _outlying_rounds(report: StragglerReport) -> np.ndarray:
    """Returns the few rounds in which most of the time is lost, the worst one first.

    These are the worst rounds up to the one after which the others among the worst 1%
    lose less than all further rounds. The result is empty if they matter little.
    """
    num_candidates = int(_FEW_ROUNDS * report.num_rounds)
    if report.num_rounds >= _LEAST_ROUNDS:
        num_candidates = max(num_candidates, 1)
    if not num_candidates:
        return np.array([], dtype=int)
    longest = np.nan_to_num(_longest(report))
    relative = longest / longest.max()
    lost = np.nan_to_num(1 - report.round_medians / longest) * relative
    candidates = np.argpartition(-lost, num_candidates - 1)[:num_candidates]
    candidates = candidates[np.argsort(-lost[candidates])]
    worst = lost[candidates]
    lost_elsewhere = np.delete(lost, candidates).sum()
    # Time lost in the remaining candidates if 0, 1, ... of them are left out.
    remaining = np.append(np.cumsum(worst[::-1])[::-1], 0)
    outliers = candidates[: np.argmax(remaining <= lost_elsewhere)]
    if lost[outliers].sum() <= _WORTH * relative.sum():
        return np.array([], dtype=int)
    return outliers


def _about_outliers(report: StragglerReport, outliers: np.ndarray) -> str:
    """Names rounds that take much of the time, and the workers that were last."""
    longest = np.nan_to_num(_longest(report))
    relative = longest / longest.max()
    share = relative[outliers].sum() / relative.sum()
    places = [
        f"{workers_named(report.names[[np.nanargmax(report.times[place])]])} in round "
        f"{place}"
        for place in outliers[:_NUM_NAMED_ROUNDS]
    ]
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


def _without_rounds(report: StragglerReport, outliers: np.ndarray) -> StragglerReport:
    """Returns a report with the means of the other rounds."""
    is_kept = ~np.isnan(report.round_medians)
    is_kept[outliers] = False
    times = report.times[is_kept]
    means = round_means(times)
    return report._replace(
        times=times,
        round_medians=means.medians,
        round_time=means.longest,
        median_time=means.median,
        last=means.last,
        lost_share=1 - means.median / means.longest,
    )


def _remedy(report: StragglerReport) -> str:
    """Returns the action that shortens rounds most, or "" if none is worth it."""
    names = report.names
    kinds = report.kinds
    is_stalling = kinds == "intermittent"
    is_chronic = kinds == "chronic"
    is_since = np.char.startswith(kinds, "since")
    is_replaced = is_since
    if is_chronic.sum() == 1:
        is_replaced = is_since | is_chronic
    remedies = [
        (
            report.replaced_time(is_replaced),
            f"Check or replace {workers_named(names[is_replaced])}",
        ),
        (
            report.replaced_time(is_stalling),
            f"Wait for fewer, since {workers_named(names[is_stalling])} may stall",
        ),
    ]
    # Changes late in the trace hardly show in the median slowdown.
    gets_less = is_chronic | (is_since & (report.slowdown > np.exp(MARGIN)))
    is_fast_since = np.char.startswith(kinds, "fast since")
    gets_more = (kinds == "fast") | (
        is_fast_since & (report.slowdown < np.exp(-MARGIN))
    )
    shares = []
    if gets_less.any():
        shares.append(f"less to {workers_named(names[gets_less])}")
    if gets_more.any():
        shares.append(f"more to {workers_named(names[gets_more])}")
    if shares:
        action = f"Give work in proportion to speed, {' and '.join(shares)}"
        remedies.append((report.proportional_time(), action))
    time, action = min(remedies)
    saved = 1 - time / report.round_time
    if saved <= _WORTH:
        return ""
    return (
        f"{action}: a round would take {time:.3g} instead of {report.round_time:.3g} "
        f"({saved:.0%} less)."
    )


def _without_remedy(report: StragglerReport) -> str:
    """Returns a sentence on the time lost if no action on named workers is worth it."""
    is_fast_since = np.char.startswith(report.kinds, "fast since")
    if is_fast_since.any():
        place = int(np.median(report.change_round[is_fast_since]))
        return (
            f"Find out what changed near round {place}: since then, the median worker "
            f"takes longer than {workers_named(report.names[is_fast_since])}."
        )
    ratio = report.round_time / report.median_time
    is_last = report.last > 0.5
    if report.lost_share <= _WORTH_WAITING:
        text = "Nothing to gain"
    elif is_last.any():
        text = f"Measure more rounds to judge {workers_named(report.names[is_last])}"
    else:
        text = "Wait for fewer workers, since another one is last each time"
    return f"{text}: a round takes {ratio:.2f} times as long as its median worker."


def _longest(report: StragglerReport) -> np.ndarray:
    """Returns the time of each round, NaN without responses."""
    return longest_times(report.times, np.ones(len(report.names)))
