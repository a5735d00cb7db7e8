"""Rounds of unit duration, in which a worker responds or is lost."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.stragglers._inputs import loads_of
from jaxwgc.stragglers._selection import random_workers
from jaxwgc.stragglers._types import Arrivals, StragglerModel


@dataclasses.dataclass(frozen=True)
class uniform(StragglerModel):
    """Exactly s stragglers per round, uniformly at random; a round takes one unit.

    Times are 1 for workers that respond and infinity for the others, which have
    finished no parts.

    Args:
      num_stragglers: s, at least 0 and less than the number of workers.

    Raises:
      ValueError: If s is negative, or (in `sample`) not less than the number of
        workers.
      TypeError: If s is not an int.

    Example:
      >>> import jax, jaxwgc
      >>> model = jaxwgc.stragglers.uniform(2)
      >>> state = model.init(5)
      >>> arrivals, state = model.sample(jax.random.key(0), state, jax.numpy.ones(5))
      >>> int(arrivals.received.sum()), float(arrivals.elapsed)
      (3, 1.0)

    References:
      The paper's section 2.1: any s workers may fail.
    """

    num_stragglers: int

    def __post_init__(self):
        _validation.check_int("num_stragglers", self.num_stragglers, minimum=0)

    def sample(self, key, state, loads):
        """Draws a round."""
        loads = loads_of(loads)
        _validation.check_stragglers(self.num_stragglers, len(loads))
        everyone = jnp.ones(len(loads), bool)
        lost = random_workers(key, everyone, self.num_stragglers)
        return _unit_round(~lost), state


@dataclasses.dataclass(frozen=True)
class bernoulli(StragglerModel):
    """Independent stragglers with given probabilities; a round takes one unit.

    Times are 1 for workers that respond and infinity for the others, which have
    finished no parts. The same key gives the same round whatever JAX's precision
    setting.

    Args:
      probability: Probability of straggling, from 0 to 1: one number, which may be
        traced, or (num_workers,).

    Raises:
      ValueError: If a probability is not from 0 to 1, or (in `init` or `sample`) its
        length is not the number of workers.
      TypeError: If probability is not real.

    Example:
      >>> import jax, jaxwgc
      >>> model = jaxwgc.stragglers.bernoulli(0.25)
      >>> state = model.init(1000)
      >>> loads = jax.numpy.ones(1000)
      >>> arrivals, state = model.sample(jax.random.key(0), state, loads)
      >>> bool(abs(arrivals.received.mean() - 0.75) < 0.05)
      True

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for straggler mitigation
      in distributed learning", 2020, section II (independent stragglers).
    """

    probability: Any

    def __post_init__(self):
        if np.ndim(self.probability) == 0:
            _validation.check_fields(self, probability={"minimum": 0, "maximum": 1})
            return
        name = "probability"
        given = self.probability
        values = _validation.host_array(name, given, "real numbers", num_workers="any")
        is_right = (values >= 0) & (values <= 1)
        _validation.check_entries(name, values, is_right, "from 0 to 1")
        # Tuples are comparable, so that equal models are equal.
        object.__setattr__(self, name, tuple(values.astype(float).tolist()))

    def sample(self, key, state, loads):
        """Draws a round."""
        loads = loads_of(loads)
        if isinstance(self.probability, tuple):
            _check_as_many(len(loads), "probability", len(self.probability))
        draws = jax.random.uniform(key, loads.shape, jnp.float32)
        probability = jnp.asarray(self.probability, jnp.float32)
        return _unit_round(draws >= probability), state


@dataclasses.dataclass(frozen=True, eq=False)
class fixed(StragglerModel):
    """Fixed workers respond in every round; a round takes one unit.

    Times are 1 for workers that respond and infinity for the others, which have
    finished no parts. Keys are not used.

    Args:
      received: Workers that respond, bool (num_workers,). May be traced.

    Raises:
      ValueError: If received does not have exactly one axis, or (in `init` or `sample`)
        its length is not the number of workers.
      TypeError: If received is not bool.

    Example:
      >>> import jax, jaxwgc, numpy as np
      >>> model = jaxwgc.stragglers.fixed(np.array([True, False, True]))
      >>> arrivals, _ = model.sample(jax.random.key(0), model.init(3), np.ones(3))
      >>> arrivals.received
      Array([ True, False,  True], dtype=bool)
    """

    received: Any

    def __post_init__(self):
        _validation.as_array("received", self.received, "bools", num_workers="any")

    def sample(self, key, state, loads):
        """Returns the round."""
        _check_as_many(len(loads_of(loads)), "received", len(self.received))
        return _unit_round(jnp.asarray(self.received)), state


def _check_as_many(num_workers: int, name: str, expected: int) -> None:
    rule = f"be {expected}, the length of {name}"
    _validation.require(num_workers == expected, "num_workers", rule, num_workers)


def _unit_round(received: jax.Array) -> Arrivals:
    """Returns a round of one unit, in which the other workers never respond."""
    times = jnp.where(received, 1.0, jnp.inf)
    return Arrivals(received, times, jnp.ones(()))
