"""Who answers in a round, and when: straggler models, delay models, waiting rules.

A straggler model is a pair of pure functions, like an optax transformation:
`state = model.init(num_workers)` and
`arrivals, state = model.sample(key, state, loads)`. So is a delay model, whose `sample`
gives finish times. A waiting rule is a function of a key (for ties) and the times.
"""

from jaxwgc.stragglers._combined_delays import affine, markov, unequal_speeds
from jaxwgc.stragglers._delayed import delayed
from jaxwgc.stragglers._delays import (
    bernoulli_slowdown,
    log_normal,
    pareto,
    shifted_exponential,
    weibull,
)
from jaxwgc.stragglers._fitting._fit import DelayFit, fit
from jaxwgc.stragglers._trace import trace
from jaxwgc.stragglers._types import (
    Arrivals,
    DelayModel,
    Law,
    Stalls,
    StragglerModel,
    WaitingRule,
)
from jaxwgc.stragglers._unit_rounds import bernoulli, fixed, uniform
from jaxwgc.stragglers._until_decodable import until_decodable
from jaxwgc.stragglers._waiting import deadline, fastest, is_over

__all__ = [
    "Arrivals",
    "DelayFit",
    "DelayModel",
    "Law",
    "Stalls",
    "StragglerModel",
    "WaitingRule",
    "affine",
    "bernoulli",
    "bernoulli_slowdown",
    "deadline",
    "delayed",
    "fastest",
    "fit",
    "fixed",
    "is_over",
    "log_normal",
    "markov",
    "pareto",
    "shifted_exponential",
    "trace",
    "unequal_speeds",
    "uniform",
    "until_decodable",
    "weibull",
]
