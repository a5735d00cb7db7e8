"""Coordinators as one would write them: plain Ray, and memory that processes share."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc

# A worker has no more, as in `RayCluster`.
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}

Compute = Callable[[jax.Array], tuple[np.ndarray, np.ndarray]]


def empty_loss(params: jax.Array, part: jax.Array) -> jax.Array:
    """A loss whose gradient is as long as params, and costs nothing but its memory."""
    return part[0] * params[0]


def make_worker(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The message of a worker, its parts one after the other as in `RayCluster`."""
    coefficients, parts = rows[rows != 0], jnp.ones(((rows != 0).sum(), 1))

    @jax.jit
    def form(params):
        def add(message, task):
            part, coefficient = task
            return message + coefficient * jax.grad(empty_loss)(params, part), None

        tasks = parts, jnp.asarray(coefficients, jnp.float32)
        return jax.lax.scan(add, jnp.zeros_like(params), tasks)[0]

    return lambda params: np.asarray(form(params))


class PlainWorker:
    """An actor that does no more than that."""

    def __init__(self, rows: np.ndarray):
        self._form = make_worker(rows)

    def compute(self, params: np.ndarray) -> np.ndarray:
        """The message for these params."""
        return self._form(params)


@contextlib.contextmanager
def plain_ray(
    code: jaxwgc.GradientCode, num_params: int, num_awaited: int
) -> Iterator[Compute]:
    """Rounds that wait for the first; whoever is late, is given nothing new."""
    import ray

    actor: Any = ray.remote(num_cpus=0)(PlainWorker)
    options = {"runtime_env": {"env_vars": ONE_THREAD}}
    rows = np.asarray(code.encoding_matrix)
    workers = [actor.options(**options).remote(row) for row in rows]
    pending: dict[Any, int] = {}

    def compute(params):
        order = np.asarray(params)
        # What is smaller travels faster within a task.
        if order.nbytes > 2**16:
            order = ray.put(order)
        for index in set(range(len(workers))) - set(pending.values()):
            pending[workers[index].compute.remote(order)] = index
        fresh = set(pending) - late
        late.clear()
        messages = np.zeros((len(workers), num_params), np.float32)
        received = np.zeros(len(workers), bool)
        while received.sum() < num_awaited:
            [task], _ = ray.wait(list(pending))
            index = pending.pop(task)
            if task in fresh:
                messages[index], received[index] = ray.get(task), True
            else:
                task = workers[index].compute.remote(order)
                pending[task] = index
                fresh.add(task)
        late.update(pending)
        return messages, received

    late: set[Any] = set()
    try:
        yield compute
    finally:
        for worker in workers:
            ray.kill(worker)


@contextlib.contextmanager
def shared(
    code: jaxwgc.GradientCode, num_params: int, num_awaited: int
) -> Iterator[Compute]:
    """The same without Ray: messages are written where the coordinator reads them."""
    context = multiprocessing.get_context("spawn")
    rows = np.asarray(code.encoding_matrix)
    size = 4 * num_params
    memory = shared_memory.SharedMemory(create=True, size=(1 + len(rows)) * size)
    arrays = np.ndarray((1 + len(rows), num_params), np.float32, memory.buf)
    ours, processes = [], []
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    for worker in range(len(rows)):
        connection, other = context.Pipe()
        process = context.Process(
            target=_serve, args=(other, memory.name, worker, rows), daemon=True
        )
        process.start()
        ours.append(connection)
        processes.append(process)
    for name, value in before.items():
        del os.environ[name]
        if value is not None:
            os.environ[name] = value
    busy: set[Any] = set()

    def compute(params):
        arrays[0] = params
        for connection in set(ours) - busy:
            connection.send(True)
        late, received = set(busy), np.zeros(len(rows), bool)
        busy.update(ours)
        while received.sum() < num_awaited:
            ready: list[Any] = multiprocessing.connection.wait(list(busy))
            for connection in ready:
                connection.recv()
                if connection in late:
                    late.remove(connection)
                    connection.send(True)
                else:
                    busy.remove(connection)
                    received[ours.index(connection)] = True
        return arrays[1:], received

    try:
        yield compute
    finally:
        for process in processes:
            process.kill()
            process.join()
        memory.unlink()


def _serve(pipe: Any, name: str, worker: int, rows: np.ndarray) -> None:
    memory: Any = shared_memory.SharedMemory(name)
    num_params = len(memory.buf) // 4 // (1 + len(rows))
    arrays = np.ndarray((1 + len(rows), num_params), np.float32, memory.buf)
    form = make_worker(rows[worker])
    while pipe.recv():
        # Params may change while a late worker reads them, which is the price.
        arrays[1 + worker] = form(arrays[0].copy())
        pipe.send(True)
