"""Simulated rounds of candidates: drawn times, durations, and decoded masks."""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import stragglers
from jaxwgc.codes import GradientCode
from jaxwgc.planning._choice import Candidate
from jaxwgc.simulation._masks import DecodedMasks, decode_packed, distinct_rows
from jaxwgc.simulation._program_arguments import QUICKLY_COMPILED
from jaxwgc.simulation._rounds import Drawn, Loads, draw_rounds, end_rounds

# Range of the longest time. Its square neither overflows nor underflows in float32.
_UNIT_RANGE = (1e-15, 1e15)
# Relative random change of times, which puts equal times in random order.
_TIME_ROUNDING = 1e-6
# Number of simulated times up to which a quick compilation saves more time than a fast
# program.
_FEW_TIMES = 100_000
_split = jax.jit(jax.random.split, static_argnums=1, compiler_options=QUICKLY_COMPILED)


class _Times(NamedTuple):
    """Times of workers, drawn for the loads of a code.

    Attributes:
      finish: Finish times, (clusters, rounds, num_workers).
      drawn: Times of parts, slightly changed so that equal times get a random order.
    """

    finish: np.ndarray
    drawn: Drawn


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """Simulated clusters, and the times that are drawn for successive rounds.

    The times for all codes come from common random numbers. Differences between
    candidates then have small errors.

    Attributes:
      delay: Delay model.
      key: PRNG key.
      num_clusters: Number of simulated clusters.
      num_rounds: Number of consecutive rounds of each cluster.
      num_measured: Number of rounds in the trace, or infinity.
      has_stalls: Whether times have stalls that the trace does not rule out.
      overhead: Share of the time at load 1 that does not depend on the load, for a
        delay model with times that are proportional to the load.
    """

    delay: stragglers.DelayModel
    key: jax.Array
    num_clusters: int
    num_rounds: int
    num_measured: float = math.inf
    has_stalls: bool = False
    overhead: float = 0.0
    _times: dict[Hashable, _Times] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    def has_state(self, num_workers: int) -> bool:
        """Returns whether the rounds of a cluster depend on each other."""
        return bool(jax.tree.leaves(self.delay.init(num_workers)))

    def is_few(self, num_workers: int) -> bool:
        """Returns whether a quick compilation saves more time than a fast program."""
        return self.num_clusters * self.num_rounds * num_workers <= _FEW_TIMES

    def times(self, code: GradientCode) -> np.ndarray:
        """Returns the finish times of workers with the loads of a code."""
        return self._times_for(code).finish

    def drawn(self, code: GradientCode) -> Drawn:
        """Returns the drawn times of parts for the loads of a code."""
        return self._times_for(code).drawn

    def _times_for(self, code: GradientCode) -> _Times:
        self.draw([code])
        return self._times[Loads.of(code, np.float32).identity]

    def draw(self, codes: Sequence[GradientCode]) -> None:
        """Draws and stores times for the loads of all codes, in one program."""
        loads_of_codes = [Loads.of(code, np.float32) for code in codes]
        missing = {
            loads.identity: loads
            for loads in loads_of_codes
            if loads.identity not in self._times
        }
        # The last time of the parts is the time of the whole load, which needs no draw
        # of its own.
        for loads in [*missing.values()]:
            if not loads.is_whole:
                missing.pop(loads.whole.identity, None)
        if not missing:
            return
        all_loads = [*missing.values()]
        num_workers = codes[0].num_workers
        shape = (self.num_clusters, self.num_rounds)
        all_drawn = draw_rounds(
            self.delay,
            _split(self.key, shape),
            [loads.with_overhead(self.overhead) for loads in all_loads],
            is_few=self.is_few(num_workers),
        )
        changes = np.random.default_rng(0).random((*shape, num_workers), np.float32)
        factors = 1 - np.float32(_TIME_ROUNDING) * changes
        for loads, drawn in zip(all_loads, all_drawn, strict=True):
            part_times = np.asarray(drawn.times)
            finish = part_times[..., -1]
            _check_times(finish)
            different_times = part_times * factors[..., None]
            times_of_loads = {
                loads.identity: different_times,
                loads.whole.identity: different_times[..., -1:],
            }
            for identity, times in times_of_loads.items():
                on_device = jnp.asarray(times, jnp.result_type(float))
                self._times[identity] = _Times(
                    finish=finish, drawn=drawn._replace(times=on_device)
                )


def _check_times(times: np.ndarray) -> None:
    """Raises ValueError if a time is negative, or the longest out of range."""
    if not np.all(times >= 0):
        raise ValueError(f"delay must return times of at least 0; got {times.min()}")
    is_finite = np.isfinite(times)
    longest = np.max(times, where=is_finite, initial=0)
    low, high = _UNIT_RANGE
    if is_finite.any() and not (low < longest < high):
        raise ValueError(
            f"the longest time of delay must be between {low:g} and {high:g}; got "
            f"{longest:g}. Choose another unit of time"
        )


class SimulatedRounds(NamedTuple):
    """Simulated rounds of a candidate: durations, messages and decoded masks.

    Attributes:
      elapsed: Duration of each round, float64 (rounds,), of one cluster after another.
      num_messages: Mean number of received messages; on request, the maximum number of
        sums.
      num_late: Mean number of messages of earlier rounds that arrived.
      decoded: Decoded masks of all candidates with the code; None if the candidate is
        exact.
      masks: Index of the mask of each round, (rounds,); None if the candidate is exact.
    """

    elapsed: np.ndarray
    num_messages: float
    num_late: float
    decoded: DecodedMasks | None = None
    masks: np.ndarray | None = None


def simulate(
    candidates: Sequence[Candidate], clusters: Clusters
) -> list[SimulatedRounds]:
    """Simulates rounds of candidates, and decodes rounds of approximate candidates."""
    # Programs run asynchronously. All are started before the host waits for a result.
    started = []
    clusters.draw([candidate.code for candidate in candidates])
    for candidate in candidates:
        drawn = clusters.drawn(candidate.code)
        started.append(
            end_rounds(
                candidate.wait,
                candidate.late,
                candidate.code,
                drawn,
                is_few=clusters.is_few(candidate.code.num_workers),
            )
        )
    ended = jax.device_get(started)
    places_of_codes: dict[int, list[int]] = {}
    for place, candidate in enumerate(candidates):
        shortest = np.min(ended[place].time)
        if not shortest >= 0:
            raise ValueError(
                f"rules must end rounds at times of at least 0; got {shortest} from "
                f"{candidate.wait} for code {candidate.name!r}"
            )
        if not candidate.is_exact:
            places_of_codes.setdefault(id(candidate.code), []).append(place)
    simulated = [
        SimulatedRounds(
            elapsed=np.asarray(rounds.time, np.float64),
            num_messages=_num_messages(candidate.code, rounds.masks).mean(),
            num_late=float(np.mean(rounds.num_late)),
        )
        for candidate, rounds in zip(candidates, ended, strict=True)
    ]
    for places in places_of_codes.values():
        code = candidates[places[0]].code
        packed = np.concatenate([ended[place].masks for place in places])
        distinct, masks = distinct_rows(packed)
        is_few = clusters.is_few(code.num_workers)
        decoded = decode_packed(code, distinct, is_few=is_few)
        for place, own_masks in zip(places, np.split(masks, len(places)), strict=True):
            simulated[place] = simulated[place]._replace(
                decoded=decoded, masks=own_masks
            )
    return simulated


def _num_messages(code: GradientCode, packed: np.ndarray) -> np.ndarray:
    """Returns the number of messages, or the maximum number of sums, per round."""
    if not code.allows_requests:
        return np.bitwise_count(packed).sum(axis=1)
    bits = np.unpackbits(packed, axis=1, count=code.num_messages)
    has_sum = bits.reshape(len(bits), code.num_workers, -1).any(axis=2)
    return has_sum.sum(axis=1)
