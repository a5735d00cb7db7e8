"""Straggler models, delay models and waiting rules: which workers respond, and when.

A straggler model is a pair of pure functions, like an optax transformation:
`state = model.init(num_workers)` and
`arrivals, state = model.sample(key, state, loads)`. So is a delay model; its `sample`
returns finish times. A waiting rule decides when a round ends. All are frozen
dataclasses: equal ones, passed as static arguments, share compiled programs.
"""

from jaxwgc.stragglers._bernoulli_slowdown import bernoulli_slowdown
from jaxwgc.stragglers._combined_delays import affine, markov, unequal_speeds
from jaxwgc.stragglers._deadline import deadline
from jaxwgc.stragglers._delayed import delayed
from jaxwgc.stragglers._distributions import Distribution
from jaxwgc.stragglers._empirical import empirical
from jaxwgc.stragglers._exponential_delays import pareto, shifted_exponential
from jaxwgc.stragglers._fastest import fastest
from jaxwgc.stragglers._fitting._fit import DelayFit, fit_delays
from jaxwgc.stragglers._relative_deadline import relative_deadline
from jaxwgc.stragglers._smooth_delays import log_normal, weibull
from jaxwgc.stragglers._types import Arrivals, DelayModel, Stalls, StragglerModel
from jaxwgc.stragglers._unit_rounds import bernoulli, fixed, uniform
from jaxwgc.stragglers._until_decodable import coverage, until_decodable
from jaxwgc.stragglers._waiting_rule import WaitingRule

__all__ = [
    "Arrivals",
    "DelayFit",
    "DelayModel",
    "Distribution",
    "Stalls",
    "StragglerModel",
    "WaitingRule",
    "affine",
    "bernoulli",
    "bernoulli_slowdown",
    "coverage",
    "deadline",
    "delayed",
    "empirical",
    "fastest",
    "fit_delays",
    "fixed",
    "log_normal",
    "markov",
    "pareto",
    "relative_deadline",
    "shifted_exponential",
    "unequal_speeds",
    "uniform",
    "until_decodable",
    "weibull",
]
