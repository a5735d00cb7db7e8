"""Ringleader: a table of gradients of all workers, for parts that differ."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule, Decision, by_worker


class _Table(NamedTuple):
    """Sums of gradients, leaves (num_workers, ...), and numbers (num_workers,)."""

    sums: Any
    counts: jax.Array

    def add(self, arrival: Arrival, is_added: jax.Array) -> "_Table":
        """Returns the table with a gradient, if it is added."""
        where = arrival.is_worker & is_added

        def added(sums, new):
            return sums + jnp.where(by_worker(where, sums), new, 0)

        sums = jax.tree.map(added, self.sums, arrival.gradient)
        return _Table(sums, self.counts + where)

    def mean(self) -> Any:
        """Returns the mean over workers of the mean of the gradients of each."""
        counts = jnp.maximum(self.counts, 1)

        def mean_of(sums):
            return jnp.mean(sums / by_worker(counts, sums).astype(sums.dtype), axis=0)

        return jax.tree.map(mean_of, self.sums)


class _Round(NamedTuple):
    """State of the rule.

    Attributes:
      table: Gradients of this round.
      next_table: Gradients of workers that have begun anew in this round.
      awaited: Workers that have not begun anew in this round, bool (num_workers,).
    """

    table: _Table
    next_table: _Table
    awaited: jax.Array


@dataclasses.dataclass(frozen=True)
class ringleader(AsynchronousRule):
    """Collects gradients of all workers, then takes a step for each of them.

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

    needs_all_workers = True

    def init(self, params: Any, num_workers: int) -> _Round:
        """Returns empty tables."""

        def empty(leaf):
            return jnp.zeros((num_workers, *jnp.shape(leaf)), jnp.result_type(leaf))

        table = _Table(jax.tree.map(empty, params), jnp.zeros(num_workers, jnp.int32))
        return _Round(table, table, jnp.ones(num_workers, bool))

    def decide(self, arrival: Arrival, state: _Round) -> tuple[Decision, _Round]:
        """Returns an update for each awaited worker, once the table is complete."""
        is_awaited = state.awaited[arrival.worker]
        table = state.table.add(arrival, is_awaited)
        next_table = state.next_table.add(arrival, ~is_awaited)
        is_update = is_awaited & jnp.all(table.counts > 0)
        restarts = arrival.is_worker & is_update
        awaited = state.awaited & ~restarts
        is_over = ~jnp.any(awaited)
        empty = jax.tree.map(jnp.zeros_like, next_table)

        def chosen(over, going_on):
            return jax.tree.map(
                lambda new, old: jnp.where(is_over, new, old), over, going_on
            )

        following = _Round(
            table=chosen(next_table, table),
            next_table=chosen(empty, next_table),
            awaited=awaited | is_over,
        )
        return Decision(is_update, table.mean(), restarts), following
