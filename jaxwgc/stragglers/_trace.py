"""Delays that were measured, drawn again."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.stragglers._combined_delays import chosen_workers, no_workers
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import loads_of
from jaxwgc.stragglers._types import DelayModel, Stalls

RESAMPLE = ("rounds", "workers", "cells")
# What was not seen in m draws has with 95% a probability below 3 / m.
_RULE_OF_THREE = 3.0


@equal_models
def trace(
    times: Any,
    resample: str = "rounds",
    *,
    loads: Any = 1.0,
    replace: bool = False,
) -> DelayModel:
    """Times that were measured, drawn again, such as those of `RayCluster.trace`.

    Simulated workers are workers of the trace: all of them in their order where there
    are as many, and otherwise some that are drawn in the first round and then stay.

    Args:
      times: (rounds, workers) in seconds, NaN or infinity where no answer came. Or
        (rounds, workers, parts), the time of each part: a worker with fewer parts is
        done after the first of them, and one with more goes on with the first again; a
        load of one is then one part.
      resample: what is drawn. `"rounds"`, whole rounds, so that workers that are slow
        together stay so. `"workers"`, for each worker where its history begins, which
        then goes on round by round, and from the last to the first, so that a slow
        spell stays one. `"cells"`, every time on its own, of any round and worker.
      loads: the parts that workers had when the times were measured, one number or
        (workers,); times are in proportion to the load. For times without an axis of
        parts.
      replace: whether a trace of fewer workers than are simulated serves several of
        them with the history of one.

    Returns:
      A delay model, whose `stalls` are what the times do not show and yet do not rule
      out.

    Raises:
      ValueError: where times have no axis of rounds and of workers, one is zero or
        below, loads are not positive or not of the workers, or (when simulated) the
        trace has too few workers.
      TypeError: where an argument has the wrong type.

    Example:
      >>> import jax, numpy as np
      >>> from jaxwgc import stragglers
      >>> times = np.array([[1.0, 2.0, 9.0], [1.5, np.nan, 3.0]])
      >>> delay = stragglers.trace(times)
      >>> found, _ = delay.sample(jax.random.key(0), delay.init(3), np.ones(3))
      >>> found
      Array([1., 2., 9.], dtype=float32)

    References:
      Efron, Tibshirani, "An introduction to the bootstrap", 1993, section 8.5 (blocks
      of a series); Hanley, Lippman-Hand, "If nothing goes wrong, is everything all
      right?", 1983 (the rule of three).
    """
    if _validation.is_traced(times):
        raise TypeError(
            "times must be concrete, since its entries are checked; got a traced one"
        )
    table = np.asarray(_validation.as_array("times", times))
    _validation.check_dtypes("times", table, "real numbers")
    if table.ndim not in (2, 3):
        raise ValueError(
            "times must have shape (rounds, workers) or (rounds, workers, parts); got "
            f"{table.shape}"
        )
    table = np.where(np.isnan(table), np.inf, table.astype(np.float64))
    if not table.size or np.any(table <= 0):
        raise ValueError(
            "times must be positive, and NaN or infinity where no answer came; got "
            f"{'none' if not table.size else table.min()}"
        )
    _validation.check_choice("resample", resample, RESAMPLE)
    _validation.check_bool("replace", replace)
    measured = np.asarray(loads, np.float64)
    num_rounds, num_measured = table.shape[:2]
    is_positive = np.all((measured > 0) & np.isfinite(measured))
    if measured.shape not in ((), (num_measured,)) or not is_positive:
        raise ValueError(
            "loads must be positive and finite, one number or one for each of the "
            f"{num_measured} workers; got {loads!r}"
        )
    if table.ndim == 2:
        table = (table / measured)[:, :, None]
    elif np.any(measured != 1):
        raise ValueError(f"loads are for times without an axis of parts; got {loads!r}")
    limits = np.finfo(np.float32)
    if not np.all((table > limits.tiny) & ((table < limits.max) | np.isinf(table))):
        raise ValueError(
            "times of a part must be numbers that float32 has; got "
            f"{table.min()} to {np.max(table, where=np.isfinite(table), initial=0)}"
        )
    # Seconds after the first parts: none, one, two, ...
    after = np.concatenate([np.zeros_like(table[:, :, :1]), table.cumsum(-1)], -1)

    def init(num_workers):
        nobody = no_workers(num_workers)
        if num_workers > num_measured and not (replace or resample == "cells"):
            raise ValueError(
                f"the trace must have at least {num_workers} workers; got "
                f"{num_measured}: replace=True lets several have the same history"
            )
        return {"workers": nobody, "rounds": nobody}

    def sample(key, state, loads):
        worker_key, round_key = jax.random.split(_validation.check_key(key))
        loads = loads_of(loads, state["workers"])
        shape = loads.shape
        if resample == "cells":
            workers = jax.random.randint(worker_key, shape, 0, num_measured)
            rounds = jax.random.randint(round_key, shape, 0, num_rounds)
            return _seconds(after, rounds, workers, loads), state
        is_first = state["workers"] < 0
        workers = chosen_workers(worker_key, state["workers"], num_measured)
        if resample == "rounds":
            rounds = jnp.full(shape, jax.random.randint(round_key, (), 0, num_rounds))
        else:
            begins = jax.random.randint(round_key, shape, 0, num_rounds)
            rounds = jnp.where(is_first, begins, (state["rounds"] + 1) % num_rounds)
        times = _seconds(after, rounds, workers, loads)
        rounds = rounds.astype(state["rounds"].dtype)
        return times, {"workers": workers, "rounds": rounds}

    whole = after[..., -1]
    longest = np.max(whole, where=np.isfinite(whole), initial=0) / table.shape[-1]
    probability = min(_RULE_OF_THREE / whole.size, 1.0)

    @functools.lru_cache
    def stalls(tail):
        def with_stalls(key, state, loads):
            times, state = sample(key, state, loads)
            stall_key = jax.random.fold_in(key, 1)
            is_stalled = jax.random.bernoulli(stall_key, probability, times.shape)
            stalled = jnp.maximum(times, tail * longest * loads_of(loads))
            return jnp.where(is_stalled, stalled, times), state

        delay = DelayModel(init, with_stalls)
        return Stalls(delay, probability, float(tail * longest), num_rounds)

    return DelayModel(init, sample, stalls=stalls)


def _seconds(
    after: np.ndarray, rounds: jax.Array, workers: jax.Array, loads: jax.Array
) -> jax.Array:
    """Times (num_workers,) of the loads, from those after each part."""
    own = jnp.asarray(after, loads.dtype)[rounds, workers]
    num_parts = own.shape[-1] - 1
    # How often it goes through all parts, and how many more it takes.
    times_all = jnp.floor(loads / num_parts)
    rest = loads - times_all * num_parts
    first = jnp.clip(jnp.floor(rest), 0, num_parts - 1).astype(int)[:, None]
    begin, end = (
        jnp.take_along_axis(own, place, axis=1)[:, 0] for place in (first, first + 1)
    )
    share = rest - first[:, 0]

    # None of something that takes forever is nothing.
    def part(count, seconds):
        return jnp.where(count > 0, count * jnp.where(count > 0, seconds, 0), 0)

    step = jnp.where(jnp.isfinite(end), end - begin, jnp.inf)
    return part(times_all, own[:, -1]) + begin + part(share, step)
