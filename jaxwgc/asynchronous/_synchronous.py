"""Synchronous methods of a race: rounds with a code and a waiting rule."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwgc._common import validation
from jaxwgc.aggregate import coded_aggregate
from jaxwgc.asynchronous._problem import Problem
from jaxwgc.codes import GradientCode
from jaxwgc.gradients import partial_value_and_grad
from jaxwgc.simulation._rules import rule_of_code
from jaxwgc.stragglers import DelayModel, delayed


@dataclasses.dataclass(frozen=True, eq=False)
class synchronous:
    """Synchronous method of a race: rounds with a code and a waiting rule.

    With `codes.uncoded`, the rule `stragglers.fastest(n)` waits for all n workers, and
    a rule for fewer workers ignores the slowest. With memory, the newest message of a
    late worker counts until it responds.

    Args:
      code: Gradient code: with as many parts as the problem if workers own them, and as
        many as workers if each computation draws one.
      wait: Waiting rule, or a function of a code, e.g. `stragglers.until_decodable`.
      late: What late workers do: `"cancelled"` or `"busy"`.
      memory: Whether stored messages stand for missing ones.

    Raises:
      ValueError: If wait does not fit the code, or late is neither choice.
      TypeError: If an argument has the wrong type.

    Example:
      >>> from jaxwgc import asynchronous, codes, stragglers
      >>> method = asynchronous.synchronous(
      ...     codes.fractional_repetition(4, num_stragglers=1),
      ...     stragglers.until_decodable,
      ... )
      >>> method.late, method.memory
      ('cancelled', False)
    """

    code: GradientCode
    wait: Any
    late: str = "cancelled"
    memory: bool = False

    def __post_init__(self):
        GradientCode.check(self.code)
        validation.check_choice("late", self.late, ("cancelled", "busy"))
        validation.check_bool("memory", self.memory)
        object.__setattr__(self, "wait", rule_of_code("wait", self.wait, self.code))

    def aggregator(
        self, delay: DelayModel, key: jax.Array
    ) -> optax.GradientTransformation:
        """Returns the aggregator of rounds that are drawn by a delay model."""
        model = delayed(delay, self.wait, late=self.late)
        return coded_aggregate(self.code, model, key, memory=self.memory)


class RoundState(NamedTuple):
    """State of a synchronous cluster: the current round and its outcome.

    Attributes:
      params: Parameters of the current round.
      next_params: Parameters after the current round.
      next_state: State of aggregator and optimizer after the current round.
      end: When the current round ends; infinity if never.
      num_updates: Number of rounds that have ended, int32.
    """

    params: Any
    next_params: Any
    next_state: Any
    end: jax.Array
    num_updates: jax.Array

    @property
    def given_at(self) -> jax.Array:
        """Number of updates before workers were given the current parameters."""
        return self.num_updates


class SynchronousCluster(NamedTuple):
    """Simulated cluster in which workers wait for the end of each round.

    Attributes:
      problem: Loss and parts.
      optimizer: Chain that begins with the aggregator.
      key: PRNG key of the parts that are drawn.
    """

    problem: Problem
    optimizer: optax.GradientTransformation
    key: jax.Array

    def start(self) -> RoundState:
        """Returns the state of the first round."""
        params = jax.tree.map(jnp.asarray, self.problem.start)
        return self._begin(params, self.optimizer.init(params), jnp.int32(0))

    def next_end(self, state: RoundState) -> jax.Array:
        """Returns the time at which the current round ends."""
        return state.end

    def following(self, state: RoundState) -> RoundState:
        """Returns the state of the next round."""
        return self._begin(state.next_params, state.next_state, state.num_updates + 1)

    def _begin(self, params: Any, state: Any, num_updates: jax.Array) -> RoundState:
        """Returns the state of a new round, with its outcome and end."""
        key = jax.random.fold_in(self.key, num_updates)
        parts = self.problem.parts_of_round(key)
        _, gradients = partial_value_and_grad(self.problem.loss)(params, parts)
        changes, next_state = self.optimizer.update(gradients, state, params)
        return RoundState(
            params=params,
            next_params=optax.apply_updates(params, changes),
            next_state=next_state,
            end=optax.tree.get(next_state, "elapsed"),
            num_updates=num_updates,
        )
