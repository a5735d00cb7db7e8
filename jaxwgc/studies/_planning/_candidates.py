"""What a plan chooses from: codes, and for each how long to wait."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxwgc import codes
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import OneStep

UNCODED = "uncoded"
RULES = ("fastest", "deadline", "until_decodable")
# Besides all, and as many as an exact code needs: of the workers, one fewer and
_SHARES_AWAITED = (0.9, 0.8, 0.65, 0.5)
# of the times of single workers, those that come by a deadline. The last one bounds
# what it costs to wait for all if somebody takes longer than anyone ever did.
_SHARES_BY_DEADLINE = (0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
# What `until_decodable` itself takes for exact, and squared errors that are let pass.
EXACT = 1e-3
_SQUARED_ERRORS = (0.05, 0.1, 0.2)
# Graphs are compiled for every size, and least squares takes time with many workers.
_GRAPH_REPLICATIONS, _GRAPH_WORKERS = (2, 3), range(8, 101)


class Candidate(NamedTuple):
    """A code and how long to wait.

    Attributes:
      name: the constructor of the code, or what its user calls it.
      code: the gradient code.
      rule: the waiting rule, one of RULES.
      value: its parameter: workers, seconds, or the tolerance.
    """

    name: str
    code: GradientCode
    rule: str
    value: float

    @property
    def is_exact(self) -> bool:
        """Whether the code guarantees that every round decodes."""
        stragglers = self.code.num_stragglers
        is_exact = stragglers > 0 or self.name == UNCODED
        enough = self.code.num_workers - stragglers
        return is_exact and self.rule == "fastest" and self.value >= enough


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
    """Codes with as many parts as workers, by the names of their constructors."""
    square = num_workers, num_workers
    yield Entry(UNCODED, codes.uncoded(num_workers))
    for copies in replications:
        if copies == 1:
            continue
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
        own = jax.random.fold_in(key, copies)
        code = codes.stochastic(own, *square, copies, straggler_probability=0)
        yield Entry("stochastic", code, is_scaled=True)
        is_graph = copies in _GRAPH_REPLICATIONS and num_workers in _GRAPH_WORKERS
        if is_graph and num_workers * copies % 2 == 0:
            code = codes.regular_graph(own, num_workers, copies)
            yield Entry("regular_graph", code)


def choices_of(
    entry: Entry, times: Callable[[], np.ndarray], rules: Sequence[str], exact: bool
) -> Iterator[Candidate]:
    """The waiting rules for a code, whose workers take `times()` (rounds, workers)."""
    code = entry.code
    num_workers = code.num_workers
    enough = num_workers - code.num_stragglers
    exact = exact or entry.only_exact
    copies = np.asarray(code.assignment).sum(0).mean()

    def candidate(rule, value, share=1.0):
        own = code
        if entry.is_scaled:
            own = dataclasses.replace(
                code, encoding_matrix=code.encoding_matrix / share
            )
        return Candidate(entry.name, own, rule, value)

    if entry.name == UNCODED and "fastest" not in rules:
        yield candidate("fastest", enough)
    if "fastest" in rules:
        fewer = {math.ceil(share * num_workers) for share in _SHARES_AWAITED}
        fewer = {own for own in {num_workers - 1, *fewer} if 0 < own < enough}
        if code.num_stragglers or copies == 1:
            yield candidate("fastest", enough)
        for number in [] if exact else sorted(fewer, reverse=True):
            yield candidate("fastest", number, number / num_workers)
    is_one_step = code.choose_decoder().is_a(OneStep)
    if "until_decodable" in rules and code.num_stragglers and not entry.only_exact:
        yield candidate("until_decodable", EXACT)
    if exact:
        return
    if "until_decodable" in rules and copies > 1 and not is_one_step:
        for squared in _SQUARED_ERRORS:
            yield candidate("until_decodable", math.sqrt(squared))
    if "deadline" in rules:
        found = np.quantile(times(), _SHARES_BY_DEADLINE, method="inverted_cdf")
        # Each time once.
        for seconds, share in dict(zip(found, _SHARES_BY_DEADLINE)).items():
            if 0 < seconds < math.inf:
                yield candidate("deadline", float(seconds), share)
