"""Names the slow process of a training with JAX while it runs.

python -m examples.step_times_jax   # starts two processes on this machine
"""

import multiprocessing
import socket
import time

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

import jaxwgc


def train(process: int, address: str) -> None:
    """Trains on one of two processes; process 1 is slow from step 100 on."""
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    rows = jax.random.normal(jax.random.key(process), (256, 16))
    gradient_of = jax.jit(jax.grad(lambda params: jnp.mean((rows @ params - 1) ** 2)))
    step_times = jaxwgc.StepTimes(
        "jax", every=50, on_change=print, before_collective=True
    )
    params = jnp.zeros(16)
    for step in range(200):
        with step_times:  # the work of this process alone
            gradient = jax.block_until_ready(gradient_of(params))
            time.sleep(0.03 if process == 1 and step >= 100 else 0.01)
        params -= 0.1 * multihost_utils.process_allgather(gradient).mean(axis=0)
    if process == 0:
        print(step_times.metrics())
        print(step_times.report())


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train, args=(rank, address)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
