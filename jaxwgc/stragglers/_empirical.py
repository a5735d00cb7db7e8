"""Resampling of measured delays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._pytrees import Static, register
from jaxwgc.stragglers._combined_delays import chosen_workers
from jaxwgc.stragglers._missing_at_end import missing_at_end
from jaxwgc.stragglers._models import DelayModel, Stalls, loads_of

RESAMPLE = ("rounds", "workers", "cells")
# Rule of three: an event that is not seen in m draws has a probability below 3 / m,
# with 95% confidence.
_RULE_OF_THREE = 3.0


def empirical(
    times: Any,
    resample: str = "rounds",
    *,
    loads: ArrayLike = 1.0,
    measured_at: ArrayLike | None = None,
    replace: bool = False,
) -> DelayModel:
    """Returns a delay model that resamples measured times, e.g. `RayCluster.trace`.

    Simulated workers stand for workers of the trace. If there are equally many, all
    are used in order. Otherwise workers are drawn in the first round and then kept.

    Args:
      times: (rounds, workers) in seconds, NaN or infinity if there was no response.
        Alternatively (rounds, workers, parts), the time of each part: a smaller load
        ends after the first parts, a larger load continues with the first part again.
        Alternatively (loads, rounds, workers), with an entry for each of the loads
        `measured_at`. Or a pandas DataFrame with a column per worker, or with the
        columns step, worker and seconds; workers are then in the order of their names.
      resample: What is drawn. `"rounds"`: whole rounds, which keeps workers that are
        slow together. `"workers"`: for each worker the start of its history, which is
        then followed round by round, and from the last round to the first; this keeps
        slow spells. `"cells"`: every time independently, from any round and worker.
      loads: Loads of the workers in the measurement, one number or (workers,), e.g.
        `code.loads`: 1 without a code. Times are proportional to the load. For times
        of parts, parts are equal and together have the largest load.
      measured_at: Loads of the first axis of times, (loads,), increasing and at least
        0. Times are linear between these loads, and proportional to the load below the
        smallest one and beyond the largest one.
      replace: Whether several simulated workers may use the history of one measured
        worker, if the trace has fewer workers than are simulated.

    Returns:
      A delay model. Its `stalls` are events that the times do not show, but do not rule
      out either.

    Raises:
      ValueError: If times do not have axes of rounds and workers, or a time is zero or
        negative. If loads are not positive or do not match the workers. If measured_at
        is not increasing or does not match times. If (when simulated) the trace has too
        few workers.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax, numpy as np
      >>> from jaxwgc import stragglers
      >>> times = np.array([[1.0, 2.0, 9.0], [1.5, np.nan, 3.0]])
      >>> delay = stragglers.empirical(times)
      >>> drawn, _ = jax.jit(delay.sample)(jax.random.key(0), delay.init(3), np.ones(3))
      >>> drawn
      Array([1., 2., 9.], dtype=float32)

    References:
      Efron, Tibshirani, "An introduction to the bootstrap", 1993, section 8.5 (blocks
      of a series); Hanley, Lippman-Hand, "If nothing goes wrong, is everything all
      right?", 1983 (the rule of three).
    """
    table = _validation.measured_times(times)
    _validation.check_choice("resample", resample, RESAMPLE)
    _validation.check_bool("replace", replace)
    if measured_at is None:
        worker_loads = _positive_loads(loads, num_workers=table.shape[1])
        if table.ndim == 2:
            # Each worker has one part, with load 1.
            part_times = (table / worker_loads)[:, :, None]
            largest_load = 1.0
        else:
            part_times = table
            largest_load = np.max(worker_loads)
        # Seconds from the start to the end of the first, second, ... part.
        seconds = part_times.cumsum(-1)
        known_loads = np.linspace(0, largest_load, seconds.shape[2] + 1)[1:]
    else:
        known_loads = _increasing_loads(measured_at, table)
        worker_loads = _positive_loads(loads, num_workers=table.shape[2])
        if np.any(worker_loads != 1):
            raise ValueError(f"loads must be 1 with measured_at; got {loads}")
        # The last axis holds loads here, as it holds parts above.
        seconds = np.moveaxis(table, 0, -1).copy()
    if known_loads[0] > 0:
        # Zero load takes no time.
        no_time = np.zeros_like(seconds[:, :, :1])
        seconds = np.concatenate([no_time, seconds], axis=-1)
        known_loads = np.concatenate([[0.0], known_loads])
    return _Empirical(
        table=seconds,
        known=known_loads,
        probability=0.0,
        stall=0.0,
        begins_anew=measured_at is None,
        resample=resample,
        replace=replace,
    )


def _increasing_loads(measured_at: ArrayLike, table: np.ndarray) -> np.ndarray:
    """Checks the loads of the first axis of times, and converts them to float64."""
    loads = _validation.host_array(
        "measured_at", measured_at, "real numbers", loads="any"
    )
    loads = loads.astype(np.float64)
    is_increasing = loads[0] >= 0 and np.all(np.diff(loads) > 0)
    if not is_increasing or table.ndim != 3 or len(table) != len(loads):
        raise ValueError(
            "measured_at must be increasing, of shape (loads,), for times (loads, "
            f"rounds, workers); got {loads} and times {table.shape}"
        )
    return loads


def _positive_loads(loads: ArrayLike, num_workers: int) -> np.ndarray:
    """Checks one load or a load per worker, and converts them to float64."""
    worker_loads = _validation.concrete_array("loads", loads, "real numbers")
    worker_loads = worker_loads.astype(np.float64)
    is_positive = np.all((worker_loads > 0) & np.isfinite(worker_loads))
    if not is_positive or worker_loads.shape not in ((), (num_workers,)):
        raise ValueError(
            f"loads must be positive and finite, one number or {num_workers}; got "
            f"{loads}"
        )
    return worker_loads


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _Empirical(DelayModel):
    """Delay model that resamples times (rounds, workers, n) measured at loads (n,).

    Beyond the largest load a worker begins anew, or times are proportional. With
    probability `probability`, a time is raised to at least `stall` times the load.
    """

    table: np.ndarray
    known: np.ndarray
    probability: float
    stall: float
    begins_anew: Static[bool]
    resample: Static[str]
    replace: Static[bool]

    def __repr__(self):
        num_rounds, num_workers, _ = self.table.shape
        return f"empirical({num_rounds} rounds of {num_workers} workers)"

    def init(self, num_workers):
        """Returns -1 for each worker: no worker or round of the trace is chosen yet."""
        unchosen = jnp.full(num_workers, -1)
        num_measured = self.table.shape[1]
        may_share_history = self.replace or self.resample == "cells"
        if num_workers > num_measured and not may_share_history:
            raise ValueError(
                f"the trace must have at least {num_workers} workers; got "
                f"{num_measured}: replace=True lets several workers use one history"
            )
        return {"workers": unchosen, "rounds": unchosen}

    def sample(self, key, state, loads):
        """Draws the times of a round, (num_workers,)."""
        loads = loads_of(loads, state["workers"])
        rounds, workers, state = self._drawn(key, state)
        seconds = jnp.asarray(self.table, loads.dtype)[rounds, workers]
        known = jnp.asarray(self.known, loads.dtype)
        if _validation.is_traced(self.probability) or self.probability > 0:
            stall_key = jax.random.fold_in(key, 1)
            is_stalled = jax.random.bernoulli(stall_key, self.probability, loads.shape)
            stalled = jnp.maximum(seconds, self.stall * known)
            seconds = jnp.where(is_stalled[:, None], stalled, seconds)
        multiple = loads / known[-1]
        if not self.begins_anew:
            times = _between(known, seconds, jnp.minimum(loads, known[-1]))
            return jnp.maximum(multiple, 1) * times, state
        num_passes = jnp.floor(multiple)
        times = _between(known, seconds, loads - num_passes * known[-1])
        return _share(num_passes, seconds[:, -1]) + times, state

    def stopped(self, num_workers):
        """Returns the workers that do not respond in the last rounds of the trace."""
        num_measured = self.table.shape[1]
        if self.resample == "cells" or num_workers != num_measured:
            return {}
        end = missing_at_end(np.isfinite(self.table[..., -1]))
        workers = np.flatnonzero((end.start == 0) | end.has_stopped).tolist()
        return {worker: int(end.start[worker]) for worker in workers}

    def stalls(self, tail):
        """Returns the `Stalls` that the times do not rule out."""
        times = self.table[..., -1]
        is_finite = np.isfinite(times)
        longest = np.max(times, where=is_finite, initial=0)
        stall = float(tail * longest / self.known[-1])
        probability = min(_RULE_OF_THREE / max(is_finite.sum(), 1), 1.0)
        stalled = dataclasses.replace(self, probability=probability, stall=stall)
        return Stalls(
            delay=stalled, probability=probability, time=stall, num_rounds=len(times)
        )

    def _drawn(self, key, state):
        """Draws a round and worker of the trace per worker; also returns the state."""
        num_rounds, num_measured, _ = self.table.shape
        worker_key, round_key = jax.random.split(key)
        shape = state["workers"].shape
        if self.resample == "cells":
            workers = jax.random.randint(worker_key, shape, 0, num_measured)
            rounds = jax.random.randint(round_key, shape, 0, num_rounds)
            return rounds, workers, state
        workers = chosen_workers(worker_key, state["workers"], num_measured)
        if self.resample == "rounds":
            rounds = jnp.full(shape, jax.random.randint(round_key, (), 0, num_rounds))
        else:
            begins = jax.random.randint(round_key, shape, 0, num_rounds)
            follows = (state["rounds"] + 1) % num_rounds
            rounds = jnp.where(state["workers"] < 0, begins, follows)
        rounds = rounds.astype(state["rounds"].dtype)
        return rounds, workers, {"workers": workers, "rounds": rounds}


def _share(count: jax.Array, seconds: jax.Array) -> jax.Array:
    """Multiplies counts by seconds; a count of 0 gives 0, even for infinite seconds."""
    return jnp.where(count > 0, count * jnp.where(count > 0, seconds, 0), 0)


def _between(known: jax.Array, seconds: jax.Array, loads: jax.Array) -> jax.Array:
    """Interpolates times linearly between the measured loads, (num_workers,)."""
    place = jnp.searchsorted(known, loads, side="right") - 1
    place = jnp.clip(place, 0, len(known) - 2)
    workers = jnp.arange(len(loads))
    low = seconds[workers, place]
    high = seconds[workers, place + 1]
    share = (loads - known[place]) / (known[place + 1] - known[place])
    # Interpolation between a finite and an infinite time gives an infinite time.
    is_finite = jnp.isfinite(low) & jnp.isfinite(high)
    return low + _share(share, jnp.where(is_finite, high - low, jnp.inf))
