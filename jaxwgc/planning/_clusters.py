"""Simulated clusters: drawn times of consecutive rounds."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import stragglers
from jaxwgc.codes import GradientCode
from jaxwgc.simulation import (
    FEW_TIMES,
    Drawn,
    Loads,
    as_argument,
    draw_few_times,
    draw_times,
)
from jaxwgc.stragglers import check_part_times

# Longest times that rounds may be simulated with, in float32.
_UNIT_RANGE = (1e-15, 1e15)
# Relative random change of times, which puts equal times in random order.
_TIME_ROUNDING = 1e-6


class Clusters(NamedTuple):
    """Independent clusters with drawn times, for consecutive rounds.

    All loads share random draws, so that candidates are compared in pairs.

    Attributes:
      delay: Delay model.
      num_measured: Number of rounds in the trace, or infinity.
      has_stalls: Whether times have stalls that the trace does not rule out.
      has_state: Whether the rounds of a cluster depend on each other.
      key: PRNG key.
      by_loads: Finish times (clusters, rounds, num_workers), by loads and parts.
      drawn: Times of parts without equal ones, so that their order is random.
    """

    delay: stragglers.DelayModel
    num_measured: float
    has_stalls: bool
    has_state: bool
    key: jax.Array
    by_loads: dict[Hashable, np.ndarray]
    drawn: dict[Hashable, Drawn]

    @classmethod
    def of(
        cls,
        delay: stragglers.DelayModel,
        codes: Sequence[GradientCode],
        key: jax.Array,
        shape: tuple[int, int],
        stalls: stragglers.Stalls | None,
        overhead: float = 0.0,
    ) -> "Clusters":
        """Draws times of `shape` (clusters, rounds) for the loads of all codes.

        `overhead` is the share of the time at load 1 that does not depend on the load,
        for a delay model with times that are proportional to the load.
        """
        argument = as_argument(delay)
        keys = jax.random.split(key, shape)
        num_workers = codes[0].num_workers
        generator = np.random.default_rng(0)
        changes = generator.random((*shape, num_workers), np.float32)
        factors = 1 - np.float32(_TIME_ROUNDING) * changes
        num_times = math.prod(shape) * num_workers
        draw = draw_few_times if num_times <= FEW_TIMES else draw_times
        by_loads = {}
        drawn = {}
        for code in codes:
            loads = Loads.of(code, np.float32)
            place = loads.identity
            if place in drawn:
                continue
            drawn_loads = loads.with_overhead(overhead)
            times, part_times = jax.device_get(draw(argument, keys, drawn_loads))
            _check_times(times)
            check_part_times(type(delay).__name__, part_times, times)
            by_loads[place] = times
            different_times = part_times * factors[..., None]
            drawn[place] = Drawn(
                keys=keys,
                times=different_times.astype(jnp.result_type(float)),
                loads=loads.loads,
            )
        return cls(
            delay=delay,
            num_measured=math.inf if stalls is None else stalls.num_rounds,
            has_stalls=stalls is not None and delay is stalls.delay,
            has_state=bool(jax.tree.leaves(delay.init(num_workers))),
            key=key,
            by_loads=by_loads,
            drawn=drawn,
        )

    @property
    def num_clusters(self) -> int:
        """Number of simulated clusters."""
        num_clusters, _, _ = self._shape
        return num_clusters

    @property
    def num_simulated(self) -> int:
        """Number of simulated rounds of all clusters."""
        num_clusters, num_rounds, _ = self._shape
        return num_clusters * num_rounds

    @property
    def _shape(self) -> tuple[int, ...]:
        """Numbers of clusters, of their rounds, and of workers."""
        times_of_first_loads = next(iter(self.by_loads.values()))
        return times_of_first_loads.shape

    def times(self, code: GradientCode) -> np.ndarray:
        """Returns the times for the loads of a code, (clusters, rounds, workers)."""
        return self.by_loads[Loads.of(code, np.float32).identity]

    def drawn_for(self, code: GradientCode) -> Drawn:
        """Returns drawn times for the loads of a code, without equal times."""
        return self.drawn[Loads.of(code, np.float32).identity]


def _check_times(times: np.ndarray) -> None:
    """Raises ValueError for negative times, or squares out of the range of float32."""
    if not np.all(times >= 0):
        raise ValueError(f"delay must return times of at least 0; got {times.min()}")
    is_finite = np.isfinite(times)
    longest = np.max(times, where=is_finite, initial=0)
    low, high = _UNIT_RANGE
    if is_finite.any() and not (low < longest < high):
        raise ValueError(
            f"the longest time of delay must be between {low:g} and {high:g}; got "
            f"{longest:g}. Choose another unit"
        )
