"""Straggler reports: which workers are slow, for how long, and what they cost."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from jaxwgc._common import validation
from jaxwgc.reports._advice import advice_of
from jaxwgc.reports._inputs import (
    checked_steps,
    checked_times,
    comparable_workers,
    is_after_barrier,
    tables_of,
)
from jaxwgc.reports._kinds import speeds_of
from jaxwgc.reports._statistics import Rounds, column_medians, sampled_rounds
from jaxwgc.reports._wait_report import WaitReport, wait_report
from jaxwgc.reports._workers import (
    DIFFER_AFTER,
    DIFFER_BEFORE,
    Kind,
    Workers,
    kind_texts,
    report_dict,
    report_text,
    table_text,
    with_errors,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The printed table has all workers if there are at most _NUM_ROWS. Otherwise it has the
# workers that are not steady, but at least _FEWEST_ROWS and at most _NUM_ROWS workers.
_NUM_ROWS = 20
_FEWEST_ROWS = 5
# Maximum number of workers with names beside the heat map.
_NUM_NAMES = 40


class StragglerReport(NamedTuple):
    """Slowdown, kind and cost of each worker; `print` shows a table and the advice.

    Times are in the unit of `times`. Rounds count from 0, or are named by their steps,
    if these are known: "since step 1510".

    Attributes:
      names: Name of each worker, str (workers,).
      kinds: `Kind` of each worker, object (workers,). `report.kinds == Kind.CHRONIC`
        are the workers of a kind. `Kind.UNKNOWN` in place of kinds of speed if
        `after_barrier`.
      change_round: Round, or step, that the kind names, such as 151 in "since round
        151", int (workers,). -1 if it names none.
      slowdown: Median over rounds of the worker's time divided by that of the median
        worker of the round, (workers,). NaN without responses.
      slowdown_interval: Ends of the 95% interval of `slowdown`, (2, workers), from up
        to 4,096 rounds.
      slowdown_before: Median slowdown before `change_round`, (workers,).
      slowdown_after: Median slowdown from `change_round` on, (workers,).
      last: Share of rounds in which the worker responded last, (workers,).
      time_lost: Mean time by which a round would be shorter if the worker took as long
        as the median worker, (workers,).
      time_lost_error: Half of the width of the 95% interval of `time_lost`, (workers,).
      missing: Number of rounds without a response, int (workers,).
      missing_p_value: Significance of missing more responses than other workers, or all
        of the last ones; corrected for the number of tests, (workers,).
      after_barrier: Whether the times look as if all workers had waited for the slowest
        one. Such times cannot show which worker is slow.
      num_rounds: Number of rounds.
      round_time: Mean time until the last response of a round.
      mean_time: Mean time of all workers.
      median_time: Mean time of the median worker of a round.
      lost_share: Share of the time of rounds that is lost to stragglers: 1 -
        `median_time` / `round_time`.
      advice: Recommended actions: workers to check, and what shortens rounds.
      advice_rounds: Rounds, or steps, that the advice names because much time is lost
        in them, tuple of int.
      noun: What the numbers of rounds count, "round" or "step".
      rounds: Times of all rounds, and the mean time of a round after a change. Times of
        parts are summed.

    Example:
      Worker 2 takes 1.5 times as long as the others:

      >>> import numpy as np, jaxwgc
      >>> times = 1 + 0.1 * np.random.default_rng(0).random((100, 4))
      >>> times[:, 2] *= 1.5
      >>> report = jaxwgc.straggler_report(times)
      >>> print(report)
      100 rounds of 4 workers. Mean time of a round: 1.58, a worker: 1.19, the median
      worker: 1.05. Time lost: 33.6%.
      <BLANKLINE>
      worker  kind     slowdown [95%]     last in  time lost      missing
      2       chronic  1.51 [1.49, 1.53]  100%     0.506 ± 0.011  0
      0       steady   1.00 [1.00, 1.00]  0%       0 ± 0          0
      1       steady   1.00 [1.00, 1.00]  0%       0 ± 0          0
      3       steady   1.00 [1.00, 1.00]  0%       0 ± 0          0
      <BLANKLINE>
      Check or replace worker 2: a round would take 1.08 instead of 1.58 (32% less).
      jaxwgc.plan compares waiting rules and codes.
      >>> report.names[report.kinds == "chronic"].tolist()
      ['2']
      >>> report.slowdown.round(2).tolist()
      [1.0, 1.0, 1.51, 1.0]
    """

    names: np.ndarray
    kinds: np.ndarray
    change_round: np.ndarray
    slowdown: np.ndarray
    slowdown_interval: np.ndarray
    slowdown_before: np.ndarray
    slowdown_after: np.ndarray
    last: np.ndarray
    time_lost: np.ndarray
    time_lost_error: np.ndarray
    missing: np.ndarray
    missing_p_value: np.ndarray
    after_barrier: bool
    num_rounds: int
    round_time: float
    mean_time: float
    median_time: float
    lost_share: float
    advice: str
    advice_rounds: tuple[int, ...]
    noun: str
    rounds: Rounds

    @property
    def kind_texts(self) -> list[str]:
        """Kinds of the workers as text, e.g. "since round 151"."""
        return kind_texts(self.kinds, self.change_round, self.noun)

    def __str__(self) -> str:
        if self.after_barrier:
            return self._text_after_barrier
        num_workers = len(self.names)
        is_steady = self.kinds == Kind.STEADY
        order = np.lexsort((-self.time_lost, is_steady))
        if num_workers > _NUM_ROWS:
            num_shown = np.clip((~is_steady).sum(), _FEWEST_ROWS, _NUM_ROWS)
            order = order[:num_shown]
        kinds = self.kind_texts
        for worker, kind in enumerate(self.kinds):
            if kind in DIFFER_BEFORE:
                kinds[worker] += f" ({self.slowdown_before[worker]:.2f})"
            elif kind in DIFFER_AFTER:
                kinds[worker] += f" ({self.slowdown_after[worker]:.2f})"
        slowdowns = zip(self.slowdown, *self.slowdown_interval)
        table = table_text(
            {
                "worker": self.names,
                "kind": kinds,
                "slowdown [95%]": [
                    f"{slowdown:.2f} [{low:.2f}, {high:.2f}]"
                    for slowdown, low, high in slowdowns
                ],
                "last in": [f"{share:.0%}" for share in self.last],
                "time lost": with_errors(self.time_lost, self.time_lost_error),
                "missing": self.missing,
            },
            order,
        )
        shown = f" ({len(order)} shown)" if len(order) < num_workers else ""
        totals = (
            f"{self.num_rounds} rounds of {num_workers} workers{shown}. Mean time of a "
            f"round: {self.round_time:.3g}, a worker: {self.mean_time:.3g}, the median "
            f"worker: {self.median_time:.3g}. Time lost: {self.lost_share:.1%}."
        )
        return report_text(
            totals,
            table,
            f"{self.advice} jaxwgc.plan compares waiting rules and codes.{self._notes}",
        )

    @property
    def _text_after_barrier(self) -> str:
        """Text if times include a wait: advice, and workers with missing responses."""
        size = f"{self.num_rounds} rounds of {len(self.names)} workers."
        paragraphs = [textwrap.fill(self.advice + self._notes, 80), size]
        if self.missing.any():
            order = np.argsort(-self.missing, kind="stable")[:_NUM_ROWS]
            columns = {
                "worker": self.names,
                "kind": self.kind_texts,
                "missing": self.missing,
            }
            paragraphs.append(table_text(columns, order[self.missing[order] > 0]))
        return "\n\n".join(paragraphs)

    @property
    def _notes(self) -> str:
        """Sentences on missing responses, and on how rounds are numbered."""
        notes = ""
        num_missing = self.missing.sum()
        if num_missing:
            notes += f" Missing responses: {num_missing}, which no round waits for."
        names_round = self.advice_rounds or any(map(Kind.has_round, self.kinds))
        if names_round and self.noun == "round":
            notes += " Rounds count from 0."
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields except `rounds` as lists, numbers and None, for JSON.

        `kinds` are texts such as "since round 151", and `kind_values` are the kinds
        without rounds.
        """
        return report_dict(self)

    def plot(self) -> "Figure":
        """Draws slowdowns by round and worker, and the time lost per worker.

        Returns:
          A `matplotlib.figure.Figure`; `savefig` writes it to a file.

        Raises:
          ImportError: If matplotlib (extra `plot`) is not installed.
        """
        from jaxwgc._common.notebook_figure import NotebookFigure

        num_workers = len(self.names)
        steps = self.rounds.steps
        places = sampled_rounds(self.num_rounds)
        medians = self.rounds.medians[places, None]
        logs = np.log2(self.rounds.times[places]) - np.log2(medians)
        limit = np.clip(np.nanquantile(np.abs(logs), 0.99), 0.3, 3)
        figure = NotebookFigure(
            (9.0, min(1.2 + 0.2 * num_workers, 8.0)), layout="constrained"
        )
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        image = left.imshow(
            logs.T,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, len(steps) - 0.5, num_workers - 0.5, -0.5),
        )
        ticks = np.linspace(-limit, limit, 5).tolist()
        color_bar = figure.colorbar(image, ax=left)
        color_bar.set_ticks(ticks, labels=[f"{2**tick:.2g}" for tick in ticks])
        left.set(
            xlabel=self.noun, ylabel="worker", title="time over the round's median"
        )

        def step_at(place: float, _: int | None) -> str:
            index = round(place)
            return str(steps[index]) if 0 <= index < len(steps) else ""

        left.xaxis.set_major_formatter(step_at)
        rows = np.arange(num_workers)
        if num_workers <= _NUM_NAMES:
            left.set_yticks(rows, labels=self.names)
        right.barh(rows, self.time_lost, xerr=self.time_lost_error, color="0.4")
        right.set(title="time lost per round", xlim=(0, None))
        return figure


@overload
def straggler_report(
    times: Any,
    *,
    waits: Any = None,
    names: Sequence[str] | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    before_collective: bool = False,
) -> StragglerReport: ...


@overload
def straggler_report(
    *, waits: Any, names: Sequence[str] | None = None
) -> WaitReport: ...


def straggler_report(
    times: Any = None,
    *,
    waits: Any = None,
    names: Sequence[str] | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    before_collective: bool = False,
) -> StragglerReport | WaitReport:
    """Finds the slow workers of a trace, their kinds, and the time lost to each.

    Times must be those before workers wait for each other. In synchronous training, the
    time of a step includes the wait for the slowest worker, so all workers have the
    same. The report then says so, and gives no other advice (`after_barrier`). If you
    measure how long each worker waits instead, pass `waits`: the slow worker waits
    least.

    The slowdown of a worker is its time divided by that of the median worker of the
    round: of an even number of workers, the faster of the two in the middle, so that
    half of the workers may be slow. Its logarithm y, minus that of the worker with the
    median y, decides the `Kind`:

    - `SINCE`: A CUSUM test finds a change of y. After it, the worker is at least 5%
      slower than the median worker, and before it y was less than a third. The change
      lasts longer than the slow spells of other workers.
    - `FAST_SINCE`: As before, but at least 5% faster.
    - `OTHERS_FASTER_SINCE`: As `SINCE`, but the worker takes as long as before, and the
      times of the median worker became shorter.
    - `UNTIL`: The worker was slow before a change, and is like others after it. Nothing
      is to be done about it now.
    - `FAST_UNTIL`: As before, but the worker was fast.
    - `MISSING_SINCE`: The worker does not respond from a round on, for longer than the
      share of missing responses before explains.
    - `CHRONIC`: The median of y is significantly above log(1.05).
    - `FAST`: The median of y is significantly below -log(1.05). If most workers are
      slow, the others are fast.
    - `INTERMITTENT`: The worker takes more than 1.5 times its usual time in
      significantly more spells than the others, of 10 workers in at least 3.
    - `STEADY`: None of these was shown.

    The advice is the action that shortens rounds most: to replace slow workers, to give
    work in proportion to speed, or not to wait for stalls. Workers that miss
    significantly more responses than others are to be checked, and get no more work. If
    most of the time is lost in 1% of the rounds or fewer, the advice names these
    rounds, and is drawn from the others. After a worker recovered, or the others became
    faster, it is drawn from the rounds since then. If no action is worth it, but most
    of the time is lost to few workers and this is significant, it names these workers
    and the rounds.

    If all workers are alike, a report names any of them with a probability of at most
    5% (Bonferroni's correction for workers and tests). Successive rounds may be
    correlated: intervals and tests are widened by the autocorrelation that workers have
    in common, and by the long-run variance of each worker. In simulations of 8 to 32
    workers, the rate holds in these classes:

    - independent rounds;
    - first-order autoregressive rounds, up to an autocorrelation of 0.5 with 30 rounds
      and 0.8 with 300;
    - slow spells of 3 to 5 rounds on average, in 3% to 20% of the rounds, with 300
      rounds. With 30 rounds, 11% to 46% of the reports name a worker.

    No test tells a slow spell that lasts as long as the trace from a slow worker.

    Args:
      times: Times in any unit, (rounds, workers), NaN or infinity if there was no
        response; e.g. `RayCluster.trace()`. `timedelta64` becomes seconds. Or (rounds,
        workers, parts), which are summed over parts. Or a pandas DataFrame: with a
        column per worker, or with the columns, or levels of the index, step, worker and
        seconds.
      waits: Time that each worker waits for the others, (rounds, workers), at least 0;
        NaN for a worker that did not take part. Or a DataFrame. If `times` are given
        too, they include the waits, which are subtracted.
      names: Name of each worker. Defaults to the names in a DataFrame, or 0, 1, ….
      steps: Number by which the report names each round, e.g. the step of the training,
        increasing, int (rounds,). Defaults to the steps in a DataFrame, or 0, 1, ….
      before_collective: Whether `times` are known to end before workers wait for each
        other. Equal times then mean that workers are equally fast.

    Returns:
      A `StragglerReport`, or a `WaitReport` for `waits` alone. A round with missing
      responses counts as over with the last response that came; a round without
      responses has no time.

    Raises:
      ValueError: If there are fewer than 2 rounds or workers, times that are not
        positive, waits that are negative, or no response at all; if workers respond in
        turns, so that no round compares them; if `names` or `steps` have another
        length; if `steps` do not increase; if columns of a DataFrame are unknown or
        ambiguous.
      TypeError: If `times` or `waits` is not an array of real numbers, or `steps` are
        not integers.

    Example:
      >>> import numpy as np, jaxwgc
      >>> times = 1 + 0.1 * np.random.default_rng(0).random((100, 4))
      >>> times[:, 2] *= 1.5
      >>> report = jaxwgc.straggler_report(times)
      >>> report.names[report.kinds == jaxwgc.reports.Kind.CHRONIC].tolist()
      ['2']
      >>> report.advice
      'Check or replace worker 2: a round would take 1.08 instead of 1.58 (32% less).'

    References:
      Lin et al., "Understanding stragglers in large model training using what-if
      analysis", OSDI 2025 (time lost); Ploberger, Krämer, "The CUSUM test with OLS
      residuals", 1992; Andrews, "Heteroskedasticity and autocorrelation consistent
      covariance matrix estimation", 1991.
    """
    if times is None and waits is None:
        raise TypeError("straggler_report needs times or waits; got neither")
    validation.check_bool("before_collective", before_collective)
    if times is None and steps is not None:
        raise ValueError(
            f"steps= needs times=; got steps={steps!r} without times. Leave out steps="
        )
    tables = tables_of(times, waits, names, steps)
    if times is None:
        return wait_report(tables.waits, tables.names)
    table = checked_times(tables.times, tables.waits)
    labels = comparable_workers(tables.names, table, argument="times")
    return _report(
        Rounds.of(table, checked_steps(tables.steps, len(table))),
        names=labels,
        noun="round" if tables.steps is None else "step",
        before_collective=before_collective or waits is not None,
    )


def _report(
    rounds: Rounds, names: np.ndarray, noun: str, before_collective: bool
) -> StragglerReport:
    """Computes the straggler report of rounds."""
    compared = np.flatnonzero(~np.isnan(rounds.references))
    sample = compared[sampled_rounds(len(compared))]
    times = rounds.times[sample]
    steps = rounds.steps[sample]
    log_references = np.log(rounds.references[sample])
    logs = np.log(times) - log_references[:, None]
    speeds = speeds_of(logs, log_references, steps)
    after_barrier = not before_collective and is_after_barrier(
        times, rounds.medians[sample]
    )
    kinds = speeds.kinds
    change_round = speeds.change_round
    if after_barrier:
        kinds = np.array([Kind.UNKNOWN] * len(names), dtype=object)
        change_round = np.full(len(names), -1)
    workers = Workers.of(
        names=names,
        kinds=kinds,
        change_round=change_round,
        is_response=~np.isnan(rounds.times),
        steps=rounds.steps,
        noun=noun,
    )
    advice = advice_of(rounds, workers, after_barrier)
    is_before = steps[:, None] < workers.change_round
    low, high = speeds.interval
    return StragglerReport(
        names=names,
        kinds=workers.kinds,
        change_round=workers.change_round,
        slowdown=rounds.slowdown,
        # The interval is from sampled rounds. It is extended to contain the median of
        # all rounds.
        slowdown_interval=np.array(
            [np.fmin(low, rounds.slowdown), np.fmax(high, rounds.slowdown)]
        ),
        slowdown_before=np.exp(column_medians(np.where(is_before, logs, np.nan))),
        slowdown_after=np.exp(column_medians(np.where(is_before, np.nan, logs))),
        last=rounds.last,
        time_lost=rounds.time_lost,
        time_lost_error=rounds.time_lost_error,
        missing=workers.missing,
        missing_p_value=workers.missing_p_value,
        after_barrier=after_barrier,
        num_rounds=workers.num_rounds,
        round_time=rounds.round_time,
        mean_time=rounds.mean_time,
        median_time=rounds.median_time,
        lost_share=rounds.lost_share,
        advice=advice.text,
        advice_rounds=advice.rounds,
        noun=noun,
        rounds=rounds,
    )
