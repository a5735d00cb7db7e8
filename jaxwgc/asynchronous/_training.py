"""Asynchronous training, by a scan over arriving gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc.asynchronous._problem import Problem
from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule
from jaxwgc.stragglers import DelayModel


class TrainingState(NamedTuple):
    """State of a cluster whose workers do not wait for each other.

    Attributes:
      params: Newest parameters.
      copies: Parameters that each worker was given, leaves (num_workers, ...).
      optimizer_state: State of the optimizer.
      rule_state: State of the rule.
      given_at: Updates before each worker was given its parameters, int32
        (num_workers,).
      num_begun: Computations that each worker has begun, int32 (num_workers,).
      finishes: When each worker finishes the last of them, (num_workers,); infinity if
        never.
      num_updates: Updates of the parameters, int32.
    """

    params: Any
    copies: Any
    optimizer_state: Any
    rule_state: Any
    given_at: jax.Array
    num_begun: jax.Array
    finishes: jax.Array
    num_updates: jax.Array


class Event(NamedTuple):
    """Record of an arrival: its time, worker and staleness.

    Attributes:
      time: When the gradient arrived; infinity if no worker responds any more.
      worker: Index of its worker, int32.
      staleness: Updates since the worker was given its parameters, int32.
      is_update: Whether the parameters were updated, bool.
    """

    time: jax.Array
    worker: jax.Array
    staleness: jax.Array
    is_update: jax.Array


class AsynchronousCluster(NamedTuple):
    """Simulated cluster in which workers do not wait for each other.

    Attributes:
      rule: Rule that decides what an arrival changes.
      problem: Loss and parts.
      optimizer: Optimizer of the updates.
      times: Times of the computations of each worker, (num_times, num_workers). A
        worker with more computations repeats them.
      key: PRNG key of the parts that are drawn.
    """

    rule: AsynchronousRule
    problem: Problem
    optimizer: optax.GradientTransformation
    times: jax.Array
    key: jax.Array

    def start(self) -> TrainingState:
        """Returns the state in which all workers begin with the first parameters."""
        num_workers = self.problem.num_workers
        params = jax.tree.map(jnp.asarray, self.problem.start)
        zeros = jnp.zeros(num_workers, jnp.int32)

        def copied(leaf):
            return jnp.broadcast_to(leaf, (num_workers, *leaf.shape))

        return TrainingState(
            params=params,
            copies=jax.tree.map(copied, params),
            optimizer_state=self.optimizer.init(params),
            rule_state=self.rule.init(params, num_workers),
            given_at=zeros,
            num_begun=zeros + 1,
            finishes=self.times[0],
            num_updates=jnp.int32(0),
        )

    def next_end(self, state: TrainingState) -> jax.Array:
        """Returns the time of the next arrival."""
        return jnp.min(state.finishes)

    def following(self, state: TrainingState) -> TrainingState:
        """Returns the state after the next arrival."""
        return self.advance(state)[0]

    def advance(self, state: TrainingState) -> tuple[TrainingState, Event]:
        """Returns the state after the next arrival, and a record of the arrival."""
        worker = jnp.argmin(state.finishes).astype(jnp.int32)
        now = state.finishes[worker]
        arrival = Arrival(
            worker=worker,
            gradient=self._gradient(state, worker),
            staleness=state.num_updates - state.given_at,
            seconds=self._seconds(state.num_begun)[worker],
        )
        decision, rule_state = self.rule.decide(arrival, state.rule_state)
        # If the next arrival is at time infinity, no worker responds any more.
        is_update = decision.is_update & jnp.isfinite(now)
        gradient = optax.tree.cast_like(decision.gradient, state.params)
        changes, optimizer_state = self.optimizer.update(
            gradient, state.optimizer_state, state.params
        )
        newest = optax.apply_updates(state.params, changes)
        params = optax.tree.where(is_update, newest, state.params)
        num_updates = state.num_updates + is_update
        begins = decision.restarts | arrival.is_worker
        num_begun = state.num_begun + begins
        following = TrainingState(
            params=params,
            copies=jax.vmap(optax.tree.where, (0, None, 0))(
                decision.restarts, params, state.copies
            ),
            optimizer_state=optax.tree.where(
                is_update, optimizer_state, state.optimizer_state
            ),
            rule_state=rule_state,
            given_at=jnp.where(decision.restarts, num_updates, state.given_at),
            num_begun=num_begun,
            finishes=jnp.where(begins, now + self._seconds(num_begun), state.finishes),
            num_updates=num_updates,
        )
        event = Event(
            time=now,
            worker=worker,
            staleness=arrival.staleness[worker],
            is_update=is_update,
        )
        return following, event

    def _gradient(self, state: TrainingState, worker: jax.Array) -> Any:
        """Computes the gradient of a worker at the parameters that it was given."""
        params = jax.tree.map(lambda leaf: leaf[worker], state.copies)
        key = jax.random.fold_in(self.key, worker)
        key = jax.random.fold_in(key, state.num_begun[worker])
        return self.problem.gradient(params, worker, key)

    def _seconds(self, num_begun: jax.Array) -> jax.Array:
        """Returns the duration of the computation that each worker has begun last."""
        places = (num_begun - 1) % len(self.times)
        return self.times[places, jnp.arange(places.size)]


def drawn_times(
    delay: DelayModel, key: jax.Array, num_workers: int, num_times: int
) -> jax.Array:
    """Draws the durations of `num_times` successive computations of each worker."""
    loads = jnp.ones(num_workers)

    def draw(state, key):
        times, state = delay.sample(key, state, loads)
        return state, times

    keys = jax.random.split(key, num_times)
    return jax.lax.scan(draw, delay.init(num_workers), keys)[1]


def train(
    rule: AsynchronousRule,
    problem: Problem,
    delay: DelayModel,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    num_arrivals: int,
) -> tuple[TrainingState, Event]:
    """Trains with simulated workers that do not wait for each other.

    A worker computes a gradient at the parameters that it was given, for the time that
    the delay model draws at load 1. The rule decides what follows its arrival. The j-th
    computation of a worker takes its time in the j-th round of the delay model.

    A pure function of the key: vmap it over keys, and jit it.

    Args:
      rule: Asynchronous rule, e.g. `asynchronous.every_arrival()`.
      problem: Loss, parts, first parameters and number of workers.
      delay: Delay model.
      optimizer: Optimizer that gets the gradients of the rule: estimates of the
        gradient of the total loss.
      key: PRNG key of either kind.
      num_arrivals: Number of arrivals.

    Returns:
      The last state, and the `Event` of each arrival, (num_arrivals,).

    Raises:
      ValueError: If num_arrivals is below 1.
      TypeError: If an argument has the wrong type.

    Example:
      Twenty gradients of four workers, one of which is slow:

      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxwgc import asynchronous, stragglers
      >>> problem = asynchronous.Problem(
      ...     loss=lambda params, part: jnp.sum((params - part) ** 2),
      ...     parts=jnp.array([[1.0], [2.0], [3.0], [4.0]]),
      ...     start=jnp.zeros(1),
      ...     num_workers=4,
      ... )
      >>> law = stragglers.bernoulli_slowdown(probability=0.0, slowdown=1.0)
      >>> state, events = asynchronous.train(
      ...     asynchronous.ringleader(),
      ...     problem,
      ...     stragglers.unequal_speeds(law, [1, 1, 1, 0.25]),
      ...     optax.sgd(0.05),
      ...     jax.random.key(0),
      ...     num_arrivals=20,
      ... )
      >>> int(state.num_updates), float(events.time[-1])
      (4, 7.0)
    """
    validation.check_instance("rule", rule, AsynchronousRule)
    validation.check_instance("problem", problem, Problem)
    validation.check_instance("delay", delay, DelayModel)
    validation.check_instance("optimizer", optimizer, optax.GradientTransformation)
    key = jnp.asarray(array_validation.check_key(key))
    num_arrivals = validation.check_int("num_arrivals", num_arrivals, minimum=1)
    key_of_times, key_of_parts = jax.random.split(key)
    cluster = AsynchronousCluster(
        rule=rule,
        problem=problem,
        optimizer=optimizer,
        times=drawn_times(delay, key_of_times, problem.num_workers, num_arrivals + 1),
        key=key_of_parts,
    )

    def advance(state, _):
        return cluster.advance(state)

    return jax.lax.scan(advance, cluster.start(), length=num_arrivals)
