"""Real workers that are killed and frozen all the time while they train."""

import contextlib
import functools
import logging
import os
import resource
import signal
import sys
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
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable

NUM_WORKERS = 8
# On request, of a worker in a step without stragglers, and of the data.
PARTS_EACH, COPIES = 4, 3
NUM_ROWS, NUM_COLUMNS = 4_000, 2_000
# Relative errors above are no rounding of float32.
WRONG = 1e-3
# In the figure.
CURVES = {
    "resident_mib": "coordinator in memory, MiB",
    "store_mib": "object store, MiB",
    "seconds": "seconds a step",
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
        on_request: Finished parts of `codes.replicated` are asked for, in the place of
            messages of `codes.reed_solomon`.
        steps: Of training, on 8 processes of this machine.
        kill_every: Steps from one SIGKILL to the next, of a worker at random.
        freeze_every: Steps from one SIGSTOP to the next.
        work: Seconds that a worker takes for a step.
        seed: Of the random numbers.
        out: Folder for table, figure and numbers.
    """
    for name, value in {"kill-every": kill_every, "freeze-every": freeze_every}.items():
        if value < 1:
            raise ExperimentError(f"--{name} must be at least 1; got {value}")

    # Each loss would be a line between those of the progress.
    logging.getLogger("jaxwgc.distributed").setLevel(logging.ERROR)

    def study():
        cell = Once(
            functools.partial(measure, on_request=on_request),
            steps,
            kill_every,
            freeze_every,
            work,
            seed,
            num_rows=max(steps, 1),
        )
        numbers = {"num_workers": NUM_WORKERS, "work": work, "steps": cell}
        title = (
            f"{steps} steps, SIGKILL every {kill_every}, SIGSTOP every {freeze_every}"
        )
        return Study(
            numbers,
            derive=summarize,
            tables={"": functools.partial(tabulate, title)},
            figures={"": draw},
        )

    title, sections = "Steps among failures", {"": study}
    command = "chaos --on-request" if on_request else "chaos"
    prefix = "chaos_on_request" if on_request else "chaos"
    run(command, title, sections, steps, seed, out, prefix, option="steps")


def measure(
    steps: int,
    kill_every: int,
    freeze_every: int,
    work: float,
    seed: int,
    num_workers: int = NUM_WORKERS,
    answer_within: float = 3.0,
    on_request: bool = False,
) -> Iterator[dict[str, Any]]:
    """A record a step: its seconds, its error, who was hit, and memory in use.

    On request, signals come at any time of a step.
    """
    random = np.random.default_rng(seed)
    if on_request:
        code = jaxwgc.codes.replicated(num_workers, PARTS_EACH * num_workers, COPIES)
        wait = jaxwgc.stragglers.until_decodable(code)
        work = work / PARTS_EACH
    else:
        code = jaxwgc.codes.reed_solomon(
            num_workers, num_parts=num_workers, replication=num_workers // 2 + 1
        )
        wait = jaxwgc.stragglers.fastest(num_workers - code.num_stragglers)
    x = random.normal(size=(NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
    y = x @ random.normal(size=NUM_COLUMNS).astype(np.float32)
    parts, row_weights = jaxwgc.partition((x, y), code.num_parts)

    def loss(params, part):
        (x, y), row_weights = part
        return jnp.sum(row_weights * (x @ params - y) ** 2)

    @jax.jit
    def step(params, state, messages, received):
        gradient, aggregate = decoder.update(
            messages, state[0], params, received=received
        )
        residuals = x @ params - y
        true = 2 * residuals @ x
        error = jnp.linalg.norm(gradient - true) / jnp.linalg.norm(true)
        updates, moments = optimizer.update(gradient, state[1], params)
        return optax.apply_updates(params, updates), (aggregate, moments), error

    decoder = jaxwgc.decode_aggregate(code, on_request=on_request)
    optimizer = optax.adam(1e-2)
    params = jnp.zeros(NUM_COLUMNS)
    state = decoder.init(params), optimizer.init(params)
    # Processes that are killed or frozen, and since when workers have been away.
    hit: set[int] = set()
    since: dict[int, float] = {}
    with jaxwgc.distributed.RayCluster(
        loss,
        code,
        (parts, row_weights),
        wait=wait,
        decoding=jaxwgc.aggregate.DecodingOptions(undecodable="raise"),
        timeouts=jaxwgc.distributed.Timeouts(answer=answer_within + work),
        faults=jaxwgc.distributed.Faults(delay=lambda worker, step: work),
    ) as cluster:
        cluster.compute(params)
        for number in range(1, steps + 1):
            signals = []
            if number % kill_every == 0:
                signals.append(signal.SIGKILL)
            if number % freeze_every == 0:
                signals.append(signal.SIGSTOP)
            up = working(cluster, hit)
            timers = []
            for kind in signals:
                worker = int(random.choice(sorted(up)))
                pid = up.pop(worker)
                hit.add(pid)
                moment = random.uniform(0, 1.2 * PARTS_EACH * work) if on_request else 0
                since[worker] = time.monotonic() + moment
                timers.append(threading.Timer(moment, send, (pid, kind)))
                timers[-1].start()
                if not moment:
                    timers[-1].join()
            away = num_workers - len(up)
            round = cluster.compute(params)
            received = round.received if round.decoding is None else round.decoding
            params, state, error = step(params, state, round.messages, received)
            for timer in timers:
                timer.join()
            now, up = time.monotonic(), working(cluster, hit)
            back = [worker for worker in since if worker in up]
            yield {
                "seconds": round.elapsed,
                "error": float(error),
                "signals": len(signals),
                "away": away,
                "seconds_away": [now - since.pop(worker) for worker in back],
                "too_many_away": away > code.num_stragglers,
                "resident_mib": resident_mib(),
                "store_mib": store_mib(),
            }


def send(pid: int, number: int) -> None:
    """A signal to a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def working(cluster: Any, hit: set[int]) -> dict[int, int]:
    """Processes that work, by worker."""
    return {
        slot.index: slot.pid
        for slot in cluster.workers
        if slot.pid is not None and slot.pid not in hit
    }


def resident_mib() -> float:
    """Memory of the coordinator that is in use; its maximum where Linux is not."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def store_mib() -> float:
    """Returns what Ray's object store holds, in MiB."""
    import ray

    name = "object_store_memory"
    used = ray.cluster_resources()[name] - ray.available_resources().get(name, 0)
    return used / 2**20


def summarize(numbers: Numbers) -> dict[str, Any]:
    """Returns curves over the steps, and a summary of all."""
    steps = numbers["steps"]
    seconds = np.array([step["seconds"] for step in steps])
    away = [absence for step in steps for absence in step["seconds_away"]]
    errors = np.array([step["error"] for step in steps])
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
    """A line a number."""
    summary = numbers["summary"]
    shortest = summary["shortest_away"]
    return ResultTable(
        title,
        ["what", "number"],
        [
            ["steps", f"{summary['steps']:,}"],
            ["wrong gradients", str(summary["wrong"])],
            ["largest relative error", f"{summary['worst_error']:.1e}"],
            [
                "steps begun with more away than the code survives",
                str(summary["too_many_away"]),
            ],
            ["seconds a step, median", f"{summary['median_seconds']:.3f}"],
            ["seconds a step, longest", f"{summary['longest_seconds']:.3f}"],
            ["signals", str(summary["hits"])],
            ["workers replaced", str(summary["replaced"])],
            ["seconds away, shortest", f"{shortest:.1f}" if shortest else ""],
            ["workers away at once, most", str(summary["most_away"])],
        ],
    )


def draw(numbers: Numbers) -> figures.Figure:
    """Memory, the object store and seconds, by step."""
    figure = figures.Figure(figsize=(9, 3))
    panels = figure.subplots(ncols=3)
    for axes, (name, title) in zip(panels, CURVES.items()):
        curve = numbers["curves"][name]
        axes.plot(curve, color=figures.COLORS[0], linewidth=1)
        axes.set(title=title, xlabel="step")
        axes.set_ylim(0, 1.2 * max(curve))
    return figure
