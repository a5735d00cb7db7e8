"""Straggler reports: which workers are slow, for how long, and what they cost."""

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from jaxwgc import traces
from jaxwgc._common import validation
from jaxwgc._common.text import aligned
from jaxwgc.reports import _figures
from jaxwgc.reports._advice import advice_of
from jaxwgc.reports._barrier import is_after_barrier
from jaxwgc.reports._inputs import (
    ReportTimes,
    aligned_tables,
    check_rounds_are_shared,
    numbers_of_rounds,
    report_times,
    without_waits,
)
from jaxwgc.reports._kinds import kinds_of
from jaxwgc.reports._levels import FALSE_ALARMS
from jaxwgc.reports._missing import kinds_with_missing, missing_responses
from jaxwgc.reports._references import reference_times
from jaxwgc.reports._statistics import (
    longest_times,
    mean_of,
    median_slowdowns,
    round_means,
    sampled_rounds,
)
from jaxwgc.reports._text import for_json, worker_labels
from jaxwgc.reports._wait_report import WaitReport, wait_report
from jaxwgc.traces import measured_times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Number of workers up to which the printed table has all of them, and otherwise the
# minimum and maximum number of workers in it.
_NUM_ROWS = 20
_FEWEST_ROWS = 5


class StragglerReport(NamedTuple):
    """Slowdown, kind and cost of each worker; `print` shows a table and the advice.

    Times are in the unit of `times`. Rounds count from 0, or are named by their steps,
    if these are known: `"since step 1510"`.

    Attributes:
      names: Name of each worker, str (workers,).
      kinds: `"steady"`, `"chronic"`, `"fast"`, `"intermittent"`, `"since round 151"`,
        `"fast since round 151"`, `"others faster since round 151"`,
        `"until round 151"`, `"fast until round 151"`, `"missing since round 151"` or,
        for a worker that never responded, `"missing"`, str (workers,). `"unknown"` in
        place of kinds of speed if `after_barrier`.
      slowdown: Median over rounds of the worker's time divided by that of the median
        worker of the round, (workers,). NaN without responses.
      slowdown_interval: Ends of the 95% interval of `slowdown`, (2, workers), from up
        to 4,096 rounds.
      last: Share of rounds in which the worker responded last, (workers,).
      time_lost: Mean time by which a round would be shorter if the worker took as long
        as the median worker, (workers,).
      time_lost_error: Half of the width of its 95% interval, (workers,).
      missing: Number of rounds without a response, int (workers,).
      missing_p_value: Significance of missing more responses than other workers, or all
        of the last ones; corrected for the number of tests, (workers,).
      change_round: First round, or step, after the likeliest change of speed, int
        (workers,).
      slowdown_before: Median slowdown before this round, (workers,).
      slowdown_after: Median slowdown from this round on, (workers,).
      change_p_value: Significance of this change, corrected for the number of tests in
        the report, (workers,). 1 for a worker with fewer than 8 responses.
      after_barrier: Whether the times look as if all workers had waited for the slowest
        one. Such times cannot show which worker is slow.
      num_rounds: Number of rounds.
      round_time: Mean time until the last response of a round.
      mean_time: Mean time of all workers.
      median_time: Mean time of the median worker of a round.
      lost_share: Share of the time of rounds that is lost to stragglers: 1 -
        `median_time` / `round_time`.
      steps: Number of each round from 0, or its step if steps are known, int (rounds,).
      has_steps: Whether steps are known.
      times: Times of all rounds, (rounds, workers), NaN for no response. Times of parts
        are summed.
      round_medians: Time of the median worker in each round, (rounds,). NaN without
        responses.

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
      >>> report.kinds.tolist(), report.slowdown.round(2).tolist()
      (['steady', 'steady', 'chronic', 'steady'], [1.0, 1.0, 1.51, 1.0])
    """

    names: np.ndarray
    kinds: np.ndarray
    slowdown: np.ndarray
    slowdown_interval: np.ndarray
    last: np.ndarray
    time_lost: np.ndarray
    time_lost_error: np.ndarray
    missing: np.ndarray
    missing_p_value: np.ndarray
    change_round: np.ndarray
    slowdown_before: np.ndarray
    slowdown_after: np.ndarray
    change_p_value: np.ndarray
    after_barrier: bool
    num_rounds: int
    round_time: float
    mean_time: float
    median_time: float
    lost_share: float
    steps: np.ndarray
    has_steps: bool
    times: np.ndarray
    round_medians: np.ndarray

    def replaced_time(self, is_replaced: np.ndarray) -> float:
        """Returns the mean time of a round if some workers were as fast as the median.

        Args:
          is_replaced: Which workers, bool (workers,).
        """
        others = longest_times(self.times, np.where(is_replaced, 0.0, 1.0))
        return mean_of(np.fmax(others, self.round_medians))

    def proportional_time(self) -> float:
        """Returns the mean time of a round if work was proportional to speed.

        The speed of a worker is 1 / `slowdown`. Workers with significantly many missing
        responses keep their work. Workers that never responded have none, now as
        before.
        """
        speeds = 1 / self.slowdown
        reliable = np.where(self.is_unreliable, np.nan, speeds)
        if np.isnan(reliable).all():
            return self.round_time
        factors = reliable / np.nanmean(reliable)
        factors = np.where(self.is_unreliable, 1.0, factors)
        return mean_of(longest_times(self.times, factors))

    @property
    def is_unreliable(self) -> np.ndarray:
        """Workers with significantly many missing responses, bool (workers,)."""
        return self.missing_p_value < FALSE_ALARMS

    @property
    def noun(self) -> str:
        """Name of what `steps` counts, "round" or "step"."""
        return "step" if self.has_steps else "round"

    @property
    def longest(self) -> np.ndarray:
        """Time of each round, (rounds,). NaN without responses."""
        return longest_times(self.times, np.ones(len(self.names)))

    @property
    def advice(self) -> str:
        """Recommended actions: workers to check, and what shortens rounds."""
        return advice_of(self)

    def __str__(self) -> str:
        num_workers = len(self.names)
        if self.after_barrier:
            return self._text_after_barrier
        is_steady = self.kinds == "steady"
        order = np.lexsort((-self.time_lost, is_steady))
        if num_workers > _NUM_ROWS:
            num_shown = np.clip((~is_steady).sum(), _FEWEST_ROWS, _NUM_ROWS)
            order = order[:num_shown]
        rows = [("worker", "kind", "slowdown [95%]", "last in", "time lost", "missing")]
        rows += [self._row(worker) for worker in order]
        shown = f" ({len(order)} shown)" if len(order) < num_workers else ""
        totals = (
            f"{self.num_rounds} rounds of {num_workers} workers{shown}. Mean time of a "
            f"round: {self.round_time:.3g}, a worker: {self.mean_time:.3g}, the median "
            f"worker: {self.median_time:.3g}. Time lost: {self.lost_share:.1%}."
        )
        advice = f"{self.advice} jaxwgc.plan compares waiting rules and codes."
        table = aligned(rows)
        advice += self._notes_on(table + advice)
        paragraphs = [textwrap.fill(totals, 80), table, textwrap.fill(advice, 80)]
        return "\n\n".join(paragraphs)

    @property
    def _text_after_barrier(self) -> str:
        """Advice, and a table of the workers with missing responses."""
        advice = self.advice + self._notes_on(self.advice)
        size = f"{self.num_rounds} rounds of {len(self.names)} workers."
        paragraphs = [textwrap.fill(advice, 80), size]
        most_missing_first = np.argsort(-self.missing, kind="stable")[:_NUM_ROWS]
        rows = [
            (
                str(self.names[worker]),
                str(self.kinds[worker]),
                str(self.missing[worker]),
            )
            for worker in most_missing_first
            if self.missing[worker]
        ]
        if rows:
            paragraphs.append(aligned([("worker", "kind", "missing"), *rows]))
        return "\n\n".join(paragraphs)

    def _notes_on(self, text: str) -> str:
        """Returns sentences on missing responses and on the rounds in a text."""
        notes = ""
        num_missing = self.missing.sum()
        if num_missing:
            notes += f" Missing responses: {num_missing}, which no round waits for."
        # For example, "since round 12" or "from round 12".
        if re.search(r" round \d", text):
            notes += " Rounds count from 0."
        return notes

    def _row(self, worker: int) -> tuple[str, ...]:
        """Returns the cells of a worker in the printed table."""
        shown_kind = str(self.kinds[worker])
        if "until" in shown_kind:
            shown_kind += f" ({self.slowdown_before[worker]:.2f})"
        elif "since" in shown_kind and not shown_kind.startswith("missing"):
            shown_kind += f" ({self.slowdown_after[worker]:.2f})"
        low, high = self.slowdown_interval[:, worker]
        return (
            str(self.names[worker]),
            shown_kind,
            f"{self.slowdown[worker]:.2f} [{low:.2f}, {high:.2f}]",
            f"{self.last[worker]:.0%}",
            f"{self.time_lost[worker]:.3g} ± {self.time_lost_error[worker]:.2g}",
            str(self.missing[worker]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns fields as lists, numbers and None for JSON, without the times."""
        fields = self._asdict() | {"advice": self.advice}
        del fields["times"], fields["round_medians"], fields["steps"]
        return for_json(fields)

    def plot(self) -> "Figure":
        """Draws slowdowns by round and worker, and the time lost per worker.

        Returns:
          A `matplotlib.figure.Figure`; `savefig` writes it to a file.

        Raises:
          ImportError: If matplotlib (extra `plot`) is not installed.
        """
        rounds = sampled_rounds(self.num_rounds)
        medians = self.round_medians[rounds, None]
        logs = np.log2(self.times[rounds]) - np.log2(medians)
        limit = np.clip(np.nanquantile(np.abs(logs), 0.99), 0.3, 3)
        ticks = np.linspace(-limit, limit, 5)
        return _figures.draw(
            heat=_figures.Heat(
                values=logs,
                limits=(-limit, limit),
                ticks={f"{2**tick:.2g}": tick for tick in ticks},
                colors="RdBu_r",
                title="time over the round's median",
            ),
            bars=_figures.Bars(
                values=self.time_lost,
                errors=self.time_lost_error,
                title="time lost per round",
            ),
            names=self.names,
            steps=self.steps,
            noun=self.noun,
        )


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
    median y, decides the kind:

    - `"since round r"`: A CUSUM test finds a change of y. After it, the worker is at
      least 5% slower than the median worker, and before it y was less than a third. The
      change lasts longer than the slow spells of other workers.
    - `"fast since round r"`: As before, but at least 5% faster.
    - `"others faster since round r"`: As `"since round r"`, but the worker takes as
      long as before, and the times of the median worker became shorter.
    - `"until round r"`: The worker was slow before a change, and is like others after
      it. Nothing is to be done about it now.
    - `"fast until round r"`: As before, but the worker was fast.
    - `"missing since round r"`: The worker does not respond from a round on, for longer
      than the share of missing responses before explains.
    - `"chronic"`: The median of y is significantly above log(1.05).
    - `"fast"`: The median of y is significantly below -log(1.05). If most workers are
      slow, the others are fast.
    - `"intermittent"`: The worker takes more than 1.5 times its usual time in
      significantly more spells than the others, of 10 workers in at least 3.
    - `"steady"`: None of these was shown.

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
      >>> report.kinds.tolist()
      ['steady', 'steady', 'chronic', 'steady']
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
    if times is None:
        if steps is not None:
            raise ValueError(f"steps must be None without times; got {steps!r}")
        idle = report_times(waits, names, steps, waits=True)
        return wait_report(idle.times, idle.workers)
    if traces.is_frame(times) and traces.is_frame(waits):
        busy, waits = aligned_tables(times, waits)
        times = busy.times
        names = busy.workers if names is None else names
        steps = busy.steps if steps is None and busy.has_steps else steps
    if waits is not None:
        idle = report_times(waits, names, steps, waits=True)
        waits = idle.times
        names = idle.workers
        steps = idle.steps
    busy = report_times(times, names, steps, waits=False)
    if waits is not None:
        busy = busy._replace(times=without_waits(busy.times, waits))
    return _report(busy, before_collective or waits is not None)


def _report(worker_times: ReportTimes, before_collective: bool) -> StragglerReport:
    """Returns the report of times that may be known to end before workers wait."""
    table = measured_times(worker_times.times, least_rounds=2)
    if table.ndim == 3:
        table = table.sum(axis=2)
    num_rounds, num_workers = table.shape
    labels = worker_labels(worker_times.workers, table, argument="times")
    if not np.isfinite(table).any():
        raise ValueError("times must have at least one response; got none")
    # The report uses the times later, so they are copied.
    table = np.where(np.isfinite(table), table, np.nan)
    means = round_means(table)
    has_steps = worker_times.steps is not None
    noun = "step" if has_steps else "round"
    steps = numbers_of_rounds(worker_times.steps, num_rounds)
    rounds = np.flatnonzero(~np.isnan(means.medians))
    check_rounds_are_shared("times", table[rounds[sampled_rounds(len(rounds))]], labels)
    references = reference_times(table, means)
    compared = np.flatnonzero(~np.isnan(references))
    sample = compared[sampled_rounds(len(compared))]
    sampled_times = table[sample]
    after_barrier = not before_collective and is_after_barrier(
        sampled_times, means.medians[sample]
    )
    log_references = np.log(references[sample])
    fields = kinds_of(
        logs=np.log(sampled_times) - log_references[:, None],
        log_references=log_references,
        steps=steps[sample],
        noun=noun,
    )
    missing = missing_responses((~np.isnan(table))[rounds])
    fields["kinds"] = kinds_with_missing(
        np.full(num_workers, "unknown") if after_barrier else fields["kinds"],
        missing,
        first_missing=steps[rounds[missing.first_at_end]],
        noun=noun,
    )
    slowdown = median_slowdowns(table, references)
    # The interval is that of sampled rounds, and may exclude the median of all rounds.
    low, high = fields["slowdown_interval"]
    fields["slowdown_interval"] = np.array(
        [np.fmin(low, slowdown), np.fmax(high, slowdown)]
    )
    return StragglerReport(
        names=labels,
        slowdown=slowdown,
        last=means.last,
        time_lost=means.lost,
        time_lost_error=means.lost_error,
        missing=num_rounds - means.num_responses,
        missing_p_value=missing.p_value,
        after_barrier=after_barrier,
        num_rounds=num_rounds,
        round_time=means.longest,
        mean_time=means.mean,
        median_time=means.median,
        lost_share=1 - means.median / means.longest,
        steps=steps,
        has_steps=has_steps,
        times=table,
        round_medians=means.medians,
        **fields,
    )
