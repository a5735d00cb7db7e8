"""Straggler models, delay models and waiting rules: which workers respond, and when.

A straggler model is a pair of pure functions, like an optax transformation:
`state = model.init(num_workers)` and
`arrivals, state = model.sample(key, state, loads)`. So is a delay model; its `sample`
returns finish times. A waiting rule decides when a round ends. All are frozen
dataclasses: equal ones, passed as static arguments, share compiled programs.
"""

from jaxwgc.stragglers._combined_delays import affine, markov, unequal_speeds
from jaxwgc.stragglers._empirical import empirical
from jaxwgc.stragglers._fitting._fit import fit_delays
from jaxwgc.stragglers._independent_delay import IndependentDelay
from jaxwgc.stragglers._laws import (
    bernoulli_slowdown,
    gamma,
    log_normal,
    pareto,
    shifted_exponential,
    weibull,
)
from jaxwgc.stragglers._models import Arrivals, DelayModel, StragglerModel
from jaxwgc.stragglers._straggler_models import bernoulli, delayed, fixed, uniform
from jaxwgc.stragglers._until_decodable import coverage, until_decodable
from jaxwgc.stragglers._waiting_rules import (
    WaitingRule,
    deadline,
    fastest,
    relative_deadline,
)

__all__ = [
    "Arrivals",
    "DelayModel",
    "IndependentDelay",
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
    "gamma",
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
