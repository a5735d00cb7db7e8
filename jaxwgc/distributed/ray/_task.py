"""Task of the workers: what they compute, and from which data."""

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.distributed.ray._messages import SentKey
from jaxwgc.gradients._contributions import (
    Term,
    TermFunction,
    key_of_batch,
    key_of_term,
    takes,
)

# Names of JAX settings that workers take over from the coordinator.
COMPILATION_CACHE = "jax_compilation_cache_dir"
SHARED_SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", COMPILATION_CACHE)

# What workers are sent in each round: leaves of params, key in the format in which it
# is sent, and number of the step.
Order: TypeAlias = tuple[list[np.ndarray], SentKey, int]


class Task(NamedTuple):
    """Functions and settings of a computation, sent to every worker once.

    Attributes:
      term: `term(params, part, key)`, the `Term` that a part contributes.
      load: `load(part_index)`, or None if the parts are sent.
      batch: `batch(key, part)`, or `batch(key, part, step)`, or None if whole parts are
        used.
      delay: `delay(worker, step)`, seconds to sleep before a response, or on request
        before each part; or None.
      corrupt: `corrupt(worker, step, message)`, sent in place of a message; or None.
      message_dtype: Name of the dtype to which messages are rounded, or None.
      params: Pytree, leaves are `jax.ShapeDtypeStruct`.
      key: Key of the first round, in the format in which it is sent.
      settings: Settings of JAX, by name.
      report_size: On request, number of parts after which a worker reports at once.
      has_queries: Whether the coordinator may request projections of messages.
      batches: `batches(step, part)`, which the worker calls in each step, or None.
      has_digests: Whether workers send a digest of each batch.
      has_keys: Whether `batch` or `term` needs a key.
    """

    term: TermFunction
    load: Callable[[int], Any] | None = None
    batch: Callable[..., Any] | None = None
    delay: Callable[[int, int], float] | None = None
    corrupt: Callable[[int, int, np.ndarray], np.ndarray] | None = None
    message_dtype: str | None = None
    params: Any = None
    key: SentKey | None = None
    settings: dict[str, Any] = {}
    report_size: int = 1
    has_queries: bool = False
    batches: Callable[[int, int], Any] | None = None
    has_digests: bool = False
    has_keys: bool = False


class Assignment(NamedTuple):
    """Parts of one worker, and its block of the encoding matrix.

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
    """Returns leaves of params, key and step of a round, unpickled if necessary."""
    if isinstance(order, bytes):
        return pickle.loads(order)
    return order


def draw_batch(
    batch: Callable[..., Any], key: jax.Array, part: Any, step: jax.Array
) -> Any:
    """Draws the batch of a part in a step, by the user's function `batch`."""
    if takes("step", batch):
        return batch(key, part, step=step)
    return batch(key, part)


def term_of_part(
    task: Task, params: Any, part: Any, key: jax.Array, index: Any, step: Any
) -> Term:
    """Computes the `Term` of a part in a step: value, loss and auxiliary outputs.

    All workers that hold the part get equal terms, because random numbers depend only
    on the key of the cluster, the step and the part.

    Args:
      task: Task of the workers.
      params: Parameters of the step.
      part: Part, or what `batches` returned for it.
      key: Key of the cluster.
      index: Index of the part.
      step: Number of the step, uint32.
    """
    if not task.has_keys:
        return task.term(params, part, None)
    if task.batch is not None:
        part = draw_batch(task.batch, key_of_batch(key, step, index), part, step)
    return task.term(params, part, key_of_term(key, step, index))


def try_term(task: Task, params: Any, part: Any, key: jax.Array) -> None:
    """Traces the term of a part, so that its errors are raised before workers start.

    The leaves of `part` have a leading axis of length one.
    """

    def term(params, part, key):
        part = jax.tree.map(lambda leaf: leaf[0], part)
        return term_of_part(task, params, part, key, jnp.uint32(0), jnp.uint32(0))

    jax.eval_shape(term, params, part, key)
