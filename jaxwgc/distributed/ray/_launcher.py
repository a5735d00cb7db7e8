"""Launcher, which starts worker processes and keeps a spare process."""

import contextlib
import operator
import os
import signal
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._errors import reporting
from jaxwgc.distributed.ray._messages import Layout
from jaxwgc.distributed.ray._part_worker import PartWorker
from jaxwgc.distributed.ray._session import RayActor, RayReference, find_ray, log
from jaxwgc.distributed.ray._task import Assignment, Task
from jaxwgc.distributed.ray._worker import Worker, WorkerBase

# Maximum number of calls of one worker that have not returned. Further calls wait.
MAX_CALLS = 4
# Seconds within which a spare process must respond before it is used. Short, because
# the round waits; long against the milliseconds that an idle machine takes.
_SECONDS_TO_RESPOND = 1.0


class Launcher:
    """Starts worker processes, and keeps a spare process for the next lost worker.

    The spare process has imported JAX and the modules of the loss. It holds no data
    until it takes the place of a worker, whose parts it then loads. If it has ended or
    does not respond, a new process is started instead, as without a spare one.

    Args:
      code: Gradient code, with the parts of each worker.
      layout: Shapes of the messages.
      task: Task of all workers.
      parts: Pytree, leaves (num_parts, ...), or None if workers load them.
      options: Options of Ray's actors.
      has_spare: Whether to keep a spare process.
    """

    def __init__(
        self,
        code: GradientCode,
        layout: Layout,
        task: Task,
        parts: Any,
        options: Mapping[str, Any],
        *,
        has_spare: bool,
    ):
        ray = find_ray()
        # Ray does not resolve a reference inside a list. Workers read the task
        # themselves, so that they can report errors.
        self._task = [ray.put(task)]
        self._assignments = _assignments(code, layout, parts)
        remote = ray.remote(max_restarts=0, max_task_retries=0)
        worker_class = Worker if code.messages_per_worker == 1 else PartWorker
        remote_class = remote(actor_class(worker_class))
        self._remote = remote_class.options(**_options(code, options))
        self._has_spare = has_spare
        self._spare: RayActor | None = None
        # Ray task that returns the process id of the spare actor once it is ready.
        self._warm_up: RayReference | None = None

    def launch(self, worker: int, step: int) -> tuple[RayActor, RayReference]:
        """Starts a worker process; returns its actor and the Ray task of its start.

        Args:
          worker: Index of the worker.
          step: Step of the round in which the worker starts.
        """
        assignment = self._assignments[worker]._replace(step=step)
        spare = self._take_spare()
        if spare is not None:
            log.info("a spare process takes the place of worker %d", worker)
            return spare, spare.start.remote(assignment)
        actor = self._remote.remote(assignment, self._task)
        return actor, actor.start.remote()

    def prepare_spare(self) -> None:
        """Starts a spare process if the launcher should keep one and has none."""
        if self._has_spare and self._spare is None:
            spare = self._remote.remote(None, self._task)
            self._spare = spare
            self._warm_up = spare.warm_up.remote()

    def end_spare(self) -> None:
        """Ends the spare process if there is one."""
        if self._spare is None:
            return
        pid = None
        ray = find_ray()
        # If Ray has already ended, a call of Ray would start a new instance.
        if ray.is_initialized():
            with contextlib.suppress(Exception):
                pid = ray.get(self._warm_up, timeout=0)
        end_process(self._spare, pid)
        self._spare = None

    def _take_spare(self) -> RayActor | None:
        """Takes the spare actor out of the launcher; returns None if unusable."""
        spare = self._spare
        if spare is None:
            return None
        if not self._can_be_used(spare):
            log.warning("the spare process has ended or does not respond")
            self.end_spare()
            return None
        self._spare = None
        return spare

    def _can_be_used(self, spare: RayActor) -> bool:
        """Returns whether the spare process responds, or is still being started."""
        ray = find_ray()
        ready, _ = ray.wait([self._warm_up], timeout=0)
        if not ready:
            return True
        try:
            ray.get(self._warm_up, timeout=0)
            ray.get(spare.warm_up.remote(), timeout=_SECONDS_TO_RESPOND)
        except Exception:
            return False
        return True


def end_process(actor: RayActor, pid: int | None) -> None:
    """Ends an actor, and sends SIGKILL to its process `pid` unless that is None."""
    # If Ray has already ended, a call of Ray would start a new instance.
    if find_ray().is_initialized():
        with contextlib.suppress(Exception):
            find_ray().kill(actor, no_restart=True)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _assignments(code: GradientCode, layout: Layout, parts: Any) -> list[Assignment]:
    """Returns one `Assignment` per worker; stores the parts in Ray's object store."""
    ray = find_ray()
    references = None
    if parts is not None:
        references = [
            ray.put(jax.tree.map(operator.itemgetter(part), parts))
            for part in range(code.num_parts)
        ]
    matrix = np.asarray(code.encoding_matrix).reshape(
        code.num_workers, code.messages_per_worker, code.num_parts, -1
    )
    assignments = []
    for worker in range(code.num_workers):
        held = layout.held[worker]
        rows = matrix[worker][:, held].reshape(code.messages_per_worker, -1)
        references_of_worker = None
        if references is not None:
            references_of_worker = [references[part] for part in held]
        assignments.append(
            Assignment(worker=worker, held=held, rows=rows, parts=references_of_worker)
        )
    return assignments


def _options(code: GradientCode, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of Ray's actors, including environment variables."""
    runtime = dict(options.get("runtime_env", {}))
    runtime["env_vars"] = environment(options) | runtime.get("env_vars", {})
    all_options: dict[str, Any] = {}
    if code.messages_per_worker > 1:
        all_options["max_concurrency"] = 2 * MAX_CALLS
    all_options |= options
    all_options["runtime_env"] = runtime
    return all_options


# Environment variables that set the number of threads of XLA, OpenMP and OpenBLAS.
_THREAD_VARIABLES = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Methods of workers that the coordinator calls.
_METHODS = ("warm_up", "start", "compute", "report", "send_sum", "project", "stop")


def actor_class(worker_class: type[WorkerBase]) -> type[WorkerBase]:
    """Returns a class for Ray's actors, whose methods raise only `WorkerError`."""
    methods: dict[str, Any] = {"__module__": __name__}
    for name in _METHODS:
        if hasattr(worker_class, name):
            methods[name] = reporting(getattr(worker_class, name))
    return type(worker_class.__name__, (worker_class,), methods)


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns the environment variables of a worker process.

    A worker has as many threads as it claims CPUs, because several workers share the
    cores of a machine. JAX finds the accelerators that the worker claims.
    """
    num_threads = max(1, int(options["num_cpus"] or 0))
    num_gpus = options.get("num_gpus") or 0
    has_accelerator = num_gpus or "TPU" in (options.get("resources") or {})
    variables = {name: str(num_threads) for name in _THREAD_VARIABLES}
    variables["JAX_PLATFORMS"] = "" if has_accelerator else "cpu"
    # malloc keeps freed memory in the process. Fresh memory for a gradient would take
    # the system four times as long as the worker takes to write the gradient.
    variables["MALLOC_MMAP_MAX_"] = "0"
    variables["MALLOC_TRIM_THRESHOLD_"] = str(2**62)
    variables["MALLOC_ARENA_MAX"] = "1"
    if num_threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if 0 < num_gpus < 1:
        # By default, JAX allocates three quarters of a GPU. A worker that claims a
        # fraction of the GPU gets only this fraction of the memory.
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * num_gpus:.3f}"
    return variables
