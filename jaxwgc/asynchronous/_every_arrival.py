"""Rules that apply every gradient as it arrives."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwgc._common.pytrees import register
from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule, Decision


@register
@dataclasses.dataclass(frozen=True)
class every_arrival(AsynchronousRule):
    """Applies every gradient as it arrives, however stale: asynchronous SGD.

    With parts that differ, fast workers pull the parameters to their own parts: the
    steps of a worker are as many as its gradients.

    Example:
      >>> from jaxwgc import asynchronous
      >>> asynchronous.every_arrival()
      every_arrival()

    References:
      Mishchenko, Bach, Even, Woodworth, "Asynchronous SGD beats minibatch SGD under
      arbitrary delays", 2022; Koloskova, Stich, Jaggi, "Sharper convergence guarantees
      for asynchronous SGD for distributed and federated learning", 2022.
    """

    def decide(self, arrival: Arrival, state: Any) -> tuple[Decision, Any]:
        """Decides to update by the scaled gradient; returns also the next state."""
        factor, state = self.factor(arrival, state)
        gradient = optax.tree.scale(factor, arrival.gradient)
        return Decision(True, gradient, arrival.is_worker), state

    def factor(self, arrival: Arrival, state: Any) -> tuple[jax.Array, Any]:
        """Returns the factor of the gradient, here 1, and the next state."""
        return jnp.ones(()), state


@register
@dataclasses.dataclass(frozen=True)
class delay_adaptive(every_arrival):
    """Applies every gradient, with a smaller step size if it is very stale.

    The factor of the step size is n / max(n, staleness) for n workers.

    Example:
      >>> from jaxwgc import asynchronous
      >>> asynchronous.delay_adaptive()
      delay_adaptive()

    References:
      Mishchenko, Bach, Even, Woodworth, "Asynchronous SGD beats minibatch SGD under
      arbitrary delays", 2022 (delay-adaptive step sizes).
    """

    def factor(self, arrival: Arrival, state: Any) -> tuple[jax.Array, Any]:
        """Returns the factor n / max(n, staleness), and the next state."""
        num_workers = arrival.staleness.size
        staleness = arrival.staleness[arrival.worker]
        return num_workers / jnp.maximum(num_workers, staleness).astype(float), state


class _MeanTimes(NamedTuple):
    """Total time and number of the computations of each worker."""

    totals: jax.Array
    counts: jax.Array


@register
@dataclasses.dataclass(frozen=True)
class rescaled(every_arrival):
    """Applies every gradient, with a step size proportional to its worker's mean time.

    Slow workers, which own their parts, then count as much as fast ones. The paper
    takes times that are fixed and known. Here a worker's time is the mean time of its
    computations so far, relative to the mean of all workers that have responded.

    Example:
      >>> from jaxwgc import asynchronous
      >>> asynchronous.rescaled()
      rescaled()

    References:
      Mahran, Maranjyan, Richtárik, "Rescaled asynchronous SGD: optimal distributed
      optimization under data and system heterogeneity", 2026 (arXiv 2605.13434).
    """

    def init(self, params: Any, num_workers: int) -> _MeanTimes:
        """Returns the state before the first arrival: times and counts of zero."""
        return _MeanTimes(jnp.zeros(num_workers), jnp.zeros(num_workers))

    def factor(self, arrival: Arrival, state: _MeanTimes) -> tuple[jax.Array, Any]:
        """Returns the worker's mean time, relative to all workers, and the next state.

        The mean over workers includes only workers with an arrival.
        """
        totals = state.totals + jnp.where(arrival.is_worker, arrival.seconds, 0)
        counts = state.counts + arrival.is_worker
        means = totals / jnp.maximum(counts, 1)
        mean_of_all = jnp.sum(means) / jnp.sum(counts > 0)
        return means[arrival.worker] / mean_of_all, _MeanTimes(totals, counts)
