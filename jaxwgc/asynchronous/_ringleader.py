"""Ringleader: a rule for workers with unequal parts, with gradients of all."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwgc._common.pytrees import register
from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule, Decision


class _Table(NamedTuple):
    """State of `ringleader`: summed gradients of each worker.

    Attributes:
      sums: Sums of the gradients of each worker since it began anew, leaves
        (num_workers, ...).
      counts: Numbers of these gradients, int32 (num_workers,).
      is_awaited: Whether a worker has not begun anew in this round, bool
        (num_workers,).
      other_means: Sum of the means of this round of the other workers, like params.
    """

    sums: Any
    counts: jax.Array
    is_awaited: jax.Array
    other_means: Any


@register
@dataclasses.dataclass(frozen=True)
class ringleader(AsynchronousRule):
    """Collects gradients of all workers, then takes one step per worker.

    A round first collects until each worker has a gradient in the table. There are then
    exactly n steps by (1/n) Σ Gᵢ/bᵢ, with the sum Gᵢ and the number bᵢ of the gradients
    of worker i. After each, another worker is given the newest parameters: the one that
    has completed the table, and then each at its next arrival, whose gradient is added
    before the step. Gradients of workers that have begun anew are for the next round.
    All gradients of a worker in the table are of the same parameters, and staleness is
    at most 2n - 2.

    Example:
      >>> from jaxwgc import asynchronous
      >>> asynchronous.ringleader()
      ringleader()

    References:
      Maranjyan, Richtárik, "Ringleader ASGD: the first asynchronous SGD with optimal
      time complexity under data heterogeneity", ICLR 2026 (arXiv 2509.22860;
      algorithm 1).
    """

    def init(self, params: Any, num_workers: int) -> _Table:
        """Returns the state without gradients, in which all workers are awaited."""

        def empty(leaf):
            return jnp.zeros((num_workers, *leaf.shape), leaf.dtype)

        return _Table(
            sums=jax.tree.map(empty, params),
            counts=jnp.zeros(num_workers, jnp.int32),
            is_awaited=jnp.ones(num_workers, bool),
            other_means=optax.tree.zeros_like(params),
        )

    def decide(self, arrival: Arrival, state: _Table) -> tuple[Decision, _Table]:
        """Decides to update if the table is complete; returns also the next state.

        The table is complete if it has a gradient of each awaited worker. The worker
        that has arrived must be awaited, too.
        """
        num_workers = arrival.staleness.size
        zeros = optax.tree.zeros_like(arrival.gradient)
        added = jax.vmap(optax.tree.add, (0, None))(state.sums, arrival.gradient)
        sums = jax.vmap(optax.tree.where)(arrival.is_worker, added, state.sums)
        counts = state.counts + arrival.is_worker

        def sum_of_means(is_in):
            def mean(total, count):
                return jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1), total)

            means = jax.vmap(mean)(sums, counts)
            terms = jax.vmap(optax.tree.where, (0, 0, None))(is_in, means, zeros)
            return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), terms)

        total = optax.tree.add(state.other_means, sum_of_means(state.is_awaited))
        is_complete = jnp.all((counts > 0) | ~state.is_awaited)
        begins = arrival.is_worker & state.is_awaited & is_complete
        is_awaited = state.is_awaited & ~begins
        is_over = ~jnp.any(is_awaited)
        other_means = optax.tree.add(state.other_means, sum_of_means(begins))
        table = _Table(
            sums=jax.vmap(optax.tree.where, (0, None, 0))(begins, zeros, sums),
            counts=jnp.where(begins, 0, counts),
            is_awaited=is_awaited | is_over,
            other_means=optax.tree.where(is_over, zeros, other_means),
        )
        gradient = optax.tree.scale(1 / num_workers, total)
        return Decision(jnp.any(begins), gradient, begins), table
