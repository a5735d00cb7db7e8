"""The problem that all methods of a race solve."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc._common.pytrees import Static, register


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Loss over parts of data, and the parts whose gradients each worker computes.

    Attributes:
      loss: `loss(params, part) -> scalar`, summed over the rows of the part, so that
        the sum over parts is the total loss.
      parts: Pytree with leaves (num_parts, ...).
      start: First parameters, a pytree of floats.
      num_workers: Number of workers, n.
      draws: Parts of a computation. `"own"`: each worker owns num_parts / n consecutive
        parts, and computes the gradient of all of them. `"one of own"`: of one of them,
        drawn for each computation. `"one of all"`: of one of all parts, which are
        batches of data that workers have alike.

    Raises:
      ValueError: If workers own parts, and num_workers does not divide their number;
        if leaves of parts have different leading axes; or if draws is no such choice.
      TypeError: If loss is not a function, or start is not a pytree of floats.

    Example:
      Four means, one for each of four workers:

      >>> import jax.numpy as jnp
      >>> from jaxwgc import asynchronous
      >>> problem = asynchronous.Problem(
      ...     loss=lambda params, part: jnp.sum((params - part) ** 2),
      ...     parts=jnp.array([[1.0], [2.0], [3.0], [4.0]]),
      ...     start=jnp.zeros(1),
      ...     num_workers=4,
      ... )
      >>> float(problem.total_loss(jnp.full(1, 2.5)))
      5.0
    """

    loss: Static[Callable[..., jax.Array]]
    parts: Any
    start: Any
    num_workers: Static[int]
    draws: Static[str] = "own"

    def __post_init__(self):
        validation.check_callable("loss", self.loss)
        num_parts = array_validation.check_parts("parts", self.parts, "num_parts")
        num_workers = validation.check_int("num_workers", self.num_workers, minimum=1)
        validation.check_choice(
            "draws", self.draws, ("own", "one of own", "one of all")
        )
        if self.draws != "one of all" and num_parts % num_workers:
            raise ValueError(
                "the number of parts must be a multiple of num_workers; got "
                f"{num_parts} parts and num_workers = {num_workers}. Use "
                f"jaxwgc.partition(data, {num_workers})"
            )
        array_validation.check_dtypes("start", self.start, "real or complex floats")

    @property
    def num_parts(self) -> int:
        """Number of parts of the data, the leading axis of `parts`."""
        return jax.tree.leaves(self.parts)[0].shape[0]

    def total_loss(self, params: Any) -> jax.Array:
        """Returns the sum of the losses of all parts at `params`."""
        return self._loss_of(params, self.parts)

    @property
    def num_parts_of_round(self) -> int:
        """Number of parts in a round: all parts, or one per worker if drawn."""
        return self.num_parts if self.draws == "own" else self.num_workers

    def parts_of_round(self, key: jax.Array) -> Any:
        """Returns the parts of a round: all parts, or a drawn part per worker."""
        if self.draws == "own":
            return self.parts
        return self._parts_at(self._drawn(key, jnp.arange(self.num_workers)))

    def gradient(self, params: Any, worker: jax.Array, key: jax.Array) -> Any:
        """Returns a worker's estimate of the gradient of the total loss."""
        if self.draws == "own":
            places = worker * self._num_own + jnp.arange(self._num_own)
        else:
            places = self._drawn(key, worker[None])
        gradient = jax.grad(self._loss_of)(params, self._parts_at(places))
        return optax.tree.scale(self.num_parts / places.size, gradient)

    def _loss_of(self, params: Any, parts: Any) -> jax.Array:
        losses = jax.vmap(self.loss, (None, 0))(params, parts)
        if jnp.ndim(losses) != 1:
            raise ValueError(
                f"loss must return a scalar; got shape {losses.shape[1:]}. Sum the "
                "losses over the rows of a part"
            )
        return jnp.sum(losses)

    @property
    def _num_own(self) -> int:
        return self.num_parts // self.num_workers

    def _drawn(self, key: jax.Array, workers: jax.Array) -> jax.Array:
        """Draws the index of one part for each of the given workers."""
        if self.draws == "one of all":
            return jax.random.randint(key, workers.shape, 0, self.num_parts)
        drawn = jax.random.randint(key, workers.shape, 0, self._num_own)
        return workers * self._num_own + drawn

    def _parts_at(self, places: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], self.parts)
