"""Planning: finds the code and waiting rule with the shortest training time."""

from jaxwgc.planning._candidates import Candidates
from jaxwgc.planning._choice import Candidate, Choice
from jaxwgc.planning._convergence import Goal
from jaxwgc.planning._plan import Plan, plan

__all__ = ["Candidate", "Candidates", "Choice", "Goal", "Plan", "plan"]
