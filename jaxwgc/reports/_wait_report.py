"""Reports on waiting times: the slow worker is the one that waits least."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxwgc._common.text import workers_named
from jaxwgc.reports._inputs import checked_waits, comparable_workers
from jaxwgc.reports._statistics import (
    FALSE_ALARMS,
    batches_of_rounds,
    errors_of_batches,
    lost_times,
)
from jaxwgc.reports._workers import (
    Kind,
    Workers,
    kind_texts,
    report_dict,
    report_text,
    table_text,
    with_errors,
    workers_to_check,
)

# Maximum number of workers in the printed table.
_NUM_ROWS = 20
# The advice is to measure more rounds if a worker is last in more than _OFTEN_LAST
# equal shares of the rounds, plus _NUM_STANDARD_ERRORS standard errors.
_OFTEN_LAST = 2
_NUM_STANDARD_ERRORS = 3


class WaitReport(NamedTuple):
    """Workers that the others wait for; `print` shows a table and the advice.

    Times are in the unit of `waits`. Rounds count from 0.

    Attributes:
      names: Name of each worker, str (workers,).
      kinds: `Kind` of each worker, object (workers,): `LATE` if it is last in
        significantly more rounds than an equal share, `STEADY`, `MISSING_SINCE` or, if
        it took part in no round, `MISSING`.
      change_round: Round since which a worker is missing, int (workers,). -1 for other
        kinds.
      last: Share of rounds in which the worker waits least, (workers,).
      last_p_value: Significance of `last`, corrected for the number of workers,
        (workers,).
      mean_wait: Mean time that the worker waits, (workers,). NaN without responses.
      time_lost: Mean time by which a round would be shorter if the worker arrived with
        the last of the others, (workers,).
      time_lost_error: Half of the width of the 95% interval of `time_lost`, (workers,).
      missing: Number of rounds in which the worker did not take part, int (workers,).
      missing_p_value: Significance of missing more rounds than other workers, or all of
        the last ones; corrected for the number of tests, (workers,).
      num_rounds: Number of rounds.
      round_wait: Mean over rounds and workers of the time that a worker waits.
      time_saved: Mean time by which a round would be shorter if all workers of kind
        `LATE` arrived with the last of the others.
      advice: Recommended action: workers to check, and the time that this saves.

    Example:
      All others wait for worker 1:

      >>> import numpy as np, jaxwgc
      >>> waits = 1 + 0.1 * np.random.default_rng(0).random((100, 3))
      >>> waits[:, 1] = 0.0
      >>> print(jaxwgc.straggler_report(waits=waits))
      100 rounds of 3 workers, waiting times. Mean wait: 0.702.
      <BLANKLINE>
      worker  kind    last in  mean wait  time lost     missing
      1       late    100%     0          1.04 ± 0.006  0
      0       steady  0%       1.06       0 ± 0         0
      2       steady  0%       1.05       0 ± 0         0
      <BLANKLINE>
      Check or replace worker 1: last in 100% of the rounds, with a mean wait of 0,
      while the others wait 1.05. A round would be 1.04 shorter.
    """

    names: np.ndarray
    kinds: np.ndarray
    change_round: np.ndarray
    last: np.ndarray
    last_p_value: np.ndarray
    mean_wait: np.ndarray
    time_lost: np.ndarray
    time_lost_error: np.ndarray
    missing: np.ndarray
    missing_p_value: np.ndarray
    num_rounds: int
    round_wait: float
    time_saved: float
    advice: str

    @property
    def kind_texts(self) -> list[str]:
        """Kinds of the workers as text, e.g. "missing since round 151"."""
        return kind_texts(self.kinds, self.change_round, "round")

    def __str__(self) -> str:
        num_workers = len(self.names)
        order = np.lexsort((-self.last, self.kinds == Kind.STEADY))[:_NUM_ROWS]
        table = table_text(
            {
                "worker": self.names,
                "kind": self.kind_texts,
                "last in": [f"{share:.0%}" for share in self.last],
                "mean wait": [f"{wait:.3g}" for wait in self.mean_wait],
                "time lost": with_errors(self.time_lost, self.time_lost_error),
                "missing": self.missing,
            },
            order,
        )
        shown = f" ({len(order)} shown)" if len(order) < num_workers else ""
        totals = (
            f"{self.num_rounds} rounds of {num_workers} workers{shown}, waiting times. "
            f"Mean wait: {self.round_wait:.3g}."
        )
        advice = self.advice
        if Kind.MISSING_SINCE in self.kinds:
            advice += " Rounds count from 0."
        return report_text(totals, table, advice)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as lists, numbers and None, for JSON.

        `kinds` are texts such as "missing since round 151", and `kind_values` are the
        kinds without rounds.
        """
        return report_dict(self)


def wait_report(waits: Any, names: Sequence[str] | None) -> WaitReport:
    """Computes the report on waiting times."""
    table = checked_waits(waits)
    num_rounds, num_workers = table.shape
    labels = comparable_workers(names, table, argument="waits")
    is_response = ~np.isnan(table)
    has_response = is_response.any(axis=1)
    takes_part = is_response[has_response]
    # Infinite waits keep workers that do not take part from being last.
    filled = np.where(takes_part, table[has_response], np.inf)
    shortest, second_shortest = np.sort(filled, axis=1)[:, :2].T
    is_last = filled == shortest[:, None]
    turns = is_last / is_last.sum(axis=1, keepdims=True)
    # If a worker takes part alone, or if several workers are last, the gap is 0. No
    # time is then lost to any worker.
    lost, lost_error = lost_times(
        last_worker=is_last.argmax(axis=1),
        gaps=np.where(np.isinf(second_shortest), 0.0, second_shortest - shortest),
        num_workers=num_workers,
    )
    chances = 1 / takes_part.sum(axis=1)
    p_values = np.ones(num_workers)
    for worker in np.flatnonzero(takes_part.any(axis=0)):
        is_here = takes_part[:, worker]
        p_values[worker] = _p_value(turns[is_here, worker], chances[is_here])
    p_values = np.minimum(p_values * num_workers, 1)
    kinds = np.array([Kind.STEADY] * num_workers, dtype=object)
    kinds[p_values < FALSE_ALARMS] = Kind.LATE
    workers = Workers.of(
        names=labels,
        kinds=kinds,
        change_round=np.full(num_workers, -1),
        is_response=is_response,
        steps=np.arange(num_rounds),
    )
    is_other = workers.kinds != Kind.LATE
    shortest_of_others = np.min(filled, axis=1, where=is_other, initial=np.inf)
    has_others = np.isfinite(shortest_of_others)
    saved = np.where(has_others, shortest_of_others - shortest, 0)
    num_responses = is_response.sum(axis=0)
    means = np.nansum(table, axis=0) / np.maximum(num_responses, 1)
    report = WaitReport(
        names=labels,
        kinds=workers.kinds,
        change_round=workers.change_round,
        last=turns.mean(axis=0),
        last_p_value=p_values,
        mean_wait=np.where(num_responses > 0, means, np.nan),
        time_lost=lost,
        time_lost_error=lost_error,
        missing=workers.missing,
        missing_p_value=workers.missing_p_value,
        num_rounds=num_rounds,
        round_wait=float(np.nanmean(table)),
        time_saved=float(saved.mean()),
        advice="",
    )
    sentences = [*workers_to_check(workers), _about_late_workers(report)]
    return report._replace(advice=" ".join(sentences))


def _about_late_workers(report: WaitReport) -> str:
    """Returns advice on late workers, and on the time that they cost."""
    is_late = report.kinds == Kind.LATE
    if is_late.any():
        late_wait = np.nanmean(report.mean_wait[is_late])
        other_wait = np.nanmean(report.mean_wait[~is_late])
        return (
            f"Check or replace {workers_named(report.names[is_late])}: last in "
            f"{report.last[is_late].sum():.0%} of the rounds, with a mean wait of "
            f"{late_wait:.3g}, while the others wait {other_wait:.3g}. A round would "
            f"be {report.time_saved:.3g} shorter."
        )
    equal_share = 1 / len(report.names)
    margin = _NUM_STANDARD_ERRORS * np.sqrt(equal_share / report.num_rounds)
    is_often_last = report.last > _OFTEN_LAST * equal_share + margin
    if not is_often_last.any():
        return (
            "No worker is last in more rounds than chance explains: a worker waits "
            f"{report.round_wait:.3g} per round, for another worker each time."
        )
    shares = ", ".join(f"{share:.0%}" for share in report.last[is_often_last])
    return (
        f"Measure more rounds to judge {workers_named(report.names[is_often_last])}: "
        f"last in {shares} of the rounds, which a spell or chance may explain. A "
        f"worker waits {report.round_wait:.3g} per round."
    )


def _p_value(is_last: np.ndarray, chances: np.ndarray) -> float:
    """Computes the p-value for being last in more rounds than chance explains.

    Two tests must show that it is last more often than by chance: a binomial test, in
    which correlated rounds count as fewer, and a t-test of batches of consecutive
    rounds, for slow spells.

    Args:
      is_last: 1 if the worker is last, and a share in a tie, in each round in which it
        takes part, (rounds,).
      chances: Probability of being last if all workers are alike, (rounds,).
    """
    share = is_last.mean()
    chance = chances.mean()
    if share <= chance:
        return 1.0
    num_effective = len(is_last) / _correlation_factor(is_last)
    num_last = share * num_effective
    # Tail of the binomial distribution: probability of at least `num_last` last rounds.
    p_binomial = scipy.special.betainc(num_last, num_effective - num_last + 1, chance)
    batches = batches_of_rounds(len(is_last))
    sums = np.array([np.sum((is_last - chances)[rounds]) for rounds in batches])
    excess, standard_error, degrees = errors_of_batches(sums[:, None], batches)
    p_batches = scipy.special.stdtr(
        degrees, -excess / np.maximum(standard_error, 1e-300)
    )
    return float(max(p_binomial, p_batches[0]))


def _correlation_factor(values: np.ndarray) -> float:
    """Returns the factor by which lag-1 correlation increases the variance of a mean.

    The estimate of the correlation r is low by about (1 + 3 r) / rounds.
    """
    deviations = values - values.mean()
    product = np.sum(deviations[1:] * deviations[:-1])
    estimate = product / max(np.sum(deviations**2), 1e-300)
    num_rounds = len(values)
    correlation = (estimate + 1 / num_rounds) / max(1 - 3 / num_rounds, 0.1)
    correlation = np.clip(correlation, 0, 0.97)
    return float((1 + correlation) / (1 - correlation))
