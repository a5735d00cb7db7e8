"""Advice of a straggler report: the action that shortens rounds most."""

from typing import NamedTuple

import numpy as np

from jaxwgc.reports._lost_time import WORTH, last_workers, outlying_rounds
from jaxwgc.reports._statistics import MARGIN, Rounds
from jaxwgc.reports._workers import MISSING, Kind, Workers, workers_to_check

# Share of the round time lost to stragglers, above which the advice is to wait for
# fewer workers, if another worker is last each time.
_WORTH_WAITING = 0.2
# The advice mentions missing responses of the other workers, or rounds with one
# response, if their share is above this number.
_MANY_MISSING = 0.05
# Share of the rounds in which one worker is last, above which the worker is named
# without a test.
_NEARLY_ALWAYS = 0.9
# Maximum number of outlying rounds that the text names.
_NUM_NAMED_ROUNDS = 3


class Advice(NamedTuple):
    """Text of the advice, and the rounds that it names."""

    text: str
    rounds: tuple[int, ...] = ()


def advice_of(rounds: Rounds, workers: Workers, after_barrier: bool) -> Advice:
    """Returns the advice: workers to check, and the action that shortens rounds most.

    Args:
      rounds: Rounds of the trace.
      workers: Names and kinds of the workers.
      after_barrier: Whether times include the wait for the slowest worker.
    """
    sentences = [*workers_to_check(workers), *_about_missing(rounds, workers)]
    num_about_missing = len(sentences)
    outliers = outlying_rounds(rounds)
    named_rounds = tuple(rounds.steps[outliers].tolist())
    if len(outliers):
        sentences.append(_about_outliers(rounds, workers, outliers))
        rounds = rounds.only(~np.isin(np.arange(len(rounds.times)), outliers))
    if after_barrier:
        sentences.append(_about_barrier(rounds, workers))
        return Advice(" ".join(sentences), named_rounds)
    is_recovered = workers.kinds == Kind.UNTIL
    is_left_behind = workers.kinds == Kind.OTHERS_FASTER_SINCE
    if is_recovered.any():
        sentences.append(_about_recovered(workers, is_recovered))
    if is_left_behind.any():
        sentences.append(_about_faster_others(workers, is_left_behind))
    is_over = is_recovered | is_left_behind
    if is_over.any():
        start = workers.change_round[is_over].max()
        sentences.append(f"Since {workers.noun} {start}:")
        rounds = rounds.only(rounds.steps >= start)
    remedy = _remedy(rounds, workers) or _without_remedy(rounds, workers)
    if remedy:
        sentences.append(remedy.text)
        named_rounds += remedy.rounds
    elif not num_about_missing or len(sentences) > num_about_missing:
        sentences.append(f"Nothing to gain: {_ratio_to_median(rounds)}.")
    return Advice(" ".join(sentences), named_rounds)


def _about_missing(rounds: Rounds, workers: Workers) -> list[str]:
    """Returns sentences on missing responses that are spread over many workers."""
    sentences = []
    num_rounds = workers.num_rounds
    num_responses = np.isfinite(rounds.times).sum(axis=1)
    num_lost = np.count_nonzero(num_responses == 0)
    if num_lost > MISSING * num_rounds:
        sentences.append(f"No worker responded in {num_lost} of {num_rounds} rounds.")
    num_alone = np.count_nonzero(num_responses == 1)
    if num_alone > _MANY_MISSING * num_rounds:
        sentences.append(
            f"One worker responded alone in {num_alone} of {num_rounds} rounds, which "
            "do not show how fast it is."
        )
    is_other = (workers.kinds != Kind.MISSING_SINCE) & ~workers.misses_often
    missing_of_others = workers.missing[is_other] - num_lost
    num_expected = len(missing_of_others) * (num_rounds - num_lost)
    share = missing_of_others.sum() / max(num_expected, 1)
    if share > _MANY_MISSING:
        subject = "all workers" if is_other.all() else "the other workers"
        sentences.append(
            f"{share:.0%} of the responses of {subject} are missing, of each worker "
            "about as many as chance explains."
        )
    return sentences


def _about_outliers(rounds: Rounds, workers: Workers, outliers: np.ndarray) -> str:
    """Returns text on rounds that take much of the time, and on their last workers."""
    # Times are divided by the mean before they are summed, because their sum might
    # overflow.
    share = (
        np.sum(rounds.longest[outliers] / rounds.round_time)
        / np.isfinite(rounds.medians).sum()
    )
    places = []
    for place in outliers[:_NUM_NAMED_ROUNDS]:
        is_last = rounds.times[place] == rounds.longest[place]
        places.append(
            f"{workers.named(is_last)} in {workers.noun} {rounds.steps[place]}"
        )
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


def _about_recovered(workers: Workers, is_recovered: np.ndarray) -> str:
    """Returns a sentence that names the workers that have recovered."""
    names = workers.named(is_recovered)
    verb = "was" if is_recovered.sum() == 1 else "were"
    pronoun = "it" if is_recovered.sum() == 1 else "them"
    start = workers.change_round[is_recovered].max()
    return (
        f"{names.capitalize()} {verb} slow until {workers.noun} {start}, and nothing "
        f"is to be done about {pronoun} now."
    )


def _about_faster_others(workers: Workers, is_left_behind: np.ndarray) -> str:
    """Returns a sentence on workers that are slow because others became faster."""
    start = int(np.median(workers.change_round[is_left_behind]))
    verb = "takes" if is_left_behind.sum() == 1 else "take"
    return (
        f"The others are faster since {workers.noun} {start} than "
        f"{workers.named(is_left_behind)}, which {verb} as long as before."
    )


def _about_barrier(rounds: Rounds, workers: Workers) -> str:
    """Returns text that times seem to include a wait, and what to measure instead."""
    shortest = np.fmin.reduce(rounds.times, axis=1)
    within = f"{np.nanmedian(1 - shortest / rounds.longest):.1%}"
    subject = "workers that responded" if workers.missing.any() else "workers"
    return (
        "These times seem to include the wait for the slowest worker, as after a "
        f"barrier or a collective operation: in each round, all {subject} took the "
        f"same time (within {within}). They cannot show which worker is slow. "
        "Measure the times before the collective, or the times that each worker waits "
        "in it (waits=, on the command line --waits). If these are times before the "
        f"collective (before_collective=True, --before-collective), the {subject} are "
        "equally fast."
    )


class _Remedy(NamedTuple):
    """A remedy, and the mean round time that it would give."""

    time: float
    action: str


def _remedy(rounds: Rounds, workers: Workers) -> Advice | None:
    """Returns advice on the remedy that shortens rounds most, or None if none helps."""
    is_stalling = workers.kinds == Kind.INTERMITTENT
    is_chronic = workers.kinds == Kind.CHRONIC
    is_replaced = workers.kinds == Kind.SINCE
    if is_chronic.sum() == 1:
        is_replaced = is_replaced | is_chronic
    replacement = _Remedy(
        time=rounds.replaced_time(is_replaced),
        action=f"Check or replace {workers.named(is_replaced)}",
    )
    waiting = _Remedy(
        time=rounds.replaced_time(is_stalling),
        action=f"Wait for fewer, since {workers.named(is_stalling)} may stall",
    )
    remedies = [replacement, waiting]
    shares = _shares_of_work(rounds, workers)
    if shares:
        time = rounds.proportional_time(keeps_work=workers.is_unreliable)
        action = f"Give work in proportion to speed, {' and '.join(shares)}"
        remedies.append(_Remedy(time=time, action=action))
    best = min(remedies)
    saved = 1 - best.time / rounds.round_time
    if saved <= WORTH:
        return None
    return Advice(
        f"{best.action}: a round would take {best.time:.3g} instead of "
        f"{rounds.round_time:.3g} ({saved:.0%} less)."
    )


def _shares_of_work(rounds: Rounds, workers: Workers) -> list[str]:
    """Returns clauses that name workers that should get less, or more, work."""
    kinds = workers.kinds
    # After a change late in the trace, the median slowdown is still the old one. Such a
    # worker keeps its work.
    is_slow = rounds.slowdown > np.exp(MARGIN)
    is_fast = rounds.slowdown < np.exp(-MARGIN)
    is_slower = (kinds == Kind.SINCE) | (kinds == Kind.OTHERS_FASTER_SINCE)
    gets_less = (kinds == Kind.CHRONIC) | (is_slower & is_slow)
    gets_more = (kinds == Kind.FAST) | ((kinds == Kind.FAST_SINCE) & is_fast)
    gets_less &= ~workers.is_unreliable
    gets_more &= ~workers.is_unreliable
    shares = []
    if gets_less.any():
        shares.append(f"less to {workers.named(gets_less)}")
    if gets_more.any():
        shares.append(f"more to {workers.named(gets_more)}")
    return shares


def _without_remedy(rounds: Rounds, workers: Workers) -> Advice | None:
    """Returns advice on workers that cost time if no remedy helps, or None."""
    is_fast_since = workers.kinds == Kind.FAST_SINCE
    if is_fast_since.any():
        start = int(np.median(workers.change_round[is_fast_since]))
        text = (
            f"Find out what changed near {workers.noun} {start}: since then, the "
            "median worker takes longer than "
            f"{workers.named(is_fast_since)}."
        )
        return Advice(text)
    is_response = ~np.isnan(rounds.medians)
    lasts = last_workers(rounds.times[is_response], rounds.medians[is_response])
    is_last = lasts.is_last_often & (rounds.last > 0.5)
    is_last |= rounds.last > _NEARLY_ALWAYS
    loses_much = rounds.lost_share > _WORTH_WAITING
    is_costly = lasts.lost_time > WORTH * rounds.round_time
    if loses_much and is_last.any():
        text = f"Measure more rounds to judge {workers.named(is_last)}"
    elif is_costly:
        text = f"Find out what slowed {workers.named(lasts.is_costly)}"
    elif loses_much:
        text = "Wait for fewer workers, since another one is last each time"
    else:
        return None
    if not is_costly:
        return Advice(f"{text}: {_ratio_to_median(rounds)}.")
    steps = rounds.steps[is_response]
    first = steps[lasts.rounds[0]]
    last = steps[lasts.rounds[-1]]
    when = f"in {workers.noun} {first}"
    if last > first:
        when = f"from {workers.noun} {first} to {workers.noun} {last}"
    text += (
        f": {lasts.lost_share:.0%} of the time lost to workers is lost to "
        f"{workers.named(lasts.is_costly)}, {when}."
    )
    return Advice(text, rounds=(int(first), int(last)))


def _ratio_to_median(rounds: Rounds) -> str:
    """Returns a clause with the ratio of the round time to the median worker's time."""
    ratio = rounds.round_time / rounds.median_time
    return f"a round takes {ratio:.2f} times as long as its median worker"
