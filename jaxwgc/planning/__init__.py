"""Plans: the code and the waiting rule with the shortest expected training time."""

from jaxwgc.planning._candidates import Candidate
from jaxwgc.planning._choice import Choice, Costs, Estimate
from jaxwgc.planning._plan import plan
from jaxwgc.planning._results import Plan

__all__ = ["Candidate", "Choice", "Costs", "Estimate", "Plan", "plan"]
