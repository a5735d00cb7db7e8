"""Codes and waiting rules that a plan compares by default."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxwgc import codes, stragglers
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Lagrange, OneCopy, OneStep
from jaxwgc.planning._clusters import Clusters
from jaxwgc.stragglers import WaitingRule

# Shares of the workers for which rules wait. Other rules wait for all workers, for all
# but one, and for the number that an exact code needs.
_SHARES_AWAITED = (0.9, 0.8, 0.65, 0.5)
# Levels of the quantiles of worker times that become deadlines. The maximum bounds the
# time of rounds in which a worker takes longer than ever before.
_SHARES_BY_DEADLINE = (0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
# Squared decoding errors at which an approximate rule ends the round.
_SQUARED_ERRORS = (0.05, 0.1, 0.2)
_ROUNDING = 1e-5
# Shares of finished parts at which a rule of coverage ends the round.
_SHARES_COVERED = (0.99, 0.97, 0.9)
# Speeds differ permanently if the medians of workers differ by more than the factor
# _CHRONIC, and by more than _DEVIATIONS standard deviations of chance. Chance gives up
# to 19 for 8 to 128 equal workers, 15 to 300 rounds and any delay law. Measured traces
# with permanent differences give at least 290.
_CHRONIC = 1.25
_DEVIATIONS = 20.0
# Minimum number of measured rounds for medians that show speeds.
_FEWEST_MEASURED = 5
# Numbers of parts per worker, for codes with requests. The first number that keeps the
# total below its maximum is used.
_PARTS_OF_WORKER = (8, 4, 2)
_MOST_PARTS = 512


class NamedCode(NamedTuple):
    """A code to compare, with the name that a plan prints.

    Attributes:
      name: Name in the table.
      code: Gradient code.
      by_speed: Whether the loads are proportional to the speeds of the workers.
    """

    name: str
    code: GradientCode
    by_speed: bool = False


def standard_codes(
    num_workers: int, replications: Sequence[int], speeds: np.ndarray | None
) -> Iterator[NamedCode]:
    """Yields the codes that a plan compares by default, besides uncoded workers.

    They have as many parts as workers, except for codes with requests and codes for
    workers of unequal speeds.
    """
    parts_of_worker = 1
    for number in _PARTS_OF_WORKER:
        if number * num_workers <= _MOST_PARTS:
            parts_of_worker = number
            break
    num_parts = num_workers * parts_of_worker
    if speeds is not None:
        yield from _codes_by_speed(num_parts, speeds, max(replications) > 1)
    for copies in replications:
        if copies == 1:
            continue
        code = codes.replicated(num_workers, num_parts, copies)
        yield NamedCode("replicated", code)
        if num_workers % copies == 0:
            code = codes.fractional_repetition(num_workers, copies - 1)
            yield NamedCode("fractional_repetition", code)
        else:
            yield NamedCode("binary", codes.binary(num_workers, copies - 1))
            # All exact codes that need any n - s responses are equivalent, so one is
            # enough.
            code = codes.reed_solomon(num_workers, num_workers, copies)
            yield NamedCode("reed_solomon", code)


def _codes_by_speed(
    num_parts: int, speeds: np.ndarray, with_copies: bool
) -> Iterator[NamedCode]:
    """Yields codes with loads in proportion to the speeds of the workers."""
    num_workers = len(speeds)
    code = codes.uncoded(num_workers, num_parts, speeds)
    yield NamedCode("uncoded by speed", code, by_speed=True)
    if with_copies:
        code = codes.replicated(num_workers, num_parts, 2, speeds)
        yield NamedCode("replicated by speed", code, by_speed=True)
        placement = codes.proportional_placement(speeds, num_parts, 2)
        code = codes.any_placement(jax.random.key(0), placement, 1)
        yield NamedCode("any_placement by speed", code, by_speed=True)


def speeds_of(times: np.ndarray, num_measured: float) -> np.ndarray | None:
    """Returns speeds (num_workers,) if they differ permanently, otherwise None.

    Differences of medians of few rounds may be due to chance.

    Args:
      times: Simulated times of uncoded workers, (clusters, rounds, num_workers).
      num_measured: Number of measured rounds.
    """
    if num_measured < _FEWEST_MEASURED:
        return None
    times = times.reshape(-1, times.shape[-1])
    medians = np.median(times, axis=0)
    if not np.all((medians > 0) & np.isfinite(medians)):
        return None
    with np.errstate(divide="ignore"):
        deviations = np.abs(np.log(times / medians))
    by_chance = np.median(deviations) * math.sqrt(1 / num_measured)
    spread = np.ptp(np.log(medians))
    is_chronic = spread > max(math.log(_CHRONIC), _DEVIATIONS * by_chance)
    return 1 / medians if is_chronic else None


def standard_rules(
    named: NamedCode, clusters: Clusters, exact: bool
) -> Iterator[WaitingRule]:
    """Yields the waiting rules that a plan compares by default for a code."""
    code = named.code
    decoder = code.choose_decoder()
    if decoder.is_a(OneCopy):
        yield from _rules_on_request(code, exact)
        return
    # One missing response may lose all parts, so approximate rules are left out.
    only_exact = decoder.is_a(Lagrange) or named.by_speed
    is_coded = np.asarray(code.assignment).sum() > code.num_parts
    num_stragglers = int(np.asarray(code.num_stragglers))
    num_enough = code.num_workers - num_stragglers
    if num_stragglers > 0 or not is_coded:
        yield stragglers.fastest(num_enough)
    if num_stragglers > 0 and not only_exact:
        yield stragglers.until_decodable(code)
    # With one worker, a round without its response decodes nothing.
    if exact or only_exact or code.num_workers == 1:
        return
    numbers = {math.ceil(share * code.num_workers) for share in _SHARES_AWAITED}
    numbers.add(code.num_workers - 1)
    for number in sorted(numbers, reverse=True):
        if 0 < number < num_enough:
            yield stragglers.fastest(number)
    if is_coded and not decoder.is_a(OneStep):
        for squared_error in _SQUARED_ERRORS:
            # The tolerance includes errors that equal it up to rounding.
            tolerance = math.sqrt(squared_error * (1 + _ROUNDING))
            yield stragglers.until_decodable(code, tolerance)
    times = clusters.times(code)
    quantiles = np.quantile(times, _SHARES_BY_DEADLINE, method="inverted_cdf")
    for seconds in np.unique(quantiles):
        if 0 < seconds < math.inf:
            yield stragglers.deadline(float(seconds))


def _rules_on_request(code: GradientCode, exact: bool) -> Iterator[WaitingRule]:
    """Yields the waiting rules of a code for finished parts on request."""
    yield stragglers.until_decodable(code)
    if exact:
        return
    for share in _SHARES_COVERED:
        # A rule that may lose less than one part equals `until_decodable`.
        if (1 - share) * code.num_parts > 1 - _ROUNDING:
            yield stragglers.coverage(code, share)
