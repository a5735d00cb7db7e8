"""Studies: Monte Carlo trials, and codes judged and learned by their stragglers."""

from jaxwgc.studies._adversary import adversarial
from jaxwgc.studies._learned_entries import optimize
from jaxwgc.studies._monte_carlo import Summary, monte_carlo, summarize

__all__ = [
    "Summary",
    "adversarial",
    "monte_carlo",
    "optimize",
    "summarize",
]
