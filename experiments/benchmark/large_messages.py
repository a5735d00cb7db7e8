"""Seconds and memory of a round with the parameters of a large model."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import in_own_process
from jaxwgc.distributed import Progress, RayCluster

NUM_WORKERS = 4
# Seconds between measurements of memory, short against a copy of a gradient.
SAMPLE_SECONDS = 0.01
GIB = 2**30
# Steps before the measurement: the first ones allocate memory and compile.
NUM_WARM = 2


def gpt2_params(num_layers: int, width: int, num_tokens: int, context: int) -> Any:
    """Returns zeros in the shapes of GPT-2: 124 million for (12, 768, 50257, 1024)."""

    def dense(inputs, outputs):
        return {"kernel": jnp.zeros((inputs, outputs)), "bias": jnp.zeros(outputs)}

    def norm():
        return {"scale": jnp.zeros(width), "bias": jnp.zeros(width)}

    def block():
        return {
            "norm_1": norm(),
            "attention": dense(width, 3 * width),
            "projection": dense(width, width),
            "norm_2": norm(),
            "up": dense(width, 4 * width),
            "down": dense(4 * width, width),
        }

    return {
        "tokens": jnp.zeros((num_tokens, width)),
        "positions": jnp.zeros((context, width)),
        "blocks": [block() for _ in range(num_layers)],
        "norm": norm(),
    }


def empty_loss(params: Any, part: jax.Array) -> jax.Array:
    """Returns a loss without work; its gradient has the size of params."""
    return part[0] * sum(leaf.ravel()[0] for leaf in jax.tree.leaves(params))


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns seconds and memory of a step, in float32 and in bfloat16."""
    num_steps = 1 if quick else repeats
    cells = {
        name: Once(in_own_process, measure, num_steps, dtype, quick)
        for name, dtype in (("float32", None), ("bfloat16", "bfloat16"))
    }
    size = "a small model" if quick else "124 million parameters (GPT-2 small)"
    return timed(
        cells,
        f"A step with empty work, {NUM_WORKERS} workers without a code, {size}: median "
        "seconds, and largest private memory in gradients of float32",
        {
            "messages": "{name}",
            "seconds": "{seconds:.2f}",
            "broadcast": "{broadcast:.2f}",
            "waiting": "{waiting:.2f}",
            "transfer": "{transfer:.2f}",
            "update": "{update:.2f}",
            "coordinator": "{coordinator:.1f}",
            "worker": "{worker:.1f}",
            "object store": "{store:.1f}",
            "coordinator, GiB": "{coordinator_gib:.2f}",
            "all processes, GiB": "{all_gib:.2f}",
        },
    )


def measure(num_steps: int, dtype: str | None, is_small: bool) -> dict[str, float]:
    """Returns median seconds of a step and its shares, and largest memory."""
    before = memory_of(os.getpid())
    if is_small:
        params = gpt2_params(num_layers=1, width=8, num_tokens=16, context=8)
    else:
        params = gpt2_params(num_layers=12, width=768, num_tokens=50257, context=1024)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    records = []
    ends = []

    def record(progress: Progress) -> None:
        ends.append(time.perf_counter())
        records.append({"round": progress.round.elapsed} | progress.round.timings)

    with RayCluster(
        empty_loss,
        jaxwgc.codes.uncoded(NUM_WORKERS),
        np.ones((NUM_WORKERS, 1), np.float32),
        decoding=jaxwgc.aggregate.DecodingOptions(message_dtype=dtype),
        spare=False,
    ) as cluster:
        with sampled_memory(cluster) as peaks:
            cluster.train(
                optax.sgd(1e-3), params, NUM_WARM + num_steps, callbacks=[record]
            )
    seconds = np.diff(ends)[NUM_WARM - 1 :]
    shares = shares_of(seconds, records[NUM_WARM:])
    return shares | in_gradients(peaks, before, 4 * num_params)


def shares_of(seconds: np.ndarray, records: list[dict[str, float]]) -> dict[str, float]:
    """Returns medians of the seconds of steps, and of their shares."""
    broadcast = np.array([own["broadcast"] for own in records])
    transfer = np.array([own["transfer"] for own in records])
    rounds = np.array([own["round"] for own in records])
    shares = {
        "seconds": seconds,
        "broadcast": broadcast,
        "waiting": rounds - broadcast - transfer,
        "transfer": transfer,
        "update": seconds - rounds,
    }
    return {name: float(np.median(values)) for name, values in shares.items()}


def in_gradients(peaks: Any, before: tuple[int, int], size: int) -> dict[str, float]:
    """Returns the largest memory of processes, in gradients and GiB."""
    private_before, shared_before = before
    coordinator = peaks["coordinator"] - private_before
    return {
        "coordinator": coordinator / size,
        "worker": peaks["worker"] / size,
        "store": (peaks["shared"] - shared_before) / size,
        "coordinator_gib": coordinator / GIB,
        "all_gib": peaks["all"] / GIB,
    }


@contextlib.contextmanager
def sampled_memory(cluster: RayCluster) -> Iterator[dict[str, int]]:
    """Yields the largest memory so far, in bytes, of this process and of workers.

    `coordinator` and `worker` are private, `shared` is that of this process, mostly
    Ray's object store, and `all` is the private memory of all and the shared one.
    """
    peaks: dict[str, int] = {"coordinator": 0, "worker": 0, "shared": 0, "all": 0}
    is_over = threading.Event()

    def sample():
        while not is_over.wait(SAMPLE_SECONDS):
            own, shared = memory_of(os.getpid())
            pids = [slot.pid for slot in cluster.workers if slot.pid is not None]
            workers = [memory_of(pid)[0] for pid in pids]
            now = {
                "coordinator": own,
                "worker": max(workers, default=0),
                "shared": shared,
                "all": own + shared + sum(workers),
            }
            for name, size in now.items():
                peaks[name] = max(peaks[name], size)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()


def memory_of(pid: int) -> tuple[int, int]:
    """Returns private and shared bytes of a process; zeros if it has ended."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        sizes = Path(f"/proc/{pid}/statm").read_text().split()
    except FileNotFoundError:
        return 0, 0
    resident = int(sizes[1])
    shared = int(sizes[2])
    return page * (resident - shared), page * shared
