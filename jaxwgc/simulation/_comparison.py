"""Result of a comparison: means with intervals, tables and figures."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from jaxwgc._common import validation
from jaxwgc._common.text import aligned
from jaxwgc.simulation import _comparison_figures
from jaxwgc.simulation._monte_carlo import Summary, student_summary, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# Minimum number of rare rounds, or of errors, for Student's interval of a mean. With
# fewer, the mean is far from normally distributed.
_FEW_EVENTS = 10
# Number of events above which Garwood's interval equals Student's up to rounding.
_MOST_EVENTS = 1e10

QUANTITIES = ("time", "error", "share", "exact", "messages", "work")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Comparison:
    """Result of `jaxwgc.compare`; `print` shows a table for each delay model.

    The table shows means ± half of the interval. If all trials of `error` or `exact`
    are 0 or 1, it shows the end of the interval, e.g. "< 0.0012" or "> 0.9988". A time
    with fewer than 10 `time_events` has its interval in brackets, and the mark *.

    Each quantity is a `Summary` with NumPy arrays (codes, delays, waiting): the mean,
    the ends of its 95% interval and its standard error, in float64.

    Attributes:
      codes: Names of the codes.
      delays: Names of the delay models.
      waiting: Names of the waiting rules.
      num_trials: Number of simulated rounds per cell.
      time: Duration of a round, in the unit of the delay model; infinite if some rounds
        never end. If all times are equal, the ends of its interval are NaN.
      error: `jaxwgc.Decoding.error` over the squared norm of the target: the error per
        part if all parts have weight 1. 0 for exact decoding, 1 for no gradient. A
        residual of at most 1e-4 of the target (1e-10 in float64) is rounding and counts
        as 0. If few trials have an error, the upper end of the interval is at least a
        product: the upper limit of the probability of an error, times the mean size of
        errors. The size is 1 if no trial has an error.
      share: Fraction of the gradient recovered: 1 if decoding is exact, less by the
        fraction of parts that are lost.
      exact: Proportion of rounds that decode: their residual is at most `tolerance` of
        the norm of the target.
      messages: Number of messages of a round that arrive before it ends.
      work: Work of all workers until the end of a round, in passes over the data: 1 if
        every part is processed once. Workers with several messages count finished
        parts, and cancelled workers with one message their share of the time. If late
        workers are busy, the work that they begin in a round, since they complete it.
      time_events: Effective number of rounds that decide the mean time, (codes, delays,
        waiting); of clusters, if rounds depend on each other. It is k, if k of many
        rounds differ from the others by equal amounts, and in general the number of
        rounds over their squared skewness. 0 if all times are equal. If it is below 10,
        other studies may have other means and intervals.
      trials: Trials of each quantity by name, float64 (codes, delays, waiting,
        num_trials). Empty unless `compare` has `keep_trials=True`.

    Example:
      Mean error and time of two codes with two waiting rules:

      >>> import jax, jaxwgc
      >>> from jaxwgc import codes, stragglers
      >>> study = jaxwgc.compare(
      ...     {
      ...         "uncoded": codes.uncoded(6),
      ...         "2 copies": codes.fractional_repetition(6, num_stragglers=1),
      ...     },
      ...     {"stalls": stragglers.bernoulli_slowdown(probability=0.1, slowdown=10.0)},
      ...     {"first 5": stragglers.fastest(5), "all": stragglers.fastest(6)},
      ...     jax.random.key(0),
      ...     num_trials=1000,
      ... )
      >>> study.codes, study.waiting
      (('uncoded', '2 copies'), ('first 5', 'all'))
      >>> study.error.mean[:, 0].round(3)
      array([[0.167, 0.   ],
             [0.   , 0.   ]])
      >>> study.time.mean[:, 0].round()
      array([[ 2.,  5.],
             [ 4., 10.]])
    """

    codes: tuple[str, ...]
    delays: tuple[str, ...]
    waiting: tuple[str, ...]
    num_trials: int
    time: Summary
    error: Summary
    share: Summary
    exact: Summary
    messages: Summary
    work: Summary
    time_events: np.ndarray
    trials: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def to_dataframe(self) -> "DataFrame":
        """Returns a pandas DataFrame with a row per code, delay model and rule.

        Columns are `code`, `delay` and `waiting`, and for each quantity, e.g. `error`,
        the mean `error`, the ends of its interval, `error_low` and `error_high`, and
        `error_standard_error`. The last column is `time_events`. Names that are
        different numbers become a numeric column.

        Raises:
          ImportError: If pandas (extra `report`) is not installed.
        """
        import pandas

        codes, delays, waiting = np.meshgrid(
            _numbers_or_names(self.codes),
            _numbers_or_names(self.delays),
            _numbers_or_names(self.waiting),
            indexing="ij",
        )
        columns: dict[str, np.ndarray] = {
            "code": codes.ravel(),
            "delay": delays.ravel(),
            "waiting": waiting.ravel(),
        }
        for quantity in QUANTITIES:
            summary = getattr(self, quantity)
            columns[quantity] = summary.mean.ravel()
            columns[f"{quantity}_low"] = summary.low.ravel()
            columns[f"{quantity}_high"] = summary.high.ravel()
            columns[f"{quantity}_standard_error"] = summary.standard_error.ravel()
        columns["time_events"] = self.time_events.ravel()
        return pandas.DataFrame(columns)

    def plot(self, y: str = "error", *, log: bool = False) -> "Figure":
        """Plots the means of a quantity, with intervals, against the waiting rules.

        There is a panel for each delay model, and a line for each code. Names of rules
        that are different numbers become a numeric axis.

        Means of equal trials have no bar, e.g. an error that is 0 in every trial: the
        upper limits of exact codes would be the longest bars. They are in the table.

        Args:
          y: Quantity: `"time"`, `"error"`, `"share"`, `"exact"`, `"messages"` or
            `"work"`.
          log: Whether the y-axis is logarithmic. Means of 0 are gaps.

        Returns:
          A `matplotlib.figure.Figure`, which notebooks show; `savefig` writes it to a
          file.

        Raises:
          ValueError: If y is not a quantity.
          ImportError: If matplotlib (extra `plot`) is not installed.
        """
        validation.check_choice("y", y, QUANTITIES)
        return _comparison_figures.draw(
            getattr(self, y),
            label=y,
            panels=self.delays,
            lines=self.codes,
            points=self.waiting,
            is_log=validation.check_bool("log", log),
        )

    def __repr__(self) -> str:
        noun = "round" if self.num_trials == 1 else "rounds"
        has_few_events = (self.time_events < _FEW_EVENTS) & np.isfinite(self.time.mean)
        paragraphs = [
            f"{self.num_trials:,} {noun} per row; mean ± half of the 95% interval, or "
            "its end if all rounds are 0 (<) or 1 (>)"
        ]
        for place, delay in enumerate(self.delays):
            rows: list[tuple[str, ...]] = [("code", "waiting", *QUANTITIES)]
            for i, code in enumerate(self.codes):
                for j, rule in enumerate(self.waiting):
                    cell = i, place, j
                    cells = {
                        quantity: _cell(getattr(self, quantity), cell)
                        for quantity in QUANTITIES
                    }
                    if has_few_events[cell]:
                        cells["time"] = _cell_of_few_events(self.time, cell)
                    rows.append((code, rule, *cells.values()))
            paragraphs.append(f"{delay}\n{aligned(rows)}")
        if has_few_events.any():
            paragraphs.append(
                "* All rounds took equally long, or fewer than "
                f"{_FEW_EVENTS} in effect decide the mean. Rarer rounds, if there are "
                "any, are not in it: simulate more."
            )
        return "\n\n".join(paragraphs)


def _numbers_or_names(names: tuple[str, ...]) -> np.ndarray:
    """Returns an array of numbers if all names are numbers, otherwise of the names."""
    numbers = _comparison_figures.numbers_of(names)
    return np.array(names) if numbers is None else numbers


def _cell_of_few_events(summary: Summary, place: tuple[int, int, int]) -> str:
    """Returns a mean that few rounds decide as text, with its interval and "*"."""
    low = summary.low[place]
    high = summary.high[place]
    interval = "" if np.isnan(low) else f" [{low:.4g}, {high:.4g}]"
    return f"{summary.mean[place]:.4g}{interval} *"


def _cell(summary: Summary, place: tuple[int, int, int]) -> str:
    """Returns a mean as text, with its interval, or as a limit "< ..." or "> ..."."""
    mean = float(summary.mean[place])
    low = float(summary.low[place])
    high = float(summary.high[place])
    if mean == low == 0 and high > 0:
        return f"< {high:.2g}"
    if mean == high == 1 and low < 1:
        # Shows the lower end with two significant digits of its distance from 1.
        decimals = 1 - math.floor(math.log10(1 - low))
        return f"> {low:.{decimals}f}"
    half = (high - low) / 2
    if not np.isfinite(half):
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {half:.2g}"


class Events(NamedTuple):
    """Number and size of the rare events, e.g. slow rounds, that decide a mean.

    Poisson events of this number and size have the variance and skewness of the trials.

    Attributes:
      number: Number of trials over their squared skewness; 0 if all trials are equal.
      size: Difference between an event and the other trials; negative if the events are
        smaller.
    """

    number: float
    size: float


def events_of(trials: np.ndarray) -> Events:
    """Estimates number and size of the rare events that decide the mean of trials.

    Both are NaN if some trials are infinite.
    """
    if not np.isfinite(trials).all():
        return Events(number=np.nan, size=np.nan)
    if trials.min() == trials.max():
        return Events(number=0.0, size=0.0)
    deviations = trials - trials.mean()
    # Deviations are divided by the largest one, so that their cubes do not overflow.
    unit = np.abs(deviations).max()
    second = np.sum((deviations / unit) ** 2)
    third = np.sum((deviations / unit) ** 3)
    with np.errstate(divide="ignore"):
        number = second**3 / third**2
    return Events(number=float(number), size=float(unit * third / second))


def summary_of_times(trials: np.ndarray) -> Summary:
    """Computes the mean of times and its 95% interval.

    The ends of the interval are NaN if all times are equal: a time that was not seen
    may have any size.
    """
    summary = summary_of_rounds(trials)
    if events_of(trials).number == 0:
        return summary._replace(low=np.nan, high=np.nan)
    return summary


def summary_of_rounds(trials: np.ndarray) -> Summary:
    """Computes the mean of trials and a 95% interval that allows for rare events.

    The number of rare events is a Poisson variable. From k events, Garwood's interval
    of its mean has the ends χ²(2k) / 2 and χ²(2k + 2) / 2, here in units of the size of
    events. Student's factor widens it for few trials. Without skewness, the interval is
    Student's.
    """
    summary = student_summary(trials)
    number, size = events_of(trials)
    if not 0 < number < _MOST_EVENTS:
        return summary
    num_trials = len(trials)
    low = scipy.special.chdtri(2 * number, 0.975) / 2
    high = scipy.special.chdtri(2 * number + 2, 0.025) / 2
    student = scipy.special.stdtrit(num_trials - 1, 0.975) / scipy.special.ndtri(0.975)
    factor = student * np.sqrt(num_trials / (num_trials - 1))
    shifts = factor * size / num_trials * (np.array([low, high]) - number)
    # If the size of an event is negative, the ends of the interval change places.
    lowest = summary.mean + shifts.min()
    if trials.min() >= 0:
        lowest = max(lowest, 0.0)
    return summary._replace(low=lowest, high=summary.mean + shifts.max())


def summary_of_errors(trials: np.ndarray) -> Summary:
    """Computes the mean decoding error and a 95% interval that allows for rare errors.

    The mean error is the probability of an error times the mean size of errors. If few
    trials have an error, the interval reaches at least to the upper limit of this
    probability times the mean size. Without any error, the size is that of a round
    without a gradient, 1.
    """
    summary = student_summary(trials)
    is_error = trials > 0
    num_errors = np.count_nonzero(is_error)
    if num_errors > _FEW_EVENTS:
        return summary
    size = trials[is_error].mean() if num_errors else 1.0
    upper_limit = size * summarize(is_error).high
    return summary._replace(high=np.maximum(summary.high, upper_limit))
