"""Times at which workers finish their parts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common import array_validation

# Number of rounded quantities, each with an error of at most half a machine epsilon:
# the finish times of a worker and of a part, the share of the part, and the elapsed
# time.
_ROUNDINGS = 4


def finished_parts(
    times: jax.Array,
    part_times: jax.Array | None,
    elapsed: jax.Array,
    parts: ArrayLike,
) -> jax.Array:
    """Counts the parts that each worker has finished at a given time.

    Args:
      times: Finish time of each worker, (..., num_workers).
      part_times: When it has finished each of its parts, (..., num_workers, parts);
        None if workers take equal times for their parts.
      elapsed: Time at which parts are counted, (..., 1).
      parts: Number of parts of each worker, int (num_workers,).

    Raises:
      ValueError: If the times are those of whole loads, and workers have several parts.
    """
    # The margin covers rounding errors, by which a finished part may look unfinished.
    epsilon = max(jnp.finfo(times.dtype).eps, jnp.finfo(elapsed.dtype).eps)
    latest = elapsed * (1 + _ROUNDINGS * epsilon)
    if part_times is not None:
        _check_are_of_parts(part_times, parts)
        is_finished = (part_times <= latest[..., None]) & jnp.isfinite(part_times)
        count = is_finished.sum(axis=-1)
        return jnp.minimum(count, jnp.asarray(parts)).astype(jnp.int32)
    # Fraction of the work that is done. It is 1 if the time is zero, and 0 if it is
    # infinite.
    share = jnp.where(times > 0, latest / jnp.where(times > 0, times, 1), 1)
    share = jnp.where(times < jnp.inf, jnp.clip(share, 0, 1), 0)
    return jnp.floor(jnp.asarray(parts) * share).astype(jnp.int32)


def _check_are_of_parts(part_times: jax.Array, parts: ArrayLike) -> None:
    """Raises ValueError if a round was drawn without the times of parts."""
    if array_validation.is_traced(parts) or part_times.shape[-1] > 1:
        return
    most = int(np.max(np.asarray(parts)))
    if most > 1:
        raise ValueError(
            f"arrivals must have times of parts, because workers have up to {most} "
            "parts; got times of whole loads. Draw the round with "
            "model.sample_parts(key, state, code.loads, code.part_shares)"
        )


def at_constant_speed(times: jax.Array, shares: jax.Array) -> jax.Array:
    """Computes the finish times of parts for workers of constant speed.

    Args:
      times: Finish time of each worker, (num_workers,).
      shares: Share of the load after each part, (num_workers, parts). A share of 0
        takes no time, even for a lost worker.
    """
    is_positive = shares > 0
    scaled = times[:, None] * jnp.where(is_positive, shares, 1)
    return jnp.where(is_positive, scaled, 0)


def check_part_times(name: str, part_times: np.ndarray, times: np.ndarray) -> None:
    """Raises ValueError if the times of parts do not fit the times of whole loads.

    Args:
      name: Name of the delay model.
      part_times: (..., num_workers, parts).
      times: Finish times by `sample` with the same keys, (..., num_workers).
    """
    if part_times.shape[-1] == 1:
        # One part is the whole load.
        return
    with np.errstate(invalid="ignore"):
        steps = np.diff(part_times, axis=-1)
        # The difference of two infinite times is NaN, which is ignored.
        falls = np.nanmin(steps, initial=0.0)
        slack = _ROUNDINGS * np.finfo(part_times.dtype).eps * np.abs(times)
        distance = np.abs(part_times[..., -1] - times)
        is_off = distance > slack
    if falls < -np.nanmax(slack, where=np.isfinite(slack), initial=0.0):
        raise ValueError(
            f"part_times of {name} must never decrease from part to part; got a part "
            f"that ends {-falls:.6g} before the previous part"
        )
    if is_off.any():
        place = np.unravel_index(np.argmax(is_off), is_off.shape)
        raise ValueError(
            f"part_times of {name} must end with the time that sample draws with the "
            f"same key; got {part_times[..., -1][place]:.6g} instead of "
            f"{times[place]:.6g}"
        )
