"""Training on real workers that are killed and frozen all the time."""

import contextlib
import functools
import os
import signal
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
from experiments.runner import figures
from experiments.runner.results import check_positive
from experiments.runner.study import COMMANDS, Numbers, Once, Study, run
from experiments.runner.tables import ResultTable

NUM_WORKERS = 8
# Seconds until a silent worker counts as lost, beyond its work.
RESPONSE_SECONDS = 3.0
# Seconds for which a step waits for the replacement of a worker that it needs.
REPLACEMENT_SECONDS = 60.0
# On request: parts per worker in a step without stragglers, and copies of the data.
PARTS_EACH = 4
COPIES = 3
NUM_ROWS = 4_000
NUM_COLUMNS = 2_000
# Relative errors above this are larger than rounding in float32.
WRONG = 1e-3
# Curves of the figure.
CURVES = {
    "resident_mib": "memory of the coordinator, MiB",
    "store_mib": "object store, MiB",
    "seconds": "seconds per step",
}


def chaos(
    on_request: bool = False,
    steps: int = 1000,
    kill_every: int = 5,
    freeze_every: int = 20,
    work: float = 0.5,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Kills and freezes real workers while they train: no step lost, none wrong.

    Args:
        on_request: Request finished parts of `codes.replicated` instead of messages of
            `codes.reed_solomon`.
        steps: Training steps, on 8 processes of this machine.
        kill_every: Steps from one SIGKILL of a random worker to the next.
        freeze_every: Steps from one SIGSTOP to the next.
        work: Seconds that a worker needs for a step.
        seed: Seed of the random numbers.
        out: Folder for table, figure and numbers.
    """
    check_positive(kill_every=kill_every, freeze_every=freeze_every)
    records = functools.partial(
        measure, steps, kill_every, freeze_every, work, seed, on_request=on_request
    )
    title = f"{steps} steps, SIGKILL every {kill_every}, SIGSTOP every {freeze_every}"
    study = Study(
        {"steps": Once(records)},
        derive=summarize,
        tables={"": functools.partial(tabulate, title)},
        figures={"": draw},
    )
    command = "chaos --on-request" if on_request else "chaos"
    prefix = command.replace(" --", "_").replace("-", "_")
    title = "Steps among failures"
    sections = {"": lambda: study}
    run(command, title, sections, steps, seed, out, prefix, option="steps")


COMMANDS["chaos"] = chaos


def measure(
    steps: int, kill_every: int, freeze_every: int, work, seed: int, on_request=False
) -> Iterator[dict[str, Any]]:
    """Yields a record per step: seconds, error, signals sent, and memory in use.

    On request, signals come at any time of a step.
    """
    random = np.random.default_rng(seed)
    if on_request:
        code = jaxwgc.codes.replicated(NUM_WORKERS, PARTS_EACH * NUM_WORKERS, COPIES)
        wait = jaxwgc.stragglers.until_decodable(code)
        work = work / PARTS_EACH
    else:
        code = jaxwgc.codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, NUM_WORKERS // 2 + 1)
        wait = jaxwgc.stragglers.fastest(NUM_WORKERS - code.num_stragglers)
    x = random.normal(size=(NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
    y = x @ random.normal(size=NUM_COLUMNS).astype(np.float32)
    parts, row_weights = jaxwgc.partition((x, y), code.num_parts)

    def loss(params, part):
        (x, y), row_weights = part
        return jnp.sum(row_weights * (x @ params - y) ** 2)

    @jax.jit
    def step(params, state, messages, received):
        decoded = decoder.update(messages, state[0], params, received=received)
        gradient, aggregate = decoded
        true = 2 * (x @ params - y) @ x
        error = jnp.linalg.norm(gradient - true) / jnp.linalg.norm(true)
        updates, moments = optimizer.update(gradient, state[1], params)
        return optax.apply_updates(params, updates), (aggregate, moments), error

    decoder = jaxwgc.decode_aggregate(code, on_request=on_request)
    optimizer = optax.adam(1e-2)
    params = jnp.zeros(NUM_COLUMNS)
    state = decoder.init(params), optimizer.init(params)
    # Processes killed or frozen, and the times since which workers have been away.
    hit: set[int] = set()
    since: dict[int, float] = {}
    with jaxwgc.distributed.RayCluster(
        loss,
        code,
        (parts, row_weights),
        wait=wait,
        undecodable="raise",
        timeouts=jaxwgc.distributed.Timeouts(
            response=RESPONSE_SECONDS + work, replacement=REPLACEMENT_SECONDS
        ),
        faults=jaxwgc.distributed.Faults(delay=lambda worker, step: work),
    ) as cluster:
        cluster.compute(params)
        for number in range(1, steps + 1):
            up = working(cluster, hit)
            timers = []
            signals = []
            if number % kill_every == 0:
                signals.append(signal.SIGKILL)
            if number % freeze_every == 0:
                signals.append(signal.SIGSTOP)
            for sent_signal in signals:
                worker = int(random.choice(sorted(up)))
                pid = up.pop(worker)
                hit.add(pid)
                moment = 0.0
                if on_request:
                    moment = random.uniform(0, 1.2 * PARTS_EACH * work)
                since[worker] = time.monotonic() + moment
                timer = threading.Timer(moment, send, (pid, sent_signal))
                timer.start()
                if not on_request:
                    timer.join()
                timers.append(timer)
            away = NUM_WORKERS - len(up)
            done = cluster.compute(params)
            received = done.received if done.decoding is None else done.decoding
            params, state, error = step(params, state, done.messages, received)
            for timer in timers:
                timer.join()
            now = time.monotonic()
            up = working(cluster, hit)
            back = [worker for worker in since if worker in up]
            yield {
                "seconds": done.elapsed,
                "error": float(error),
                "signals": len(timers),
                "away": away,
                "seconds_away": [now - since.pop(worker) for worker in back],
                "too_many_away": away > code.num_stragglers,
                "resident_mib": resident_mib(),
                "store_mib": store_mib(),
            }


def send(pid: int, number: int) -> None:
    """Sends a signal to a process if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def working(cluster: Any, hit: set[int]) -> dict[int, int]:
    """Returns the processes that work, by worker."""
    return {
        slot.index: slot.pid
        for slot in cluster.workers
        if slot.pid is not None and slot.pid not in hit
    }


def resident_mib() -> float:
    """Returns the coordinator's memory in use."""
    _, resident, *_ = Path("/proc/self/statm").read_text().split()
    return int(resident) * os.sysconf("SC_PAGE_SIZE") / 2**20


def store_mib() -> float:
    """Returns the memory in use of Ray's object store."""
    import ray

    name = "object_store_memory"
    used = ray.cluster_resources()[name] - ray.available_resources().get(name, 0)
    return used / 2**20


def summarize(numbers: Numbers) -> dict[str, Any]:
    """Replaces the records of the steps by curves and a summary."""
    steps = numbers.pop("steps")
    seconds = np.array([step["seconds"] for step in steps])
    errors = np.array([step["error"] for step in steps])
    away = [absence for step in steps for absence in step["seconds_away"]]
    return {
        "curves": {name: [step[name] for step in steps] for name in CURVES},
        "summary": {
            "steps": len(steps),
            "wrong": int((~(errors <= WRONG)).sum()),
            "worst_error": errors.max(),
            "too_many_away": sum(step["too_many_away"] for step in steps),
            "median_seconds": np.median(seconds),
            "longest_seconds": seconds.max(),
            "hits": sum(step["signals"] for step in steps),
            "replaced": len(away),
            "shortest_away": min(away, default=None),
            "most_away": max(step["away"] for step in steps),
        },
    }


def tabulate(title: str, numbers: Numbers) -> ResultTable:
    """Returns a row per number."""
    formats = {
        "steps": "{steps:,}",
        "wrong gradients": "{wrong}",
        "largest relative error": "{worst_error:.1e}",
        "steps begun with more workers away than the code tolerates": "{too_many_away}",
        "seconds per step, median": "{median_seconds:.3f}",
        "seconds per step, longest": "{longest_seconds:.3f}",
        "signals": "{hits}",
        "workers replaced": "{replaced}",
        "seconds away, shortest": "{shortest_away:.1f}",
        "workers away at once, most": "{most_away}",
    }
    summary = numbers["summary"]
    rows = [(name, cell.format(**summary)) for name, cell in formats.items()]
    return ResultTable(title, ["quantity", "value"], rows)


def draw(numbers: Numbers) -> figures.Figure:
    """Draws memory, object store and seconds by step."""
    figure, panels = figures.new_figure(9, 3, columns=3, sharey=False)
    for axes, (name, title) in zip(panels, CURVES.items()):
        curve = numbers["curves"][name]
        axes.plot(curve, color=figures.COLORS[0], linewidth=1)
        axes.set(title=title, xlabel="step", ylim=(0, 1.2 * max(curve)))
    return figure
