"""Simulated clusters: drawn times of consecutive rounds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import stragglers
from jaxwgc.codes import GradientCode
from jaxwgc.studies._simulation._program_arguments import as_argument
from jaxwgc.studies._simulation._rounds import (
    FEW_TIMES,
    Drawn,
    draw_few_times,
    draw_times,
)

# Longest times that rounds may be simulated with, in float32.
_UNIT_RANGE = (1e-15, 1e15)
# Relative random change of times, so that the order of equal times is random.
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
      by_loads: Times (clusters, rounds, num_workers), by the bytes of the loads.
      drawn: The same times without equal ones, so that their order is random.
    """

    delay: stragglers.DelayModel
    num_measured: float
    has_stalls: bool
    has_state: bool
    key: jax.Array
    by_loads: dict[bytes, np.ndarray]
    drawn: dict[bytes, Drawn]

    @classmethod
    def of(
        cls,
        delay: stragglers.DelayModel,
        codes: Sequence[GradientCode],
        key: jax.Array,
        shape: tuple[int, int],
        stalls: stragglers.Stalls | None,
    ) -> "Clusters":
        """Draws times of `shape` (clusters, rounds) for the loads of all codes."""
        argument = as_argument(delay)
        keys = jax.random.split(key, shape)
        random = np.random.default_rng(0)
        factors = random.random((*shape, codes[0].num_workers), np.float32)
        factors = 1 - np.float32(_TIME_ROUNDING) * factors
        num_times = math.prod(shape) * codes[0].num_workers
        draw = draw_few_times if num_times <= FEW_TIMES else draw_times
        by_loads = {}
        drawn = {}
        for code in codes:
            place = _place(code)
            if place in drawn:
                continue
            loads = np.asarray(code.loads, np.float32)
            times = np.asarray(draw(argument, keys, loads))
            _check_times(times)
            by_loads[place] = times
            unequal = (times * factors).astype(jnp.result_type(float))
            drawn[place] = Drawn(keys, unequal, loads)
        return cls(
            delay=delay,
            num_measured=stalls.num_rounds if stalls else math.inf,
            has_stalls=stalls is not None and delay is stalls.delay,
            has_state=bool(jax.tree.leaves(delay.init(codes[0].num_workers))),
            key=key,
            by_loads=by_loads,
            drawn=drawn,
        )

    @property
    def num_clusters(self) -> int:
        """Number of simulated clusters."""
        return len(next(iter(self.by_loads.values())))

    @property
    def num_simulated(self) -> int:
        """Number of simulated rounds of all clusters."""
        return next(iter(self.by_loads.values()))[..., 0].size

    def times(self, code: GradientCode) -> np.ndarray:
        """Returns the times for the loads of a code, (clusters, rounds, workers)."""
        return self.by_loads[_place(code)]

    def drawn_for(self, code: GradientCode) -> Drawn:
        """Returns drawn times for the loads of a code, without equal times."""
        return self.drawn[_place(code)]


def _place(code: GradientCode) -> bytes:
    return np.asarray(code.loads, np.float32).tobytes()


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
