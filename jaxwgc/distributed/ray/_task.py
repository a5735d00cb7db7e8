"""Task of the workers: what they are sent once, and in each round."""

import inspect
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.distributed.ray._messages import SentKey
from jaxwgc.gradients import partial_value_and_grad

# Settings of JAX that workers take over from the coordinator.
COMPILATION_CACHE = "jax_compilation_cache_dir"
SHARED_SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", COMPILATION_CACHE)

# Leaves of params, key as it travels, and step of a round.
Order: TypeAlias = tuple[list[np.ndarray], SentKey, int]


class Task(NamedTuple):
    """The task of all workers, sent once.

    Attributes:
      loss: `loss(params, part)`.
      has_aux: Whether it returns `(scalar, aux)`.
      load: `load(part_index)`, or None if the parts are sent.
      batch: `batch(key, part)`, or `batch(key, part, step)`, or None if whole parts are
        used.
      delay: `delay(worker, step)`, seconds to sleep before a response, or on request
        before each part; or None.
      corrupt: `corrupt(worker, step, message)`, sent in place of a message; or None.
      message_dtype: Name of the dtype to which messages are rounded, or None.
      params: Pytree, leaves are `jax.ShapeDtypeStruct`.
      key: Key of the first round as it travels.
      settings: Settings of JAX, by name.
      report_size: On request, number of parts after which a worker reports at once.
      has_queries: Whether the coordinator may request projections of messages.
      batches: `batches(step, part)`, which the worker calls in each step, or None.
      has_digests: Whether workers send a digest of each batch.
    """

    loss: Callable[..., Any]
    has_aux: bool
    load: Callable[[int], Any] | None
    batch: Callable[..., Any] | None
    delay: Callable[[int, int], float] | None
    corrupt: Callable[[int, int, np.ndarray], np.ndarray] | None
    message_dtype: str | None
    params: Any = None
    key: SentKey | None = None
    settings: dict[str, Any] = {}
    report_size: int = 1
    has_queries: bool = False
    batches: Callable[[int, int], Any] | None = None
    has_digests: bool = False


class Assignment(NamedTuple):
    """Properties of one worker: its parts and its rows of the code.

    Attributes:
      worker: Index of the worker.
      held: Indices of its parts, int (num_held,).
      rows: Rows of the code for these parts, (num_messages, num_held * num_segments).
      parts: References to its parts, or None if the worker loads them.
      step: Step in which its process is started.
    """

    worker: int
    held: np.ndarray
    rows: np.ndarray
    parts: list[Any] | None = None
    step: int = 0


def read_order(order: Order | bytes) -> Order:
    """Returns leaves of params, key and step of an order, which may be pickled."""
    if isinstance(order, bytes):
        return pickle.loads(order)
    return order


def draw_batch(
    batch: Callable[..., Any], key: jax.Array, part: Any, step: jax.Array
) -> Any:
    """Returns `batch(key, part)`, with `step` as well if `batch` has this argument."""
    try:
        takes_step = "step" in inspect.signature(batch).parameters
    except ValueError:
        # Functions in C may have no signature.
        takes_step = False
    if takes_step:
        return batch(key, part, step=step)
    return batch(key, part)


def try_loss(task: Task, params: Any, part: Any, key: jax.Array) -> None:
    """Evaluates the loss for shapes alone, to raise the errors of the workers.

    The part has a leading axis of one.
    """
    batch = task.batch
    if batch is not None:
        step = jnp.uint32(0)
        draw = jax.vmap(lambda key, part: draw_batch(batch, key, part, step))
        part = jax.eval_shape(draw, jax.random.split(key, 1), part)
    jax.eval_shape(partial_value_and_grad(task.loss, task.has_aux), params, part)
