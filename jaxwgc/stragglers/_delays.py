"""Delay models: how long each worker takes for its parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.stragglers import _laws
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import loads_of, stateless
from jaxwgc.stragglers._types import DelayModel, Law


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
        lambda key, shape: shift + jax.random.exponential(key, shape) / rate,
        lambda load: _laws.scipy("expon", load * shift, load / rate),
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
    return _independent(
        lambda key, size: scale * jax.random.pareto(key, shape, size),
        lambda load: _laws.scipy("pareto", 0, load * scale, shape),
    )


@equal_models
def weibull(scale: float, shape: float) -> DelayModel:
    """Times load * scale * W, W Weibull: P(W > t) = exp(-(t ** shape)).

    Args:
      scale: of the time of one part, in seconds; positive. 63% are below it.
      shape: positive. Times are exponential at 1, with heavier tails below and lighter
        ones above.

    Returns:
      A delay model.

    Raises:
      ValueError, TypeError: where a parameter breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.weibull(scale=2.0, shape=1.5)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.ones(4))
      >>> times.shape, float(delay.law(1.0).sf(2.0).round(3))
      ((4,), 0.368)

    References:
      Reisizadeh, Prakash, Pedarsani, Avestimehr, "Coded computation over heterogeneous
      clusters", 2019, section V (Weibull run times).
    """
    _validation.check_number("scale", scale, positive=True)
    _validation.check_number("shape", shape, positive=True)
    return _independent(
        lambda key, size: jax.random.weibull_min(key, scale, shape, size),
        lambda load: _laws.scipy("weibull_min", 0, load * scale, shape),
    )


@equal_models
def log_normal(median: float, deviation: float) -> DelayModel:
    """Times load * median * exp(deviation * Z), Z standard normal.

    Args:
      median: of the time of one part, in seconds; positive.
      deviation: the standard deviation of the logarithm of times; positive.

    Returns:
      A delay model.

    Raises:
      ValueError, TypeError: where a parameter breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.log_normal(median=2.0, deviation=0.1)
      >>> times, _ = delay.sample(jax.random.key(0), (), jax.numpy.ones(4))
      >>> times.shape, float(delay.law(1.0).sf(2.0))
      ((4,), 0.5)

    References:
      Ben-Yehuda, Schuster, Sharov, Silberstein, Iosup, "ExPERT: Pareto-efficient task
      replication on grids and a cloud", 2012, for empirical times like these.
    """
    _validation.check_number("median", median, positive=True)
    _validation.check_number("deviation", deviation, positive=True)
    return _independent(
        lambda key, size: median * jnp.exp(deviation * jax.random.normal(key, size)),
        lambda load: _laws.scipy("lognorm", 0, load * median, deviation),
    )


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

    return _independent(
        draw,
        lambda load: _laws.Mixture(
            _laws.Constant(load * time),
            _laws.Constant(load * time * slowdown),
            probability,
        ),
    )


def _independent(
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    law: Callable[[float], Law],
) -> DelayModel:
    """Independent times for one part, in proportion to the load."""

    def sample(key, state, loads):
        loads = loads_of(loads)
        times = draw(_validation.check_key(key), loads.shape)
        # No work takes no time, of a dead worker too.
        return jnp.where(loads == 0, 0, loads * times), state

    return DelayModel(stateless, sample, law)
