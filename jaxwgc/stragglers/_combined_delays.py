"""Delay models that add overheads, speeds or slow spells to other delay models."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.stragglers._distributions import Distribution, Moved
from jaxwgc.stragglers._models import DelayModel, DelayOfParts, loads_of


@dataclasses.dataclass(frozen=True)
class affine(DelayOfParts):
    """Delay model with times that are affine in the load.

    Times are load * time + D, with D from `delay` at overhead + slope * load. With
    slope zero, the random term D does not depend on the load, e.g. if connections
    rather than computations are slow. A worker without load takes the overhead.

    Args:
      delay: Delay model D of the random term.
      overhead: Constant added to the scaled load in D; at least 0.
      slope: Factor of loads in D; at least 0.
      time: Deterministic time at load 1, in seconds; at least 0.

    Raises:
      ValueError: If a parameter is negative.
      TypeError: If delay is not a delay model, or a parameter is not a number.

    Example:
      Responses take about half a second, and one second more at load 1:

      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import stragglers
      >>> response = stragglers.log_normal(median=0.5, deviation=0.1)
      >>> delay = stragglers.affine(response, overhead=1.0, slope=0.0, time=1.0)
      >>> times, _ = delay.sample(jax.random.key(0), delay.init(3), 2.0 * jnp.ones(3))
      >>> bool(jnp.all((times > 2.3) & (times < 2.8)))
      True

    References:
      Lee et al., 2018, section IV, for times in proportion to the load.
    """

    delay: DelayModel
    overhead: float = 0.0
    slope: float = 1.0
    time: float = 0.0

    def __post_init__(self):
        validation.check_instance("delay", self.delay, DelayModel)
        at_least_zero = {"minimum": 0}
        array_validation.check_fields(
            self, overhead=at_least_zero, slope=at_least_zero, time=at_least_zero
        )

    def init(self, num_workers):
        """Returns the initial state of `delay`."""
        return self.delay.init(num_workers)

    def part_times(self, key, state, loads, shares):
        """Draws finish times of parts, overhead included, and the next state."""
        loads = loads_of(loads)
        loads_of_parts = loads[:, None] * jnp.asarray(shares, loads.dtype)
        work_of_parts = self.overhead + self.slope * loads_of_parts
        work = self.overhead + self.slope * loads
        has_work = work[:, None] > 0
        shares_of_work = jnp.where(
            has_work, work_of_parts / jnp.where(has_work, work[:, None], 1), 1
        )
        times, state = self.delay.part_times(key, state, work, shares_of_work)
        return self.time * loads_of_parts + times, state

    def law(self, load: float) -> Distribution | None:
        """Returns the distribution of times at a load, or None if `delay` has none."""
        law = self.delay.law(self.overhead + self.slope * load)
        if law is None:
            return None
        return Moved(law, shift=self.time * load, scale=1.0)


@dataclasses.dataclass(frozen=True)
class unequal_speeds(DelayOfParts):
    """Delay model of workers with unequal speeds.

    Times are those of `delay`, divided by the speed of each worker.

    Args:
      delay: Delay model of a worker of speed 1.
      speeds: (workers,), positive. If there is one per simulated worker, all are used
        in order. Otherwise speeds are drawn in the first round and then
        kept, without replacement if there are enough.

    Raises:
      ValueError: If speeds do not have exactly one axis, are empty, or are not positive
        and finite.
      TypeError: If delay is not a delay model, or speeds are not real numbers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import stragglers
      >>> delay = stragglers.unequal_speeds(
      ...     stragglers.bernoulli_slowdown(0.0, 1.0), jnp.array([1.0, 0.5, 2.0])
      ... )
      >>> delay.sample(jax.random.key(0), delay.init(3), jnp.ones(3))[0]
      Array([1. , 2. , 0.5], dtype=float32)

    References:
      Reisizadeh, Prakash, Pedarsani, Avestimehr, "Coded computation over heterogeneous
      clusters", 2019.
    """

    delay: DelayModel
    speeds: jax.Array | np.ndarray | Sequence[float]

    def __post_init__(self):
        validation.check_instance("delay", self.delay, DelayModel)
        speeds = array_validation.host_array(
            "speeds", self.speeds, "real numbers", num_workers="any"
        )
        validation.check_entries("speeds", speeds, speeds > 0, "positive")
        # Tuples can be compared, so that models with equal fields are equal.
        object.__setattr__(self, "speeds", tuple(speeds.astype(float).tolist()))

    def init(self, num_workers):
        """Returns index -1 (no speed chosen yet) per worker, and a state of `delay`."""
        workers = jnp.full(num_workers, -1)
        return {"workers": workers, "delay": self.delay.init(num_workers)}

    def part_times(self, key, state, loads, shares):
        """Draws finish times of parts, (num_workers, parts), and the next state."""
        key, worker_key = jax.random.split(key)
        loads = loads_of(loads, state["workers"])
        workers = chosen_workers(worker_key, state["workers"], len(self.speeds))
        times, delay_state = self.delay.part_times(key, state["delay"], loads, shares)
        speeds = jnp.asarray(self.speeds, times.dtype)[workers]
        return times / speeds[:, None], {"workers": workers, "delay": delay_state}


@dataclasses.dataclass(frozen=True)
class markov(DelayOfParts):
    """Delay model of workers with slow spells, a Markov chain of two states.

    Each state has a delay model. The initial state has the stationary distribution
    of the chain: slow with probability become_slow / (become_slow + become_fast).
    If become_slow + become_fast is 1, the rounds of a worker are independent.

    Args:
      fast: Delay model of a worker in the fast state.
      slow: Delay model of a worker in the slow state.
      become_slow: Probability that a fast worker is slow in the next round.
      become_fast: Probability that a slow worker is fast in the next round.

    Raises:
      ValueError: If a probability is not from 0 to 1, or both are zero.
      TypeError: If fast or slow is not a delay model, or a probability not a number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import stragglers
      >>> delay = stragglers.markov(
      ...     stragglers.log_normal(1.0, 0.05),
      ...     stragglers.log_normal(5.0, 0.3),
      ...     become_slow=0.02,
      ...     become_fast=0.2,
      ... )
      >>> sample, state = jax.jit(delay.sample), delay.init(99)
      >>> times, state = sample(jax.random.key(0), state, jnp.ones(99))
      >>> int(state["is_slow"].sum()), int((times > 2).sum())
      (10, 10)

    References:
      Yang, Grover, Kar, "Coded distributed computing for inverse problems", 2017, and
      Gilbert, "Capacity of a burst-noise channel", 1960, for the chain.
    """

    fast: DelayModel
    slow: DelayModel
    become_slow: float
    become_fast: float

    def __post_init__(self):
        validation.check_instance("fast", self.fast, DelayModel)
        validation.check_instance("slow", self.slow, DelayModel)
        probability = {"minimum": 0, "maximum": 1}
        array_validation.check_fields(
            self, become_slow=probability, become_fast=probability
        )
        total = self.become_slow + self.become_fast
        if not array_validation.is_traced(total) and total <= 0:
            raise ValueError(f"become_slow + become_fast must be positive; got {total}")

    @property
    def slow_share(self) -> float:
        """Stationary probability of the slow state."""
        return self.become_slow / (self.become_slow + self.become_fast)

    def init(self, num_workers):
        """Returns -1 (not drawn yet) per worker, and states of `fast` and `slow`."""
        return {
            "is_slow": jnp.full(num_workers, -1),
            "fast": self.fast.init(num_workers),
            "slow": self.slow.init(num_workers),
        }

    def part_times(self, key, state, loads, shares):
        """Draws slow or fast per worker, finish times of parts, and the next state."""
        key, fast_key, slow_key = jax.random.split(key, 3)
        was_slow = state["is_slow"]
        loads = loads_of(loads, was_slow)
        transition = jnp.where(was_slow == 1, 1 - self.become_fast, self.become_slow)
        slow_probability = jnp.where(was_slow < 0, self.slow_share, transition)
        draws = jax.random.uniform(key, was_slow.shape, jnp.float32)
        is_slow = draws < slow_probability
        fast_times, fast_state = self.fast.part_times(
            fast_key, state["fast"], loads, shares
        )
        slow_times, slow_state = self.slow.part_times(
            slow_key, state["slow"], loads, shares
        )
        times = jnp.where(is_slow[:, None], slow_times, fast_times)
        next_state = {
            "is_slow": is_slow.astype(was_slow.dtype),
            "fast": fast_state,
            "slow": slow_state,
        }
        return times, next_state


def chosen_workers(key: jax.Array, state: jax.Array, num_measured: int) -> jax.Array:
    """Returns the index of the measured worker that each simulated worker imitates.

    If there are equally many, all are used in order. Otherwise workers are drawn at
    random, without replacement if there are enough. A `state` with choices is kept;
    -1 stands for none.
    """
    num_simulated = len(state)
    measured_workers = jnp.arange(num_measured)
    if num_simulated == num_measured:
        chosen = measured_workers
    else:
        chosen = jax.random.choice(
            key,
            measured_workers,
            (num_simulated,),
            replace=num_simulated > num_measured,
        )
    return jnp.where(state < 0, chosen, state).astype(state.dtype)
