"""Waiting rules: for how long the server waits, and for whom."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import made_of_jax, times_of
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
    return _Fastest(_validation.check_int("num_required", num_required, minimum=1))


@dataclasses.dataclass(frozen=True)
class _Fastest:
    """The rule, which shows how many it waits for."""

    num_required: int

    def __call__(self, key: jax.Array, times: jax.Array) -> Arrivals:
        """The arrivals of the first so many."""
        times = times_of(times)
        if self.num_required > len(times):
            raise ValueError(
                "num_required must be at most num_workers; got num_required = "
                f"{self.num_required} and num_workers = {len(times)}"
            )
        first = fastest_workers(_validation.check_key(key), times, self.num_required)
        elapsed = jnp.max(times, where=first, initial=-jnp.inf)
        return Arrivals(first & jnp.isfinite(times), times, elapsed)


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


def is_over(
    wait: WaitingRule, times: jax.typing.ArrayLike, elapsed: jax.typing.ArrayLike
) -> bool:
    """Whether the server may go on, in a real round that is under way.

    To be asked after each answer, and when a deadline has passed. A rule of one's own
    is asked for its arrivals; one with a method `is_over(times)`, such as
    `until_decodable`, for that alone.

    Args:
      wait: a waiting rule.
      times: (num_workers,), when each worker has answered, from the start of the round;
        infinity for those that have not.
      elapsed: how long the round has taken until now.

    Returns:
      Whether it is over. It is in any case where all have answered.

    Raises:
      ValueError: where times or elapsed are negative.
      TypeError: where wait is no waiting rule, or the others are not real numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import stragglers
      >>> times = jnp.array([0.5, jnp.inf, 1.0])
      >>> stragglers.is_over(stragglers.fastest(2), times, elapsed=1.0)
      True
      >>> stragglers.is_over(stragglers.deadline(2.5), times, elapsed=1.0)
      False
    """
    _validation.check_callable("wait", wait)
    _validation.check_number("elapsed", elapsed, minimum=0, traceable=False)
    times = times_of(times)
    if jnp.isfinite(times).all():
        return True
    if hasattr(wait, "is_over"):
        return bool(wait.is_over(times))  # pyright: ignore[reportAttributeAccessIssue]
    ends = _elapsed(wait, times)
    # Rounded alike, so that a time is not after itself.
    return bool(ends <= jnp.asarray(elapsed, ends.dtype))


@functools.partial(jax.jit, static_argnums=0)
def _elapsed(wait, times):
    with made_of_jax("wait"):
        return wait(jax.random.key(0), times).elapsed
