"""Delay models: laws of one worker's times, and models that are made of others.

A new law needs a row in `ROWS`. With `law` and `estimate`, SciPy's distribution and
estimates, the row also drives the tests of densities and fits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from jaxwgc import stragglers
from tests.catalogue.row import Row, examples_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DelayRow(Row):
    """A delay model.

    Attributes:
      law: SciPy's distribution of the time at load 1, for the arguments of the row.
        None if SciPy has none.
      estimate: Maximum-likelihood estimates of the arguments from complete times, by
        SciPy or in closed form. None if `fit_delays` does not fit the law.
      has_law: Whether the times of workers are independent and have one distribution.
    """

    law: Any = None
    estimate: Callable[[np.ndarray], tuple[float, ...]] | None = None
    has_law: bool = True


FAST = stragglers.log_normal(1.0, 0.1)
SLOW = stragglers.weibull(5.0, 8.0)
DEAD = stragglers.bernoulli_slowdown(1.0, np.inf)
LATE = stragglers.bernoulli_slowdown(0.0, 1.0, 9.0)

ROWS = (
    DelayRow(
        make=stragglers.shifted_exponential,
        arguments={"shift": 2.0, "rate": 4.0},
        rules={"shift": "at least 0", "rate": "positive"},
        law=scipy.stats.expon(2.0, 1 / 4.0),
        estimate=lambda times: (times.min(), 1 / np.mean(times - times.min())),
    ),
    DelayRow(
        make=stragglers.pareto,
        arguments={"scale": 2.0, "shape": 3.0},
        rules={"scale": "positive", "shape": "positive"},
        law=scipy.stats.pareto(3.0, scale=2.0),
        estimate=lambda times: (times.min(), 1 / np.log(times / times.min()).mean()),
        variants={"infinite variance": stragglers.pareto(2.0, 1.2)},
    ),
    DelayRow(
        make=stragglers.weibull,
        arguments={"scale": 2.0, "shape": 1.7},
        rules={"scale": "positive", "shape": "positive"},
        law=scipy.stats.weibull_min(1.7, scale=2.0),
        estimate=lambda times: scipy.stats.weibull_min.fit(times, floc=0)[::-2],
    ),
    DelayRow(
        make=stragglers.log_normal,
        arguments={"median": 2.0, "deviation": 0.3},
        rules={"median": "positive", "deviation": "positive"},
        law=scipy.stats.lognorm(0.3, scale=2.0),
        estimate=lambda times: scipy.stats.lognorm.fit(times, floc=0)[::-2],
    ),
    DelayRow(
        make=stragglers.gamma,
        arguments={"scale": 0.5, "shape": 3.0},
        rules={"scale": "positive", "shape": "positive"},
        law=scipy.stats.gamma(3.0, scale=0.5),
        estimate=lambda times: scipy.stats.gamma.fit(times, floc=0)[::-2],
    ),
    DelayRow(
        make=stragglers.bernoulli_slowdown,
        arguments={"probability": 0.3, "slowdown": 8.0, "time": 1.0},
        rules={
            "probability": "at least 0",
            "slowdown": "at least 1",
            "time": "positive",
        },
        variants={"dead": stragglers.bernoulli_slowdown(0.2, np.inf)},
    ),
    DelayRow(
        make=stragglers.affine,
        arguments={"delay": FAST, "overhead": 1.0, "slope": 0.5, "time": 0.3},
        rules={"overhead": "at least 0", "slope": "at least 0", "time": "at least 0"},
    ),
    DelayRow(
        make=stragglers.markov,
        arguments={"fast": FAST, "slow": SLOW, "become_slow": 0.05, "become_fast": 0.2},
        rules={"become_slow": "at least 0", "become_fast": "at least 0"},
        variants={
            "dying": stragglers.markov(FAST, DEAD, become_slow=0.3, become_fast=0.7),
            "jump": stragglers.markov(FAST, LATE, become_slow=1, become_fast=1),
        },
        has_law=False,
    ),
    DelayRow(
        make=stragglers.unequal_speeds,
        arguments={"delay": FAST, "speeds": np.array([1.0, 0.5, 2.0])},
        has_law=False,
    ),
    DelayRow(
        make=stragglers.empirical,
        arguments={
            "times": np.arange(1.0, 19).reshape(6, 3),
            "resample": "rounds",
            "loads": np.ones(3),
            "measured_at": None,
            "replace": False,
        },
        has_law=False,
    ),
)
FITTED = tuple(row for row in ROWS if row.estimate is not None)
# Models whose distribution is known, by name.
WITH_LAW = examples_of(row for row in ROWS if row.has_law)
