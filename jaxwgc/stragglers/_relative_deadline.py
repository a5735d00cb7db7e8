"""Deadlines relative to the fastest workers."""

import dataclasses
from typing import Any

from jaxwgc import _validation
from jaxwgc.stragglers._waiting_rule import WaitingRule


@dataclasses.dataclass(frozen=True)
class relative_deadline(WaitingRule):
    """Waits `factor` times as long as the first `quorum` workers take.

    Fixed deadlines are often too short or too long; this one adapts to the workers.

    Args:
      factor: Multiple of the time of the quorum-th response; at least 1.
      quorum: Number of responses that set the deadline, from 1 to the number of
        workers.

    Raises:
      ValueError: If an argument is out of range, or (when called) there are fewer
        workers than the quorum.
      TypeError: If factor is not a number or quorum not an int.

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
        """Returns the smaller of the deadline and the last time."""
        _validation.check_up_to("quorum", self.quorum, num_workers=len(times))
        xp = times.__array_namespace__()
        factor = xp.asarray(self.factor, dtype=times.dtype)
        return xp.minimum(times.max(), factor * xp.sort(times)[self.quorum - 1])
