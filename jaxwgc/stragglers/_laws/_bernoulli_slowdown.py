"""Times of workers that are slow with a given probability."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.stragglers._independent_delay import IndependentDelay, Rules


@dataclasses.dataclass(frozen=True)
class bernoulli_slowdown(IndependentDelay):
    """Finish times load * time, multiplied by `slowdown` with a given probability.

    Args:
      probability: Probability that a worker is slow, independently; from 0 to 1.
      slowdown: Factor of a slow worker, at least 1; infinity for a lost worker.
      time: Time at load 1, in seconds; positive.

    Raises:
      ValueError: If probability is not from 0 to 1, slowdown is below 1, or time is not
        positive.
      TypeError: If a parameter is not a real number.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.bernoulli_slowdown(probability=1.0, slowdown=5.0)
      >>> delay.sample(jax.random.key(0), (), jax.numpy.ones(3))[0]
      Array([5., 5., 5.], dtype=float32)

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for flexible straggler
      mitigation in distributed learning", 2019 (independent stragglers).
    """

    probability: float
    slowdown: float
    time: float = 1.0
    shares_programs: ClassVar[bool] = True
    rules: ClassVar[Rules] = {
        "probability": {"minimum": 0, "maximum": 1},
        "slowdown": {"minimum": 1},
        "time": {"positive": True},
    }

    def draw(self, key, shape):
        """Draws times at load 1."""
        slow = jax.random.bernoulli(key, self.probability, shape)
        return self.time * jnp.where(slow, self.slowdown, 1.0)

    def sf(self, x):
        """Returns the probability of a time above x."""
        is_before = np.asarray(x) < self.time * self.slowdown
        return np.where(np.asarray(x) < self.time, 1.0, is_before * self.probability)

    def isf(self, q):
        """Returns the smallest time that is exceeded with probability at most q."""
        is_slow = np.asarray(q) < self.probability
        return self.time * np.where(is_slow, self.slowdown, 1.0)
