"""Who answers in a round, and when: delay models and waiting rules.

A straggler model is a pair of pure functions, like an optax transformation:
`state = model.init(num_workers)` and
`arrivals, state = model.sample(key, state, loads)`. So is a delay model, whose `sample`
gives finish times. A waiting rule is a function of a key (for ties) and the times.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxwgc import _validation

__all__ = [
    "Arrivals",
    "DelayModel",
    "StragglerModel",
    "WaitingRule",
    "bernoulli_slowdown",
    "deadline",
    "delayed",
    "fastest",
    "pareto",
    "shifted_exponential",
    "uniform",
]


class Arrivals(NamedTuple):
    """What the server sees of a round.

    Attributes:
      received: bool (num_workers,), whose messages it decodes.
      times: float (num_workers,), when each worker finishes, in seconds for the
        delay models here; infinity where never.
      elapsed: float scalar, how long the round took, in the unit of times.
    """

    received: jax.Array
    times: jax.Array
    elapsed: jax.Array


class StragglerModel(NamedTuple):
    """A pair of pure functions that simulate rounds.

    Attributes:
      init: `init(num_workers) -> state`, a pytree.
      sample: `sample(key, state, loads) -> (arrivals, state)`, with loads
        (num_workers,), the work of each worker in parts.
    """

    init: Callable[[int], Any]
    sample: Callable[[jax.Array, Any, jax.Array], tuple[Arrivals, Any]]


class DelayModel(NamedTuple):
    """A pair of pure functions that give finish times.

    Attributes:
      init: `init(num_workers) -> state`, a pytree.
      sample: `sample(key, state, loads) -> (times, state)`, with loads and times
        (num_workers,).
    """

    init: Callable[[int], Any]
    sample: Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]


class WaitingRule(Protocol):
    """Finish times (num_workers,) to the arrivals that the server decodes."""

    def __call__(self, key: jax.Array, times: jax.Array) -> Arrivals:
        """Takes a PRNG key, for ties, and times (num_workers,)."""
        ...


def uniform(num_stragglers: int) -> StragglerModel:
    """Exactly s stragglers a round, uniformly at random; a round takes one unit.

    Args:
      num_stragglers: s, at least 0 and less than the number of workers.

    Returns:
      A straggler model. Times are 1 for the workers that answer and infinity for the
      others.

    Raises:
      ValueError: where s is negative, or not less than the number of workers (at
        `init` or `sample`).
      TypeError: where s is not an int.

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
    num_stragglers = _validation.check_int("num_stragglers", num_stragglers, minimum=0)

    def init(num_workers):
        num_workers = _validation.check_int("num_workers", num_workers, minimum=1)
        _validation.check_stragglers(num_stragglers, num_workers)
        return ()

    def sample(key, state, loads):
        num_workers = len(loads)
        _validation.check_stragglers(num_stragglers, num_workers)
        everyone = jnp.ones(num_workers, bool)
        received = ~_random_workers(
            _validation.check_key(key), everyone, num_stragglers
        )
        times = jnp.where(received, 1.0, jnp.inf)
        return Arrivals(received, times, jnp.ones(())), state

    return StragglerModel(init, sample)


def delayed(delay: DelayModel, wait: WaitingRule) -> StragglerModel:
    """Finish times from a delay model, and a rule for how long the server waits.

    Args:
      delay: such as `shifted_exponential`, `pareto` or `bernoulli_slowdown`.
      wait: such as `fastest` or `deadline`.

    Returns:
      A straggler model.

    Raises:
      TypeError: where delay is no delay model or wait no function.

    Example:
      >>> import jax, jaxwgc
      >>> from jaxwgc import stragglers
      >>> model = stragglers.delayed(
      ...     stragglers.shifted_exponential(shift=1.0, rate=2.0), stragglers.fastest(3)
      ... )
      >>> loads = jax.numpy.ones(5)
      >>> arrivals, _ = model.sample(jax.random.key(0), model.init(5), loads)
      >>> int(arrivals.received.sum()), bool(arrivals.elapsed > 1.0)
      (3, True)

    References:
      Lee, Lam, Pedarsani, Papailiopoulos, Ramchandran, "Speeding up distributed
      machine learning using codes", 2018.
    """
    if not isinstance(delay, DelayModel):
        raise TypeError(f"delay must be a DelayModel; got {delay!r}")
    if not callable(wait):
        raise TypeError(f"wait must be a waiting rule; got {wait!r}")

    def sample(key, state, loads):
        delay_key, wait_key = jax.random.split(_validation.check_key(key))
        times, state = delay.sample(delay_key, state, loads)
        return wait(wait_key, times), state

    return StragglerModel(delay.init, sample)


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


def fastest(num_required: int) -> WaitingRule:
    """Wait for exactly that many workers, the fastest ones.

    Times are at least zero; ties are decided at random. A worker that never finishes
    (an infinite time) never counts; where fewer finish than are waited for, the round
    takes forever (`elapsed` is infinite).

    Args:
      num_required: f, at least 1 and at most the number of workers.

    Returns:
      A waiting rule.

    Raises:
      ValueError: where num_required is less than 1, or more than the number of workers
        (at the call of the rule).
      TypeError: where it is not an int.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.fastest(2)
      >>> wait(jax.random.key(0), jax.numpy.array([3.0, 1.0, 2.0])).received
      Array([False,  True,  True], dtype=bool)

    References:
      The paper's section 2.1: the f fastest workers.
    """
    num_required = _validation.check_int("num_required", num_required, minimum=1)

    def wait(key, times):
        if num_required > len(times):
            raise ValueError(
                "num_required must be at most num_workers; got num_required = "
                f"{num_required} and num_workers = {len(times)}"
            )
        times = jnp.asarray(times)
        times = times.astype(jnp.promote_types(times.dtype, jnp.float32))
        first = _fastest_workers(_validation.check_key(key), times, num_required)
        elapsed = jnp.max(times, where=first, initial=-jnp.inf)
        return Arrivals(first & jnp.isfinite(times), times, elapsed)

    return wait


def deadline(seconds: float) -> WaitingRule:
    """Take whoever has answered by a deadline; go on at once when all have.

    Args:
      seconds: the deadline from the start of the round; positive.

    Returns:
      A waiting rule.

    Raises:
      ValueError, TypeError: where seconds breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.deadline(2.5)
      >>> wait(jax.random.key(0), jax.numpy.array([3.0, 1.0, 2.0])).received
      Array([False,  True,  True], dtype=bool)

    References:
      Wang, Charles, Papailiopoulos, "ErasureHead: distributed gradient descent without
      delays using approximate gradient coding", 2019.
    """
    _validation.check_number("seconds", seconds, positive=True)

    def wait(key, times):
        del key
        elapsed = jnp.minimum(jnp.max(times), jnp.asarray(seconds, times.dtype))
        return Arrivals((times <= seconds) & jnp.isfinite(times), times, elapsed)

    return wait


def _independent(draw: Callable[[jax.Array, tuple[int]], jax.Array]) -> DelayModel:
    """Independent times for one part, in proportion to the load."""

    def sample(key, state, loads):
        times = draw(_validation.check_key(key), (len(loads),))
        # No work takes no time, of a dead worker too.
        return jnp.where(loads > 0, loads * times, 0), state

    return DelayModel(lambda num_workers: (), sample)


def _fastest_workers(key: jax.Array, times: jax.Array, count: int) -> jax.Array:
    """Mask of the `count` least times, ties decided at random.

    By bisection on the bits of the times: under vmap on the CPU that is several times
    faster than sorting.
    """
    # The bits of floats of at least zero are in the order of the floats.
    bits = jnp.int32 if times.dtype == jnp.float32 else jnp.int64
    order = jax.lax.bitcast_convert_type(jnp.abs(times), bits)
    bound = _largest_bound(order, count)
    first = order < bound
    return first | _random_workers(key, order == bound, count - first.sum())


def _random_workers(key: jax.Array, among: jax.Array, count: Any) -> jax.Array:
    """Mask of `count` workers drawn without replacement from those in `among`."""
    num_workers = len(among)
    # Low bits hold the index, so that no two draws are equal.
    index_bits = (num_workers + 1).bit_length()
    draws = jax.random.bits(key, (num_workers,), jnp.uint32) >> 2
    draws = (draws >> index_bits << index_bits).astype(jnp.int32)
    draws = draws | jnp.arange(num_workers, dtype=jnp.int32)
    draws = jnp.where(among, draws, jnp.iinfo(jnp.int32).max)
    return draws < _largest_bound(draws, count)


@jax.jit
def _largest_bound(values: jax.Array, count: Any) -> jax.Array:
    """The largest t with at most `count` of the integers `values` below it.

    With distinct values exactly `count` are below, and with ties the next one is t.
    """
    num_bits = jnp.iinfo(values.dtype).bits - 1

    def set_bit(step, bound):
        raised = bound | (jnp.ones((), values.dtype) << (num_bits - 1 - step))
        return jnp.where((values < raised).sum() <= count, raised, bound)

    return jax.lax.fori_loop(0, num_bits, set_bit, jnp.zeros((), values.dtype))
