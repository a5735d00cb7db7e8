"""Advice of a straggler report: the action that shortens rounds most."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxwgc._common.text import workers_named
from jaxwgc.reports._levels import MARGIN
from jaxwgc.reports._lost_time import LastWorkers, last_workers
from jaxwgc.reports._missing import (
    MISSING,
    misses_often,
    stopped_responding,
    workers_to_check,
)
from jaxwgc.reports._outliers import WORTH, about_outliers, outlying_rounds
from jaxwgc.reports._references import reference_times
from jaxwgc.reports._statistics import median_slowdowns, round_means

if TYPE_CHECKING:
    from jaxwgc.reports._straggler_report import StragglerReport

# Share of the round time that different stragglers cost in each round, above which the
# advice is to wait for fewer workers. This saves some of the time.
_WORTH_WAITING = 0.2
# Share of the responses of workers without many missing ones, and of the rounds with
# one response, above which the advice mentions them.
_MANY_MISSING = 0.05


def advice_of(report: StragglerReport) -> str:
    """Returns recommended actions: workers to check, and what shortens rounds."""
    sentences = _about_missing(report)
    num_about_missing = len(sentences)
    outliers = outlying_rounds(report)
    if len(outliers):
        sentences.append(about_outliers(report, outliers))
        is_kept = np.ones(len(report.times), dtype=bool)
        is_kept[outliers] = False
        report = _of_rounds(report, is_kept)
    if report.after_barrier:
        sentences.append(_about_barrier(report))
        return " ".join(sentences)
    is_recovered = _is_kind(report, "until")
    is_left_behind = _is_kind(report, "others faster since")
    if is_recovered.any():
        sentences.append(_about_recovered(report, is_recovered))
    if is_left_behind.any():
        sentences.append(_about_faster_others(report, is_left_behind))
    if is_recovered.any() or is_left_behind.any():
        start = report.change_round[is_recovered | is_left_behind].max()
        sentences.append(f"Since {report.noun} {start}:")
        place = int(np.flatnonzero(report.steps >= start)[0])
        report = _of_rounds(report, np.arange(len(report.times)) >= place)
    remedy = _remedy(report) or _without_remedy(report)
    if remedy:
        sentences.append(remedy)
    elif not num_about_missing or len(sentences) > num_about_missing:
        sentences.append(f"Nothing to gain: {_ratio_to_median(report)}.")
    return " ".join(sentences)


def _is_kind(report: StragglerReport, kind: str) -> np.ndarray:
    """Returns which workers are of a kind, without the round of its change."""
    return np.char.startswith(report.kinds, kind)


def _about_missing(report: StragglerReport) -> list[str]:
    """Names workers with significantly many missing responses, or says that all do."""
    sentences = workers_to_check(report)
    num_rounds = report.num_rounds
    num_lost = int(np.isnan(report.round_medians).sum())
    if num_lost > MISSING * num_rounds:
        sentences.append(f"No worker responded in {num_lost} of {num_rounds} rounds.")
    num_alone = int(np.sum(np.isfinite(report.times).sum(axis=1) == 1))
    if num_alone > _MANY_MISSING * num_rounds:
        sentences.append(
            f"One worker responded alone in {num_alone} of {num_rounds} rounds, which "
            "do not show how fast it is."
        )
    is_other = ~stopped_responding(report) & ~misses_often(report)
    missing_of_others = report.missing[is_other] - num_lost
    num_others = len(missing_of_others)
    num_expected = num_others * (num_rounds - num_lost)
    share = missing_of_others.sum() / max(num_expected, 1)
    if share > _MANY_MISSING:
        workers = (
            "the other workers" if num_others < len(report.names) else "all workers"
        )
        sentences.append(
            f"{share:.0%} of the responses of {workers} are missing, of each worker "
            "about as many as chance explains."
        )
    return sentences


def _about_recovered(report: StragglerReport, is_recovered: np.ndarray) -> str:
    """Says that workers were slow until a round, and that nothing is to be done now."""
    names = workers_named(report.names[is_recovered])
    verb = "was" if is_recovered.sum() == 1 else "were"
    pronoun = "it" if is_recovered.sum() == 1 else "them"
    start = report.change_round[is_recovered].max()
    return (
        f"{names.capitalize()} {verb} slow until {report.noun} {start}, and nothing is "
        f"to be done about {pronoun} now."
    )


def _about_faster_others(report: StragglerReport, is_left_behind: np.ndarray) -> str:
    """Says since when the others are faster than workers that did not change."""
    names = report.names[is_left_behind]
    start = int(np.median(report.change_round[is_left_behind]))
    verb = "takes" if len(names) == 1 else "take"
    return (
        f"The others are faster since {report.noun} {start} than "
        f"{workers_named(names)}, which {verb} as long as before."
    )


def _about_barrier(report: StragglerReport) -> str:
    """Says that times are those after a barrier, and what to measure."""
    longest = np.fmax.reduce(report.times, axis=1)
    shortest = np.fmin.reduce(report.times, axis=1)
    within = f"{np.nanmedian(1 - shortest / longest):.1%}"
    workers = "workers that responded" if report.missing.any() else "workers"
    return (
        "These times seem to include the wait for the slowest worker, as after a "
        f"barrier or a collective operation: in each round, all {workers} took the "
        f"same time (within {within}). They cannot show which worker is slow. "
        "Measure the times before the collective, or the times that each worker waits "
        "in it (waits=, on the command line --waits). If these are times before the "
        f"collective (before_collective=True, --before-collective), the {workers} are "
        "equally fast."
    )


def _of_rounds(report: StragglerReport, is_kept: np.ndarray) -> StragglerReport:
    """Returns a report with the means and slowdowns of some rounds."""
    is_kept = is_kept & ~np.isnan(report.round_medians)
    times = report.times[is_kept]
    means = round_means(times)
    return report._replace(
        times=times,
        steps=report.steps[is_kept],
        round_medians=means.medians,
        round_time=means.longest,
        median_time=means.median,
        slowdown=median_slowdowns(times, reference_times(times, means)),
        last=means.last,
        lost_share=1 - means.median / means.longest,
    )


class _Remedy(NamedTuple):
    """Action and mean time of a round after it; ordered by time, then by action."""

    time: float
    action: str


def _remedy(report: StragglerReport) -> str:
    """Returns the action that shortens rounds most, or "" if none is worth it."""
    names = report.names
    is_stalling = report.kinds == "intermittent"
    is_chronic = report.kinds == "chronic"
    is_replaced = _is_kind(report, "since")
    if is_chronic.sum() == 1:
        is_replaced = is_replaced | is_chronic
    replacement = _Remedy(
        time=report.replaced_time(is_replaced),
        action=f"Check or replace {workers_named(names[is_replaced])}",
    )
    waiting = _Remedy(
        time=report.replaced_time(is_stalling),
        action=f"Wait for fewer, since {workers_named(names[is_stalling])} may stall",
    )
    remedies = [replacement, waiting]
    shares = _shares_of_work(report)
    if shares:
        action = f"Give work in proportion to speed, {' and '.join(shares)}"
        remedies.append(_Remedy(time=report.proportional_time(), action=action))
    best = min(remedies)
    saved = 1 - best.time / report.round_time
    if saved <= WORTH:
        return ""
    return (
        f"{best.action}: a round would take {best.time:.3g} instead of "
        f"{report.round_time:.3g} ({saved:.0%} less)."
    )


def _shares_of_work(report: StragglerReport) -> list[str]:
    """Returns "less to worker 1" and "more to worker 2", for workers that respond."""
    # A change late in the trace hardly changes the median slowdown.
    is_slower_since = _is_kind(report, "since") | _is_kind(
        report, "others faster since"
    )
    is_slow = report.slowdown > np.exp(MARGIN)
    is_fast = report.slowdown < np.exp(-MARGIN)
    gets_less = (report.kinds == "chronic") | (is_slower_since & is_slow)
    gets_more = (report.kinds == "fast") | (_is_kind(report, "fast since") & is_fast)
    gets_less &= ~report.is_unreliable
    gets_more &= ~report.is_unreliable
    shares = []
    if gets_less.any():
        shares.append(f"less to {workers_named(report.names[gets_less])}")
    if gets_more.any():
        shares.append(f"more to {workers_named(report.names[gets_more])}")
    return shares


def _without_remedy(report: StragglerReport) -> str:
    """Returns a sentence on the time lost without a remedy, or "" if it is short."""
    is_fast_since = _is_kind(report, "fast since")
    if is_fast_since.any():
        start = int(np.median(report.change_round[is_fast_since]))
        return (
            f"Find out what changed near {report.noun} {start}: since then, the median "
            f"worker takes longer than {workers_named(report.names[is_fast_since])}."
        )
    is_response = ~np.isnan(report.round_medians)
    lasts = last_workers(report.times[is_response], report.round_medians[is_response])
    is_last = lasts.is_last_often & (report.last > 0.5)
    loses_much = report.lost_share > _WORTH_WAITING
    is_costly = lasts.lost_time > WORTH * report.round_time
    if loses_much and is_last.any():
        text = f"Measure more rounds to judge {workers_named(report.names[is_last])}"
    elif is_costly:
        text = f"Find out what slowed {workers_named(report.names[lasts.is_costly])}"
    elif loses_much:
        text = "Wait for fewer workers, since another one is last each time"
    else:
        return ""
    if is_costly:
        steps = report.steps[is_response]
        return f"{text}: {_about_costly_workers(report, lasts, steps)}"
    return f"{text}: {_ratio_to_median(report)}."


def _ratio_to_median(report: StragglerReport) -> str:
    """Returns how long a round takes, as a multiple of its median worker."""
    ratio = report.round_time / report.median_time
    return f"a round takes {ratio:.2f} times as long as its median worker"


def _about_costly_workers(
    report: StragglerReport, lasts: LastWorkers, steps: np.ndarray
) -> str:
    """Says how much of the time is lost to workers, and in which rounds."""
    first = steps[lasts.rounds[0]]
    last = steps[lasts.rounds[-1]]
    when = f"in {report.noun} {first}"
    if last > first:
        when = f"from {report.noun} {first} to {report.noun} {last}"
    return (
        f"{lasts.lost_share:.0%} of the time lost to workers is lost to "
        f"{workers_named(report.names[lasts.is_costly])}, {when}."
    )
