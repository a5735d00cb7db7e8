"""Candidates of a plan: codes and waiting rules."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxwgc import _validation, codes
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Lagrange, OneCopy, OneStep
from jaxwgc.stragglers import (
    StragglerModel,
    WaitingRule,
    coverage,
    deadline,
    delayed,
    fastest,
    until_decodable,
)
from jaxwgc.studies._planning._choice import BY_SPEED, UNCODED
from jaxwgc.studies._planning._simulated_rounds import Drawn

# A code and its name.
Named: TypeAlias = tuple[str, GradientCode]
# Rules wait for all workers, for one fewer, for the number that an exact code needs,
# and for these shares of the workers.
_SHARES_AWAITED = (0.9, 0.8, 0.65, 0.5)
# Deadlines: these quantiles of the times of single workers. The last one bounds the
# cost of waiting for all if a worker takes longer than ever before.
_SHARES_BY_DEADLINE = (0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
# Accepted squared errors.
_SQUARED_ERRORS = (0.05, 0.1, 0.2)
_ROUNDING = 1e-5
# Shares of the parts that at least one worker has finished.
_SHARES_COVERED = (0.99, 0.97, 0.9)
# Ratio of the medians of workers above which speeds count as permanently different, and
# their spread in standard deviations of chance. For 8 to 128 equal workers, 15 to 300
# rounds and any delay law it is up to 19; in measured traces with such a ratio it is at
# least 290.
_CHRONIC, _DEVIATIONS = 1.25, 20.0
# Numbers of parts per worker on request, and maximum number of all parts.
_PARTS_OF_WORKER, _MOST_PARTS = (8, 4, 2), 512


def standard_codes(
    num_workers: int, replications: Sequence[int], speeds: np.ndarray | None
) -> Iterator[Named]:
    """Yields codes by the names of their constructors.

    They have as many parts as workers, except for codes with requests and codes for
    workers of unequal speeds.
    """
    few = [parts for parts in _PARTS_OF_WORKER if parts * num_workers <= _MOST_PARTS]
    num_parts = num_workers * max(few, default=1)
    yield UNCODED, codes.uncoded(num_workers)
    if speeds is not None:
        yield BY_SPEED, codes.uncoded(num_workers, num_parts, speeds)
        if max(replications) > 1:
            code = codes.replicated(num_workers, num_parts, 2, speeds)
            yield "replicated by speed", code
            placement = codes.proportional_placement(speeds, num_parts, 2)
            code = codes.any_placement(jax.random.key(0), placement, 1)
            yield "any_placement by speed", code
    for copies in replications:
        if copies == 1:
            continue
        yield "replicated", codes.replicated(num_workers, num_parts, copies)
        if num_workers % copies == 0:
            code = codes.fractional_repetition(num_workers, copies - 1)
            yield "fractional_repetition", code
        else:
            yield "binary", codes.binary(num_workers, copies - 1)
            # Exact codes that need any n - s responses are equivalent; one is enough.
            code = codes.reed_solomon(num_workers, num_workers, copies)
            yield "reed_solomon", code


def speeds_of(drawn: Drawn) -> np.ndarray | None:
    """Returns speeds (num_workers,) if workers always differ, otherwise None.

    Differences of medians of few rounds may be due to chance.
    """
    times = drawn.times[0].reshape(-1, drawn.times.shape[-1])
    medians = np.median(times, axis=0)
    if not np.all((medians > 0) & np.isfinite(medians)):
        return None
    with np.errstate(divide="ignore"):
        deviations = np.abs(np.log(times / medians))
    by_chance = np.median(deviations) * math.sqrt(1 / drawn.num_measured)
    spread = np.ptp(np.log(medians))
    is_chronic = spread > max(math.log(_CHRONIC), _DEVIATIONS * by_chance)
    return 1 / medians if is_chronic else None


def standard_rules(
    name: str, drawn: Drawn, code: GradientCode, exact: bool
) -> Iterator[WaitingRule]:
    """Yields waiting rules for a code."""
    decoder, num_workers = code.choose_decoder(), code.num_workers
    enough = num_workers - int(np.asarray(code.num_stragglers))
    # Many codes lose all parts if one response is missing, not some.
    only_exact = decoder.is_a(Lagrange) or name in (BY_SPEED, "any_placement by speed")
    exact = exact or only_exact
    if decoder.is_a(OneCopy):
        yield until_decodable(code)
        for share in [] if exact else _SHARES_COVERED:
            # Less than one part cannot be lost.
            if (1 - share) * code.num_parts > 1 - _ROUNDING:
                yield coverage(code, share)
        return
    is_coded = np.asarray(code.assignment).sum() > code.num_parts
    fewer = {math.ceil(share * num_workers) for share in _SHARES_AWAITED}
    fewer = {number for number in {num_workers - 1, *fewer} if 0 < number < enough}
    if code.num_stragglers or not is_coded:
        yield fastest(enough)
    for number in [] if exact else sorted(fewer, reverse=True):
        yield fastest(number)
    if code.num_stragglers and not only_exact:
        yield until_decodable(code)
    if exact:
        return
    if is_coded and not decoder.is_a(OneStep):
        for squared in _SQUARED_ERRORS:
            # Errors are accepted up to rounding.
            yield until_decodable(code, math.sqrt(squared * (1 + _ROUNDING)))
    times = drawn.times[drawn.place(code)]
    quantiles = np.quantile(times, _SHARES_BY_DEADLINE, method="inverted_cdf")
    for seconds in np.unique(quantiles):
        if 0 < seconds < math.inf:
            yield deadline(float(seconds))


def rules_of(
    name: str, drawn: Drawn, code: GradientCode, waiting: Sequence[Any]
) -> Iterator[WaitingRule]:
    """Yields the requested rules, checked.

    Uncoded workers are always also judged with waiting for all.
    """
    rules: list[Any] = [rule(code) if callable(rule) else rule for rule in waiting]
    if name == UNCODED:
        rules.insert(0, fastest(code.num_workers))
    for rule in rules:
        hint = ", or a function that returns one for a code"
        _validation.check_instance("waiting", rule, WaitingRule, hint)
    for rule in dict.fromkeys(rules):
        model = delayed(drawn.delay, rule)
        StragglerModel.check("waiting", model, code.loads)
        yield rule
