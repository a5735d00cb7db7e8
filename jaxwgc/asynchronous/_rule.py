"""Base class of asynchronous rules, which decide what each gradient changes."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Arrival(NamedTuple):
    """Gradient that arrives at the coordinator, with its worker and staleness.

    Attributes:
      worker: Index of its worker, int32 scalar.
      gradient: Its estimate of the gradient of the total loss, at the parameters that
        the worker was given; a pytree like params.
      staleness: Updates since each worker was given its parameters, int32
        (num_workers,).
      seconds: Time that its computation took, float scalar, in the unit of the delay
        model.
    """

    worker: jax.Array
    gradient: Any
    staleness: jax.Array
    seconds: jax.Array

    @property
    def is_worker(self) -> jax.Array:
        """Mask of the worker that computed the gradient, bool (num_workers,)."""
        return jnp.arange(self.staleness.size) == self.worker


class Decision(NamedTuple):
    """Decision of a rule on an arriving gradient: update or not, and restarts.

    Attributes:
      is_update: Whether the optimizer updates the parameters, bool scalar.
      gradient: Gradient of the update, a pytree like params; anything without one.
      restarts: Workers that are given the newest parameters, bool (num_workers,). They
        stop what they compute. The worker of the gradient begins anew in any case: if
        it is not marked here, with the parameters that it has.
    """

    is_update: jax.Array | bool
    gradient: Any
    restarts: jax.Array


class AsynchronousRule(abc.ABC):
    """Base class of asynchronous rules: pure functions of a state and an arrival.

    To write your own, define a class with `decide`, and with `init` if it has a state.
    Its objects must not change: a race compiles a program for each.

    Example:
      Steps half as long for gradients that are stale:

      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import asynchronous
      >>> class HalfIfStale(asynchronous.AsynchronousRule):
      ...     def decide(self, arrival, state):
      ...         is_stale = arrival.staleness[arrival.worker] > 0
      ...         scale = jnp.where(is_stale, 0.5, 1.0)
      ...         gradient = jax.tree.map(lambda g: scale * g, arrival.gradient)
      ...         decision = asynchronous.Decision(True, gradient, arrival.is_worker)
      ...         return decision, state
    """

    def init(self, params: Any, num_workers: int) -> Any:
        """Returns the state before the first arrival."""
        return ()

    @abc.abstractmethod
    def decide(self, arrival: Arrival, state: Any) -> tuple[Decision, Any]:
        """Returns what an arriving gradient changes, and the next state."""
