"""Simulates codes under stragglers: comparisons, Monte Carlo trials, diagnoses."""

from jaxwgc.simulation._compare import compare
from jaxwgc.simulation._comparison import Comparison
from jaxwgc.simulation._diagnosis import Diagnosis, diagnose
from jaxwgc.simulation._expected_error import expected_error
from jaxwgc.simulation._learned_entries import learn_entries
from jaxwgc.simulation._monte_carlo import (
    Summary,
    monte_carlo,
    straggler_probabilities,
    summarize,
)
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
