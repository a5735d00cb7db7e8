"""Processes of workers: environment variables, and the class of Ray's actors."""

import os
from collections.abc import Mapping
from typing import Any

from jaxwgc.distributed.ray._errors import reporting
from jaxwgc.distributed.ray._worker_base import WorkerBase

# Variables that set the number of threads.
_THREAD_VARIABLES = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Methods that the coordinator calls.
_METHODS = ("warm_up", "start", "compute", "report", "answer", "project", "stop")


def actor_class(worker_class: type[WorkerBase]) -> type[WorkerBase]:
    """Returns the class of Ray's actors; each method raises only `WorkerError`."""
    methods: dict[str, Any] = {"__module__": __name__}
    for name in _METHODS:
        if hasattr(worker_class, name):
            methods[name] = reporting(getattr(worker_class, name))
    return type(worker_class.__name__, (worker_class,), methods)


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns environment variables for threads and platform of a worker.

    A worker has as many threads as it claims CPUs, because several workers share the
    cores of a machine. JAX finds the accelerators that the worker claims.
    """
    num_threads = max(1, int(options["num_cpus"] or 0))
    num_gpus = options.get("num_gpus") or 0
    has_accelerator = num_gpus or "TPU" in (options.get("resources") or {})
    variables = {name: str(num_threads) for name in _THREAD_VARIABLES}
    variables["JAX_PLATFORMS"] = "" if has_accelerator else "cpu"
    # The process keeps freed memory. The system takes four times as long to provide
    # fresh memory for a gradient as the worker takes to write the gradient.
    variables["MALLOC_MMAP_MAX_"] = "0"
    variables["MALLOC_TRIM_THRESHOLD_"] = str(2**62)
    variables["MALLOC_ARENA_MAX"] = "1"
    if num_threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if 0 < num_gpus < 1:
        # JAX would allocate three quarters of a whole GPU at the start.
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * num_gpus:.3f}"
    return variables
