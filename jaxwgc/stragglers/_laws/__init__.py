"""Delay laws: independent times, proportional to the load. One law per file."""

from jaxwgc.stragglers._laws._bernoulli_slowdown import bernoulli_slowdown
from jaxwgc.stragglers._laws._gamma import gamma
from jaxwgc.stragglers._laws._log_normal import log_normal
from jaxwgc.stragglers._laws._pareto import pareto
from jaxwgc.stragglers._laws._shifted_exponential import shifted_exponential
from jaxwgc.stragglers._laws._weibull import weibull

__all__ = [
    "bernoulli_slowdown",
    "gamma",
    "log_normal",
    "pareto",
    "shifted_exponential",
    "weibull",
]
