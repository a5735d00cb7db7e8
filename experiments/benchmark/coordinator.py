"""Overhead of a step on a Ray cluster, and coordinators without it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.runner.study import Once, Study, timed
from experiments.runner.tables import ResultTable

# Workers have one thread, as in `RayCluster`.
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}

Compute = Callable[[jax.Array], tuple[np.ndarray, np.ndarray]]


def empty_loss(params: jax.Array, part: jax.Array) -> jax.Array:
    """Returns a loss without work; its gradient has the size of params."""
    return part[0] * params[0]


def make_worker(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that forms a message part by part, as in `RayCluster`."""
    coefficients = rows[rows != 0]
    parts = jnp.ones(((rows != 0).sum(), 1))

    @jax.jit
    def form(params):
        def add(message, task):
            part, coefficient = task
            return message + coefficient * jax.grad(empty_loss)(params, part), None

        tasks = parts, jnp.asarray(coefficients, jnp.float32)
        return jax.lax.scan(add, jnp.zeros_like(params), tasks)[0]

    return lambda params: np.asarray(form(params))


class PlainWorker:
    """An actor that forms messages."""

    def __init__(self, rows: np.ndarray):
        self._form = make_worker(rows)

    def compute(self, params: np.ndarray) -> np.ndarray:
        """Returns the message for these params."""
        return self._form(params)


@contextlib.contextmanager
def plain_ray(code, num_params: int, num_awaited: int) -> Iterator[Compute]:
    """Yields rounds of the first responses; late workers get no new task."""
    import ray

    actor: Any = ray.remote(num_cpus=0)(PlainWorker)
    options = {"runtime_env": {"env_vars": ONE_THREAD}}
    rows = np.asarray(code.encoding_matrix)
    workers = [actor.options(**options).remote(row) for row in rows]
    pending: dict[Any, int] = {}

    def compute(params):
        order = np.asarray(params)
        # Smaller arrays travel faster within a task.
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
                messages[index] = ray.get(task)
                received[index] = True
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
def shared(code, num_params: int, num_awaited: int) -> Iterator[Compute]:
    """Yields rounds without Ray: workers write messages into shared memory."""
    context = multiprocessing.get_context("spawn")
    rows = np.asarray(code.encoding_matrix)
    size = 4 * num_params
    memory = shared_memory.SharedMemory(create=True, size=(1 + len(rows)) * size)
    arrays = np.ndarray((1 + len(rows), num_params), np.float32, memory.buf)
    ours = []
    processes = []
    with mock.patch.dict(os.environ, ONE_THREAD):
        for worker in range(len(rows)):
            connection, other = context.Pipe()
            process = context.Process(
                target=_serve, args=(other, memory.name, worker, rows), daemon=True
            )
            process.start()
            processes.append(process)
            ours.append(connection)
    busy: set[Any] = set()

    def compute(params):
        arrays[0] = params
        for connection in set(ours) - busy:
            connection.send(True)
        late = set(busy)
        received = np.zeros(len(rows), bool)
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
        # The coordinator may change params while a late worker reads them.
        arrays[1 + worker] = form(arrays[0].copy())
        pipe.send(True)


NUM_WORKERS = 8
NUM_AWAITED = 6
# Steps before the measurement: they allocate memory and compile.
NUM_WARM = 5
SHARES = {
    "broadcast": "parameters to the object store, a task to each worker",
    "waiting": "until the responses have arrived, with the empty work",
    "transfer": "responses read, checked and copied",
    "decoding": "decoding and an SGD step, compiled as one",
}


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns shares of a step with empty work, in float32 and in bfloat16."""
    num_params = 1_000 if quick else 1_000_000
    num_steps = 3 if quick else 5 * repeats
    cells = {
        name: Once(measure, num_params, num_steps, dtype)
        for name, dtype in (("float32", None), ("bfloat16", "bfloat16"))
    }

    def tabulate(numbers):
        shares = {"all": "all"} | {name: f"{name}: {SHARES[name]}" for name in SHARES}
        return ResultTable(
            f"A step with empty work, {NUM_WORKERS} workers, {NUM_AWAITED} awaited, "
            f"{num_params:,} parameters: milliseconds",
            ["share", *(f"messages in {name}" for name in numbers)],
            [
                [text, *(f"{times[share]:.1f}" for times in numbers.values())]
                for share, text in shares.items()
            ],
        )

    return Study(cells, tables={"": tabulate})


def peers(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the time of a step with plain Ray, and with shared memory."""
    sizes = [1_000] if quick else [1_000, 1_000_000]
    num_blocks = 2 if quick else repeats + 1
    num_steps = 3 if quick else 20
    cells = {f"{size:,}": Once(compare, size, num_blocks, num_steps) for size in sizes}

    def ratio(row):
        return f"{row['RayCluster'] / row['plain Ray']:.2f}"

    return timed(
        cells,
        f"A step with empty work, {NUM_WORKERS} workers, {NUM_AWAITED} awaited: "
        "milliseconds",
        {
            "parameters": "{name}",
            "RayCluster": "{RayCluster:.1f}",
            "plain Ray": "{plain Ray:.1f}",
            "shared memory": "{shared memory:.1f}",
            "RayCluster / plain Ray": ratio,
        },
    )


def compare(num_params: int, num_blocks: int, num_steps: int) -> dict[str, float]:
    """Returns median milliseconds per step, from alternating blocks of steps."""
    code, *step = _step()
    seconds: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(_cluster(code))

        def ours(params):
            done = cluster.compute(params)
            return done.messages, done.received

        ours(jnp.zeros(num_params))
        ray_rounds = stack.enter_context(plain_ray(code, num_params, NUM_AWAITED))
        shared_rounds = stack.enter_context(shared(code, num_params, NUM_AWAITED))
        coordinators = {
            "RayCluster": ours,
            "plain Ray": ray_rounds,
            "shared memory": shared_rounds,
        }
        for block in range(num_blocks):
            for name, compute in coordinators.items():
                taken = [*timed_steps(compute, num_params, num_steps, *step)]
                # The first block is warm-up.
                if block:
                    seconds.setdefault(name, []).extend(map(sum, taken))
    return {name: 1e3 * float(np.median(taken)) for name, taken in seconds.items()}


def timed_steps(
    compute: Compute, num_params: int, num_steps: int, optimizer, update
) -> Iterator[tuple[float, float]]:
    """Yields seconds of computing and of updating, after steps that compile."""
    params = jnp.zeros(num_params)
    state = optimizer.init(params)
    for step in range(NUM_WARM + num_steps):
        start = time.perf_counter()
        messages, received = compute(params)
        computed = time.perf_counter()
        updated = update(messages, state, params, received)
        params, state = jax.block_until_ready(updated)
        if step >= NUM_WARM:
            yield computed - start, time.perf_counter() - computed


def _cluster(code: jaxwgc.GradientCode, dtype: str | None = None):
    return jaxwgc.distributed.RayCluster(
        empty_loss,
        code,
        np.ones((code.num_parts, 1), np.float32),
        wait=jaxwgc.stragglers.fastest(NUM_AWAITED),
        decoding=jaxwgc.aggregate.DecodingOptions(message_dtype=dtype),
    )


def _step():
    """Returns a code, an optimizer, and a compiled update that decodes."""
    key = jax.random.key(0)
    num_stragglers = NUM_WORKERS - NUM_AWAITED
    code = jaxwgc.codes.cyclic_repetition(key, NUM_WORKERS, num_stragglers)
    optimizer = optax.chain(jaxwgc.decode_aggregate(code), optax.sgd(1e-3))

    @jax.jit
    def update(messages, state, params, received):
        updates, state = optimizer.update(messages, state, params, received=received)
        return optax.apply_updates(params, updates), state

    return code, optimizer, update


def measure(num_params: int, num_steps: int, dtype: str | None) -> dict[str, float]:
    """Returns median milliseconds per step and of its shares."""
    code, *step = _step()
    timings = []
    records = []
    with _cluster(code, dtype) as cluster:

        def compute(params):
            done = cluster.compute(params)
            timings.append(done.timings)
            return done.messages, done.received

        for computing, decoding in timed_steps(compute, num_params, num_steps, *step):
            times = {"all": computing + decoding, "decoding": decoding, **timings[-1]}
            times["waiting"] = computing - times["broadcast"] - times["transfer"]
            records.append(times)
    milliseconds = {}
    for name in records[0]:
        median = np.median([times[name] for times in records])
        milliseconds[name] = 1e3 * float(median)
    return milliseconds
