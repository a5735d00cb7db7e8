"""Straggler models made of a delay model and a waiting rule."""

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import loads_of, made_of_jax
from jaxwgc.stragglers._types import Arrivals, DelayModel, StragglerModel, WaitingRule

# Finish times, the time that has passed, their ratio and its product with the load are
# rounded once or twice each, by half an eps.
_ROUNDINGS = 4


@equal_models
def delayed(delay: DelayModel, wait: WaitingRule) -> StragglerModel:
    """Finish times from a delay model, and a rule for how long the server waits.

    Args:
      delay: such as `shifted_exponential`, `pareto` or `bernoulli_slowdown`.
      wait: such as `fastest`, `deadline` or `until_decodable`.

    Returns:
      A straggler model. It reports the parts that each worker had finished when the
      round ended: workers go through their parts one by one, at constant speed.

    Raises:
      TypeError: where delay is no delay model or wait no function.

    Example:
      >>> import jax, jaxwgc
      >>> from jaxwgc import stragglers
      >>> model = stragglers.delayed(
      ...     stragglers.shifted_exponential(shift=1.0, rate=2.0), stragglers.fastest(3)
      ... )
      >>> loads = jax.numpy.ones(5)
      >>> arrivals, _ = model.sample(jax.random.key(0), model.init(5), loads)
      >>> int(arrivals.received.sum()), bool(arrivals.elapsed > 1.0)
      (3, True)

    References:
      Lee, Lam, Pedarsani, Papailiopoulos, Ramchandran, "Speeding up distributed
      machine learning using codes", 2018.
    """
    if not isinstance(delay, DelayModel):
        raise TypeError(f"delay must be a DelayModel; got {delay!r}")
    if not callable(wait):
        raise TypeError(f"wait must be a waiting rule; got {wait!r}")

    def sample(key, state, loads):
        delay_key, wait_key = jax.random.split(_validation.check_key(key))
        loads = loads_of(loads)
        with made_of_jax("delay"):
            times, state = delay.sample(delay_key, state, loads)
        if jnp.shape(times) != loads.shape:
            raise ValueError(
                f"delay must give times {loads.shape} for loads of that shape; got "
                f"{jnp.shape(times)}"
            )
        with made_of_jax("wait"):
            arrivals = wait(wait_key, times)
        if not isinstance(arrivals, Arrivals):
            raise TypeError(f"wait must be a waiting rule; got one giving {arrivals!r}")
        if arrivals.finished is None:
            arrivals = arrivals._replace(
                finished=finished_parts(loads, times, arrivals)
            )
        return arrivals, state

    return StragglerModel(delay.init, sample, wait)


def finished_parts(loads: jax.Array, times: jax.Array, arrivals: Arrivals) -> jax.Array:
    """Parts that were finished after `elapsed` of the time that all of them take.

    The last part is finished where the worker was received, and only there: the waiting
    rule has decided that, and this agrees with it, ties and all.
    """
    times = jnp.asarray(times)
    elapsed = jnp.asarray(arrivals.elapsed)
    slack = _ROUNDINGS * _coarsest_eps(times, elapsed)
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


def _coarsest_eps(*values: jax.Array) -> float:
    """The spacing of floats at one in the least precise of the arrays of floats."""
    floats = [
        value.dtype for value in values if jnp.isdtype(value.dtype, "real floating")
    ]
    return max([float(jnp.finfo(dtype).eps) for dtype in floats], default=0.0)
