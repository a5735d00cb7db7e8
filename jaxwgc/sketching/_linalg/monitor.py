"""Stopping rules of iterations: convergence, stagnation, or an iteration limit."""

import functools
from typing import NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

T = TypeVar("T")


class Monitor(NamedTuple):
    """Iteration count, convergence and recorded values of a solver, for each target.

    Attributes:
      iteration: The number of iterations, int32, () or (c,).
      has_converged: Whether the solution is accurate enough.
      has_stagnated: Whether steps make no progress, or a value is not finite.
      history: The values after each iteration, (max_iterations + 1,) or
        (max_iterations + 1, c). Empty if values are not recorded.
    """

    iteration: Array
    has_converged: Array
    has_stagnated: Array
    history: Array

    @classmethod
    def init(
        cls,
        value: Array,
        max_iterations: int | None = None,
        has_converged: Array | bool = False,
    ) -> Self:
        """Returns the monitor before the first iteration.

        Args:
          value: The value at the start, such as the norm of the residual.
          max_iterations: The largest number of iterations to record. By default,
            there is no history.
          has_converged: Whether the start is a solution.
        """
        num_recorded = 0 if max_iterations is None else max_iterations + 1
        return cls(
            iteration=jnp.zeros(value.shape, jnp.int32),
            has_converged=jnp.broadcast_to(has_converged, value.shape),
            has_stagnated=~jnp.isfinite(value),
            history=jnp.full((num_recorded, *value.shape), value),
        )

    def update(
        self,
        value: Array,
        has_converged: Array,
        *,
        has_stagnated: Array | bool = False,
        num_iterations: Array | int = 1,
    ) -> Self:
        """Returns the monitor after an iteration.

        Args:
          value: The value to record.
          has_converged: Whether errors are small enough, and can be trusted.
          has_stagnated: Whether the iteration made no progress.
          num_iterations: The number of iterations to count.
        """
        has_stagnated = ~jnp.isfinite(value) | has_stagnated
        iteration = self.iteration + num_iterations
        places = jnp.arange(len(self.history)).reshape(-1, *[1] * value.ndim)
        return type(self)(
            iteration=iteration,
            has_converged=~has_stagnated & has_converged,
            has_stagnated=has_stagnated,
            history=jnp.where(places >= iteration, value, self.history),
        )

    @property
    def has_ended(self) -> Array:
        """Returns, for each target, whether iterations have converged or stagnated."""
        return self.has_converged | self.has_stagnated

    def is_running(self, max_iterations: Array | int) -> Array:
        """Returns, for each target, whether another iteration is needed and allowed."""
        return ~self.has_ended & (self.iteration < max_iterations)


def select(is_chosen: Array, chosen: T, other: T) -> T:
    """Returns `chosen` for targets with `is_chosen`, and `other` for all others.

    Both are pytrees whose leaves end with the axis of targets, if there is one.
    """
    return jax.tree.map(functools.partial(jnp.where, is_chosen), chosen, other)
