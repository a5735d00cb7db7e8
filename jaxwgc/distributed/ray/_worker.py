"""Actors on the workers: `Worker` sends one message, `PartWorker` sums on request."""

import ctypes
import dataclasses
import inspect
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _flat_vectors, coding
from jaxwgc.distributed.ray._data import (
    DataSource,
    HostBatches,
    StoredParts,
    load_parts,
)
from jaxwgc.distributed.ray._digests import digest
from jaxwgc.distributed.ray._errors import BatchError, WorkerError, reporting
from jaxwgc.distributed.ray._events import Ready
from jaxwgc.distributed.ray._messages import (
    HOLD_SECONDS,
    Answer,
    Report,
    Taken,
    pack,
    read,
    sent,
    unpack,
)
from jaxwgc.distributed.ray._session import find_ray
from jaxwgc.gradients import checked_loss, partial_value_and_grad

# Number of gradients that are added up in one pass through memory.
_AT_ONCE = 8
# A worker waits this multiple of the time of a part before it computes parts that other
# workers are computing.
_PARTS_HELD = 2
# Number of random projections of a message that are compared in a dispute.
PROJECTION_DIM = 64
# Variables that set the number of threads.
_THREAD_VARIABLES = "NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"
# Settings of JAX that workers take over from the coordinator.
COMPILATION_CACHE = "jax_compilation_cache_dir"
SHARED_SETTINGS = "jax_enable_x64", "jax_default_prng_impl", COMPILATION_CACHE


class Task(NamedTuple):
    """The task of all workers, sent once.

    Attributes:
      loss: `loss(params, part)`.
      has_aux: whether it returns `(scalar, aux)`.
      load: `load(part_index)`, or None where the parts are sent.
      batch: `batch(key, part)`, or `batch(key, part, step)`, or None where whole parts
        are used.
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
      batches: `batches(step, part)`, which the worker calls in each step, or None.
      has_digests: Whether workers send a digest of each batch.
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
    batches: Callable | None = None
    has_digests: bool = False


class Assignment(NamedTuple):
    """What one worker has, and the others have not.

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
    parts: Any = None
    step: int = 0


class Worker:
    """Computes the message of one worker from its parts, which it has as `data`.

    Args:
      assignment: `Assignment` of the worker; None in a spare process, which gets it at
        its start.
      task: `Task` of all workers. Ray's actors get a list with a reference to it.
    """

    # Whether all parts of the worker are computed in one call.
    _is_stacked = True

    def __init__(self, assignment: Assignment | None, task: Task):
        self.task = task
        self.data: DataSource
        self._name = "spare worker"
        if assignment is not None:
            self._name = f"worker {assignment.worker}"
            self._assign(assignment)

    def __repr__(self) -> str:
        """Returns the prefix of the worker's output, for Ray."""
        return self._name

    def _assign(self, assignment: Assignment) -> None:
        self.worker = assignment.worker
        self.held = assignment.held
        self.rows = assignment.rows
        self._given = assignment.parts
        self._first_step = assignment.step

    def warm_up(self) -> int:
        """Imports what a worker needs, without an assignment; returns its process."""
        self._set_up_process()
        if os.environ.get("JAX_PLATFORMS") == "cpu":
            jnp.zeros(1).block_until_ready()
        return os.getpid()

    def start(self, assignment: Assignment | None = None) -> Ready:
        """Loads the parts or first batches, and compiles.

        Errors here come from data or loss.

        Args:
          assignment: `Assignment` of a spare process that becomes a worker.
        """
        if assignment is not None:
            self._assign(assignment)
        self._set_up_process()
        if self.task.batches is not None:
            self.prepare_data(
                HostBatches(
                    self.task.batches,
                    self.held.tolist(),
                    self._first_step,
                    is_stacked=self._is_stacked,
                )
            )
        elif self.task.load is not None:
            self.prepare(load_parts(self.task.load, self.held.tolist()))
        else:
            self.prepare(find_ray().get(self._given))
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
        """Ties this process to Ray's, and takes over the settings of the task."""
        if sys.platform == "linux":
            # Linux ends this process when Ray's own process ends, even if this process
            # is frozen.
            set_parent_death_signal = 1
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        task = self.task
        if not isinstance(task, Task):
            # The task is unpickled here, so that an error of the user's modules is
            # reported like others. Two threads may do it at once in a spare process.
            [self.task] = find_ray().get(task)
        for name, value in self.task.settings.items():
            jax.config.update(name, value)

    def compute(self, order: Any) -> Answer:
        """Returns the message for leaves of params, key and step, maybe pickled."""
        begin = time.monotonic()
        leaves, key, step = read_order(order)
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, step))
        arguments = self._arguments(key, step)
        self.data.expect([(step + 1, 0)])
        answer = self._compiled(leaves, *arguments)
        wire, losses, aux, digests = jax.tree.map(np.asarray, answer)
        message = self._corrupted(step, wire)
        seconds = time.monotonic() - begin
        return Answer(message, losses, aux, seconds, digests)

    def project(self, order: Any, parts: np.ndarray, key: Any) -> np.ndarray:
        """Returns the projection (PROJECTION_DIM,) of a message formed from some parts.

        Args:
          order: see `compute`.
          parts: indices of parts that it holds.
          key: of `coding.project`, as it travels.
        """
        leaves, step_key, step = read_order(order)
        wire, *_ = self._compiled(leaves, *self._arguments(step_key, step, parts))
        return self._projection(self._corrupted(step, np.asarray(wire)), key)

    def prepare(self, parts: list) -> None:
        """Keeps the parts, and compiles all functions of them."""
        origin = f"part {self.held[0]}"
        stored = StoredParts(parts, is_stacked=self._is_stacked, origin=origin)
        self.prepare_data(stored)

    def prepare_data(self, data: DataSource) -> None:
        """Compiles all functions of the data."""
        self.data = data
        self._structure = jax.tree.structure(self.task.params)
        self._compile()
        if self.task.has_queries:
            # The projection is compiled here, so that the first query takes no longer
            # than others.
            message = np.zeros(self._wire_like.shape, self._wire_like.dtype)
            self._projection(message, sent(jax.random.key(0)))

    def _projection(self, wire, key):
        kind = np.complex64 if np.iscomplexobj(self.rows) else np.float32
        message = np.empty(wire.shape[:2], np.promote_types(wire.dtype, kind))
        unpack(wire, message)
        return np.asarray(project(read(key), message, PROJECTION_DIM)[0])

    def _corrupted(self, step, wire):
        if self.task.corrupt is None:
            return wire
        return np.asarray(self.task.corrupt(self.worker, step, np.array(wire[0])))[None]

    def _compile(self) -> None:
        """Compiles the message of the parts."""
        leaves = jax.tree.leaves(self.task.params)
        arguments = self._arguments(self.task.key, self._first_step)
        lowered = jax.jit(self._answer).lower(leaves, *arguments)
        self._compiled = lowered.compile()
        self._wire_like = lowered.out_info[0]

    def _arguments(self, key, step, parts=None):
        """Returns the arguments of `_answer`; if given, only `parts` contribute."""
        held = self.held.astype(np.uint32)
        rows = self.rows
        if parts is not None:
            is_asked = np.isin(self.held, parts)
            rows = rows * is_asked.repeat(rows.shape[1] // len(held))
        data = self.data.of_step(step, 0)
        return data, rows, held, key, np.uint32(step)

    def _answer(self, leaves, parts, rows, held, key, step):
        def of_part(part, index, columns):
            values, gradient = self._value_and_grad(leaves, part, index, key, step)
            message = coding.form_messages(columns, gradient)
            return message, (*values, self._digest(part))

        def add(message, part_index_and_columns):
            one_part, values = of_part(*part_index_and_columns)
            return message + one_part, values

        # Parts are computed one after the other, so that memory holds one gradient at a
        # time.
        columns = jnp.moveaxis(rows.reshape(len(rows), len(held), -1), 1, 0)
        each = parts, held, columns
        like, _ = jax.eval_shape(of_part, *jax.tree.map(lambda leaf: leaf[0], each))
        start = jnp.zeros(like.shape, like.dtype)
        message, (losses, aux, digests) = jax.lax.scan(add, start, each)
        return pack(message, self.task.message_dtype), losses, aux, digests

    def _digest(self, part):
        return digest(part) if self.task.has_digests else None

    def _value_and_grad(self, leaves, part, index, key, step):
        """Returns loss and aux of one part, and its gradient, leaves (1, ...)."""
        params = jax.tree.unflatten(self._structure, leaves)
        part, key = read((part, key))
        if self.task.batch is not None:
            # The key depends on step and part, so that all holders of a part draw the
            # same rows.
            key = jax.random.fold_in(jax.random.fold_in(key, step), index)
            part = draw_batch(self.task.batch, key, part, step)
        loss = checked_loss(self.task.loss, self.task.has_aux)
        values, gradient = jax.value_and_grad(loss, has_aux=True)(params, part)
        return values, jax.tree.map(lambda leaf: leaf[None], gradient)


@dataclasses.dataclass(eq=False)
class _Step:
    """State of one round on a worker: see `PartWorker.compute`."""

    number: int
    order: tuple[list, Any, int]
    taken: np.ndarray
    gradients: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    reports: list[Report] = dataclasses.field(default_factory=list)
    # Number of the first reports that are sent only together with a further one.
    num_quiet: int = 0
    is_stopped: bool = False
    # Error of the user's `batches`, which ends this round only.
    error: WorkerError | None = None

    @property
    def turns(self) -> np.ndarray:
        """Turns that the worker has not computed: see `turns_left`."""
        is_done = np.full(len(self.taken), self.is_stopped)
        is_done[list(self.gradients)] = True
        return turns_left(self.taken, is_done)

    @property
    def is_free(self) -> bool:
        """True if a part is left that no other worker has finished or is computing."""
        return bool((self.taken[self.turns] == Taken.FREE).any())


def turns_left(taken: np.ndarray, is_done: np.ndarray) -> np.ndarray:
    """Returns the turns that a worker has not done, untaken parts first.

    Args:
      taken: int (num_turns,), `Taken` of each part.
      is_done: bool (num_turns,), parts that the worker has finished.
    """
    left = np.flatnonzero(~is_done)
    return left[np.argsort(taken[left], kind="stable")]


class PartWorker(Worker):
    """Computes parts one by one, and keeps their gradients until a sum is requested.

    One thread computes. The calls of the coordinator come in others, and hardly wait
    for it: only for the next report.
    """

    _is_stacked = False

    def __init__(self, assignment: Assignment | None, task: Task):
        super().__init__(assignment, task)
        # The lock of the state below, which all threads share.
        self._changed = threading.Condition()
        self._step = _Step(-1, ([], None, 0), np.zeros(0, np.int8))
        self._num_calls = 0
        self._error: WorkerError | None = None

    def start(self, assignment: Assignment | None = None) -> Ready:
        """Loads the parts, compiles, and starts the thread that computes."""
        ready = super().start(assignment)
        self.start_thread()
        return ready

    def start_thread(self) -> None:
        """Starts the thread that computes the parts of the newest round."""
        threading.Thread(target=self._work, daemon=True).start()

    def compute(
        self, order: Any, number: int, taken: np.ndarray, seen: int
    ) -> list[Report]:
        """Starts another round after the current part, and returns the first reports.

        The first are those of the last round that the coordinator has not seen. They
        wait for one of this round, to save a call, unless it has seen none of the last.

        Args:
          order: leaves of params, key and step, maybe pickled.
          number: of the round. They grow, and of two the later one counts.
          taken: int (num_held,), `Taken` of each of its parts.
          seen: number of reports of the last round that the coordinator has seen.
        """
        leaves, key, step = read_order(order)
        with self._changed:
            if number > self._step.number:
                order = jax.device_put(leaves), key, step
                unseen = self._step.reports[seen:]
                num_quiet = len(unseen) if seen else 0
                self._step = _Step(number, order, taken, {}, unseen, num_quiet)
        return self.report(number, 0, taken)

    def report(self, number: int, seen: int, taken: np.ndarray) -> list[Report]:
        """Waits for a report after the first `seen` ones, and returns the new reports.

        They may include reports of an earlier round, in which the worker was late. The
        list is empty if another call takes over.
        """
        with self._changed:
            step = self._step
            if step.number != number:
                return []
            step.taken = taken
            step.is_stopped = False
            self._num_calls += 1
            calls = self._num_calls
            self._changed.notify_all()

            def is_waiting_for(number):
                is_newest = calls == self._num_calls and not step.is_stopped
                has_failed = self._error is not None or step.error is not None
                return is_newest and not has_failed and len(step.reports) < number

            first = max(seen, step.num_quiet) + 1
            self._changed.wait_for(lambda: not is_waiting_for(first))
            if len(step.reports) >= first:
                # The call waits for more reports to return together, while untaken
                # parts are left.
                full = step.num_quiet + self.task.report_size
                self._changed.wait_for(
                    lambda: not (is_waiting_for(full) and step.is_free), HOLD_SECONDS
                )
            if error := self._error or step.error:
                raise error
            return step.reports[seen:]

    def answer(self, number: int, request: np.ndarray) -> np.ndarray | None:
        """Returns the sum of the worker's messages, weighted by a request.

        None if the worker has gone on to another round. The worker then stops until the
        next call for reports.
        """
        self.stop(number)
        with self._changed:
            self._num_calls += 1
            step = self._step
        if step.number != number:
            return None
        wire = self._sum(step.gradients, request @ self.rows)
        return self._corrupted(step.order[2], np.asarray(wire))

    def project(
        self, order: Any, parts: np.ndarray, key: Any, number: int
    ) -> np.ndarray:
        """Returns the projection of the gradient of one part of a round.

        The stored gradient is used if there is one. Otherwise the gradient is computed,
        while other work goes on.
        """
        turn = self.held.tolist().index(parts[0])
        with self._changed:
            is_here = self._step.number == number
            gradient = self._step.gradients.get(turn) if is_here else None
        leaves, step_key, step = read_order(order)
        if gradient is None:
            arguments = self._arguments_of(turn, step_key, step)
            gradient, *_ = self._compiled(leaves, *arguments)
        wire = self._corrupted(step, np.asarray(self._pack(gradient)))
        return self._projection(wire, key)

    def stop(self, number: int) -> list[Report]:
        """Ends a round after the current part."""
        with self._changed:
            if self._step.number == number:
                self._step.is_stopped = True
            self._changed.notify_all()
        return []

    def _sum(self, gradients, weights):
        """Returns the weighted sum of gradients, in the form in which it is sent."""
        asked = np.flatnonzero(weights)
        total = jnp.zeros_like(self._zeros)
        for start in range(0, len(asked), _AT_ONCE):
            turns = asked[start : start + _AT_ONCE]
            added = [gradients[turn] for turn in turns]
            added += [self._zeros] * (_AT_ONCE - len(turns))
            factors = np.zeros(_AT_ONCE, total.dtype)
            factors[: len(turns)] = weights[turns]
            total = self._add(total, factors, added)
        return self._pack(total)

    def _compile(self) -> None:
        """Compiles the gradient of one part, and the sum of gradients."""
        leaves = jax.tree.leaves(self.task.params)
        arguments = self._arguments_of(0, self.task.key, self._first_step)
        lowered = jax.jit(self._one_part).lower(leaves, *arguments)
        self._compiled = lowered.compile()
        self._zeros = jnp.zeros_like(lowered.out_info[0])
        self._add = jax.jit(_add, donate_argnums=0)
        self._pack = jax.jit(lambda total: pack(total[None], self.task.message_dtype))
        wire = self._sum({0: self._zeros}, np.ones(1)).block_until_ready()
        self._wire_like = jax.ShapeDtypeStruct(wire.shape, wire.dtype)

    def _work(self):
        """Computes the parts of the newest round, one after the other."""
        took = 0.0
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._step.turns))
                    # Other workers are expected to finish and send the parts that they
                    # have or compute. This worker computes these parts only after a
                    # while.
                    hold = max(_PARTS_HELD * took, HOLD_SECONDS)
                    self._changed.wait_for(lambda: self._step.is_free, hold)
                    step = self._step
                    turns = self._step.turns
                    if not len(turns):
                        continue
                    turn, *later = turns.tolist()
                    free = [each for each in later if step.taken[each] == Taken.FREE]
                try:
                    gradient, report = self._finish(step, turn, free[:1])
                except BatchError as error:
                    with self._changed:
                        step.error = WorkerError.of(error)
                        step.is_stopped = True
                        self._changed.notify_all()
                    continue
                with self._changed:
                    took = report.seconds
                    step.gradients[turn] = gradient
                    self._step.reports.append(report)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = WorkerError.of(error)
                self._changed.notify_all()

    def _finish(self, step, turn, next_turns):
        """Returns the gradient of a part and its report.

        Batches of `next_turns` of this step, and of the first turn of the next step,
        are read meanwhile.
        """
        begin = time.monotonic()
        leaves, key, number = step.order
        if self.task.delay is not None:
            time.sleep(self.task.delay(self.worker, number))
        arguments = self._arguments_of(turn, key, number)
        next_groups = [(number, next_turn) for next_turn in next_turns]
        self.data.expect([*next_groups, (number + 1, 0)])
        answer = self._compiled(leaves, *arguments)
        gradient, (loss, aux), is_finite, own_digest = answer
        aux = jax.tree.map(lambda leaf: np.asarray(leaf)[None], aux)
        return gradient, Report(
            step.number,
            turn,
            float(loss),
            aux,
            bool(is_finite),
            time.monotonic() - begin,
            None if own_digest is None else np.asarray(own_digest),
        )

    def _arguments_of(self, turn, key, step):
        part = self.data.of_step(step, turn)
        return part, np.uint32(self.held[turn]), key, np.uint32(step)

    def _one_part(self, leaves, part, index, key, step):
        values, gradient = self._value_and_grad(leaves, part, index, key, step)
        message = _flat_vectors.ravel(gradient)
        return message, values, jnp.isfinite(message).all(), self._digest(part)


def actor_class(kind: type[Worker]) -> type:
    """Returns the class of Ray's actors; each method raises only `WorkerError`."""
    names = ("warm_up", "start", "compute", "report", "answer", "project", "stop")
    methods = {
        name: reporting(getattr(kind, name)) for name in names if hasattr(kind, name)
    }
    return type(kind.__name__, (kind,), methods)


def _add(total, factors, gradients):
    for factor, gradient in zip(factors, gradients):
        total = total + factor * gradient
    return total


project = jax.jit(coding.project, static_argnums=2)


def read_order(order: tuple[list, Any, int] | bytes) -> tuple[list, Any, int]:
    """Returns leaves of params, key and step of an order, which may be pickled."""
    return pickle.loads(order) if isinstance(order, bytes) else order


def draw_batch(batch: Callable, key: jax.Array, part: Any, step: jax.Array) -> Any:
    """Returns `batch(key, part)`, with `step` as well if `batch` has this argument."""
    try:
        takes_step = "step" in inspect.signature(batch).parameters
    except ValueError:
        # Functions in C may have no signature.
        takes_step = False
    return batch(key, part, step=step) if takes_step else batch(key, part)


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


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns environment variables for threads and platform of a worker.

    As many threads as CPUs, since cores are shared by workers, not within one; what
    accelerators it claims, JAX finds by itself.
    """
    threads = max(1, int(options["num_cpus"] or 0))
    num_gpus = options.get("num_gpus") or 0
    has_accelerator = num_gpus or "TPU" in (options.get("resources") or {})
    variables = {
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "JAX_PLATFORMS": "" if has_accelerator else "cpu",
        # Freed memory is kept, because the system takes four times as long to provide
        # fresh memory for a gradient as the worker takes to write the gradient.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**62),
        "MALLOC_ARENA_MAX": "1",
    }
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen=false"
        variables["XLA_FLAGS"] = " ".join(flags).strip()
    if 0 < num_gpus < 1:
        # JAX allocates three quarters of a GPU's memory at the start.
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * num_gpus:.3f}"
    return variables
