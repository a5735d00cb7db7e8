"""What all methods of a race share: loss, parts, start, and who draws which parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc._common.pytrees import Static, register
from jaxwgc.gradients import partial_value_and_grad


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A loss over parts of data, for workers that compute its gradients.

    Attributes:
      loss: `loss(params, part) -> scalar`, summed over the rows of the part, so that
        the sum over parts is the total loss.
      parts: Pytree with leaves (num_parts, ...).
      start: First parameters, a pytree of floats.
      num_workers: Number of workers, n. It divides the number of parts.
      draws: `"own"`: each worker has its own run of parts, and a computation is the
        gradient of all of them. `"all"`: each computation draws as many parts from all,
        with replacement. (Codes then draw new parts for each round.)

    Raises:
      ValueError: If there are fewer parts than workers, num_workers does not divide
        their number, leaves of parts have different leading axes, or draws is neither
        choice.
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
        if num_parts % num_workers:
            raise ValueError(
                "parts must be as many as num_workers, or a multiple; got "
                f"{num_parts} parts and num_workers = {num_workers}. Use "
                f"jaxwgc.partition(data, {num_workers})"
            )
        array_validation.check_dtypes("start", self.start, "real or complex floats")
        validation.check_choice("draws", self.draws, ("own", "all"))

    @property
    def num_parts(self) -> int:
        """Number of parts, k."""
        return jax.tree.leaves(self.parts)[0].shape[0]

    def total_loss(self, params: Any) -> jax.Array:
        """Returns the sum of the losses of all parts."""
        return jnp.sum(jax.vmap(self.loss, (None, 0))(params, self.parts))

    def parts_of_round(self, key: jax.Array) -> Any:
        """Returns the parts of a synchronous round, leaves (num_parts, ...)."""
        if self.draws == "own":
            return self.parts
        drawn = jax.random.randint(key, (self.num_parts,), 0, self.num_parts)
        return self.take(drawn)

    def gradient(self, params: Any, worker: jax.Array, key: jax.Array) -> Any:
        """Returns a worker's estimate of the gradient of the total loss."""
        num_own = self.num_parts // self.num_workers
        if self.draws == "own":
            places = worker * num_own + np.arange(num_own)
        else:
            places = jax.random.randint(key, (num_own,), 0, self.num_parts)
        _, gradients = partial_value_and_grad(self.loss)(params, self.take(places))
        return jax.tree.map(
            lambda leaf: self.num_workers * jnp.sum(leaf, axis=0), gradients
        )

    def take(self, places: jax.Array) -> Any:
        """Returns the parts at some places."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], self.parts)
