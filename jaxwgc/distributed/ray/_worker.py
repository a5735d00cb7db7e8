"""The actor on a worker, which holds its parts and forms its message."""

import ctypes
import dataclasses
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, coding
from jaxwgc.distributed.ray._messages import Answer, pack, unpacked
from jaxwgc.distributed.ray._session import find_ray
from jaxwgc.gradients import checked_loss, partial_value_and_grad

# Number of random projections of a message that are compared in a dispute.
PROJECTION_DIM = 64
# What the workers' JAX must have in common with that of the coordinator.
SHARED_SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_compilation_cache_dir",
)


class Task(NamedTuple):
    """The task that all workers are told once.

    Attributes:
      loss: `loss(params, part)`.
      has_aux: whether it returns `(scalar, aux)`.
      load: `load(part_index)`, or None where the parts are sent.
      batch: `batch(key, part)`, or None where whole parts are used.
      delay: `delay(worker, step)`, seconds to sleep before a response, or on request
        before each part; or None.
      corrupt: `corrupt(worker, step, message)`, what is sent in the place of a message,
        as it travels; or None.
      message_dtype: name of what messages are rounded to on the way, or None.
      params: leaves are `jax.ShapeDtypeStruct`.
      key: that of the first round as it travels.
      settings: of JAX, by name.
      report_size: On request, number of parts after which a worker reports at once.
      has_queries: Whether workers may be asked for projections of their messages.
    """

    loss: Callable
    has_aux: bool
    load: Callable | None
    batch: Callable | None
    delay: Callable | None
    corrupt: Callable | None
    message_dtype: str | None
    params: Any = None
    key: Any = None
    settings: dict[str, Any] = {}
    report_size: int = 1
    has_queries: bool = False


class Started(NamedTuple):
    """A worker's report when it is ready.

    Attributes:
      pid: of its process.
      node: where it runs, Ray's name.
      host: the name of that machine.
      signature: structure, shapes and dtypes of a part.
    """

    pid: int
    node: str
    host: str
    signature: str


class Worker:
    """Holds the parts of one worker, and nothing else of the data."""

    def __init__(
        self, worker: int, held: np.ndarray, rows: np.ndarray, parts: Any, task: Task
    ):
        self.worker, self.held, self.rows, self.task = worker, held, rows, task
        self._given = parts

    def __repr__(self) -> str:
        """Returns the prefix of the worker's output, for Ray."""
        return f"worker {self.worker}"

    def start(self) -> Started:
        """Loads the parts and compiles; errors here come from data or loss."""
        _end_with_parent()
        for name, value in self.task.settings.items():
            jax.config.update(name, value)
        parts = self._load()
        self.prepare(parts)
        node = find_ray().get_runtime_context().get_node_id()
        return Started(os.getpid(), node, socket.gethostname(), _signature(parts[0]))

    def compute(self, order: tuple[list, Any, int] | bytes) -> Answer:
        """Returns the response to leaves of params, key and step, maybe pickled."""
        begin = time.monotonic()
        leaves, key, step = read_order(order)
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, step))
        answer = self._compiled(leaves, *self._arguments(key, step))
        wire, losses, aux = jax.tree.map(np.asarray, answer)
        message = self._corrupted(step, wire)
        return Answer(message, losses, aux, time.monotonic() - begin)

    def project(self, order: Any, parts: np.ndarray, key: Any) -> np.ndarray:
        """Returns a projection (PROJECTION_DIM,) of its message of some of its parts.

        Args:
          order: see `compute`.
          parts: indices of parts that it holds.
          key: of `coding.project`, as it travels.
        """
        leaves, step_key, step = read_order(order)
        wire, _, _ = self._compiled(leaves, *self._arguments(step_key, step, parts))
        return self._projection(self._corrupted(step, np.asarray(wire)), key)

    def prepare(self, parts: list) -> None:
        """Compiles what is done with parts like these."""
        self._structure = jax.tree.structure(self.task.params)
        wire = self._compile(parts)
        if self.task.has_queries:
            # The first query must not take longer than the next ones.
            message = np.zeros(wire.shape, wire.dtype)
            self._projection(message, sent(jax.random.key(0)))

    def _projection(self, wire, key):
        message = unpacked(wire, np.iscomplexobj(self.rows))
        return np.asarray(_project(read(key), message, PROJECTION_DIM)[0])

    def _corrupted(self, step, wire):
        if self.task.corrupt is None:
            return wire
        return np.asarray(self.task.corrupt(self.worker, step, np.array(wire[0])))[None]

    def _compile(self, parts):
        self.parts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        leaves = jax.tree.leaves(self.task.params)
        arguments = self._arguments(self.task.key, 0)
        lowered = jax.jit(self._answer).lower(leaves, *arguments)
        self._compiled = lowered.compile()
        return lowered.out_info[0]

    def _arguments(self, key, step, parts=None):
        """Returns the arguments of `_answer`, with zeros for all but some parts."""
        held, rows = self.held.astype(np.uint32), self.rows
        if parts is not None:
            is_asked = np.isin(self.held, parts)
            rows = rows * is_asked.repeat(rows.shape[1] // len(held))
        return self.parts, rows, held, key, np.uint32(step)

    def _answer(self, leaves, parts, rows, held, key, step):
        def of_part(part, index, columns):
            values, gradient = self._value_and_grad(leaves, part, index, key, step)
            return coding.form_messages(columns, gradient), values

        def add(message, part_index_and_columns):
            one_part, values = of_part(*part_index_and_columns)
            return message + one_part, values

        # One after the other, so that there is never more than one gradient.
        columns = jnp.moveaxis(rows.reshape(len(rows), len(held), -1), 1, 0)
        each = parts, held, columns
        like, _ = jax.eval_shape(of_part, *jax.tree.map(lambda leaf: leaf[0], each))
        start = jnp.zeros(like.shape, like.dtype)
        message, (losses, aux) = jax.lax.scan(add, start, each)
        return pack(message, self.task.message_dtype), losses, aux

    def _value_and_grad(self, leaves, part, index, key, step):
        """Returns loss and aux of one part, and its gradient, leaves (1, ...)."""
        params = jax.tree.unflatten(self._structure, leaves)
        part, key = read((part, key))
        if self.task.batch is not None:
            # By step and part, so that all holders of a part draw the same rows.
            step_key = jax.random.fold_in(key, step)
            part = self.task.batch(jax.random.fold_in(step_key, index), part)
        loss = checked_loss(self.task.loss, self.task.has_aux)
        values, gradient = jax.value_and_grad(loss, has_aux=True)(params, part)
        return values, jax.tree.map(lambda leaf: leaf[None], gradient)

    def _load(self):
        """Returns the parts, one by one, all alike."""
        if self.task.load is None:
            parts = find_ray().get(self._given)
        else:
            parts = [self._load_one(self.task.load, int(part)) for part in self.held]
        first = _signature(parts[0])
        for index, part in zip(self.held, parts):
            if _signature(part) != first:
                raise ValueError(
                    f"parts must be alike; got {_signature(part)} for part {index} and "
                    f"{first} for part {self.held[0]}"
                )
        return parts

    def _load_one(self, load, part):
        try:
            return sent(load(part))
        except Exception as error:
            raise RuntimeError(
                f"loading part {part} failed: {type(error).__name__}: {error}"
            ) from error


_project = jax.jit(coding.project, static_argnums=2)


def read_order(order: tuple[list, Any, int] | bytes) -> tuple[list, Any, int]:
    """Returns leaves of params, key and step, which may have come pickled."""
    return pickle.loads(order) if isinstance(order, bytes) else order


def try_loss(task: Task, params: Any, part: Any, key: jax.Array) -> None:
    """Raises what the loss would raise on the workers, for shapes alone.

    The part has a leading axis of one.
    """
    if task.batch is not None:
        keys = jax.random.split(key, 1)
        part = jax.eval_shape(jax.vmap(task.batch), keys, part)
    jax.eval_shape(partial_value_and_grad(task.loss, task.has_aux), params, part)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Typed keys as they travel, which can be pickled: by their words."""

    words: Any
    kind: str = dataclasses.field(metadata={"static": True})


def sent(tree: Any) -> Any:
    """Returns a pytree as it travels: in NumPy, and typed keys as `Keys`."""

    def of_leaf(leaf):
        if not jnp.issubdtype(_arrays.dtype_of(leaf), jax.dtypes.prng_key):
            return np.asarray(leaf)
        words = np.asarray(jax.random.key_data(leaf))
        return Keys(words, str(jax.random.key_impl(leaf)))

    return jax.tree.map(of_leaf, tree)


def read(tree: Any) -> Any:
    """Returns what was sent, with typed keys in the place of `Keys`."""

    def of_node(node):
        is_keys = isinstance(node, Keys)
        return jax.random.wrap_key_data(node.words, impl=node.kind) if is_keys else node

    return jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, Keys))


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns variables that set threads and platform of a worker, by its claims.

    As many threads as CPUs, since cores are shared by workers, not within one; what
    accelerators it claims, JAX finds by itself.
    """
    threads = max(1, int(options["num_cpus"] or 0))
    num_gpus = options.get("num_gpus") or 0
    has_accelerator = num_gpus or "TPU" in (options.get("resources") or {})
    variables = {
        "JAX_PLATFORMS": "" if has_accelerator else "cpu",
        "NPROC": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        # Freed memory is kept: the system takes four times as long to give fresh memory
        # for a gradient as the worker to write it.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**62),
        "MALLOC_ARENA_MAX": "1",
    }
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        flags = f"{flags} --xla_cpu_multi_thread_eigen=false"
        variables["XLA_FLAGS"] = flags.strip()
    if 0 < num_gpus < 1:
        # JAX takes three quarters of the memory of a GPU at once.
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * num_gpus:.3f}"
    return variables


def _signature(part: Any) -> str:
    """Returns structure, shapes and dtypes in words that can be compared and shown."""
    return ", ".join(
        f"{jax.tree_util.keystr(path) or 'array'}: {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    )


def _end_with_parent():
    """Lets Linux end this process when Ray's own ends, even where it is frozen."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
