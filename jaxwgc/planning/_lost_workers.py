"""Workers that do not respond any more, and delay models without them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxwgc._common.pytrees import Static, register
from jaxwgc.simulation._program_arguments import as_argument, from_argument
from jaxwgc.stragglers._models import DelayOfParts, Stalls


@register
@dataclasses.dataclass(frozen=True, eq=False)
class WithLostWorkers(DelayOfParts):
    """Delay model of a cluster in which some workers never respond.

    Attributes:
      delay: Delay model of the cluster, from `as_argument`.
      lost: Indices of the workers that never respond.
    """

    delay: Any
    lost: Static[tuple[int, ...]]

    def init(self, num_workers):
        """Returns the state of the delay model of the cluster."""
        return from_argument(self.delay).init(num_workers)

    def part_times(self, key, state, loads, shares):
        """Draws the times of parts of all workers, (num_workers, parts)."""
        delay = from_argument(self.delay)
        times, state = delay.part_times(key, state, loads, shares)
        return times.at[np.array(self.lost)].set(jnp.inf), state

    def measured_loads(self):
        """Returns the loads at which the times of the cluster were measured."""
        return from_argument(self.delay).measured_loads()

    def stalls(self, tail):
        """Returns the `Stalls` that the times of the cluster do not rule out."""
        return _stalls_of(self, tail)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class OtherWorkers(DelayOfParts):
    """Delay model of some workers of a cluster, which do all of its work.

    A load of 1 is an equal share of the work among them, and therefore more than 1 for
    the delay model of the cluster.

    Attributes:
      delay: Delay model of the cluster, from `as_argument`.
      workers: Indices of the workers that remain.
      num_workers: Number of workers of the cluster.
    """

    delay: Any
    workers: Static[tuple[int, ...]]
    num_workers: Static[int]

    def init(self, num_workers):
        """Returns the state of the delay model of the cluster."""
        return from_argument(self.delay).init(self.num_workers)

    def part_times(self, key, state, loads, shares):
        """Draws the times of parts of the workers that remain."""
        remaining = np.array(self.workers)
        share = self.num_workers / len(remaining)
        all_loads = jnp.ones(self.num_workers, loads.dtype)
        all_loads = all_loads.at[remaining].set(loads * share)
        all_shares = jnp.ones((self.num_workers, shares.shape[1]), loads.dtype)
        all_shares = all_shares.at[remaining].set(shares)
        delay = from_argument(self.delay)
        times, state = delay.part_times(key, state, all_loads, all_shares)
        return times[remaining], state

    def measured_loads(self):
        """Returns the loads of the measurement, by the unit of the other workers."""
        share = self.num_workers / len(self.workers)
        loads = from_argument(self.delay).measured_loads()
        return tuple(load / share for load in loads)

    def stalls(self, tail):
        """Returns the `Stalls` that the times of the cluster do not rule out."""
        return _stalls_of(self, tail)


def _stalls_of(model: WithLostWorkers | OtherWorkers, tail: float) -> Stalls | None:
    """Returns the stalls of the inner delay model of a model, as seen by the model."""
    stalls = from_argument(model.delay).stalls(tail)
    if stalls is None:
        return None
    stalled = dataclasses.replace(model, delay=as_argument(stalls.delay))
    return stalls._replace(delay=stalled)
