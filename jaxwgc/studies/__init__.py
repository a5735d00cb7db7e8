"""Studies of codes under stragglers: comparison, trials, diagnosis, plans, learning."""

from jaxwgc.studies._compare._compare import compare
from jaxwgc.studies._compare._comparison import Comparison
from jaxwgc.studies._diagnosis import Diagnosis, diagnose
from jaxwgc.studies._expected_error import ExpectedError, expected_error
from jaxwgc.studies._learned_entries import learn_entries
from jaxwgc.studies._monte_carlo import (
    Summary,
    monte_carlo,
    straggler_probabilities,
    summarize,
)
from jaxwgc.studies._planning._candidates import Candidate
from jaxwgc.studies._planning._choice import Choice, Costs, Estimate
from jaxwgc.studies._planning._plan import plan
from jaxwgc.studies._planning._results import Plan
from jaxwgc.studies._reports._straggler_report import StragglerReport, straggler_report
from jaxwgc.studies._reports._wait_report import WaitReport
from jaxwgc.studies._worst_pattern import adversarial, worst_pattern

__all__ = [
    "Candidate",
    "Choice",
    "Comparison",
    "Costs",
    "Diagnosis",
    "Estimate",
    "ExpectedError",
    "Plan",
    "StragglerReport",
    "Summary",
    "WaitReport",
    "adversarial",
    "compare",
    "diagnose",
    "expected_error",
    "monte_carlo",
    "learn_entries",
    "plan",
    "straggler_probabilities",
    "straggler_report",
    "summarize",
    "worst_pattern",
]
