"""Waiting rules. A new rule needs a row in `ROWS`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxwgc import codes, decoders, stragglers
from tests.catalogue.row import Row
from tests.oracles import least_miss, targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleRow(Row):
    """A waiting rule for five workers.

    Attributes:
      end: When a round ends, by NumPy, from a rule and the times of five workers.
      stays_in_numpy: Whether `ends` computes with NumPy for arrays of NumPy.
    """

    end: Callable[[Any, np.ndarray], Any]
    stays_in_numpy: bool = True


BINARY = codes.binary(5, 2)
UNCODED = codes.uncoded(5)


def first_decodable(rule, times):
    """The time of the first response that suffices; the last one if none does."""
    for time in np.sort(times[np.isfinite(times)]):
        missed = least_miss(
            rule.code.encoding_matrix, targets(rule.code), times <= time
        )
        if missed <= rule.tolerance * np.linalg.norm(rule.code.target):
            return time
    return times.max()


ROWS = (
    RuleRow(
        make=stragglers.fastest,
        arguments={"num_required": 3},
        rules={"num_required": "at least 1"},
        end=lambda rule, times: np.sort(times)[rule.num_required - 1],
    ),
    RuleRow(
        make=stragglers.deadline,
        arguments={"seconds": 0.7},
        rules={"seconds": "positive"},
        end=lambda rule, times: min(rule.seconds, times.max()),
    ),
    RuleRow(
        make=stragglers.relative_deadline,
        arguments={"factor": 1.5, "quorum": 2},
        rules={"factor": "at least 1", "quorum": "at least 1"},
        end=lambda rule, times: min(
            rule.factor * np.sort(times)[rule.quorum - 1], times.max()
        ),
        variants={"of the first": stragglers.relative_deadline(1.0, 1)},
    ),
    RuleRow(
        make=stragglers.until_decodable,
        arguments={
            "code": BINARY,
            "tolerance": 1e-3,
            "decoder": decoders.LeastSquares(),
        },
        rules={"tolerance": "at least 0"},
        end=first_decodable,
        stays_in_numpy=False,
    ),
    RuleRow(
        make=stragglers.coverage,
        arguments={"code": UNCODED, "share": 0.6},
        rules={"share": "positive"},
        # Each worker has one of five parts: three workers suffice.
        end=lambda rule, times: np.sort(times)[2],
        stays_in_numpy=False,
    ),
)
