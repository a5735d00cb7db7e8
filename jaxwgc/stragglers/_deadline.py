"""The waiting rule of approximate gradients: whoever answers in time."""

import dataclasses
import math
from typing import Any

from jaxwgc import _validation
from jaxwgc.stragglers._distributions import Distribution
from jaxwgc.stragglers._waiting_rule import WaitingRule


@dataclasses.dataclass(frozen=True)
class deadline(WaitingRule):
    """Take whoever has answered by a deadline; go on at once when all have.

    Args:
      seconds: the deadline from the start of the round; positive.

    Raises:
      ValueError, TypeError: where seconds breaks its rule.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.deadline(2.5)
      >>> times = jax.numpy.array([3.0, 1.0, 2.0])
      >>> wait.arrivals(jax.random.key(0), times).received
      Array([False,  True,  True], dtype=bool)

    References:
      Wang, Charles, Papailiopoulos, "ErasureHead: distributed gradient descent without
      delays using approximate gradient coding", 2019.
    """

    seconds: Any

    def __post_init__(self):
        _validation.check_fields(self, seconds={"positive": True})

    def ends(self, times):
        """Returns the deadline, or the last time where that is less."""
        xp = times.__array_namespace__()
        return xp.minimum(times.max(), xp.asarray(self.seconds, dtype=times.dtype))

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns such as "1.35 s", "for 1.346 s"."""
        decimals = max(2 - math.floor(math.log10(self.seconds)), 0)
        return f"{self.seconds:.{decimals}f} s", f"for {self.seconds:.4g} s"

    def expected_time(self, law: Distribution, num_workers: int) -> float:
        """Returns the mean of the last time or the deadline, whichever is less."""
        return law.fastest_mean(num_workers, num_workers, at_most=self.seconds)

    def time_quantile(self, law: Distribution, num_workers: int, level: float) -> float:
        """Returns the quantile of that."""
        last = law.fastest_quantile(num_workers, num_workers, level)
        return min(last, self.seconds)
