"""Waiting for a number of workers."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.stragglers._distributions import Distribution
from jaxwgc.stragglers._inputs import times_of
from jaxwgc.stragglers._selection import fastest_workers
from jaxwgc.stragglers._types import Arrivals
from jaxwgc.stragglers._waiting_rule import WaitingRule


@dataclasses.dataclass(frozen=True)
class fastest(WaitingRule):
    """Waits for exactly f workers, the fastest ones.

    Times are at least zero; ties are resolved at random. A worker with an infinite time
    never responds. If fewer than f workers respond, the round never ends (`elapsed` is
    infinite).

    Args:
      num_required: f, from 1 to the number of workers.

    Raises:
      ValueError: If num_required is below 1, or (when called) above the number of
        workers.
      TypeError: If num_required is not an int.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.fastest(2)
      >>> times = jax.numpy.array([3.0, 1.0, 2.0])
      >>> wait.arrivals(jax.random.key(0), times).received
      Array([False,  True,  True], dtype=bool)

    References:
      The paper's section 2.1: the f fastest workers.
    """

    num_required: int

    def __post_init__(self):
        _validation.check_int("num_required", self.num_required, minimum=1)

    def ends(self, times):
        """Returns the f-th smallest time."""
        self._check(len(times))
        return times.__array_namespace__().sort(times)[self.num_required - 1]

    def arrivals(self, key: jax.Array, times: jax.typing.ArrayLike) -> Arrivals:
        """Returns the arrivals of exactly f workers; the key resolves ties."""
        times = times_of(times)
        self._check(len(times))
        first = fastest_workers(key, times, self.num_required)
        elapsed = jnp.max(times, where=first, initial=-jnp.inf)
        return Arrivals(first & jnp.isfinite(times), times, elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a label and a phrase, e.g. "first 7", "for the first 7 of 8"."""
        number = self.num_required
        if number == num_workers:
            return "all", f"for all {num_workers} workers"
        return f"first {number}", f"for the first {number} of {num_workers} workers"

    def expected_time(self, law: Distribution, num_workers: int) -> float:
        """Returns the mean of the f-th fastest time."""
        return law.fastest_mean(self.num_required, num_workers)

    def time_quantile(self, law: Distribution, num_workers: int, level: float) -> float:
        """Returns the quantile of the f-th fastest time."""
        return law.fastest_quantile(self.num_required, num_workers, level)

    def _check(self, num_workers):
        number = self.num_required
        _validation.check_up_to("num_required", number, num_workers=num_workers)
