"""Workers that do not respond any more, and delay models without them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxwgc._common.pytrees import Static, register
from jaxwgc.simulation._program_arguments import as_argument, from_argument
from jaxwgc.stragglers._models import DelayOfParts


@register
@dataclasses.dataclass(frozen=True, eq=False)
class OtherWorkers(DelayOfParts):
    """Delay model of the workers that still respond.

    Either they never respond, or the others do all of the work. A load of 1 is then an
    equal share of the work among these, and therefore more than 1 for the delay model
    of the cluster.

    Attributes:
      delay: Delay model of the cluster, from `as_argument`.
      workers: Indices of the workers that respond.
      num_workers: Number of workers of the cluster.
      do_all: Whether the workers that respond do all of the work.
    """

    delay: Any
    workers: Static[tuple[int, ...]]
    num_workers: Static[int]
    do_all: Static[bool]

    @property
    def load_factor(self) -> float:
        """Load of a remaining worker, relative to its load in the whole cluster."""
        return self.num_workers / len(self.workers) if self.do_all else 1.0

    def init(self, num_workers):
        """Returns the state of the delay model of the cluster."""
        return from_argument(self.delay).init(self.num_workers)

    def part_times(self, key, state, loads, shares):
        """Draws the times at which the workers finish their parts."""
        workers = np.array(self.workers, int)
        if self.do_all:
            all_loads = jnp.ones(self.num_workers, loads.dtype)
            loads = all_loads.at[workers].set(loads * self.load_factor)
            all_shares = jnp.ones((self.num_workers, shares.shape[1]), loads.dtype)
            shares = all_shares.at[workers].set(shares)
        delay = from_argument(self.delay)
        times, state = delay.part_times(key, state, loads, shares)
        if self.do_all:
            return times[workers], state
        return jnp.full_like(times, jnp.inf).at[workers].set(times[workers]), state

    def measured_loads(self):
        """Returns the loads of the measurement, in the unit of these workers."""
        loads = from_argument(self.delay).measured_loads()
        return tuple(load / self.load_factor for load in loads)

    def stalls(self, tail):
        """Returns the stalls that the times of the cluster do not rule out."""
        stalls = from_argument(self.delay).stalls(tail)
        if stalls is None:
            return None
        stalled = dataclasses.replace(self, delay=as_argument(stalls.delay))
        return stalls._replace(delay=stalled)
