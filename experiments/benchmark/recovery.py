"""Seconds until the first step of a Ray cluster, and until a killed worker is back."""

import contextlib
import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Once, Study, timed

NUM_WORKERS = 6
NUM_STRAGGLERS = 2
NUM_PARAMS = 1_000
# Seconds between a return and the next kill, in which the next spare process starts.
REST_SECONDS = 5.0
# Steps with a fault in every sixth, in turn a kill and a freeze.
NUM_STEPS = 60
FAULT_EVERY = 6
# Priority of its workers by default, in Ray.
NICENESS_OF_RAY = 15


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the times by busy processes beside, spare process, and priority."""
    num_kills = 1 if quick else repeats
    num_steps = FAULT_EVERY if quick else NUM_STEPS
    cells = {
        "idle": {"is_busy": False, "spare": True},
        "idle, without a spare process": {"is_busy": False, "spare": False},
        "one busy process": {"is_busy": True, "spare": True},
        "one busy process, without a spare process": {"is_busy": True, "spare": False},
        "one busy process, without both": {
            "is_busy": True,
            "spare": False,
            "niceness": NICENESS_OF_RAY,
        },
    }
    if quick:
        cells = {"idle": cells["idle"]}
    return timed(
        {
            name: Once(
                functools.partial(measure, **options), num_kills, num_steps, seed
            )
            for name, options in cells.items()
        },
        f"Seconds on {os.cpu_count()} cores, "
        f"`fractional_repetition({NUM_WORKERS}, {NUM_STRAGGLERS})`. "
        "Without both: without a spare process, and with Ray's priority of workers",
        {
            "beside it": "{name}",
            "first step after": "{start:.1f}",
            "back after, median": "{back:.1f}",
            "back after, longest": "{longest_back:.1f}",
            f"longest of {NUM_STEPS} steps, fault every {FAULT_EVERY}": "{longest:.1f}",
        },
    )


def measure(
    num_kills: int,
    num_steps: int,
    seed: int,
    *,
    is_busy: bool,
    spare: bool,
    niceness: int = 0,
) -> dict[str, float]:
    """Returns the seconds of one cluster."""
    variables = {"RAY_worker_niceness": str(niceness)}
    with busy_process(is_busy), mock.patch.dict(os.environ, variables):
        begin = time.monotonic()
        with make_cluster(spare) as cluster:
            cluster.compute(jnp.zeros(NUM_PARAMS))
            start = time.monotonic() - begin
            backs = [
                seconds_until_back(cluster, worker % NUM_WORKERS)
                for worker in range(num_kills)
            ]
            rest(cluster)
            longest = max(seconds_with_faults(cluster, num_steps, seed))
    return {
        "start": start,
        "back": float(np.median(backs)),
        "longest_back": max(backs),
        "longest": longest,
    }


def make_cluster(spare: bool) -> jaxwgc.distributed.RayCluster:
    """Returns a cluster with little work."""
    code = jaxwgc.codes.fractional_repetition(NUM_WORKERS, NUM_STRAGGLERS)
    parts = np.ones((code.num_parts, 1), np.float32)
    return jaxwgc.distributed.RayCluster(loss, code, parts, spare=spare)


def loss(params: Any, part: Any) -> Any:
    """Returns a loss with little work."""
    return jnp.sum((params - part) ** 2)


@contextlib.contextmanager
def busy_process(is_busy: bool) -> Iterator[None]:
    """Keeps a core busy while the block runs, if told to."""
    if not is_busy:
        yield
        return
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=keep_busy, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def keep_busy() -> None:
    """Computes until the process is ended."""
    while True:
        pass


def rest(cluster: jaxwgc.distributed.RayCluster) -> None:
    """Computes steps for a while."""
    end = time.monotonic() + REST_SECONDS
    while time.monotonic() < end:
        cluster.compute(jnp.zeros(NUM_PARAMS))
        time.sleep(0.05)


def seconds_until_back(cluster: jaxwgc.distributed.RayCluster, worker: int) -> float:
    """Returns the seconds from a kill until the worker can respond again."""
    rest(cluster)
    pid = cluster.workers[worker].pid
    assert pid is not None
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while cluster.workers[worker].pid in (None, pid):
        cluster.compute(jnp.zeros(NUM_PARAMS))
        time.sleep(0.01)
    return time.monotonic() - begin


def seconds_with_faults(
    cluster: jaxwgc.distributed.RayCluster, num_steps: int, seed: int
) -> Iterator[float]:
    """Yields the seconds of steps, some of which begin with a kill or a freeze."""
    random = np.random.default_rng(seed)
    kinds = signal.SIGKILL, signal.SIGSTOP
    hit: set[int] = set()
    for step in range(1, num_steps + 1):
        if step % FAULT_EVERY == 0:
            pids = [slot.pid for slot in cluster.workers]
            up = [pid for pid in pids if pid is not None and pid not in hit]
            pid = int(random.choice(up))
            hit.add(pid)
            os.kill(pid, kinds[step // FAULT_EVERY % 2])
        yield cluster.compute(jnp.zeros(NUM_PARAMS)).elapsed
