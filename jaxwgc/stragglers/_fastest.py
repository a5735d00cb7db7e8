"""The waiting rule of coded computing: so many workers, the fastest ones."""

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
    """Wait for exactly that many workers, the fastest ones.

    Times are at least zero; ties are decided at random. A worker that never finishes
    (an infinite time) never counts; where fewer finish than are waited for, the round
    takes forever (`elapsed` is infinite).

    Args:
      num_required: f, at least 1 and at most the number of workers.

    Raises:
      ValueError: where num_required is less than 1, or more than the number of workers
        (at the call of the rule).
      TypeError: where it is not an int.

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
        """Returns the f-th least time."""
        self._check(len(times))
        return times.__array_namespace__().sort(times)[self.num_required - 1]

    def arrivals(self, key: jax.Array, times: jax.typing.ArrayLike) -> Arrivals:
        """Returns the arrivals of exactly f workers, ties decided by the key."""
        times = times_of(times)
        self._check(len(times))
        first = fastest_workers(key, times, self.num_required)
        elapsed = jnp.max(times, where=first, initial=-jnp.inf)
        return Arrivals(first & jnp.isfinite(times), times, elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns such as "first 7", "for the first 7 of 8 workers"."""
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
