"""Straggler models that combine a delay model and a waiting rule."""

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

# Number of random orders of arrival on which a suspicious waiting rule is tested.
_NUM_ORDERS = 64


@dataclasses.dataclass(frozen=True)
class delayed(StragglerModel):
    """Rounds with finish times from a delay model and an end from a waiting rule.

    Args:
      delay: Delay model, e.g. `shifted_exponential`, `pareto` or `bernoulli_slowdown`.
      wait: Waiting rule, e.g. `fastest`, `deadline` or `until_decodable`.
      late: What workers do that have not responded when a round ends. `"cancelled"`
        workers stop, and all begin each round together: for clusters that tell workers
        to stop, or that request finished parts. `"busy"` workers continue, respond
        late, and join the round in which they respond: for clusters that cannot
        interrupt workers, e.g. `jaxwgc.distributed.RayCluster` with one message per
        worker. A worker that would never finish is replaced, and joins the next round.

    Raises:
      ValueError: If late is neither of the two, or `"busy"` with a rule for a code with
        several messages per worker.
      TypeError: If delay is not a delay model or wait not a waiting rule, or (in
        `sample`) one of them returns invalid results.

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
        """Returns the state of the delay model, and how long workers are busy."""
        state = self.delay.init(num_workers)
        if self.late == "cancelled":
            return state
        return state, jnp.zeros(num_workers, jnp.result_type(float))

    def sample(self, key, state, loads):
        """Draws finish times, and ends the round by the waiting rule."""
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
        """Warns if the waiting rule ends rounds before the code decodes.

        Rules that wait for too few workers, or for another code, are tested on random
        orders of arrival.
        """
        wait = self.wait
        if _validation.is_traced(code, wait) or code.messages_per_worker > 1:
            return
        num_workers = code.num_workers
        enough = num_workers - int(np.asarray(code.num_stragglers))
        if wait.code is not None:
            # Codes with equal assignments differ only in the weights of their parts.
            is_early = not np.array_equal(wait.code.assignment, code.assignment)
            rule = f"until another code decodes, {wait.code}"
        elif isinstance(wait, fastest):
            # Approximate codes do not say how many responses are enough.
            is_early = wait.num_required < enough and code.num_stragglers > 0
            rule = f"for the {wait.num_required} fastest of {num_workers} workers"
        else:
            return
        if not is_early:
            return
        times = np.tile(np.arange(num_workers, dtype=np.float32), (_NUM_ORDERS, 1))
        times = np.random.default_rng(0).permuted(times, axis=1)
        # The model may be created while something else is traced.
        with jax.ensure_compile_time_eval():
            keys = jax.random.split(jax.random.key(0), _NUM_ORDERS)
            received = jax.vmap(wait.arrivals)(keys, jnp.asarray(times)).received
            num_decoded = int(code.decodes(received, DECODES, decoder).sum())
        if num_decoded > _NUM_ORDERS / 10:
            return
        warnings.warn(
            f"model waits {rule}; code then decodes in {num_decoded} of {_NUM_ORDERS} "
            "random orders of arrival. Other rounds give an approximate gradient and "
            f"count in num_undecodable. Any {enough} responses are enough: use "
            f"stragglers.fastest({enough}), or stragglers.until_decodable of this code",
            stacklevel=3,
        )


def _busy_round(
    remaining: Any, times: Any, elapsed: Any, received: Any
) -> tuple[Any, Any, Any]:
    """Returns workers that join a round, workers that respond late, and busy times.

    Args:
      remaining: Time for which workers are busy with the previous round,
        (..., num_workers).
      times: Time that they need for this round, (..., num_workers).
      elapsed: Duration of the round, (..., 1) or a scalar.
      received: Whether the response came in time, bool (..., num_workers).

    Returns:
      Bools `joined` and `late` as in `Arrivals`, and the time for which workers are
      busy after the round: 0 for workers that would never finish, since they are
      replaced.
    """
    joined = remaining <= elapsed
    after = jnp.where(joined, remaining + times, remaining) - elapsed
    is_free = received | ~jnp.isfinite(after)
    return joined, joined & (remaining > 0), jnp.where(is_free, 0, after)
