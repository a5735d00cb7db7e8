"""Delay models: how long each worker takes for its parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import loads_of, stateless
from jaxwgc.stragglers._types import DelayModel


@equal_models
def shifted_exponential(shift: float, rate: float) -> DelayModel:
    """Times load * (shift + E / rate), E standard exponential.

    Args:
      shift: the least time of one part, in seconds; at least 0.
      rate: parts a second beyond the shift; positive.

    Returns:
      A delay model.

    Raises:
      ValueError, TypeError: where a parameter breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.shifted_exponential(shift=1.0, rate=2.0)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.full(4, 3.0))
      >>> times.shape, bool(times.min() >= 3.0)
      ((4,), True)

    References:
      Lee et al., 2018, section IV; Halbawi et al., ISIT 2018.
    """
    _validation.check_number("shift", shift, minimum=0)
    _validation.check_number("rate", rate, positive=True)
    return _independent(
        lambda key, shape: shift + jax.random.exponential(key, shape) / rate
    )


@equal_models
def pareto(scale: float, shape: float) -> DelayModel:
    """Times load * scale * P, P Pareto: P(P > t) = t ** -shape for t at least 1.

    Args:
      scale: the least time of one part, in seconds; positive.
      shape: the tail index; positive. Means are finite above 1, variances above 2.

    Returns:
      A delay model.

    Raises:
      ValueError, TypeError: where a parameter breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.pareto(scale=1.0, shape=2.0)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.ones(4))
      >>> times.shape, bool(times.min() >= 1.0)
      ((4,), True)

    References:
      The heavy-tailed model of the straggler literature, as in Wang, Joshi, Wornell,
      "Efficient straggler replication in large-scale parallel computing", 2019.
    """
    _validation.check_number("scale", scale, positive=True)
    _validation.check_number("shape", shape, positive=True)
    return _independent(lambda key, size: scale * jax.random.pareto(key, shape, size))


@equal_models
def bernoulli_slowdown(
    probability: float, slowdown: float, time: float = 1.0
) -> DelayModel:
    """Times load * time, `slowdown` times as long with the given probability.

    Args:
      probability: of a worker being slow, independently; from 0 to 1.
      slowdown: factor of a slow worker, at least 1; infinity for a dead one.
      time: of one part, in seconds; positive.

    Returns:
      A delay model.

    Raises:
      ValueError, TypeError: where a parameter breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.bernoulli_slowdown(probability=1.0, slowdown=5.0)
      >>> delay.sample(jax.random.key(0), (), jax.numpy.ones(3))[0]
      Array([5., 5., 5.], dtype=float32)

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for flexible straggler
      mitigation in distributed learning", 2019 (independent stragglers).
    """
    _validation.check_number("probability", probability, minimum=0, maximum=1)
    _validation.check_number("slowdown", slowdown, minimum=1)
    _validation.check_number("time", time, positive=True)

    def draw(key, shape):
        slow = jax.random.bernoulli(key, probability, shape)
        return time * jnp.where(slow, slowdown, 1.0)

    return _independent(draw)


def _independent(draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> DelayModel:
    """Independent times for one part, in proportion to the load."""

    def sample(key, state, loads):
        loads = loads_of(loads)
        times = draw(_validation.check_key(key), loads.shape)
        # No work takes no time, of a dead worker too.
        return jnp.where(loads == 0, 0, loads * times), state

    return DelayModel(stateless, sample)
