"""Simulation of codes under stragglers: comparison, trials, diagnosis, learning."""

from jaxwgc.simulation._compare import compare
from jaxwgc.simulation._comparison import Comparison
from jaxwgc.simulation._diagnosis import Diagnosis, diagnose
from jaxwgc.simulation._expected_error import expected_error
from jaxwgc.simulation._learned_entries import learn_entries
from jaxwgc.simulation._masks import DecodedMasks as DecodedMasks
from jaxwgc.simulation._masks import decode_packed as decode_packed
from jaxwgc.simulation._masks import distinct_rows as distinct_rows
from jaxwgc.simulation._monte_carlo import (
    Summary,
    monte_carlo,
    straggler_probabilities,
    summarize,
)
from jaxwgc.simulation._program_arguments import as_argument as as_argument
from jaxwgc.simulation._program_arguments import from_argument as from_argument
from jaxwgc.simulation._rounds import Drawn as Drawn
from jaxwgc.simulation._rounds import Loads as Loads
from jaxwgc.simulation._rounds import draw_rounds as draw_rounds
from jaxwgc.simulation._rounds import end_rounds as end_rounds
from jaxwgc.simulation._rules import rule_of_code as rule_of_code
from jaxwgc.simulation._worst_pattern import adversarial, worst_pattern

__all__ = [
    "Comparison",
    "Diagnosis",
    "Summary",
    "adversarial",
    "compare",
    "diagnose",
    "expected_error",
    "learn_entries",
    "monte_carlo",
    "straggler_probabilities",
    "summarize",
    "worst_pattern",
]
