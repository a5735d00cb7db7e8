"""Delay models made of others: loads, speeds and slow spells."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.stragglers import _laws
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import loads_of
from jaxwgc.stragglers._types import DelayModel


@equal_models
def affine(
    delay: DelayModel, overhead: float = 0.0, slope: float = 1.0, time: float = 0.0
) -> DelayModel:
    """Times that do not vanish with the load: time * load + D(overhead + slope * load).

    With slope zero what is random does not depend on the load, as where connections are
    slow and not computations. A worker without parts takes the overhead.

    Args:
      delay: D, the model of what is random.
      overhead: work in parts that comes on top of every load; at least 0.
      slope: what loads are multiplied by in D; at least 0.
      time: of one part that always passes, in seconds; at least 0.

    Returns:
      A delay model.

    Raises:
      ValueError: where a parameter is negative.
      TypeError: where delay is no delay model, or a parameter no number.

    Example:
      Answers take about half a second, and a second more for each part:

      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import stragglers
      >>> answer = stragglers.log_normal(median=0.5, deviation=0.1)
      >>> delay = stragglers.affine(answer, overhead=1.0, slope=0.0, time=1.0)
      >>> times, _ = delay.sample(jax.random.key(0), delay.init(3), 2.0 * jnp.ones(3))
      >>> bool(jnp.all((times > 2.3) & (times < 2.8)))
      True

    References:
      Lee et al., 2018, section IV, for times in proportion to the load.
    """
    _check_delay("delay", delay)
    for name, value in (("overhead", overhead), ("slope", slope), ("time", time)):
        _validation.check_number(name, value, minimum=0)

    def sample(key, state, loads):
        loads = loads_of(loads)
        times, state = delay.sample(key, state, overhead + slope * loads)
        return time * loads + times, state

    own_law = delay.law
    if own_law is None:
        return DelayModel(delay.init, sample)
    return DelayModel(
        delay.init,
        sample,
        lambda load: _laws.Shifted(own_law(overhead + slope * load), time * load),
    )


def unequal_speeds(delay: DelayModel, speeds: Any) -> DelayModel:
    """Workers of unequal speed: the times of a delay model, divided by speeds.

    Args:
      delay: the model of a worker of speed one.
      speeds: (workers,), positive. All of them in their order where as many workers are
        simulated; otherwise some that are drawn in the first round and then stay, each
        at most once where there are enough.

    Returns:
      A delay model.

    Raises:
      ValueError: where speeds have another number of axes than one, or are not positive
        and finite.
      TypeError: where delay is no delay model, or speeds are no real numbers.

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
    _check_delay("delay", delay)
    if _validation.is_traced(speeds):
        raise TypeError("speeds must be concrete, since they are checked; got traced")
    speeds = np.asarray(_validation.as_array("speeds", speeds))
    _validation.check_dtypes("speeds", speeds, "real numbers")
    if speeds.ndim != 1 or not speeds.size:
        raise ValueError(f"speeds must have shape (workers,); got {speeds.shape}")
    if not np.all((speeds > 0) & np.isfinite(speeds)):
        raise ValueError(f"speeds must be positive and finite; got {speeds}")

    def init(num_workers):
        return {"workers": no_workers(num_workers), "delay": delay.init(num_workers)}

    def sample(key, state, loads):
        key, worker_key = jax.random.split(_validation.check_key(key))
        loads = loads_of(loads, state["workers"])
        workers = chosen_workers(worker_key, state["workers"], len(speeds))
        times, own = delay.sample(key, state["delay"], loads)
        times = times / jnp.asarray(speeds, times.dtype)[workers]
        return times, {"workers": workers, "delay": own}

    return DelayModel(init, sample)


@equal_models
def markov(
    fast: DelayModel, slow: DelayModel, become_slow: float, become_fast: float
) -> DelayModel:
    """Workers with slow spells: a chain of two states for each, and a model for either.

    Rounds begin in the state that the chain has in the long run: slow with probability
    become_slow / (become_slow + become_fast). Where become_slow + become_fast is 1, a
    worker's rounds are independent.

    Args:
      fast: the delay model of a worker in its fast state.
      slow: that of one in its slow state.
      become_slow: the probability that a fast worker is slow in the next round.
      become_fast: the probability that a slow worker is fast in the next round.

    Returns:
      A delay model.

    Raises:
      ValueError: where a probability is none, or both are zero.
      TypeError: where fast or slow is no delay model, or a probability no number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import stragglers
      >>> delay = stragglers.markov(
      ...     stragglers.log_normal(1.0, 0.05),
      ...     stragglers.log_normal(5.0, 0.3),
      ...     become_slow=0.02,
      ...     become_fast=0.2,
      ... )
      >>> times, state = delay.sample(jax.random.key(0), delay.init(99), jnp.ones(99))
      >>> int(state["is_slow"].sum()), int((times > 2).sum())
      (10, 10)

    References:
      Yang, Grover, Kar, "Coded distributed computing for inverse problems", 2017, and
      Gilbert, "Capacity of a burst-noise channel", 1960, for the chain.
    """
    _check_delay("fast", fast)
    _check_delay("slow", slow)
    for name, value in (("become_slow", become_slow), ("become_fast", become_fast)):
        _validation.check_number(name, value, minimum=0, maximum=1)
    total = become_slow + become_fast
    if not _validation.is_traced(total) and total == 0:
        raise ValueError("become_slow and become_fast must not both be zero; they are")
    stationary = become_slow / total

    def init(num_workers):
        return {
            "is_slow": jnp.zeros(num_workers, bool),
            "is_first": jnp.ones((), bool),
            "fast": fast.init(num_workers),
            "slow": slow.init(num_workers),
        }

    def sample(key, state, loads):
        key, fast_key, slow_key = jax.random.split(_validation.check_key(key), 3)
        loads = loads_of(loads, state["is_slow"])
        goes_on = jnp.where(state["is_slow"], 1 - become_fast, become_slow)
        draws = jax.random.uniform(key, state["is_slow"].shape, jnp.float32)
        is_slow = draws < jnp.where(state["is_first"], stationary, goes_on)
        fast_times, fast_state = fast.sample(fast_key, state["fast"], loads)
        slow_times, slow_state = slow.sample(slow_key, state["slow"], loads)
        return jnp.where(is_slow, slow_times, fast_times), {
            "is_slow": is_slow,
            "is_first": jnp.zeros((), bool),
            "fast": fast_state,
            "slow": slow_state,
        }

    fast_law, slow_law = fast.law, slow.law
    if fast_law is None or slow_law is None:
        return DelayModel(init, sample)
    return DelayModel(
        init,
        sample,
        lambda load: _laws.Mixture(fast_law(load), slow_law(load), stationary),
    )


def no_workers(num_workers: int) -> jax.Array:
    """The state before the first round, in which `chosen_workers` chooses."""
    num_workers = _validation.check_int("num_workers", num_workers, minimum=1)
    return jnp.full(num_workers, -1)


def chosen_workers(key: jax.Array, state: jax.Array, num_measured: int) -> jax.Array:
    """Which of those that were measured stand for the simulated ones, as in `state`.

    All in their order where there are as many, and otherwise some at random, each at
    most once where there are enough.
    """
    chosen = jnp.arange(num_measured)
    if len(state) != num_measured:
        is_many = len(state) > num_measured
        chosen = jax.random.choice(key, chosen, state.shape, replace=is_many)
    return jnp.where(state < 0, chosen, state).astype(state.dtype)


def _check_delay(name, delay):
    if not isinstance(delay, DelayModel):
        raise TypeError(f"{name} must be a DelayModel; got {delay!r}")
