"""Waiting rules: for how long the server waits, and for whom."""

import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import times_of
from jaxwgc.stragglers._selection import fastest_workers
from jaxwgc.stragglers._types import Arrivals, WaitingRule


@equal_models
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
        times = times_of(times)
        if num_required > len(times):
            raise ValueError(
                "num_required must be at most num_workers; got num_required = "
                f"{num_required} and num_workers = {len(times)}"
            )
        first = fastest_workers(_validation.check_key(key), times, num_required)
        elapsed = jnp.max(times, where=first, initial=-jnp.inf)
        return Arrivals(first & jnp.isfinite(times), times, elapsed)

    return wait


@equal_models
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
        _validation.check_key(key)
        times = times_of(times)
        elapsed = jnp.minimum(jnp.max(times), jnp.asarray(seconds, times.dtype))
        return Arrivals((times <= seconds) & jnp.isfinite(times), times, elapsed)

    return wait
