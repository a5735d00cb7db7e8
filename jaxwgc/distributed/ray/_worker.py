"""Process of a worker: prepares data, and computes terms and messages."""

import abc
import ctypes
import operator
import os
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import coding
from jaxwgc.distributed.ray._data import (
    DataSource,
    HostBatches,
    StoredParts,
    load_parts,
)
from jaxwgc.distributed.ray._digests import digest
from jaxwgc.distributed.ray._errors import naming_parts
from jaxwgc.distributed.ray._events import Ready
from jaxwgc.distributed.ray._messages import (
    SentKey,
    WorkerMessage,
    pack,
    read,
    sent,
    unpack,
)
from jaxwgc.distributed.ray._session import find_ray
from jaxwgc.distributed.ray._task import (
    Assignment,
    Order,
    Task,
    read_order,
    term_of_part,
)
from jaxwgc.gradients._contributions import Term

# Length of the random projections of messages that are compared in a dispute.
PROJECTION_DIM = 64
# PR_SET_PDEATHSIG of Linux's `prctl`: the signal that this process gets when its parent
# ends.
_PARENT_DEATH_SIGNAL = 1

project = jax.jit(coding.project, static_argnums=2)


class WorkerBase(abc.ABC):
    """Base class of worker processes, with data and compiled functions.

    Args:
      assignment: `Assignment` of the worker; None in a spare process, which gets it at
        its start.
      task: `Task` of all workers. Ray's actors get a list with a reference to it.
    """

    # Whether all parts of the worker are computed in one call.
    _is_stacked: bool
    task: Task
    data: DataSource

    def __init__(self, assignment: Assignment | None, task: Task | list[Any]):
        self._task_reference = None
        if isinstance(task, Task):
            self.task = task
        else:
            self._task_reference = task
        self._name = "spare process"
        if assignment is not None:
            self._name = f"worker {assignment.worker}"
            self._assign(assignment)

    def __repr__(self) -> str:
        """Returns the worker's name, which Ray prints before lines of its output."""
        return self._name

    def _assign(self, assignment: Assignment) -> None:
        self.worker = assignment.worker
        self.held = assignment.held
        self.rows = assignment.rows
        self._part_references = assignment.parts
        self._first_step = assignment.step

    def warm_up(self) -> int:
        """Sets up a spare process before it gets an assignment; returns its PID."""
        self._set_up_process()
        if os.environ.get("JAX_PLATFORMS") == "cpu":
            jnp.zeros(1).block_until_ready()
        return os.getpid()

    def start(self, assignment: Assignment | None = None) -> Ready:
        """Loads the parts or first batches, compiles, and returns a `Ready` event.

        Errors here come from the user's data or loss.

        Args:
          assignment: `Assignment` of a spare process that becomes a worker.
        """
        if assignment is not None:
            self._assign(assignment)
        self._set_up_process()
        self._prepare_all()
        return Ready(
            worker=self.worker,
            pid=os.getpid(),
            node=find_ray().get_runtime_context().get_node_id(),
            host=socket.gethostname(),
            signature=self.data.signature,
            origin=self.data.origin,
            has_batches=self.task.batches is not None,
        )

    def _set_up_process(self) -> None:
        """Sets JAX options of the task, and lets this process end with its parent."""
        if sys.platform == "linux":
            # Linux then kills this process when its parent, a process of Ray, ends:
            # even if this process is frozen.
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        reference = self._task_reference
        if reference is not None:
            # The task is unpickled here and not by Ray, so that errors in modules of
            # the user are reported like other errors. `reference` is read once, because
            # two threads of a spare process may run this at the same time.
            [self.task] = find_ray().get(reference)
            self._task_reference = None
        for name, value in self.task.settings.items():
            jax.config.update(name, value)

    def _prepare_all(self) -> None:
        """Loads all parts or first batches, and compiles functions for this data."""
        held = self.held.tolist()
        if self.task.batches is not None:
            batches = HostBatches(
                self.task.batches, held, self._first_step, is_stacked=self._is_stacked
            )
            self.prepare_data(batches)
        elif self.task.load is not None:
            self.prepare(load_parts(self.task.load, held))
        else:
            self.prepare(find_ray().get(self._part_references))

    def prepare(self, parts: list[Any]) -> None:
        """Stores the parts in memory, and compiles functions for them."""
        origin = f"part {self.held[0]}"
        stored = StoredParts(parts, is_stacked=self._is_stacked, origin=origin)
        self.prepare_data(stored)

    def prepare_data(self, data: DataSource) -> None:
        """Sets the source of data, and compiles all functions for its shapes."""
        self.data = data
        self._structure = jax.tree.structure(self.task.params)
        wire_like = self._compile()
        if self.task.has_queries:
            # The projection is compiled here, so that the first query is as fast as
            # later queries.
            message = np.zeros(wire_like.shape, wire_like.dtype)
            self._projection(message, sent(jax.random.key(0)))

    @abc.abstractmethod
    def _compile(self) -> jax.ShapeDtypeStruct:
        """Compiles all functions; returns the shape and dtype of a sent message."""

    def _projection(self, wire: np.ndarray, key: SentKey) -> np.ndarray:
        """Computes the projection of a message that is given in its sent format.

        The projection has `PROJECTION_DIM` entries.
        """
        message = self._numbers(wire)
        projections = project(read(key), message, PROJECTION_DIM)
        return np.asarray(projections[0])

    def _numbers(self, wire: np.ndarray) -> np.ndarray:
        """Converts a message from the format in which it is sent to numbers."""
        single = np.complex64 if np.iscomplexobj(self.rows) else np.float32
        dtype = np.promote_types(wire.dtype, single)
        message = np.empty(wire.shape[:2], dtype)
        unpack(wire, message)
        return message

    def _corrupted(self, step: int, wire: np.ndarray) -> np.ndarray:
        """Applies `Faults.corrupt` to a message if set; returns the message to send."""
        if self.task.corrupt is None:
            return wire
        # The function gets a copy, because it may change its argument.
        message = self._numbers(wire)
        corrupted = self.task.corrupt(self.worker, step, message[0])
        corrupted = np.asarray(corrupted, message.dtype)[None]
        return np.asarray(pack(corrupted, self.task.message_dtype))

    def _term(
        self,
        leaves: list[jax.Array],
        part: Any,
        index: jax.Array,
        key: SentKey,
        step: jax.Array,
    ) -> Term:
        """Computes the `Term` of a part: value, loss and auxiliary outputs."""
        params = jax.tree.unflatten(self._structure, leaves)
        return term_of_part(self.task, params, read(part), read(key), index, step)


class _Results(NamedTuple):
    """Message, losses and auxiliary outputs, from the compiled function of a worker.

    Attributes:
      message: Message in the format in which it is sent.
      losses: (num_held,).
      aux: Pytree, leaves (num_held, ...).
      are_finite: bool (num_held,), parts whose terms are finite.
    """

    message: Any
    losses: Any
    aux: Any
    are_finite: Any


class Worker(WorkerBase):
    """Worker that computes one message from all of its parts."""

    _is_stacked = True

    def compute(self, order: Order | bytes) -> WorkerMessage:
        """Computes the worker's message of a round, with losses of its parts."""
        begin = time.monotonic()
        leaves, key, step = read_order(order)
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, step))
        data = self.data.of_step(step, 0)
        self.data.expect([(step + 1, 0)])
        results = self._call_compiled(leaves, data, self.rows, key, step)
        digests = None
        if self.task.has_digests:
            digests = [
                digest(jax.tree.map(operator.itemgetter(place), data))
                for place in range(len(self.held))
            ]
        return WorkerMessage(
            message=self._corrupted(step, results.message),
            losses=results.losses,
            aux=results.aux,
            seconds=time.monotonic() - begin,
            digests=digests,
            not_finite=self.held[~results.are_finite].tolist(),
        )

    def project(
        self, order: Order | bytes, parts: np.ndarray, key: SentKey
    ) -> np.ndarray:
        """Computes the projection of the message that contains only given parts.

        Args:
          order: Leaves of params, key and step of the round, possibly pickled.
          parts: Indices of parts that the worker holds.
          key: Key of `coding.project`, in the form in which it is sent.
        """
        leaves, step_key, step = read_order(order)
        num_segments = self.rows.shape[1] // len(self.held)
        is_asked = np.isin(self.held, parts).repeat(num_segments)
        rows = self.rows * is_asked
        data = self.data.of_step(step, 0)
        results = self._call_compiled(leaves, data, rows, step_key, step)
        return self._projection(self._corrupted(step, results.message), key)

    def _call_compiled(
        self,
        leaves: list[np.ndarray],
        data: Any,
        rows: np.ndarray,
        key: SentKey,
        step: int,
    ) -> _Results:
        """Calls the compiled function; returns the message and values as NumPy arrays.

        Args:
          leaves: Leaves of params.
          data: Data of all parts of the worker.
          rows: Block of the encoding matrix, as in `Assignment.rows`.
          key: Key of the round, in the format in which it is sent.
          step: Number of the step.
        """
        held = self.held.astype(np.uint32)
        with naming_parts(self.held):
            results = self._compiled(leaves, data, rows, held, key, np.uint32(step))
            return jax.tree.map(np.asarray, results)

    def _compile(self) -> jax.ShapeDtypeStruct:
        """Compiles `_results`; returns the shape and dtype of a sent message."""
        step = self._first_step
        data = self.data.of_step(step, 0)
        with naming_parts(self.held):
            lowered = jax.jit(self._results).lower(
                jax.tree.leaves(self.task.params),
                data,
                self.rows,
                self.held.astype(np.uint32),
                self.task.key,
                np.uint32(step),
            )
        self._compiled = lowered.compile()
        return lowered.out_info.message

    def _results(self, leaves, parts, rows, held, key, step) -> _Results:
        """Computes the message of all parts, with losses and auxiliary outputs."""

        def of_part(part, index, columns):
            term = self._term(leaves, part, index, key, step)
            message = coding.form_messages(
                columns, jax.tree.map(lambda leaf: leaf[None], term.value)
            )
            return message, term

        def add(message, part_index_and_columns):
            part, index, columns = part_index_and_columns
            message_of_part, term = of_part(part, index, columns)
            is_finite = jnp.isfinite(message_of_part).all()
            return message + message_of_part, (term.loss, term.aux, is_finite)

        columns = jnp.moveaxis(rows.reshape(len(rows), len(held), -1), 1, 0)
        first_part = jax.tree.map(lambda leaf: leaf[0], parts)
        like, _ = jax.eval_shape(of_part, first_part, held[0], columns[0])
        zero = jnp.zeros(like.shape, like.dtype)
        # Parts are computed one by one, so that memory holds one term at a time.
        message, values = jax.lax.scan(add, zero, (parts, held, columns))
        losses, aux, are_finite = values
        wire = pack(message, self.task.message_dtype)
        return _Results(message=wire, losses=losses, aux=aux, are_finite=are_finite)
