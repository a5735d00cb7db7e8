"""Means over rounds with intervals, also if few rounds decide the mean."""

from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.simulation._monte_carlo import Summary, student_summary, summarize

# Effective number of rounds that decide a mean, below which the study has seen too few
# of them. Student's interval assumes a normal distribution of the mean.
FEW_EVENTS = 10
# Number of events above which Garwood's interval is Student's, up to rounding.
_MOST_EVENTS = 1e10


class Events(NamedTuple):
    """Rounds that decide a mean: if `number` of many differ from the others by `size`.

    In general, events of equal size that have the variance and skewness of the trials.

    Attributes:
      number: Number of trials over their squared skewness; 0 if all trials are equal.
      size: Negative if the events are smaller than the other trials.
    """

    number: float
    size: float


def events_of(trials: np.ndarray) -> Events:
    """Returns the effective events among trials (num_trials,).

    They are NaN if some trials are infinite.
    """
    if not np.isfinite(trials).all():
        return Events(number=np.nan, size=np.nan)
    if trials.min() == trials.max():
        return Events(number=0.0, size=0.0)
    deviations = trials - trials.mean()
    # Cubes of the relative deviations do not overflow.
    unit = np.abs(deviations).max()
    second = np.sum((deviations / unit) ** 2)
    third = np.sum((deviations / unit) ** 3)
    with np.errstate(divide="ignore"):
        number = second**3 / third**2
    return Events(number=float(number), size=float(unit * third / second))


def summary_of_times(trials: np.ndarray) -> Summary:
    """Returns the mean of times (num_trials,) with its interval.

    Its ends are NaN if all times are equal: a time that was not seen may have any size.
    """
    summary = summary_of_rounds(trials)
    if events_of(trials).number == 0:
        return summary._replace(low=np.nan, high=np.nan)
    return summary


def summary_of_rounds(trials: np.ndarray) -> Summary:
    """Returns the mean of trials (num_trials,), with an interval for few events, too.

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
    # A negative size exchanges the ends.
    lowest = summary.mean + shifts.min()
    if trials.min() >= 0:
        lowest = max(lowest, 0.0)
    return summary._replace(low=lowest, high=summary.mean + shifts.max())


def summary_of_errors(trials: np.ndarray) -> Summary:
    """Returns the mean of errors, with an interval that holds for few errors.

    The mean error is the probability of an error times the mean size of errors. If few
    trials have an error, the interval reaches at least to the upper limit of this
    probability times the mean size. Without any error, the size is that of a round
    without a gradient, 1.
    """
    summary = student_summary(trials)
    is_error = trials > 0
    num_errors = np.count_nonzero(is_error)
    if num_errors > FEW_EVENTS:
        return summary
    size = trials[is_error].mean() if num_errors else 1.0
    upper_limit = size * summarize(is_error).high
    return summary._replace(high=np.maximum(summary.high, upper_limit))
