"""Delay model that resamples measured times."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.pytrees import Static, register
from jaxwgc.stragglers._combined_delays import chosen_workers
from jaxwgc.stragglers._models import DelayModel, DelayOfParts, Stalls, loads_of
from jaxwgc.traces._measured_times import measured_times
from jaxwgc.traces._missing_at_end import missing_at_end

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
    """Delay model that resamples measured times, e.g. of `RayCluster.trace`.

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
        0. Times are linear between these loads. Beyond them, they continue on the lines
        of the two smallest and of the two largest loads: slopes are differences of the
        medians of a worker. With one load they are proportional.
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
    array_validation.check_dense("times", times)
    array_validation.check_concrete("times", times, "its entries are checked")
    table = measured_times(times)
    validation.check_choice("resample", resample, RESAMPLE)
    validation.check_bool("replace", replace)
    at_loads = (1.0,)
    if measured_at is None:
        worker_loads = _positive_loads(loads, num_workers=table.shape[1])
        if table.ndim == 2:
            # The whole time of a worker counts as the time of one part with load 1.
            part_times = (table / worker_loads)[:, :, None]
            largest_load = 1.0
        else:
            part_times = table
            largest_load = np.max(worker_loads)
            at_loads = ()
        # Seconds from the start to the end of the first, second, ... part.
        seconds = part_times.cumsum(-1)
        known_loads = np.linspace(0, largest_load, seconds.shape[2] + 1)[1:]
    else:
        known_loads = _increasing_loads(measured_at, table)
        at_loads = tuple(known_loads.tolist())
        worker_loads = _positive_loads(loads, num_workers=table.shape[2])
        if np.any(worker_loads != 1):
            raise ValueError(
                "loads must not be given together with measured_at, which already has "
                f"the loads of the times; got loads = {loads}"
            )
        # Loads become the last axis, because the last axis holds parts above.
        seconds = np.moveaxis(table, 0, -1).copy()
    slope = np.zeros(seconds.shape[1])
    if known_loads[0] > 0:
        at_no_load = np.zeros_like(seconds[:, :, :1])
        if measured_at is not None and len(known_loads) > 1:
            first_slope = _slope(known_loads[:2], seconds[:, :, :2])
            at_no_load = seconds[:, :, :1] - (first_slope * known_loads[0])[:, None]
            at_no_load = np.maximum(at_no_load, 0)
        seconds = np.concatenate([at_no_load, seconds], axis=-1)
        known_loads = np.concatenate([[0.0], known_loads])
    if measured_at is not None:
        slope = _slope(known_loads[-2:], seconds[:, :, -2:])
    return _Empirical(
        table=seconds,
        known=known_loads,
        slope=slope,
        at_loads=at_loads,
        probability=0.0,
        stall=np.zeros_like(known_loads),
        begins_anew=measured_at is None,
        resample=resample,
        replace=replace,
    )


def _slope(loads: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Computes the slope of each worker between two loads, in seconds per load.

    The two loads were measured in different rounds, so that medians are compared. A
    worker that never responds at a load has the slope 0.

    Args:
      loads: Two loads.
      seconds: Their times, (rounds, workers, 2).
    """
    medians = _median(seconds, axis=0)
    rise = (medians[:, 1] - medians[:, 0]) / (loads[1] - loads[0])
    return np.where(rise > 0, rise, 0)


def _median(times: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Computes medians of the finite times; NaN if no time is finite."""
    known = np.where(np.isfinite(times), times, np.nan)
    with warnings.catch_warnings():
        # NumPy warns if no time is finite, and returns NaN as intended.
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(known, axis=axis)


def _increasing_loads(measured_at: ArrayLike, table: np.ndarray) -> np.ndarray:
    """Converts `measured_at` to float64; raises ValueError unless it fits the times.

    Loads must be increasing, with one load per entry of the first axis. Warns if times
    fall with the load.
    """
    loads = array_validation.host_array(
        "measured_at", measured_at, "real numbers", loads="any"
    )
    loads = loads.astype(np.float64)
    is_increasing = loads[0] >= 0 and np.all(np.diff(loads) > 0)
    is_increasing &= loads[-1] > 0
    if not is_increasing or table.ndim != 3 or len(table) != len(loads):
        raise ValueError(
            "measured_at must be increasing and at least 0, the last above 0, with one "
            "load per entry of the first axis of times, (loads, rounds, workers); got "
            f"{loads} and times of shape {table.shape}"
        )
    medians = _median(table, axis=(1, 2))
    if np.any(np.diff(medians) < 0):
        warnings.warn(
            "times fall with the load: their medians at the loads "
            f"{loads.tolist()} are {medians.round(4).tolist()}. Parts then end no "
            "later than the whole load. Check that the loads belong to these times",
            stacklevel=3,
        )
    return loads


def _positive_loads(loads: ArrayLike, num_workers: int) -> np.ndarray:
    """Converts one load, or one per worker, to float64; rejects loads of 0 or below."""
    worker_loads = array_validation.concrete_array("loads", loads, "real numbers")
    worker_loads = worker_loads.astype(np.float64)
    is_positive = np.all((worker_loads > 0) & np.isfinite(worker_loads))
    if not is_positive or worker_loads.shape not in ((), (num_workers,)):
        raise ValueError(
            f"loads must be positive and finite, one or {num_workers} numbers; got "
            f"{validation.in_short(loads)}"
        )
    return worker_loads


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _Empirical(DelayOfParts):
    """Delay model that resamples times measured at one or more loads.

    Beyond the largest load a worker begins anew, or takes `slope` seconds per load.
    With probability `probability`, times are raised to at least `stall`, (loads,).
    """

    table: np.ndarray
    known: np.ndarray
    slope: np.ndarray
    probability: float
    stall: np.ndarray
    at_loads: Static[tuple[float, ...]]
    begins_anew: Static[bool]
    resample: Static[str]
    replace: Static[bool]

    def __repr__(self):
        num_rounds, num_workers, _ = self.table.shape
        return f"empirical({num_rounds} rounds of {num_workers} workers)"

    def init(self, num_workers):
        """Returns the state before a round of the trace is chosen."""
        unchosen = jnp.full(num_workers, -1)
        num_measured = self.table.shape[1]
        may_share_history = self.replace or self.resample == "cells"
        if num_workers > num_measured and not may_share_history:
            raise ValueError(
                f"the trace must have at least {num_workers} workers; got "
                f"{num_measured}. With replace=True, several workers may use the "
                "history of one worker"
            )
        return {"workers": unchosen, "rounds": unchosen}

    def part_times(self, key, state, loads, shares):
        """Draws finish times of parts, (num_workers, parts), and the next state."""
        loads = loads_of(loads, state["workers"])
        loads_of_parts = loads[:, None] * jnp.asarray(shares, loads.dtype)
        rounds, workers, state = self._drawn(key, state)
        seconds = jnp.asarray(self.table, loads.dtype)[rounds, workers]
        known = jnp.asarray(self.known, loads.dtype)
        if array_validation.is_traced(self.probability) or self.probability > 0:
            stall_key = jax.random.fold_in(key, 1)
            is_stalled = jax.random.bernoulli(stall_key, self.probability, loads.shape)
            stalled = jnp.maximum(seconds, jnp.asarray(self.stall, loads.dtype))
            seconds = jnp.where(is_stalled[:, None], stalled, seconds)
        if self.begins_anew:
            num_passes = jnp.floor(loads_of_parts / known[-1])
            in_pass = loads_of_parts - num_passes * known[-1]
            times = _between(known, seconds, in_pass)
            return _share(num_passes, seconds[:, -1:]) + times, state
        times = _between(known, seconds, jnp.minimum(loads_of_parts, known[-1]))
        slope = jnp.asarray(self.slope, loads.dtype)[workers]
        times = times + slope[:, None] * jnp.maximum(loads_of_parts - known[-1], 0)
        # Times at two loads come from different rounds, and may fall with the load. The
        # minimum ensures that no part ends later than the whole load.
        return jax.lax.cummin(times, axis=1, reverse=True), state

    def measured_loads(self):
        """Returns the loads at which times were measured; empty for times of parts."""
        return self.at_loads

    def stopped(self, num_workers):
        """Maps workers that stopped responding to the first round without response."""
        num_measured = self.table.shape[1]
        if self.resample == "cells" or num_workers != num_measured:
            return {}
        end = missing_at_end(np.isfinite(self.table[..., -1]))
        workers = np.flatnonzero((end.start == 0) | end.has_stopped).tolist()
        return {worker: int(end.start[worker]) for worker in workers}

    def stalls(self, tail):
        """Returns rare stalls that the measured times do not rule out."""
        is_finite = np.isfinite(self.table)
        longest = np.max(self.table, axis=(0, 1), where=is_finite, initial=0)
        stall = tail * longest
        num_times = int(is_finite[..., -1].sum())
        probability = min(_RULE_OF_THREE / max(num_times, 1), 1.0)
        if self.begins_anew:
            time_at_load_1 = stall[-1] / self.known[-1]
        else:
            time_at_load_1 = np.interp(1.0, self.known, stall)
        return Stalls(
            delay=dataclasses.replace(self, probability=probability, stall=stall),
            probability=probability,
            time=float(time_at_load_1),
            num_rounds=len(self.table),
        )

    def _drawn(self, key, state):
        """Draws a round and a worker of the trace per worker, and the next state."""
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
    """Multiplies counts by seconds; 0 times infinity is 0."""
    return jnp.where(count > 0, count * jnp.where(count > 0, seconds, 0), 0)


def _between(known: jax.Array, seconds: jax.Array, loads: jax.Array) -> jax.Array:
    """Interpolates times linearly between measured loads."""
    place = (known <= loads[..., None]).sum(axis=-1) - 1
    place = jnp.clip(place, 0, len(known) - 2)
    low = jnp.take_along_axis(seconds, place, axis=1)
    high = jnp.take_along_axis(seconds, place + 1, axis=1)
    share = (loads - known[place]) / (known[place + 1] - known[place])
    # Interpolation between a finite and an infinite time gives an infinite time.
    is_finite = jnp.isfinite(low) & jnp.isfinite(high)
    return low + _share(share, jnp.where(is_finite, high - low, jnp.inf))
