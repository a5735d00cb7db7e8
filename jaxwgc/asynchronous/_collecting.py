"""Rules that average several gradients for each step: FedBuff and Rennala."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwgc._common import validation
from jaxwgc._common.pytrees import Static, register
from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule, Decision


class _Collection(NamedTuple):
    """Sum and number of the gradients that were collected for the next step."""

    total: Any
    number: jax.Array


@register
@dataclasses.dataclass(frozen=True)
class fedbuff(AsynchronousRule):
    """Averages `size` gradients of any staleness for each step.

    A worker begins anew with the newest parameters as soon as it has responded.

    Args:
      size: Number K of gradients per step, at least 1.

    Raises:
      ValueError: If size is below 1.
      TypeError: If size is not an int.

    Example:
      >>> from jaxwgc import asynchronous
      >>> asynchronous.fedbuff(size=8)
      fedbuff(size=8)

    References:
      Nguyen et al., "Federated learning with buffered asynchronous aggregation",
      AISTATS 2022.
    """

    size: Static[int]

    def __post_init__(self):
        validation.check_int("size", self.size, minimum=1)

    def init(self, params: Any, num_workers: int) -> _Collection:
        """Returns the state before the first gradient: a sum and a number of zero."""
        return _Collection(optax.tree.zeros_like(params), jnp.int32(0))

    def decide(self, arrival: Arrival, state: _Collection) -> tuple[Decision, Any]:
        """Decides to update at each `size`-th gradient; returns also the next state."""
        total = optax.tree.add(state.total, arrival.gradient)
        number = state.number + 1
        is_complete = number == self.size
        mean = optax.tree.scale(1 / self.size, total)
        remaining = _Collection(
            total=optax.tree.where(is_complete, optax.tree.zeros_like(total), total),
            number=number % self.size,
        )
        return Decision(is_complete, mean, arrival.is_worker), remaining


@register
@dataclasses.dataclass(frozen=True)
class rennala(fedbuff):
    """Averages `size` gradients of the newest parameters for each step.

    After the step all workers stop, and begin anew, so that no gradient is stale. A
    fast worker may contribute several gradients to a step.

    Args:
      size: Number B of gradients per step, at least 1.

    Raises:
      ValueError: If size is below 1.
      TypeError: If size is not an int.

    Example:
      >>> from jaxwgc import asynchronous
      >>> asynchronous.rennala(size=8)
      rennala(size=8)

    References:
      Tyurin, Richtárik, "Optimal time complexities of parallel stochastic optimization
      methods under a fixed computation model", NeurIPS 2023 (arXiv 2305.12387).
    """

    def decide(self, arrival: Arrival, state: _Collection) -> tuple[Decision, Any]:
        """Decides like `fedbuff`, but restarts all workers after an update.

        Returns also the next state.
        """
        decision, state = super().decide(arrival, state)
        restarts = decision.restarts | decision.is_update
        return decision._replace(restarts=restarts), state
