"""What runs on a worker: an actor that holds its parts and forms its message."""

import ctypes
import dataclasses
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _dtypes, coding
from jaxwgc.gradients import partial_value_and_grad


class Task(NamedTuple):
    """What all workers are told once.

    Attributes:
      loss: `loss(params, part)`.
      has_aux: whether it returns `(scalar, aux)`.
      load: `load(part_index)`, or None where the parts are sent.
      batch: `batch(key, part)`, or None where whole parts are used.
      delay: `delay(worker, step)`, seconds to sleep before an answer, or None.
      params: leaves are `jax.ShapeDtypeStruct`.
      message_dtype: name of what messages are rounded to on the way, or None.
      key_kind: name of the kind of the key, or None for a raw one.
      settings: of JAX, by name.
    """

    loss: Callable
    has_aux: bool
    load: Callable | None
    batch: Callable | None
    delay: Callable | None
    params: Any
    message_dtype: str | None
    key_kind: str | None
    settings: dict[str, Any]


class Started(NamedTuple):
    """What a worker says of itself when it is ready.

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


class Answer(NamedTuple):
    """What a worker sends.

    Attributes:
      message: (messages_per_worker, length); a complex one as its real and imaginary
        parts, with an axis of two at the end, and one in bfloat16 as its bits.
      losses: (num_held,), those of its parts.
      aux: a pytree; leaves (num_held, ...), what the loss of its parts gave besides.
    """

    message: np.ndarray
    losses: np.ndarray
    aux: Any


@dataclasses.dataclass(frozen=True)
class Keys:
    """Typed keys as they travel, which can be pickled: by their data."""

    data: np.ndarray
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape[:-1]

    @property
    def dtype(self) -> str:
        return f"key<{self.kind}>"


class Worker:
    """Holds the parts of one worker, and nothing else of the data."""

    def __init__(
        self, worker: int, held: np.ndarray, rows: np.ndarray, parts: Any, task: Task
    ):
        _end_with_parent()
        self.worker, self.held, self.rows, self.task = worker, held, rows, task
        self._given = parts

    def __repr__(self) -> str:
        """As Ray says who has printed something."""
        return f"worker {self.worker}"

    def start(self, key_data: np.ndarray) -> Started:
        """Loads the parts and compiles; errors here are those of data or loss."""
        for name, value in self.task.settings.items():
            jax.config.update(name, value)
        parts = self._load()
        self.parts = jax.tree.map(lambda *leaves: _stacked(leaves), *parts)
        self.held_parts = jnp.asarray(self.held, jnp.uint32)
        self.params_like, self.structure = jax.tree.flatten(self.task.params)
        lowered = jax.jit(self._answer).lower(
            self.params_like, *self._arguments(key_data, 0)
        )
        self._form = lowered.compile()
        node = _ray().get_runtime_context().get_node_id()
        return Started(os.getpid(), node, socket.gethostname(), _signature(parts[0]))

    def compute(self, order: tuple[list, np.ndarray, int] | bytes) -> Answer:
        """The message for leaves of params, key and step, which may be pickled."""
        if isinstance(order, bytes):
            order = pickle.loads(order)
        leaves, key_data, step = order
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, step))
        found = self._form(leaves, *self._arguments(key_data, step))
        return Answer(*jax.tree.map(np.asarray, found))

    def _arguments(self, key_data, step):
        return self.parts, self.rows, self.held_parts, key_data, np.uint32(step)

    def _answer(self, leaves, parts, rows, held, key, step):
        params = jax.tree.unflatten(self.structure, leaves)
        if self.task.batch is not None:
            if self.task.key_kind is not None:
                key = jax.random.wrap_key_data(key, impl=self.task.key_kind)
            # By step and part, so that all holders of a part draw the same rows.
            own = jax.vmap(jax.random.fold_in, (None, 0))(
                jax.random.fold_in(key, step), held
            )
            parts = jax.vmap(self.task.batch)(own, parts)
        has_aux = self.task.has_aux
        partial = partial_value_and_grad(self.task.loss, has_aux)

        def of_part(part, columns):
            values, gradients = partial(params, jax.tree.map(lambda x: x[None], part))
            # Without has_aux, values are those of the loss alone.
            values = values if has_aux else (values, None)
            first = jax.tree.map(lambda leaf: leaf[0], values)
            return coding.form_messages(columns, gradients), first

        def add(message, task):
            own, values = of_part(*task)
            return message + own, values

        # One after the other, so that there is never more than one gradient.
        columns = jnp.moveaxis(rows.reshape(len(rows), len(held), -1), 1, 0)
        first = jax.tree.map(lambda leaf: leaf[0], (parts, columns))
        like, _ = jax.eval_shape(of_part, *first)
        start = jnp.zeros(like.shape, like.dtype)
        message, (losses, aux) = jax.lax.scan(add, start, (parts, columns))
        return pack(message, self.task.message_dtype), losses, aux

    def _load(self):
        """The parts, one by one, all alike."""
        load = self.task.load
        if load is None:
            parts = _ray().get(self._given)
        else:
            parts = [self._load_one(load, int(part)) for part in self.held]
        for part, own in zip(self.held, parts):
            if _signature(own) != _signature(parts[0]):
                raise ValueError(
                    f"parts must be alike; got {_signature(own)} for part {part} and "
                    f"{_signature(parts[0])} for part {self.held[0]}"
                )
        return parts

    def _load_one(self, load, part):
        try:
            return jax.tree.map(sent, load(part))
        except Exception as error:
            raise RuntimeError(
                f"load({part}) failed: {type(error).__name__}: {error}"
            ) from error


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Threads and platform of a worker, by what its actor claims.

    As many threads as CPUs, since cores are shared by workers, not within one; what
    accelerators it claims, JAX finds by itself.
    """
    threads = max(1, int(options["num_cpus"] or 0))
    num_gpus = options.get("num_gpus") or 0
    has_accelerator = num_gpus or "TPU" in (options.get("resources") or {})
    found = {
        "JAX_PLATFORMS": "" if has_accelerator else "cpu",
        "NPROC": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        found["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if 0 < num_gpus < 1:
        # JAX takes three quarters of the memory of a GPU at once.
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * num_gpus:.3f}"
    return found


def pack(message: jax.Array, dtype: str | None) -> jax.Array:
    """A message as it travels: see `Answer`."""
    if jnp.iscomplexobj(message):
        message = jnp.stack([message.real, message.imag], axis=-1)
    if dtype is not None:
        message = message.astype(dtype)
    if message.dtype == jnp.bfloat16:
        # NumPy itself does not know it, and would pickle it number by number.
        message = jax.lax.bitcast_convert_type(message, jnp.uint16)
    return message


def unpack(wire: np.ndarray, message: np.ndarray) -> None:
    """The inverse of `pack`, into `message`: in float32 or wider, or complex."""
    if wire.dtype == np.uint16:
        wire = wire.view(jnp.bfloat16)
    if np.iscomplexobj(message):
        real = np.float32 if message.dtype == np.complex64 else np.float64
        message = message.view(real).reshape(wire.shape)
    message[...] = wire


def sent(leaf: Any) -> np.ndarray | Keys:
    """A leaf of a part as it travels."""
    if not jnp.issubdtype(_dtypes.dtype_of(leaf), jax.dtypes.prng_key):
        return np.asarray(leaf)
    kind = str(jax.random.key_impl(leaf))
    return Keys(np.asarray(jax.random.key_data(leaf)), kind)


def _stacked(leaves: Sequence[np.ndarray | Keys]) -> jax.Array:
    """Those of several parts side by side, as the loss takes them."""
    keys = [leaf for leaf in leaves if isinstance(leaf, Keys)]
    if not keys:
        return jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    data = jnp.stack([jnp.asarray(key.data) for key in keys])
    return jax.random.wrap_key_data(data, impl=keys[0].kind)


def _signature(part: Any) -> str:
    """Structure, shapes and dtypes in words that can be compared and shown."""
    leaves = jax.tree_util.tree_leaves_with_path(part)
    return ", ".join(
        f"{jax.tree_util.keystr(path) or 'array'}: {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    )


def _ray():
    import ray

    return ray


def _end_with_parent():
    """Lets Linux end this process when Ray's own ends, even where it is frozen."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
