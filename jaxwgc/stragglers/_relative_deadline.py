"""A deadline that the workers set themselves: relative to the fastest of them."""

import dataclasses
from typing import Any

from jaxwgc import _validation
from jaxwgc.stragglers._waiting_rule import WaitingRule


@dataclasses.dataclass(frozen=True)
class relative_deadline(WaitingRule):
    """Wait for `factor` times as long as the first `quorum` workers take.

    Fixed deadlines are guessed wrong in both directions; this one follows the workers.

    Args:
      factor: of the time of the quorum-th answer; at least 1.
      quorum: how many answers set the deadline; at least 1 and at most the number of
        workers.

    Raises:
      ValueError: where an argument breaks its rule, or (at the call of the rule) there
        are fewer workers than the quorum.
      TypeError: where factor is no number or quorum not an int.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.relative_deadline(factor=1.5, quorum=2)
      >>> times = jax.numpy.array([9.0, 1.0, 2.0, 2.75])
      >>> arrivals = wait.arrivals(jax.random.key(0), times)
      >>> arrivals.received, float(arrivals.elapsed)
      (Array([False,  True,  True,  True], dtype=bool), 3.0)

    References:
      Krishnan, Ram, Sasidharan, Kumar, "Sequential gradient coding for straggler
      mitigation", ICLR 2023: (1 + mu) times the time of the fastest worker.
    """

    factor: Any
    quorum: int

    def __post_init__(self):
        _validation.check_fields(self, factor={"minimum": 1})
        _validation.check_int("quorum", self.quorum, minimum=1)

    def ends(self, times):
        """Returns the deadline, or the last time where that is less."""
        _validation.check_up_to("quorum", self.quorum, num_workers=len(times))
        xp = times.__array_namespace__()
        factor = xp.asarray(self.factor, dtype=times.dtype)
        return xp.minimum(times.max(), factor * xp.sort(times)[self.quorum - 1])
