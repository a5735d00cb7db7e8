"""What runs on a worker: an actor that holds its parts and forms its message."""

import ctypes
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
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
      load: `load(part_index)`, or None where the parts are sent.
      batch: `batch(key, part)`, or None where whole parts are used.
      delay: `delay(worker, step)`, seconds to sleep before an answer, or None.
      params: leaves are `jax.ShapeDtypeStruct`.
      message_dtype: name of what messages are rounded to on the way, or None.
      key_kind: name of the kind of the key, or None for a raw one.
      settings: of JAX, by name.
    """

    loss: Callable
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
      signature: structure, shapes and dtypes of a part.
    """

    pid: int
    node: str
    signature: str


class Answer(NamedTuple):
    """What a worker sends.

    Attributes:
      message: (messages_per_worker, length); a complex one as its real and imaginary
        parts, with an axis of two at the end, and one in bfloat16 as its bits.
      losses: (num_held,), those of its parts.
    """

    message: np.ndarray
    losses: np.ndarray


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

    def start(self, key_data: np.ndarray) -> Started:
        """Loads the parts and compiles; errors here are those of data or loss."""
        for name, value in self.task.settings.items():
            jax.config.update(name, value)
        parts = self._load()
        self.parts = jax.tree.map(lambda *leaves: _stacked(leaves), *parts)
        self.held_parts = jnp.asarray(self.held, jnp.uint32)
        self.params_like, self.structure = jax.tree.flatten(self.task.params)
        lowered = jax.jit(self._message_and_losses).lower(
            self.params_like, *self._arguments(key_data, 0)
        )
        self._form = lowered.compile()
        node = _ray().get_runtime_context().get_node_id()
        return Started(os.getpid(), node, _signature(parts[0]))

    def compute(self, leaves: list, key_data: np.ndarray, step: int) -> Answer:
        """The message for these parameters, and the losses on the way."""
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, step))
        message, losses = self._form(leaves, *self._arguments(key_data, step))
        return Answer(np.asarray(message), np.asarray(losses))

    def _arguments(self, key_data, step):
        return self.parts, self.rows, self.held_parts, key_data, np.uint32(step)

    def _message_and_losses(self, leaves, parts, rows, held, key, step):
        params = jax.tree.unflatten(self.structure, leaves)
        if self.task.batch is not None:
            if self.task.key_kind is not None:
                key = jax.random.wrap_key_data(key, impl=self.task.key_kind)
            # By step and part, so that all holders of a part draw the same rows.
            own = jax.vmap(jax.random.fold_in, (None, 0))(
                jax.random.fold_in(key, step), held
            )
            parts = jax.vmap(self.task.batch)(own, parts)
        partial = partial_value_and_grad(self.task.loss)

        def of_part(part, columns):
            values, gradients = partial(params, jax.tree.map(lambda x: x[None], part))
            return coding.form_messages(columns, gradients), values[0]

        def add(message, task):
            own, value = of_part(*task)
            return message + own, value

        # One after the other, so that there is never more than one gradient.
        columns = jnp.moveaxis(rows.reshape(len(rows), len(held), -1), 1, 0)
        first = jax.tree.map(lambda leaf: leaf[0], (parts, columns))
        like, _ = jax.eval_shape(of_part, *first)
        start = jnp.zeros(like.shape, like.dtype)
        message, losses = jax.lax.scan(add, start, (parts, columns))
        return pack(message, self.task.message_dtype), losses

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


def one_thread() -> dict[str, str]:
    """The environment of a worker: cores are shared by workers, not within one."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip(),
    }


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
