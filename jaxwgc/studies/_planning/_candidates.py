"""The choices that a plan judges: codes, and for each how long to wait."""

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
# Besides all, and as many as an exact code needs: of the workers, one fewer and
_SHARES_AWAITED = (0.9, 0.8, 0.65, 0.5)
# of the times of single workers, those that come by a deadline. The last one bounds
# what it costs to wait for all if somebody takes longer than anyone ever did.
_SHARES_BY_DEADLINE = (0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
# Squared errors that are let pass.
_SQUARED_ERRORS = (0.05, 0.1, 0.2)
_ROUNDING = 1e-5
# Of the parts, finished by somebody.
_SHARES_COVERED = (0.99, 0.97, 0.9)
# Ratio of the medians of workers above which they count as always different, and their
# spread in deviations by chance. It is up to 19 for 8 to 128 equal workers in 15 to 300
# rounds of any delay law, and 290 or more in the measured traces with such a ratio.
_CHRONIC, _DEVIATIONS = 1.25, 20.0
# Parts of a worker on request, and of all workers together at most.
_PARTS_OF_WORKER, _MOST_PARTS = (8, 4, 2), 512


def standard_codes(
    num_workers: int, replications: Sequence[int], speeds: np.ndarray | None
) -> Iterator[Named]:
    """Codes by the names of their constructors.

    With as many parts as workers, but for those whose finished parts are sent on
    request, and those for workers of unequal speeds.
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
            # Of the exact codes that need any n - s answers one; loads are equal.
            code = codes.reed_solomon(num_workers, num_workers, copies)
            yield "reed_solomon", code


def speeds_of(drawn: Drawn) -> np.ndarray | None:
    """Returns speeds (num_workers,) of workers that always differ, or None.

    Medians of so few rounds differ by chance, too.
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
    """Waiting rules for a code."""
    decoder, num_workers = code.choose_decoder(), code.num_workers
    enough = num_workers - int(np.asarray(code.num_stragglers))
    # With one answer too few many a code loses all parts, not some.
    only_exact = decoder.is_a(Lagrange) or name in (BY_SPEED, "any_placement by speed")
    exact = exact or only_exact
    if decoder.is_a(OneCopy):
        yield until_decodable(code)
        for share in [] if exact else _SHARES_COVERED:
            # Less than a part is no part.
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
            # An error that is as large up to rounding passes.
            yield until_decodable(code, math.sqrt(squared * (1 + _ROUNDING)))
    times = drawn.times[drawn.place(code)]
    quantiles = np.quantile(times, _SHARES_BY_DEADLINE, method="inverted_cdf")
    for seconds in np.unique(quantiles):
        if 0 < seconds < math.inf:
            yield deadline(float(seconds))


def rules_of(
    name: str, drawn: Drawn, code: GradientCode, waiting: Sequence[Any]
) -> Iterator[WaitingRule]:
    """Rules that are asked for, checked.

    Where there is no code, waiting for all is among them.
    """
    rules: list[Any] = [rule(code) if callable(rule) else rule for rule in waiting]
    if name == UNCODED:
        rules.insert(0, fastest(code.num_workers))
    for rule in rules:
        hint = ", or a function that gives one for a code"
        _validation.check_instance("waiting", rule, WaitingRule, hint)
    for rule in dict.fromkeys(rules):
        model = delayed(drawn.delay, rule)
        StragglerModel.check("waiting", model, code.loads)
        yield rule
