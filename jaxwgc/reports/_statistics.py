"""Statistics of the rounds of a trace: means, levels, intervals and correlation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy

# Maximum probability that a report names any worker although all workers are alike.
FALSE_ALARMS = 0.05
# Log-slowdown up to which a worker is not named, even if it is significant.
MARGIN = np.log(1.05)
# Minimum number of responses of a tested worker.
LEAST_RESPONSES = 8
# Maximum number of rounds in tests and pictures. Sorting more rounds is slow.
NUM_SAMPLED = 4096
# Number of times (rounds × workers) in a block, so that its arrays fit in the cache.
_BLOCK_SIZE = 2**18
# Number of columns that are read at once: as many float64 as fit in a cache line.
_NUM_COLUMNS = 8
# Number of batches of consecutive rounds, from which intervals of means are computed.
_NUM_BATCHES = 10
# Share of missing responses above which the median of a round depends on which workers
# responded.
_MANY_MISSING = 0.2
# Maximum number of iterations of the median polish, and the change of log-slowdowns
# below which it stops.
_NUM_ITERATIONS = 50
_TOLERANCE = 1e-4
# Upper bound on autocorrelations r, so that factors such as (1 + r) / (1 - r) stay
# finite.
_LARGEST_CORRELATION = 0.97
# Number of standard errors above which the mean lag-1 autocorrelation is significant.
# Below, the ratio of autocorrelations at lags 2 and 1 is noise, and not used.
_NUM_STANDARD_ERRORS = 2
# Number of lags of the long-run variance, as a multiple of the cube root of the number
# of rounds.
_LAGS = 3


def sampled_rounds(num_rounds: int) -> np.ndarray:
    """Returns the indices of up to 4,096 rounds, spread evenly over the trace.

    From each of 4,096 equal strata, one round is drawn, with a fixed seed. Rounds at
    equal distances might all be slow, or all fast, if e.g. every tenth round is slow.
    """
    if num_rounds <= NUM_SAMPLED:
        return np.arange(num_rounds)
    edges = np.linspace(0, num_rounds, NUM_SAMPLED + 1).astype(int)
    offsets = np.random.default_rng(0).random(NUM_SAMPLED)
    return edges[:-1] + (offsets * np.diff(edges)).astype(int)


class Rounds(NamedTuple):
    """Times of rounds, and statistics over the rounds with a response.

    Attributes:
      times: (rounds, workers), NaN for no response.
      steps: Number of each round, int (rounds,).
      longest: Time of each round, (rounds,). NaN without responses.
      medians: Time of the median worker in each round, (rounds,): of two workers in the
        middle, the faster one. NaN without responses.
      references: Times that slowdowns are relative to, (rounds,). NaN for rounds in
        which at most one worker responds.
      slowdown: Median over rounds of times divided by `references`, (workers,). NaN for
        workers without responses.
      round_time: Mean time of the last worker.
      mean_time: Mean time of a worker.
      median_time: Mean time of the median worker.
      last: Share of rounds in which a worker is last, (workers,).
      time_lost: Mean time lost to a worker, (workers,).
      time_lost_error: Half of the width of the 95% interval of `time_lost`, (workers,).
    """

    times: np.ndarray
    steps: np.ndarray
    longest: np.ndarray
    medians: np.ndarray
    references: np.ndarray
    slowdown: np.ndarray
    round_time: float
    mean_time: float
    median_time: float
    last: np.ndarray
    time_lost: np.ndarray
    time_lost_error: np.ndarray

    @classmethod
    def of(cls, times: np.ndarray, steps: np.ndarray) -> "Rounds":
        """Computes the statistics of rounds from the workers' times."""
        longest, gaps, medians, means = _in_blocks(_statistics_of_rounds, times)
        has_response = ~np.isnan(longest)
        is_last = times == longest[:, None]
        # If several workers are last, the gap is 0. No time is then lost to any of
        # them.
        time_lost, time_lost_error = lost_times(
            last_worker=is_last.argmax(axis=1)[has_response],
            gaps=gaps[has_response],
            num_workers=times.shape[1],
        )
        references = _reference_times(times, medians)
        return cls(
            times=times,
            steps=steps,
            longest=longest,
            medians=medians,
            references=references,
            slowdown=_median_slowdowns(times, references),
            round_time=_mean_of(longest),
            mean_time=_mean_of(means),
            median_time=_mean_of(medians),
            last=is_last.sum(axis=0) / has_response.sum(),
            time_lost=time_lost,
            time_lost_error=time_lost_error,
        )

    def only(self, is_kept: np.ndarray) -> "Rounds":
        """Returns selected rounds, with statistics over these rounds alone."""
        return Rounds.of(self.times[is_kept], self.steps[is_kept])

    @property
    def lost_share(self) -> float:
        """Share of the round time that is lost to stragglers."""
        return 1 - self.median_time / self.round_time

    def replaced_time(self, is_replaced: np.ndarray) -> float:
        """Computes the mean round time if some workers were as fast as the median.

        Args:
          is_replaced: Which workers, bool (workers,).
        """
        others = self._longest_times(np.where(is_replaced, 0.0, 1.0))
        return _mean_of(np.fmax(others, self.medians))

    def proportional_time(self, keeps_work: np.ndarray) -> float:
        """Computes the mean round time if work were in proportion to speed.

        The speed of a worker is 1 / `slowdown`. Workers that never responded get no
        work.

        Args:
          keeps_work: Workers whose work does not change, bool (workers,).
        """
        speeds = np.where(keeps_work, np.nan, 1 / self.slowdown)
        if np.isnan(speeds).all():
            return self.round_time
        factors = np.where(keeps_work, 1.0, speeds / np.nanmean(speeds))
        return _mean_of(self._longest_times(factors))

    def _longest_times(self, factors: np.ndarray) -> np.ndarray:
        """Computes round times after each worker's times are scaled by its factor."""
        return _in_blocks(
            lambda times: np.fmax.reduce(factors * times, axis=1), self.times
        )


def _in_blocks(
    function: Callable[[np.ndarray], np.ndarray], times: np.ndarray
) -> np.ndarray:
    """Applies a function to blocks of rounds, and concatenates along the last axis.

    Blocks are small, so that their temporary arrays stay in the cache.
    """
    num_rows = max(_BLOCK_SIZE // times.shape[1], 1)
    starts = range(0, len(times), num_rows)
    blocks = [function(times[start : start + num_rows]) for start in starts]
    return np.concatenate(blocks, axis=-1)


def _statistics_of_rounds(times: np.ndarray) -> np.ndarray:
    """Computes the longest time, gap, median time and mean time of each round.

    The gap is between the longest and the second longest time, and 0 for a worker that
    responds alone. Of two workers in the middle, the faster one is the median worker.

    Args:
      times: (rounds, workers), NaN for no response.

    Returns:
      The four statistics, (4, rounds), NaN for rounds without responses.
    """
    is_response = ~np.isnan(times)
    num_responses = is_response.sum(axis=1)
    # NaNs are sorted to the end.
    ordered = np.sort(times, axis=1)
    rows = np.arange(len(times))
    place = np.maximum(num_responses - 1, 0)
    longest = ordered[rows, place]
    gap = longest - ordered[rows, np.maximum(place - 1, 0)]
    # Times are divided before they are summed, because their sum might overflow.
    sums = np.sum(times / longest[:, None], axis=1, where=is_response)
    mean = longest * (sums / np.maximum(num_responses, 1))
    return np.array([longest, gap, ordered[rows, place // 2], mean])


def _median_times(times: np.ndarray) -> np.ndarray:
    """Returns the time of the median worker of each round."""
    return _in_blocks(_statistics_of_rounds, times)[2]


def _reference_times(times: np.ndarray, medians: np.ndarray) -> np.ndarray:
    """Returns the reference time of each round, which slowdowns are relative to.

    This is the time of the median worker. It is NaN for a round with one response,
    which compares no workers, unless no round has several responses.

    If more than a fifth of the responses are missing, the median of a round would
    depend on which workers responded. Times are then modelled as a product of a round
    and a worker, by alternating medians (Tukey's median polish of logarithms): each
    time is divided by the slowdown of its worker before the median is taken.
    """
    is_response = ~np.isnan(times)
    is_shared = is_response.sum(axis=1) > 1
    if not is_shared.any():
        return medians
    num_responses = is_response.sum(axis=0)
    num_rounds = np.count_nonzero(~np.isnan(medians))
    share = 1 - num_responses[num_responses > 0].mean() / num_rounds
    if share > _MANY_MISSING:
        rounds = np.flatnonzero(is_shared)
        slowdowns = _polished_slowdowns(times[rounds[sampled_rounds(len(rounds))]])
        medians = _median_times(times / slowdowns)
    return np.where(is_shared, medians, np.nan)


def _polished_slowdowns(times: np.ndarray) -> np.ndarray:
    """Estimates slowdowns of workers by median polish.

    The median worker has slowdown 1, and so has a worker without responses.
    """
    slowdowns = np.ones(times.shape[1])
    for _ in range(_NUM_ITERATIONS):
        medians = _median_times(times / slowdowns)
        updated = _median_slowdowns(times, medians)
        ordered = np.sort(updated[~np.isnan(updated)])
        updated = np.nan_to_num(updated / ordered[(len(ordered) - 1) // 2], nan=1.0)
        change = np.max(np.abs(np.log(updated / slowdowns)))
        slowdowns = updated
        if change < _TOLERANCE:
            break
    return slowdowns


def _median_slowdowns(times: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Computes the median slowdown of each worker.

    The slowdown is NaN for a worker without responses in rounds with a reference.
    """
    num_workers = times.shape[1]
    slowdowns = np.full(num_workers, np.nan)
    for start in range(0, num_workers, _NUM_COLUMNS):
        columns = times[:, start : start + _NUM_COLUMNS].T
        # Ratios that overflow are infinite. NumPy shall not warn about them.
        with np.errstate(over="ignore"):
            ratios = np.divide(columns, references, order="C")
        for worker, row in enumerate(ratios, start):
            responses = row[~np.isnan(row)]
            if len(responses):
                slowdowns[worker] = np.median(responses, overwrite_input=True)
    return slowdowns


def lost_times(
    last_worker: np.ndarray, gaps: np.ndarray, num_workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean time lost to each worker, and half-widths of 95% intervals.

    Args:
      last_worker: Worker that is last in each round, int (rounds,).
      gaps: Time of the last worker minus that of the second to last, (rounds,).
      num_workers: Number of workers.
    """
    unit = _unit_of(gaps)
    batches = batches_of_rounds(len(gaps))
    sums = [
        np.bincount(last_worker[rounds], gaps[rounds] / unit, minlength=num_workers)
        for rounds in batches
    ]
    means, standard_errors, degrees = errors_of_batches(np.array(sums), batches)
    quantile = scipy.special.stdtrit(degrees, 0.975)
    return unit * means, unit * quantile * standard_errors


def batches_of_rounds(num_rounds: int) -> list[np.ndarray]:
    """Returns the indices of rounds, divided into batches of consecutive rounds."""
    return np.array_split(np.arange(num_rounds), min(num_rounds, _NUM_BATCHES))


def errors_of_batches(
    sums: np.ndarray, batches: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns means over rounds, their standard errors and degrees of freedom.

    Standard errors come from differences between batches, because consecutive rounds
    may be correlated.

    Args:
      sums: Sums over the rounds of each batch, (batches, n).
      batches: Rounds of each batch.
    """
    sizes = np.array([len(rounds) for rounds in batches])
    num_rounds = sizes.sum()
    means = sums.sum(axis=0) / num_rounds
    deviations = sums - sizes[:, None] * means
    degrees = len(sizes) - 1 or 1
    variances = len(sizes) / degrees * np.sum(np.square(deviations), axis=0)
    return means, np.sqrt(variances) / num_rounds, degrees


def _mean_of(times: np.ndarray) -> float:
    """Returns the mean of times, ignoring NaN, without overflow."""
    responses = times[~np.isnan(times)]
    unit = _unit_of(responses)
    return float(unit * np.mean(responses / unit))


def _unit_of(values: np.ndarray) -> float:
    """Returns a power of two near the largest value, or 1 if none is positive.

    Division by this power does not round values. Sums and squares of the quotients do
    not overflow.
    """
    _, exponent = np.frexp(np.max(values, initial=0.0))
    # Powers outside this range may not be normal floats.
    return float(2.0 ** np.clip(exponent, -1000, 1000))


def level_deviations(levels: np.ndarray, is_tested: np.ndarray) -> np.ndarray:
    """Subtracts the level of the median worker from the levels of all workers.

    A level is the median log-slowdown of a worker. Slowdowns are relative to the median
    worker of each round. If about half of the workers are slow, this is the slowest of
    the fast workers, or the fastest of the slow workers. Without the subtraction, its
    noise would make all workers of its group look faster, or slower.
    """
    tested = np.sort(levels[is_tested & ~np.isnan(levels)])
    if not len(tested):
        return levels
    return levels - tested[(len(tested) - 1) // 2]


def column_order_statistic(ordered: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns the value of a given rank in each column."""
    return np.take_along_axis(ordered, np.maximum(ranks, 0)[None], axis=0)[0]


def column_medians(values: np.ndarray) -> np.ndarray:
    """Returns the median of each column, ignoring NaNs; NaN if all are NaN."""
    ordered = np.sort(values, axis=0)
    count = np.isfinite(values).sum(axis=0)
    lower = column_order_statistic(ordered, (count - 1) // 2)
    upper = column_order_statistic(ordered, count // 2)
    return (lower + upper) / 2


def column_means(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each column, ignoring NaNs; 0 if all are NaN."""
    return np.nansum(values, axis=0) / np.maximum(np.isfinite(values).sum(axis=0), 1)


def correlation_scales(residuals: np.ndarray, is_tested: np.ndarray) -> np.ndarray:
    """Computes factors by which correlation of rounds increases standard errors.

    The variance of a mean of rounds is larger than that of independent rounds by the
    largest of three factors. The first two are common to all workers:

    - (1 + r) / (1 - r) with the median lag-1 autocorrelation r, for rounds that forget
      the last one at a constant rate. A fitted change lowers r by about (4 + 9 r) /
      rounds, from simulations of 15 to 1,000 rounds.
    - 1 + 2 r / (1 - q) with the mean lag-1 autocorrelation r and the ratio q of the
      autocorrelations at lags 2 and 1. Noise within slow spells lowers r, but not q.
    - The long-run variance of the worker's own rounds, for single long spells.

    Args:
      residuals: (rounds, workers), NaN for no response.
      is_tested: Workers that take part in the common factors, (workers,).

    Returns:
      (workers,), at least 1.
    """
    num_rounds, num_workers = residuals.shape
    if not is_tested.any():
        return np.ones(num_workers)
    correlations = _autocorrelations(residuals)
    num_lags = len(correlations)
    # Bartlett weights keep the long-run variance positive.
    weights = 1 - np.arange(1, num_lags + 1) / (num_lags + 1)
    factors_of_workers = 1 + 2 * weights @ correlations
    common_factor = _common_factor(correlations[:, is_tested], num_rounds)
    return np.sqrt(np.maximum(factors_of_workers, common_factor))


def common_variance_factor(residuals: np.ndarray) -> float:
    """Computes the factor by which correlation of rounds increases variances.

    This is the larger of the two common factors in `correlation_scales`, and 1 without
    workers.

    Args:
      residuals: (rounds, workers), NaN for no response.
    """
    if not residuals.shape[1]:
        return 1.0
    return _common_factor(_autocorrelations(residuals), len(residuals))


def _autocorrelations(residuals: np.ndarray) -> np.ndarray:
    """Computes autocorrelations of each column, (lags, columns), from lag 1 on."""
    num_rounds = len(residuals)
    num_lags = min(max(int(_LAGS * num_rounds ** (1 / 3)), 2), num_rounds - 1)
    filled = np.nan_to_num(residuals)
    products = [
        np.einsum("ij,ij->j", filled[lag:], filled[: num_rounds - lag])
        for lag in range(num_lags + 1)
    ]
    return np.array(products[1:]) / np.maximum(products[0], 1e-300)


def _common_factor(correlations: np.ndarray, num_rounds: int) -> float:
    """Computes the variance factor that is common to all workers.

    Args:
      correlations: Autocorrelations, (lags, workers).
      num_rounds: Number of rounds.
    """
    num_lags, num_workers = correlations.shape
    shrinkage = max(1 - 9 / num_rounds, 0.1)
    r = (np.median(correlations[0]) + 4 / num_rounds) / shrinkage
    r = np.clip(r, 0, _LARGEST_CORRELATION)
    lag_1_factor = (1 + r) / (1 - r)
    mixed_factor = 1.0
    lag_means = correlations[:2].mean(axis=1) + 4 / num_rounds
    standard_error = 1 / np.sqrt(num_rounds * num_workers)
    if num_lags > 1 and lag_means[0] > _NUM_STANDARD_ERRORS * standard_error:
        q = np.clip(lag_means[1] / lag_means[0], 0, _LARGEST_CORRELATION)
        mixed_factor = 1 + 2 * lag_means[0] / (1 - q)
    return float(max(lag_1_factor, mixed_factor))
