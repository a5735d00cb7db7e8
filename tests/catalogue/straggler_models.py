"""Straggler models. A new model needs a row in `ROWS`."""

import dataclasses

import numpy as np

from jaxwgc import stragglers
from tests.catalogue.row import Row, examples_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class StragglerRow(Row):
    """A straggler model for four workers.

    Attributes:
      takes_one_unit: Whether every round takes one unit of time, and workers respond
        after that time or never.
    """

    takes_one_unit: bool = True


PARETO = stragglers.pareto(1.0, 2.0)
TWO = stragglers.fastest(2)

ROWS = (
    StragglerRow(
        make=stragglers.uniform,
        arguments={"num_stragglers": 2},
        rules={"num_stragglers": "at least 0"},
    ),
    StragglerRow(
        make=stragglers.bernoulli,
        arguments={"probability": 0.5},
        rules={"probability": "at least 0"},
        variants={"unequal": stragglers.bernoulli(np.array([0.25, 0.5, 1, 0]))},
    ),
    StragglerRow(
        make=stragglers.fixed,
        arguments={"received": np.array([True, False, True, True])},
    ),
    StragglerRow(
        make=stragglers.delayed,
        arguments={"delay": PARETO, "wait": TWO, "late": "cancelled"},
        takes_one_unit=False,
        variants={"busy": stragglers.delayed(PARETO, TWO, "busy")},
    ),
)
EXAMPLES = examples_of(ROWS)
