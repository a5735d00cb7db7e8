"""Local steps of an optimizer on one part, as in DiLoCo and federated averaging."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc.gradients._gradients import scalar_loss


def local_steps(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    batch: Callable[[jax.Array, Any], Any] | None = None,
    returns_losses: bool = False,
) -> Callable[..., Any]:
    """Returns a function that computes the change of params by local steps on one part.

    The change is params before the steps minus params after them. It points along the
    gradient, so any optax optimizer descends on the sum or mean of the changes of all
    parts. With `optax.sgd(0.7, momentum=0.9, nesterov=True)` as this outer optimizer
    and `optax.adamw` as the inner one, training is DiLoCo; with `optax.sgd(1.0)` and
    `optax.sgd`, it is federated averaging. The function is a contribution of
    `jaxwgc.distributed.RayCluster`. In one process, `jax.vmap` computes the changes of
    all parts for `jaxwgc.coded_aggregate`.

    The inner optimizer starts anew in each call: its moments and its count of steps
    begin at zero. DiLoCo keeps the moments of each worker. Here a part may be computed
    by another worker in each round, and all copies of its change must agree.

    Args:
      loss: `loss(params, batch) -> scalar`, the loss of one step; usually a mean over
        the rows of the batch.
      optimizer: Optax transformation of the steps, the inner optimizer.
      num_steps: Number of steps.
      batch: `batch(key, part)`, a pure function that draws the batch of one step from a
        part. The key of step h is fold_in(key, h). Dropout keys of the loss may be a
        part of the batch. None: leaves of a part are (num_steps, ...), the batches of
        the steps in order.
      returns_losses: Whether the function also returns the losses of the steps.

    Returns:
      `contribution(params, part)`, or `contribution(params, part, key)` with `batch`.
      It returns a pytree like params. With returns_losses it returns a pair of that and
      the losses, float (num_steps,), each before its step: the aux of a `RayCluster`
      with `has_aux=True`.

    Raises:
      ValueError: If num_steps is below 1, or leaves of a part have another leading axis
        than num_steps.
      TypeError: If an argument has the wrong type, or loss returns no real scalar.

    Example:
      One round of federated averaging over two parts of two batches each:

      >>> import jax, jax.numpy as jnp, jaxwgc, optax
      >>> def loss(params, x):
      ...     return jnp.mean((params["w"] - x) ** 2)
      >>> contribution = jaxwgc.local_steps(loss, optax.sgd(0.25), num_steps=2)
      >>> parts = jnp.array([[[1.0], [2.0]], [[5.0], [9.0]]])
      >>> params = {"w": jnp.zeros(1)}
      >>> changes = jax.vmap(contribution, (None, 0))(params, parts)
      >>> changes["w"]
      Array([[-1.25],
             [-5.75]], dtype=float32)
      >>> params["w"] - changes["w"].mean(0)
      Array([3.5], dtype=float32)

    References:
      Douillard et al., "DiLoCo: distributed low-communication training of language
      models", 2023, algorithm 1; McMahan et al., "Communication-efficient learning of
      deep networks from decentralized data", AISTATS 2017, algorithm 1.
    """
    checked = scalar_loss(loss)
    validation.check_instance("optimizer", optimizer, optax.GradientTransformation)
    num_steps = validation.check_int("num_steps", num_steps, minimum=1)
    validation.check_bool("returns_losses", returns_losses)
    if batch is not None:
        validation.check_callable("batch", batch)

    def change(params, steps, batch_of):
        """Takes all steps; returns the change of params, and losses if requested."""
        params = jax.tree.map(jnp.asarray, params)

        def take_step(state, step):
            params, optimizer_state = state
            value, gradient = jax.value_and_grad(checked)(params, batch_of(step))
            updates, optimizer_state = optimizer.update(
                gradient, optimizer_state, params
            )
            params = optax.apply_updates(params, updates)
            return (params, optimizer_state), value

        start = (params, optimizer.init(params))
        (after, _), losses = jax.lax.scan(take_step, start, steps)
        difference = jax.tree.map(jnp.subtract, params, after)
        return (difference, losses) if returns_losses else difference

    def contribution(params, part):
        array_validation.check_leading_axis("part", part, num_steps, "num_steps")
        return change(params, part, lambda batch_of_step: batch_of_step)

    if batch is None:
        return contribution

    def contribution_with_key(params, part, key):
        part = jax.tree.map(jnp.asarray, part)

        def draw(step):
            return batch(jax.random.fold_in(key, step), part)

        return change(params, jnp.arange(num_steps), draw)

    return contribution_with_key
