"""Codes and waiting rules that a plan compares."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxwgc import codes, stragglers
from jaxwgc._common import validation
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Lagrange, OneCopy, OneStep
from jaxwgc.planning._choice import BUSY, CANCELLED, Candidate
from jaxwgc.planning._rounds import Clusters
from jaxwgc.simulation._rules import rule_of_code
from jaxwgc.stragglers import WaitingRule

# A waiting rule, or a function that returns a waiting rule for a code.
RuleLike: TypeAlias = WaitingRule | Callable[[GradientCode], WaitingRule]
# Maximum number of copies per part in the standard codes, unless `copies` is given.
_MOST_COPIES = 4
# Shares of the workers that `fastest` rules wait for. Further rules wait for all
# workers, for all but one, and for the number of workers that an exact code needs.
_SHARES_AWAITED = (0.9, 0.8, 0.65, 0.5)
# Levels of the quantiles of simulated worker times that are tried as deadlines. The
# last level is the longest of these times, so that only longer times, e.g. stalls, are
# cut off.
_SHARES_BY_DEADLINE = (0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
# Decoding errors, relative to the squared norm of the target, at which approximate
# `until_decodable` rules end the round.
_SQUARED_ERRORS = (0.05, 0.1, 0.2)
# Relative margin for rounding errors.
_ROUNDING = 1e-5
# Shares of finished parts at which `coverage` rules end the round.
_SHARES_COVERED = (0.99, 0.97, 0.9)
# Speeds count as permanently different if the median times of workers span more than
# the factor _CHRONIC, and if their logarithms span more than _DEVIATIONS standard
# deviations of a median. In simulations of equal workers (8 to 128 workers, 15 to 300
# rounds, any delay law), the span is at most 19 standard deviations. In measured traces
# with permanent differences, it is at least 290.
_CHRONIC = 1.25
_DEVIATIONS = 20.0
# Minimum number of measured rounds from which speeds are estimated: medians of fewer
# rounds are too noisy.
_FEWEST_MEASURED = 5
# Numbers of parts per worker to try, for codes with several parts per worker. The first
# number with at most _MOST_PARTS parts in total is used.
_PARTS_OF_WORKER = (8, 4, 2)
_MOST_PARTS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Codes and waiting rules that a plan compares.

    Attributes:
      copies: Numbers of copies of a part in the standard codes, from 1 to n; by default
        up to 4. Uncoded workers are always among the candidates.
      codes: Your own codes by name, in place of the standard codes. Not traced.
        Decoders that the standard codes do not use take seconds to compile.
      waiting: Waiting rules, or functions that return one for a code, e.g.
        `stragglers.until_decodable`. By default several values of `fastest`, `deadline`
        and `until_decodable`.
      late: What late workers do when a round ends, if they send one message. `"busy"`
        workers continue, and join the round in which they respond. `"cancelled"`
        workers stop.
      memory: Whether to try storing late messages, for uncoded workers that wait for a
        number of workers. False by default, since a short trace does not tell how
        stale stored messages can get with heavy-tailed times.
      exact: Whether to leave out candidates without exact gradients in every round.

    Raises:
      ValueError: If a list is empty, late is neither word, or attributes exclude each
        other.
      TypeError: If an attribute has the wrong type.

    Example:
      Two copies, or none, with exact gradients:

      >>> import jax, jaxwgc
      >>> from jaxwgc import planning, stragglers
      >>> delay = stragglers.shifted_exponential(shift=1.0, rate=1.0)
      >>> exact = planning.Candidates(copies=[2], exact=True)
      >>> plan = jaxwgc.plan(delay, 4, jax.random.key(0), candidates=exact)
      >>> sorted({choice.copies for choice in plan.choices})
      [1.0, 2.0]
    """

    copies: Sequence[int] | None = None
    codes: Mapping[str, GradientCode] | None = None
    waiting: Sequence[RuleLike] | None = None
    late: str = BUSY
    memory: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        validation.check_bool("exact", self.exact)
        validation.check_bool("memory", self.memory)
        validation.check_choice("late", self.late, (CANCELLED, BUSY))
        if self.memory and self.late != BUSY:
            raise ValueError(
                f"memory=True needs late={BUSY!r}, since cancelled workers send no "
                f"late messages; got late={self.late!r}"
            )
        if self.copies is not None:
            if self.codes is not None:
                raise ValueError(
                    "codes= and copies= cannot both be given, since copies= is for the "
                    f"standard codes; got copies={self.copies}"
                )
            object.__setattr__(self, "copies", listed("copies", self.copies))
        if self.waiting is not None:
            object.__setattr__(self, "waiting", listed("waiting", self.waiting))
            for rule in self.waiting:
                if not isinstance(rule, WaitingRule) and not callable(rule):
                    raise TypeError(
                        "each entry of waiting must be a WaitingRule, or a function "
                        "that returns a WaitingRule for a code; got "
                        f"{validation.in_short(rule)}"
                    )
        if self.codes is not None:
            if not isinstance(self.codes, Mapping):
                raise TypeError(
                    "codes must be a dict from names to codes; got "
                    f"{validation.in_short(self.codes)}"
                )
            if not self.codes:
                raise ValueError(
                    f"codes must have at least one entry; got {self.codes}"
                )

    @property
    def is_standard(self) -> bool:
        """True if codes and waiting rules are the defaults."""
        return self.codes is None and self.waiting is None

    def checked_copies(self, num_workers: int) -> Sequence[int]:
        """Returns the numbers of copies to try; raises an error if one is not valid."""
        if self.copies is None:
            return range(1, min(num_workers, _MOST_COPIES) + 1)
        for number in self.copies:
            validation.check_up_to("copies", number, num_workers=num_workers)
        return self.copies

    def for_workers(self, num_workers: int, clusters: Clusters) -> list[Candidate]:
        """Returns the candidates: each code with each of its waiting rules.

        With `memory`, uncoded candidates that wait for some of the workers are added a
        second time, with stored messages.
        """
        baseline = NamedCode("uncoded", codes.uncoded(num_workers))
        compared = [baseline]
        copies = self.checked_copies(num_workers)
        if self.codes is None:
            of_equal_work = [*standard_codes(num_workers, copies)]
            # A single compiled program draws the times for all of these codes.
            clusters.draw([named.code for named in (baseline, *of_equal_work)])
            speeds = speeds_of(clusters.times(baseline.code), clusters.num_measured)
            if speeds is not None:
                compared += codes_by_speed(speeds, with_copies=max(copies) > 1)
            compared += of_equal_work
        else:
            for name, code in self.codes.items():
                check_code(name, code, num_workers)
                compared.append(NamedCode(str(name), code))
        candidates = []
        for named in compared:
            # Workers that send several messages can stop between them. So they are
            # cancelled when a round ends.
            sends_several_messages = named.code.messages_per_worker > 1
            for rule in self._rules_for(named, clusters, is_baseline=named is baseline):
                candidates.append(
                    Candidate(
                        name=named.name,
                        code=named.code,
                        wait=rule,
                        late=CANCELLED if sends_several_messages else self.late,
                        by_speed=named.by_speed,
                    )
                )
        if not self.memory or self.exact:
            return candidates
        storing = []
        for candidate in candidates:
            wait = candidate.wait
            counts = isinstance(wait, stragglers.fastest)
            if candidate.code is not baseline.code or not counts:
                continue
            if wait.num_required < num_workers:
                storing.append(dataclasses.replace(candidate, memory=True))
        return [*candidates, *storing]

    def _rules_for(
        self, named: "NamedCode", clusters: Clusters, *, is_baseline: bool
    ) -> Iterable[WaitingRule]:
        """Returns the waiting rules to compare for a code."""
        if self.waiting is None:
            return standard_rules(named, clusters, self.exact)
        name = f"waiting for code {named.name!r}"
        rules = [rule_of_code(name, rule, named.code) for rule in self.waiting]
        if is_baseline:
            # Uncoded workers that wait for all are the baseline, and always compared.
            rules.insert(0, stragglers.fastest(named.code.num_workers))
        return dict.fromkeys(rules)


def listed(name: str, values: Any) -> list[Any]:
    """Converts an iterable to a list; raises ValueError if it is empty."""
    if isinstance(values, Candidate | str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list; got {validation.in_short(values)}")
    values = list(values)
    if not values:
        raise ValueError(f"{name} must have at least one entry; got an empty list")
    return values


def check_code(name: str, code: Any, num_workers: int) -> None:
    """Raises an error unless a code is concrete and has `num_workers` workers."""
    validation.check_instance(f"code {name!r}", code, GradientCode)
    GradientCode.check(code, concrete="rounds are simulated")
    if code.num_workers != num_workers:
        raise ValueError(
            f"code {name!r} must have num_workers = {num_workers}; got "
            f"{code.num_workers}"
        )


def check_candidate(candidate: Any, num_workers: int) -> None:
    """Raises an error unless a candidate is valid, and its rule fits its code."""
    validation.check_instance("candidates", candidate, Candidate)
    check_code(candidate.name, candidate.code, num_workers)
    rule_name = f"wait of candidate {candidate.name!r}"
    validation.check_instance(rule_name, candidate.wait, WaitingRule)
    validation.check_bool(f"memory of candidate {candidate.name!r}", candidate.memory)
    allowed = (CANCELLED,) if candidate.sends_several_messages else (CANCELLED, BUSY)
    validation.check_choice("late of candidates", candidate.late, allowed)
    if candidate.memory and candidate.late != BUSY:
        raise ValueError(
            f"candidate {candidate.name!r} with memory=True needs late={BUSY!r}, since "
            f"cancelled workers send no late messages; got late={candidate.late!r}"
        )
    rule_of_code(rule_name, candidate.wait, candidate.code)


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
    num_workers: int, numbers_of_copies: Sequence[int]
) -> Iterator[NamedCode]:
    """Yields the standard codes with equal loads, except for uncoded workers.

    `codes.replicated` has several parts per worker. The other codes have as many parts
    as workers.
    """
    num_parts = _num_small_parts(num_workers)
    for copies in numbers_of_copies:
        if copies == 1:
            continue
        code = codes.replicated(num_workers, num_parts, copies)
        yield NamedCode("replicated", code)
        if num_workers % copies == 0:
            code = codes.fractional_repetition(num_workers, copies - 1)
            yield NamedCode("fractional_repetition", code)
        else:
            yield NamedCode("binary", codes.binary(num_workers, copies - 1))
            # Exact codes that need num_workers - copies + 1 responses have equal costs,
            # so one of them is enough.
            code = codes.reed_solomon(num_workers, num_workers, copies)
            yield NamedCode("reed_solomon", code)


def codes_by_speed(speeds: np.ndarray, with_copies: bool) -> Iterator[NamedCode]:
    """Yields codes with loads in proportion to the speeds of workers."""
    num_workers = len(speeds)
    num_parts = _num_small_parts(num_workers)
    code = codes.uncoded(num_workers, num_parts, speeds)
    yield NamedCode("uncoded by speed", code, by_speed=True)
    if with_copies:
        code = codes.replicated(num_workers, num_parts, 2, speeds)
        yield NamedCode("replicated by speed", code, by_speed=True)
        placement = codes.proportional_placement(speeds, num_parts, 2)
        code = codes.any_placement(jax.random.key(0), placement, 1)
        yield NamedCode("any_placement by speed", code, by_speed=True)


def _num_small_parts(num_workers: int) -> int:
    """Returns the total number of parts, for codes with several parts per worker."""
    for number in _PARTS_OF_WORKER:
        if number * num_workers <= _MOST_PARTS:
            return number * num_workers
    return num_workers


def speeds_of(times: np.ndarray, num_measured: float) -> np.ndarray | None:
    """Estimates the speeds of workers; None if they do not differ permanently.

    The result is also None if few rounds were measured, since their medians may differ
    by chance.

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
    """Yields the default waiting rules for a code."""
    code = named.code
    decoder = code.choose_decoder()
    if decoder.is_a(OneCopy):
        yield from _rules_on_request(code, exact)
        return
    # For these codes, one response too few may lose all parts. So approximate rules are
    # left out.
    only_exact = decoder.is_a(Lagrange) or named.by_speed
    is_coded = np.asarray(code.assignment).sum() > code.num_parts
    num_stragglers = int(np.asarray(code.num_stragglers))
    num_enough = code.num_workers - num_stragglers
    if num_stragglers > 0 or not is_coded:
        yield stragglers.fastest(num_enough)
    if num_stragglers > 0 and not only_exact:
        yield stragglers.until_decodable(code)
    # The single worker must respond for a round to decode, so there is no approximate
    # rule.
    if exact or only_exact or code.num_workers == 1:
        return
    numbers = {math.ceil(share * code.num_workers) for share in _SHARES_AWAITED}
    numbers.add(code.num_workers - 1)
    for number in sorted(numbers, reverse=True):
        if 0 < number < num_enough:
            yield stragglers.fastest(number)
    if is_coded and not decoder.is_a(OneStep):
        for squared_error in _SQUARED_ERRORS:
            # Rounding must not put an error that equals the bound above the tolerance.
            tolerance = math.sqrt(squared_error * (1 + _ROUNDING))
            yield stragglers.until_decodable(code, tolerance)
    times = clusters.times(code)
    quantiles = np.quantile(times, _SHARES_BY_DEADLINE, method="inverted_cdf")
    for seconds in np.unique(quantiles):
        if 0 < seconds < math.inf:
            yield stragglers.deadline(float(seconds))


def _rules_on_request(code: GradientCode, exact: bool) -> Iterator[WaitingRule]:
    """Yields the default waiting rules for a code with sums on request."""
    yield stragglers.until_decodable(code)
    if exact:
        return
    for share in _SHARES_COVERED:
        # If `coverage` may leave out less than one part, it is equal to
        # `until_decodable`.
        if (1 - share) * code.num_parts > 1 - _ROUNDING:
            yield stragglers.coverage(code, share)
