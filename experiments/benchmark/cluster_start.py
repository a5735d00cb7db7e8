"""Seconds in which a cluster starts, and their shares."""

import logging
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np

from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import in_own_process
from jaxwgc import codes
from jaxwgc.distributed import RayCluster

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

    # This function travels by value, so that workers import no experiments.
    def loss(params, part):
        return part[0] * params[0]

    with RayCluster(loss, code, data, spare=False) as cluster:
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
