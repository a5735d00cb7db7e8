"""Reports of waiting times: the worker that waits least is the slow one."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy

from jaxwgc._common.text import aligned, workers_named
from jaxwgc.reports import _figures
from jaxwgc.reports._inputs import check_rounds_are_shared, waiting_times
from jaxwgc.reports._levels import FALSE_ALARMS
from jaxwgc.reports._missing import (
    kinds_with_missing,
    missing_responses,
    stopped_responding,
    workers_to_check,
)
from jaxwgc.reports._statistics import batch_errors, batch_means, sampled_rounds
from jaxwgc.reports._text import for_json, worker_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maximum number of workers in the printed table.
_NUM_ROWS = 20
# Multiple of an equal share of last rounds, besides standard errors, above which a
# worker should be measured further.
_OFTEN_LAST = 2
_NUM_STANDARD_ERRORS = 3


class WaitReport(NamedTuple):
    """Workers that the others wait for; `print` shows a table and the advice.

    Times are in the unit of `waits`. Rounds count from 0.

    Attributes:
      names: Name of each worker, str (workers,).
      kinds: `"late"` if the worker is last in significantly more rounds than an equal
        share, `"steady"`, `"missing since round 151"` or, if it took part in no round,
        `"missing"`, str (workers,).
      last: Share of rounds in which the worker waits least, (workers,).
      last_p_value: Significance of `last`, corrected for the number of workers,
        (workers,).
      mean_wait: Mean time that the worker waits, (workers,). NaN without responses.
      time_lost: Mean time by which a round would be shorter if the worker arrived with
        the last of the others, (workers,).
      time_lost_error: Half of the width of its 95% interval, (workers,).
      missing: Number of rounds in which the worker did not take part, int (workers,).
      missing_p_value: Significance of missing more rounds than other workers, or all of
        the last ones; corrected for the number of tests, (workers,).
      num_rounds: Number of rounds.
      round_wait: Mean over rounds and workers of the time that a worker waits.
      time_saved: Mean time by which a round would be shorter if all workers of kind
        `"late"` arrived with the last of the others.
      sampled_waits: Waits in the rounds that the picture shows, (sampled, workers).

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
    sampled_waits: np.ndarray

    @property
    def advice(self) -> str:
        """Recommended action: workers to check, and the time that this saves."""
        return " ".join([*workers_to_check(self), self._advice_on_late_workers])

    @property
    def _advice_on_late_workers(self) -> str:
        """Names late workers, and the time that a round would be shorter."""
        is_late = self.kinds == "late"
        if not is_late.any():
            return self._advice_without_late_workers
        late_wait = np.nanmean(self.mean_wait[is_late])
        other_wait = np.nanmean(self.mean_wait[~is_late])
        return (
            f"Check or replace {workers_named(self.names[is_late])}: last in "
            f"{self.last[is_late].sum():.0%} of the rounds, with a mean wait of "
            f"{late_wait:.3g}, while the others wait {other_wait:.3g}. A round would "
            f"be {self.time_saved:.3g} shorter."
        )

    @property
    def _advice_without_late_workers(self) -> str:
        """Says which workers need more rounds, or that none is last too often."""
        equal_share = 1 / len(self.names)
        margin = _NUM_STANDARD_ERRORS * np.sqrt(equal_share / self.num_rounds)
        is_often_last = self.last > _OFTEN_LAST * equal_share + margin
        if not is_often_last.any():
            return (
                "No worker is last in more rounds than chance explains: a worker waits "
                f"{self.round_wait:.3g} per round, for another worker each time."
            )
        shares = ", ".join(f"{share:.0%}" for share in self.last[is_often_last])
        return (
            f"Measure more rounds to judge {workers_named(self.names[is_often_last])}: "
            f"last in {shares} of the rounds, which a spell or chance may explain. A "
            f"worker waits {self.round_wait:.3g} per round."
        )

    @property
    def noun(self) -> str:
        """Name of what is counted, "round"."""
        return "round"

    def __str__(self) -> str:
        num_workers = len(self.names)
        order = np.lexsort((-self.last, self.kinds == "steady"))[:_NUM_ROWS]
        rows = [("worker", "kind", "last in", "mean wait", "time lost", "missing")]
        for worker in order:
            lost = f"{self.time_lost[worker]:.3g} ± {self.time_lost_error[worker]:.2g}"
            rows.append(
                (
                    str(self.names[worker]),
                    str(self.kinds[worker]),
                    f"{self.last[worker]:.0%}",
                    f"{self.mean_wait[worker]:.3g}",
                    lost,
                    str(self.missing[worker]),
                )
            )
        shown = f" ({len(order)} shown)" if len(order) < num_workers else ""
        totals = (
            f"{self.num_rounds} rounds of {num_workers} workers{shown}, waiting times. "
            f"Mean wait: {self.round_wait:.3g}."
        )
        advice = self.advice
        if stopped_responding(self).any():
            advice += " Rounds count from 0."
        paragraphs = [
            textwrap.fill(totals, 80),
            aligned(rows),
            textwrap.fill(advice, 80),
        ]
        return "\n\n".join(paragraphs)

    def to_dict(self) -> dict[str, Any]:
        """Returns fields as lists, numbers and None for JSON, without sampled waits."""
        fields = self._asdict() | {"advice": self.advice}
        del fields["sampled_waits"]
        return for_json(fields)

    def plot(self) -> "Figure":
        """Draws waits by round and worker, and the mean wait of each worker.

        Returns:
          A `matplotlib.figure.Figure`; `savefig` writes it to a file.

        Raises:
          ImportError: If matplotlib (extra `plot`) is not installed.
        """
        limit = float(np.nanquantile(self.sampled_waits, 0.99)) or 1.0
        ticks = np.linspace(0, limit, 5)
        return _figures.draw(
            heat=_figures.Heat(
                values=self.sampled_waits,
                limits=(0.0, limit),
                ticks={f"{tick:.2g}": tick for tick in ticks},
                colors="Blues",
                title="wait for the last worker",
            ),
            bars=_figures.Bars(
                values=np.nan_to_num(self.mean_wait),
                errors=np.zeros(len(self.names)),
                title="mean wait",
            ),
            names=self.names,
            steps=np.arange(self.num_rounds),
            noun=self.noun,
        )


def wait_report(waits: Any, names: Sequence[str] | None) -> WaitReport:
    """Returns the report of waiting times (rounds, workers); see `straggler_report`."""
    table = waiting_times(waits)
    num_rounds, num_workers = table.shape
    labels = worker_labels(names, table, argument="waits")
    num_missing = np.isnan(table).sum(axis=0)
    rounds = np.flatnonzero(~np.isnan(table).all(axis=1))
    if not len(rounds):
        raise ValueError("waits must have at least one number; got none")
    table = table[rounds]
    check_rounds_are_shared("waits", table[sampled_rounds(len(table))], labels)
    # A worker that does not take part is not last.
    filled = np.where(np.isnan(table), np.inf, table)
    ordered = np.sort(filled, axis=1)
    shortest = ordered[:, :1]
    second_shortest = ordered[:, 1:2]
    # A worker that takes part alone causes no lost time.
    second_shortest = np.where(np.isinf(second_shortest), shortest, second_shortest)
    is_last = filled == shortest
    turns = is_last / is_last.sum(axis=1, keepdims=True)
    # If several workers are last, no time is lost to any of them.
    lost, lost_error = batch_means(is_last * (second_shortest - shortest))
    takes_part = ~np.isnan(table)
    chances = 1 / takes_part.sum(axis=1)
    p_values = np.ones(num_workers)
    for worker in np.flatnonzero(takes_part.any(axis=0)):
        is_here = takes_part[:, worker]
        p_values[worker] = _p_value(turns[is_here, worker], chances[is_here])
    p_values = np.minimum(p_values * num_workers, 1)
    missing = missing_responses(takes_part)
    is_late = (p_values < FALSE_ALARMS) & ~missing.is_gone
    kinds = kinds_with_missing(
        np.where(is_late, "late", "steady"),
        missing,
        first_missing=rounds[missing.first_at_end],
        noun="round",
    )
    shortest_of_others = np.min(filled, axis=1, where=~is_late, initial=np.inf)
    has_others = np.isfinite(shortest_of_others)
    saved = np.where(has_others, shortest_of_others - shortest[:, 0], 0)
    num_rounds_of_worker = np.maximum(takes_part.sum(axis=0), 1)
    means = np.sum(table, axis=0, where=takes_part) / num_rounds_of_worker
    return WaitReport(
        names=labels,
        kinds=kinds,
        last=turns.mean(axis=0),
        last_p_value=p_values,
        mean_wait=np.where(num_missing < num_rounds, means, np.nan),
        time_lost=lost,
        time_lost_error=lost_error,
        missing=num_missing,
        missing_p_value=missing.p_value,
        num_rounds=num_rounds,
        round_wait=float(np.nanmean(table)),
        time_saved=float(saved.mean()),
        sampled_waits=table[sampled_rounds(len(table))],
    )


def _p_value(is_last: np.ndarray, chances: np.ndarray) -> float:
    """Returns the significance of the rounds in which a worker is last.

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
    # Binomial tail: at least `num_last` of the rounds.
    p_binomial = scipy.special.betainc(num_last, num_effective - num_last + 1, chance)
    (excess,), (standard_error,), degrees = batch_errors((is_last - chances)[:, None])
    p_batches = scipy.special.stdtr(degrees, -excess / max(standard_error, 1e-300))
    return float(max(p_binomial, p_batches))


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
