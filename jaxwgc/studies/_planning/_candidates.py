"""The candidates of a plan: codes, and for each how long to wait."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwgc import _validation, codes
from jaxwgc._targets import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import OneStep
from jaxwgc.stragglers import (
    StragglerModel,
    WaitingRule,
    coverage,
    deadline,
    delayed,
    fastest,
    until_decodable,
)
from jaxwgc.studies._planning._simulated_rounds import (
    CANCELLED,
    SimulatedRounds,
)

UNCODED = "uncoded"
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
# Parts of a worker on request, and of all workers together at most.
_PARTS_OF_WORKER, _MOST_PARTS = (8, 4, 2), 512
# Graphs are compiled for every size, and least squares takes time with many workers.
_GRAPH_REPLICATIONS, _GRAPH_WORKERS = (2, 3), range(8, 101)


class Candidate(NamedTuple):
    """A code and how long to wait.

    Attributes:
      name: the constructor of the code, or what its user calls it.
      code: the gradient code.
      wait: the waiting rule.
      late: what late workers do, as for `jaxwgc.stragglers.delayed`.
      memory: whether late answers are remembered, as by `jaxwgc.coded_aggregate`.
    """

    name: str
    code: GradientCode
    wait: WaitingRule
    late: str = CANCELLED
    memory: bool = False

    @property
    def is_exact(self) -> bool:
        """Returns whether the code guarantees that every round decodes, if it ends."""
        stragglers = int(np.asarray(self.code.num_stragglers))
        is_exact = stragglers > 0 or self.name == UNCODED
        if isinstance(self.wait, fastest):
            is_exact &= self.wait.num_required >= self.code.num_workers - stragglers
        else:
            tolerance = self.wait.tolerance
            is_exact &= tolerance is not None and tolerance <= DECODES
        return bool(is_exact)


class Entry(NamedTuple):
    """A code before it is said how long to wait.

    Attributes:
      name, code: as for `Candidate`.
      only_exact: it is no good past its tolerance.
      is_scaled: its entries are to be divided by the share of answers.
    """

    name: str
    code: GradientCode
    only_exact: bool = False
    is_scaled: bool = False


def standard_codes(
    num_workers: int, replications: Sequence[int], key: jax.Array, exact: bool
) -> Iterator[Entry]:
    """Codes by the names of their constructors.

    With as many parts as workers, but for those whose finished parts are sent on
    request.
    """
    few = [parts for parts in _PARTS_OF_WORKER if parts * num_workers <= _MOST_PARTS]
    per_worker = max(few, default=1)
    square = num_workers, num_workers
    yield Entry(UNCODED, codes.uncoded(num_workers))
    for copies in replications:
        if copies == 1:
            continue
        code = codes.replicated(num_workers, num_workers * per_worker, copies)
        yield Entry("replicated", code)
        if num_workers % copies == 0:
            code = codes.fractional_repetition(num_workers, copies - 1)
            yield Entry("fractional_repetition", code)
        else:
            yield Entry("binary", codes.binary(num_workers, copies - 1))
            # Of the exact codes that need any n - s answers one; loads are equal.
            code = codes.reed_solomon(*square, copies)
            yield Entry("reed_solomon", code, only_exact=True)
        if exact:
            continue
        code_key = jax.random.fold_in(key, copies)
        code = codes.stochastic(code_key, *square, copies, straggler_probability=0)
        yield Entry("stochastic", code, is_scaled=True)
        is_graph = copies in _GRAPH_REPLICATIONS and num_workers in _GRAPH_WORKERS
        if is_graph and num_workers * copies % 2 == 0:
            code = codes.regular_graph(code_key, num_workers, copies)
            yield Entry("regular_graph", code)


def standard_rules(
    entry: Entry, rounds: SimulatedRounds, exact: bool
) -> Iterator[tuple[WaitingRule, float]]:
    """Waiting rules for a code, and the share of the workers that answer by them."""
    code = entry.code
    num_workers = code.num_workers
    enough = num_workers - int(np.asarray(code.num_stragglers))
    exact = exact or entry.only_exact
    if entry.name == "replicated":
        yield until_decodable(code), 1.0
        for share in [] if exact else _SHARES_COVERED:
            yield coverage(code, share), 1.0
        return
    copies = np.asarray(code.assignment).sum(0).mean()
    fewer = {math.ceil(share * num_workers) for share in _SHARES_AWAITED}
    fewer = {number for number in {num_workers - 1, *fewer} if 0 < number < enough}
    if code.num_stragglers or copies == 1:
        yield fastest(enough), 1.0
    for number in [] if exact else sorted(fewer, reverse=True):
        yield fastest(number), number / num_workers
    if code.num_stragglers and not entry.only_exact:
        yield until_decodable(code), 1.0
    if exact:
        return
    if copies > 1 and not code.choose_decoder().is_a(OneStep):
        for squared in _SQUARED_ERRORS:
            # An error that is as large up to rounding passes.
            yield until_decodable(code, math.sqrt(squared * (1 + _ROUNDING))), 1.0
    times, shares = rounds.times(code), _SHARES_BY_DEADLINE
    quantiles = np.quantile(times, shares, method="inverted_cdf")
    # Each time once.
    for seconds, share in dict(zip(quantiles, shares)).items():
        if 0 < seconds < math.inf:
            yield deadline(float(seconds)), share


def rules_of(
    entry: Entry, rounds: SimulatedRounds, waiting: Sequence[Any], late: str
) -> Iterator[tuple[WaitingRule, float]]:
    """Those that are asked for, checked, with the share of the workers that answer.

    Where there is no code, waiting for all is among them.
    """
    code = entry.code
    rules: list[Any] = [rule(code) if callable(rule) else rule for rule in waiting]
    if entry.name == UNCODED:
        rules.insert(0, fastest(code.num_workers))
    for rule in rules:
        hint = ", or a function that gives one for a code"
        _validation.check_instance("waiting", rule, WaitingRule, hint)
        _validation.check_hashable("waiting", rule)
    for rule in dict.fromkeys(rules):
        model = delayed(rounds.delay, rule)
        StragglerModel.check("waiting", model, code.loads)
        # Where nobody answers there is nothing to scale.
        share = 1.0
        if entry.is_scaled:
            share = rounds.in_a_row(code, rule, late).received.mean()
        yield rule, share or 1.0


def candidates_of(
    entry: Entry, rule: WaitingRule, share: float, late: str, memory: bool
) -> Iterator[Candidate]:
    """With the entries of the code divided by the share, where that is to be.

    Where memory is asked for, without a code also the one that remembers those who come
    after the first.
    """
    code = entry.code
    if entry.is_scaled:
        matrix = code.encoding_matrix / share
        code = dataclasses.replace(code, encoding_matrix=matrix)
    # Workers that send several messages stop between two of them.
    late = late if code.messages_per_worker == 1 else CANCELLED
    candidate = Candidate(entry.name, code, rule, late)
    yield candidate
    counts = isinstance(rule, fastest) and rule.num_required < code.num_workers
    if entry.name == UNCODED and memory and counts:
        yield candidate._replace(memory=True)
