"""Straggler models made of a delay model and a waiting rule."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._targets import DECODES
from jaxwgc.stragglers._fastest import fastest
from jaxwgc.stragglers._inputs import loads_of
from jaxwgc.stragglers._types import DelayModel, StragglerModel, check_round
from jaxwgc.stragglers._waiting_rule import WaitingRule

# On which a rule is tried that looks as if it could not decode.
_NUM_ORDERS = 64


@dataclasses.dataclass(frozen=True)
class delayed(StragglerModel):
    """Finish times from a delay model, and a rule for how long the server waits.

    Args:
      delay: such as `shifted_exponential`, `pareto` or `bernoulli_slowdown`.
      wait: such as `fastest`, `deadline` or `until_decodable`.
      late: what workers do that have not answered when a round ends. `"cancelled"` ones
        stop, and all begin each round afresh: so it is where workers are told to stop,
        or send finished parts on request. `"busy"` ones go on, answer late, and join
        the round in which that happens: so it is where workers cannot be interrupted,
        as those of `jaxwgc.distributed.RayCluster` that send one message. One that
        would take forever is replaced, and joins the next round.

    Raises:
      ValueError: where late is neither of the two, or `"busy"` with a rule that waits
        for a code of several messages a worker.
      TypeError: where delay is no delay model or wait no waiting rule, or (at `sample`)
        one breaks its contract.

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

    delay: DelayModel
    wait: WaitingRule
    late: str = "cancelled"

    def __post_init__(self):
        _validation.check_choice("late", self.late, ("cancelled", "busy"))
        _validation.check_instance("delay", self.delay, DelayModel)
        _validation.check_instance("wait", self.wait, WaitingRule)
        per_worker = getattr(self.wait.code, "messages_per_worker", 1)
        is_right = self.late == "cancelled" or per_worker == 1
        rule = 'be "cancelled" for a code of several messages per worker'
        _validation.require(is_right, "late", rule, self.late)

    def init(self, num_workers):
        """Returns the state of the delay model, and with it how long who is busy."""
        state = self.delay.init(num_workers)
        if self.late == "cancelled":
            return state
        return state, jnp.zeros(num_workers, jnp.result_type(float))

    def sample(self, key, state, loads):
        """Draws the times of a round, and asks the rule."""
        delay_key, wait_key = jax.random.split(key)
        loads = loads_of(loads)
        is_busy = self.late == "busy"
        state, remaining = state if is_busy else (state, 0)
        times, state = self.delay.sample(delay_key, state, loads)
        name = f"times of {type(self.delay).__name__}"
        _validation.check_shape(name, times, "(num_workers,)", loads.shape)
        arrivals = self.wait.arrivals(wait_key, remaining + times)
        check_round(f"{type(self.wait).__name__}.arrivals", arrivals, len(loads))
        if not is_busy:
            return arrivals, state
        joined, late, after = _busy_round(
            remaining, times, arrivals.elapsed, arrivals.received
        )
        arrivals = arrivals._replace(joined=joined, late=late)
        return arrivals, (state, after.astype(jnp.result_type(float)))

    def warn_where_undecodable(self, code: Any, decoder: Any = None) -> None:
        """Warns where the waiting rule ends rounds before the code decodes.

        Rules that wait for fewer workers than are always enough, or for another code,
        are tried on random orders of arrival.
        """
        wait = self.wait
        if _validation.is_traced(code, wait) or code.messages_per_worker > 1:
            return
        num_workers = code.num_workers
        enough = num_workers - int(np.asarray(code.num_stragglers))
        if wait.code is not None:
            # Codes of one assignment differ by the weights of their parts.
            is_early = not np.array_equal(wait.code.assignment, code.assignment)
            rule = f"until another code decodes, {wait.code}"
        elif isinstance(wait, fastest):
            # Approximate codes do not say how many answers are enough.
            is_early = wait.num_required < enough and code.num_stragglers > 0
            rule = f"for the {wait.num_required} fastest of {num_workers} workers"
        else:
            return
        if not is_early:
            return
        times = np.tile(np.arange(num_workers, dtype=np.float32), (_NUM_ORDERS, 1))
        times = np.random.default_rng(0).permuted(times, axis=1)
        # The model may be made while something else is traced.
        with jax.ensure_compile_time_eval():
            keys = jax.random.split(jax.random.key(0), _NUM_ORDERS)
            received = jax.vmap(wait.arrivals)(keys, jnp.asarray(times)).received
            num_decoded = int(code.decodes(received, DECODES, decoder).sum())
        if num_decoded > _NUM_ORDERS / 10:
            return
        warnings.warn(
            f"model waits {rule}; code then decodes in {num_decoded} of {_NUM_ORDERS} "
            "random orders of arrival: other rounds give an approximate gradient, and "
            f"count in num_undecodable. Any {enough} answers are enough: take "
            f"stragglers.fastest({enough}), or stragglers.until_decodable of this code",
            stacklevel=3,
        )


def _busy_round(
    remaining: Any, times: Any, elapsed: Any, received: Any
) -> tuple[Any, Any, Any]:
    """Returns who joins a round, whose last answer comes late in it, and who goes on.

    Args:
      remaining: (..., num_workers), for how long workers are busy with the last one.
      times: of that shape, that they need for this one.
      elapsed: (..., 1) or a scalar, when the round ends.
      received: bool, of the shape of remaining, whose answer has come in time.

    Returns:
      Bools `joined` and `late` as in `Arrivals`, and how long workers are busy after
      the round: 0 for those who would take forever, since they are replaced.
    """
    joined = remaining <= elapsed
    after = jnp.where(joined, remaining + times, remaining) - elapsed
    is_free = received | ~jnp.isfinite(after)
    return joined, joined & (remaining > 0), jnp.where(is_free, 0, after)
