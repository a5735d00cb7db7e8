"""Straggler models made of a delay model and a waiting rule."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.stragglers._finished_parts import finished_parts
from jaxwgc.stragglers._inputs import check_model, loads_of, made_of_jax, times_of
from jaxwgc.stragglers._types import DelayModel, StragglerModel, is_round
from jaxwgc.stragglers._waiting_rule import WaitingRule


@dataclasses.dataclass(frozen=True)
class delayed(StragglerModel):
    """Finish times from a delay model, and a rule for how long the server waits.

    It reports the parts that each worker had finished when the round ended: workers go
    through their parts one by one, at constant speed.

    Args:
      delay: such as `shifted_exponential`, `pareto` or `bernoulli_slowdown`.
      wait: such as `fastest`, `deadline` or `until_decodable`.

    Raises:
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

    def __post_init__(self):
        check_model("delay", self.delay, DelayModel)
        if not isinstance(self.wait, WaitingRule):
            raise TypeError(f"wait must be a waiting rule; got {self.wait!r}")

    def init(self, num_workers):
        """Returns the state of the delay model."""
        return self.delay.init(num_workers)

    def sample(self, key, state, loads):
        """Draws the times of a round, and asks the rule."""
        delay_key, wait_key = jax.random.split(_validation.check_key(key))
        loads = loads_of(loads)
        with made_of_jax("delay"):
            times, state = self.delay.sample(delay_key, state, loads)
        if jnp.shape(times) != loads.shape:
            raise ValueError(
                f"delay must give times {loads.shape} for loads of that shape; got "
                f"{jnp.shape(times)}"
            )
        times = times_of(times, "times of delay")
        with made_of_jax("wait"):
            arrivals = self.wait.arrivals(wait_key, times)
        if not is_round(arrivals, len(loads)):
            raise TypeError(
                f"wait must have arrivals with bools received {loads.shape} and a real "
                f"scalar elapsed; got {arrivals!r}: {self.wait!r}"
            )
        if arrivals.finished is None:
            finished = finished_parts(loads, times, arrivals)
            arrivals = arrivals._replace(finished=finished)
        return arrivals, state
