"""Delay models of clusters in which some workers no longer respond."""

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
    """Delay model of a cluster in which some workers no longer respond.

    The lost workers have infinite times. If `do_all`, they are left out instead, and
    the others do all of the work. A load of 1 is then an equal share among the others,
    which is a load above 1 for the delay model of the whole cluster.

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
        """Load for the delay model of the whole cluster, if the load here is 1."""
        return self.num_workers / len(self.workers) if self.do_all else 1.0

    def init(self, num_workers):
        """Returns the initial state of the whole cluster's delay model."""
        return from_argument(self.delay).init(self.num_workers)

    def part_times(self, key, state, loads, shares):
        """Draws the finish times of parts; also returns the next state."""
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
        """Returns the measured loads, converted to the unit of load of this model."""
        loads = from_argument(self.delay).measured_loads()
        return tuple(load / self.load_factor for load in loads)

    def stalls(self, tail):
        """Returns the stalls that measured times do not rule out, for this model."""
        stalls = from_argument(self.delay).stalls(tail)
        if stalls is None:
            return None
        stalled = dataclasses.replace(self, delay=as_argument(stalls.delay))
        return stalls._replace(delay=stalled)
