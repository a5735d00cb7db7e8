"""Steps of a cluster with and without finished parts, and its start."""

import logging
import subprocess
import sys
import time
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.coordinator import empty_loss
from experiments.benchmark.large_messages import shares_of
from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import in_own_process
from jaxwgc import codes
from jaxwgc.distributed import Progress, RayCluster

COPIES = 2
NUM_WARM = 10


class Layout(NamedTuple):
    """Sizes of a cluster."""

    num_workers: int
    num_parts: int
    num_params: int


LAYOUTS = [Layout(4, 8, 10), Layout(8, 64, 10), Layout(8, 64, 1_000_000)]


def finished_parts(repeats: int, seed: int, quick: bool) -> Study:
    """Returns milliseconds of a step with finished parts, and of one without a code."""
    num_steps = 3 if quick else 15 * repeats

    def measure(layout):
        coded = in_own_process(steps_of, layout, COPIES, num_steps)
        uncoded = in_own_process(steps_of, layout, 1, num_steps)
        return layout._asdict() | {"coded": coded, "uncoded": uncoded}

    def ratio(row):
        return f"{row['coded']['seconds'] / row['uncoded']['seconds']:.2f}"

    chosen = LAYOUTS[:1] if quick else LAYOUTS
    return timed(
        [Once(measure, layout) for layout in chosen],
        f"A step with empty work by finished parts, `codes.replicated` with {COPIES} "
        "copies, and one without a code, in which each worker sends one sum: medians",
        {
            "workers": "{num_workers}",
            "parts": "{num_parts}",
            "parameters": "{num_params:,}",
            "ms": lambda row: f"{1e3 * row['coded']['seconds']:.1f}",
            "ms without a code": lambda row: f"{1e3 * row['uncoded']['seconds']:.1f}",
            "ratio": ratio,
            "broadcast": lambda row: f"{1e3 * row['coded']['broadcast']:.1f}",
            "waiting": lambda row: f"{1e3 * row['coded']['waiting']:.1f}",
            "transfer": lambda row: f"{1e3 * row['coded']['transfer']:.1f}",
            "update": lambda row: f"{1e3 * row['coded']['update']:.1f}",
            "parts computed": lambda row: f"{row['coded']['parts']:.0f}",
        },
    )


def steps_of(layout: Layout, copies: int, num_steps: int) -> dict[str, float]:
    """Returns median seconds of a step and of its shares, and parts computed."""
    records = []
    ends = []
    parts = []

    def record(progress: Progress) -> None:
        ends.append(time.perf_counter())
        this_round = progress.round
        records.append({"round": this_round.elapsed} | this_round.timings)
        parts.append(np.isfinite(this_round.times).sum())

    code = codes.uncoded(layout.num_workers, layout.num_parts)
    if copies > 1:
        code = codes.replicated(layout.num_workers, layout.num_parts, copies)
    data = np.ones((layout.num_parts, 1), np.float32)
    params = jnp.ones(layout.num_params)
    with RayCluster(empty_loss, code, data, spare=False) as cluster:
        optimizer = optax.sgd(1e-3)
        cluster.train(optimizer, params, NUM_WARM + num_steps, callbacks=[record])
    seconds = np.diff(ends)[NUM_WARM - 1 :]
    shares = shares_of(seconds, records[NUM_WARM:])
    return shares | {"parts": float(np.mean(parts[NUM_WARM:]))}


IMPORTS = "import jax, ray; from jaxwgc.distributed import RayCluster"
# Beginnings of the log lines at which the shares of the start begin.
SHARES = {
    "ray": "starting Ray",
    "workers": "starting",
    "decoder": "compiling the decoder",
}


def start(repeats: int, seed: int, quick: bool) -> Study:
    """Returns seconds until the end of the first step, and their shares."""
    repeats = 1 if quick else min(repeats, 3)

    def measure(num_workers):
        runs = [in_own_process(start_of, num_workers) for _ in range(repeats)]
        runs.sort(key=lambda run: run["all"])
        return {"num_workers": num_workers} | runs[repeats // 2]

    return timed(
        [Once(measure, number) for number in ([2] if quick else [4, 8])],
        "Start of a cluster on this machine, in seconds; median of processes",
        {
            "workers": "{num_workers}",
            "all": "{all:.1f}",
            "Ray": "{ray:.1f}",
            "processes, imports and compilation of workers": "{workers:.1f}",
            "imports of one process, alone": "{imports:.1f}",
            "decoder": "{decoder:.1f}",
            "first step": "{step:.1f}",
        },
    )


def start_of(num_workers: int) -> dict[str, float]:
    """Returns seconds of a start: see `start`."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    imports = time.perf_counter() - begin
    times: dict[str, float] = {}

    class Clock(logging.Handler):
        """Records when the shares begin."""

        def emit(self, record):
            for share, begin in SHARES.items():
                if share not in times and record.getMessage().startswith(begin):
                    times[share] = time.perf_counter()
                    return

    log = logging.getLogger("jaxwgc.distributed")
    log.setLevel(logging.INFO)
    log.addHandler(Clock())
    code = codes.cyclic_mds(num_workers, 1)
    data = np.ones((num_workers, 1), np.float32)
    with RayCluster(empty_loss, code, data, spare=False) as cluster:
        begin = time.perf_counter()
        started = cluster.compute(jnp.ones(10))
        end = time.perf_counter()
    # A Ray that runs already is not started.
    times.setdefault("ray", times["workers"])
    return {
        "all": end - begin,
        "ray": times["workers"] - times["ray"],
        "workers": times["decoder"] - times["workers"],
        "decoder": end - started.elapsed - times["decoder"],
        "step": started.elapsed,
        "imports": imports,
    }
