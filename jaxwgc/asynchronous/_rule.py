"""Rules of asynchronous training: what an arriving gradient changes."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Arrival(NamedTuple):
    """A gradient that arrives at the coordinator.

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
        """True for the worker of the gradient."""
        return jnp.arange(self.staleness.size) == self.worker


class Decision(NamedTuple):
    """What an arriving gradient changes.

    Attributes:
      is_update: Whether the optimizer updates the parameters, bool scalar.
      gradient: Gradient of the update, a pytree like params; anything without one.
      restarts: Workers that are given the newest parameters, bool (num_workers,). They
        stop what they compute. The worker that has arrived begins anew in any case:
        unless it is among them, with the parameters that it has.
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
        """Decides what an arriving gradient changes."""
