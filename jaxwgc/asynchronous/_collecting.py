"""Rules that collect gradients for one averaged step: FedBuff and Rennala."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._common import validation
from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule, Decision, scaled


class _Collection(NamedTuple):
    """Sum and number of the gradients that are collected for a step."""

    total: Any
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class fedbuff(AsynchronousRule):
    """Collects gradients of any staleness, and takes their mean as one step.

    A worker begins anew with the newest parameters as soon as it has responded.

    Attributes:
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

    size: int

    def __post_init__(self):
        validation.check_int("size", self.size, minimum=1)

    def init(self, params: Any, num_workers: int) -> _Collection:
        """Returns an empty collection."""
        return _Collection(jax.tree.map(jnp.zeros_like, params), jnp.int32(0))

    def decide(self, arrival: Arrival, state: _Collection) -> tuple[Decision, Any]:
        """Returns an update if the collection is complete."""
        return self._collected(arrival, state, jnp.array(True))

    def _collected(
        self, arrival: Arrival, state: _Collection, is_used: jax.Array
    ) -> tuple[Decision, Any]:
        """Returns what follows an arrival whose gradient may be used."""
        total = jax.tree.map(
            lambda total, new: total + jnp.where(is_used, new, 0),
            state.total,
            arrival.gradient,
        )
        count = state.count + is_used
        is_full = count == self.size
        remaining = jax.tree.map(
            lambda leaf: jnp.where(is_full, 0, leaf), _Collection(total, count)
        )
        mean = scaled(total, 1 / self.size)
        return Decision(is_full, mean, arrival.is_worker), remaining


@dataclasses.dataclass(frozen=True)
class rennala(fedbuff):
    """Collects gradients of the newest parameters, and takes their mean as one step.

    All workers then begin anew, so that no gradient is stale. A fast worker may
    contribute several gradients to a step.

    Attributes:
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
        """Returns an update if the collection is complete; all workers then restart."""
        is_fresh = arrival.staleness[arrival.worker] == 0
        decision, state = self._collected(arrival, state, is_fresh)
        restarts = decision.restarts | decision.is_update
        return decision._replace(restarts=restarts), state
