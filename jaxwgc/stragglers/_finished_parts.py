"""The parts that workers have finished when a round ends."""

import jax
import jax.numpy as jnp

from jaxwgc.stragglers._types import Arrivals

# Finish times, the time that has passed, their ratio and its product with the load are
# rounded once or twice each, by half an eps.
_ROUNDINGS = 4


def finished_parts(loads: jax.Array, times: jax.Array, arrivals: Arrivals) -> jax.Array:
    """Parts that were finished after `elapsed` of the time that all of them take.

    The last part is finished where the worker was received, and only there: the waiting
    rule has decided that, and this agrees with it, ties and all.
    """
    times = jnp.asarray(times)
    elapsed = jnp.asarray(arrivals.elapsed)
    dtypes = [array.dtype for array in (times, elapsed)]
    floats = [dtype for dtype in dtypes if jnp.isdtype(dtype, "real floating")]
    coarsest = max([float(jnp.finfo(dtype).eps) for dtype in floats], default=0.0)
    slack = _ROUNDINGS * coarsest
    elapsed = elapsed.astype(jnp.promote_types(elapsed.dtype, jnp.float32))
    all_parts = jnp.ceil(loads)
    # The share of the work that is done; none in no time where it takes forever.
    share = jnp.where(times > 0, elapsed / jnp.where(times > 0, times, 1), 1)
    share = jnp.where(times < jnp.inf, jnp.clip(share, 0, 1), 0)
    # Where exactly a part is finished, rounding may have left a little less than it.
    parts = jnp.floor(loads * share * (1 + slack))
    parts = jnp.where(
        arrivals.received, all_parts, jnp.clip(parts, 0, jnp.maximum(all_parts - 1, 0))
    )
    return parts.astype(jnp.int32)
