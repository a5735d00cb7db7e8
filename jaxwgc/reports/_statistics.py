"""Means over the rounds of a trace, and their confidence intervals."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy

# Number of batches of consecutive rounds. They give the intervals of means.
_NUM_BATCHES = 10
# Maximum number of rounds in tests and pictures. Sorting more rounds is slow.
NUM_SAMPLED = 4096
# Number of times in a block of rows. A block stays in the cache.
_BLOCK_SIZE = 2**18
# Number of columns that are read at once. They fill a line of the cache.
_NUM_COLUMNS = 8


class RoundMeans(NamedTuple):
    """Means over rounds with a response, and the times of the median worker.

    Attributes:
      medians: Time of the median worker in each round, (rounds,). NaN for rounds
        without responses.
      num_responses: Number of responses of each worker, int (workers,).
      is_shared: Rounds in which several workers respond, bool (rounds,).
      longest: Mean time of the last worker.
      mean: Mean time of a worker.
      median: Mean time of the median worker.
      last: Share of rounds in which a worker is last, (workers,).
      lost: Mean time lost to a worker, (workers,).
      lost_error: Half of the width of its 95% interval, from batches of consecutive
        rounds, (workers,).
    """

    medians: np.ndarray
    num_responses: np.ndarray
    is_shared: np.ndarray
    longest: float
    mean: float
    median: float
    last: np.ndarray
    lost: np.ndarray
    lost_error: np.ndarray


def sampled_rounds(num_rounds: int) -> np.ndarray:
    """Returns the numbers of all rounds, or of `NUM_SAMPLED` of them in order.

    One round is drawn from each of as many equal strata, with a fixed seed. Evenly
    spaced rounds would all be slow, or all fast, if every tenth round is slow.
    """
    if num_rounds <= NUM_SAMPLED:
        return np.arange(num_rounds)
    edges = np.linspace(0, num_rounds, NUM_SAMPLED + 1).astype(int)
    offsets = np.random.default_rng(0).random(NUM_SAMPLED)
    return edges[:-1] + (offsets * np.diff(edges)).astype(int)


def round_means(times: np.ndarray) -> RoundMeans:
    """Returns means over rounds with a response.

    Args:
      times: (rounds, workers), NaN for no response.
    """
    num_rounds, num_workers = times.shape
    longest = np.empty(num_rounds)
    second = np.empty(num_rounds)
    medians = np.empty(num_rounds)
    means = np.empty(num_rounds)
    is_shared = np.empty(num_rounds, dtype=bool)
    last_worker = np.empty(num_rounds, dtype=int)
    num_last = np.zeros(num_workers)
    num_responses = np.zeros(num_workers, dtype=int)
    for rows in _blocks(times):
        block = times[rows]
        is_response = ~np.isnan(block)
        count = is_response.sum(axis=1)
        is_shared[rows] = count > 1
        # NaNs come last. If two workers are in the middle, the faster one is the median
        # worker.
        ordered = np.sort(block, axis=1)
        places = np.arange(len(block))
        longest[rows] = ordered[places, np.maximum(count - 1, 0)]
        second[rows] = ordered[places, np.maximum(count - 2, 0)]
        medians[rows] = ordered[places, np.maximum(count - 1, 0) // 2]
        # A sum of long times might overflow.
        shares = block / longest[rows, None]
        sums = np.sum(shares, axis=1, where=is_response)
        means[rows] = longest[rows] * (sums / np.maximum(count, 1))
        is_last = block == longest[rows, None]
        last_worker[rows] = is_last.argmax(axis=1)
        num_last += is_last.sum(axis=0)
        num_responses += is_response.sum(axis=0)
    has_response = ~np.isnan(longest)
    # If several workers are last, no time is lost to any of them.
    lost, lost_error = _lost_times(
        last_worker[has_response], (longest - second)[has_response], num_workers
    )
    return RoundMeans(
        medians=medians,
        num_responses=num_responses,
        is_shared=is_shared,
        longest=mean_of(longest),
        mean=mean_of(means),
        median=mean_of(medians),
        last=num_last / has_response.sum(),
        lost=lost,
        lost_error=lost_error,
    )


def _blocks(times: np.ndarray) -> Iterator[slice]:
    """Yields blocks of rows, so small that temporary arrays stay in the cache."""
    num_rounds, num_workers = times.shape
    num_rows = max(_BLOCK_SIZE // num_workers, 1)
    for start in range(0, num_rounds, num_rows):
        yield slice(start, start + num_rows)


def _lost_times(
    last_worker: np.ndarray, gaps: np.ndarray, num_workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean time lost to each worker, and half of the 95% interval's width.

    Args:
      last_worker: Worker that is last in each round, int (rounds,).
      gaps: Time by which it is later than the second to last, (rounds,).
      num_workers: Number of workers.
    """
    unit = _unit_of(gaps)
    num_batches = min(len(gaps), _NUM_BATCHES)
    batches = np.array_split(np.arange(len(gaps)), num_batches)
    sums = []
    for rounds in batches:
        sums.append(
            np.bincount(
                last_worker[rounds], weights=gaps[rounds] / unit, minlength=num_workers
            )
        )
    sizes = [len(rounds) for rounds in batches]
    means, standard_errors, degrees = _errors_of_batches(
        np.array(sums), np.array(sizes)
    )
    quantile = scipy.special.stdtrit(degrees, 0.975)
    return unit * means, unit * quantile * standard_errors


def longest_times(times: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns the longest time of each round if workers take multiples of their times.

    Args:
      times: (rounds, workers), NaN for no response.
      factors: Multiple of the time of each worker, (workers,).

    Returns:
      (rounds,), NaN for rounds without responses.
    """
    longest = np.empty(len(times))
    for rows in _blocks(times):
        np.fmax.reduce(times[rows] * factors, axis=1, out=longest[rows])
    return longest


def median_slowdowns(times: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns median slowdowns: times divided by the times of the median worker.

    Args:
      times: (rounds, workers), NaN for no response.
      references: Time of the median worker in each round, (rounds,). NaN for rounds
        that are left out.

    Returns:
      (workers,), NaN without responses in these rounds.
    """
    num_rounds, num_workers = times.shape
    slowdowns = np.full(num_workers, np.nan)
    buffer = np.empty((_NUM_COLUMNS, num_rounds))
    for start in range(0, num_workers, _NUM_COLUMNS):
        columns = times[:, start : start + _NUM_COLUMNS].T
        # Ratios beyond the range of floats are infinite.
        with np.errstate(over="ignore"):
            ratios = np.divide(columns, references, out=buffer[: len(columns)])
        for worker, row in enumerate(ratios, start):
            count = np.count_nonzero(~np.isnan(row))
            if count:
                # NaNs come last.
                middle = [(count - 1) // 2, count // 2]
                row.partition(middle)
                slowdowns[worker] = row[middle].mean()
    return slowdowns


def mean_of(times: np.ndarray) -> float:
    """Returns the mean of times (rounds,), ignoring NaN, in any unit."""
    responses = times[~np.isnan(times)]
    unit = _unit_of(responses)
    return float(unit * np.mean(responses / unit))


def _unit_of(values: np.ndarray) -> float:
    """Returns a power of two near the largest value, or 1 if none is positive.

    Values divided by it are not rounded, and their sums and squares do not overflow.
    """
    _, exponent = np.frexp(np.max(values, initial=0.0))
    # Larger and smaller powers are not normal floats.
    return float(2.0 ** np.clip(exponent, -1000, 1000))


def batch_means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means over rounds, and half of the widths of their 95% intervals.

    Args:
      values: (rounds, n).
    """
    means, standard_errors, degrees = batch_errors(values)
    return means, scipy.special.stdtrit(degrees, 0.975) * standard_errors


def batch_errors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns means over rounds, their standard errors, and degrees of freedom.

    Standard errors are from the means of batches of consecutive rounds, which may be
    correlated.

    Args:
      values: (rounds, n).
    """
    batches = np.array_split(values, min(len(values), _NUM_BATCHES))
    unit = _unit_of(values)
    sums = np.array([np.sum(batch / unit, axis=0) for batch in batches])
    sizes = np.array([len(batch) for batch in batches])
    means, standard_errors, degrees = _errors_of_batches(sums, sizes)
    return unit * means, unit * standard_errors, degrees


def _errors_of_batches(
    sums: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns means, standard errors and degrees of freedom from sums of batches.

    Args:
      sums: (batches, n).
      sizes: Number of rounds in each batch, (batches,).
    """
    num_rounds = sizes.sum()
    means = sums.sum(axis=0) / num_rounds
    deviations = sums - sizes[:, None] * means
    degrees = len(sizes) - 1 or 1
    variances = len(sizes) / degrees * np.sum(np.square(deviations), axis=0)
    return means, np.sqrt(variances) / num_rounds, degrees
