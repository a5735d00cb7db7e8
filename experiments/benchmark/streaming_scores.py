"""Memory and time of leverage scores of a matrix that is never there as a whole."""

import json
import subprocess
import sys

from experiments import results

NUM_ROWS, NUM_COLUMNS, BLOCK_ROWS = 5_000_000, 100, 50_000
RANKS = {"full rank": NUM_COLUMNS, "rank 3/5": NUM_COLUMNS * 3 // 5}

# In a process of its own, whose largest resident set is then that of the scores.
PROGRAM = r"""
import json, pathlib, re, sys, time
import jax, numpy as np
from jaxwgc import sketching

num_rows, num_columns, block_rows, rank, seed = map(int, sys.argv[1:])
mixing = np.random.default_rng(seed).standard_normal((rank, num_columns), np.float32)

def peak():
    # Other than ru_maxrss, this does not remember the process that forked.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

def blocks():
    for start in range(0, num_rows, block_rows):
        rng = np.random.default_rng((seed, start))
        shape = min(block_rows, num_rows - start), rank
        block = rng.standard_normal(shape, np.float32)
        yield block if rank == num_columns else block @ mixing

sketching.leverage_scores(np.eye(3, dtype=np.float32)).block_until_ready()
before = peak()
start = time.perf_counter()
scores = np.asarray(sketching.streaming_leverage_scores(blocks))
seconds = time.perf_counter() - start
start = time.perf_counter()
for block in blocks():
    pass
drawing = time.perf_counter() - start
print(json.dumps({
    "mebibytes": peak(),
    "mebibytes_before": before,
    "seconds": seconds,
    "seconds_of_drawing_once": drawing,
    "sum_of_scores": float(scores.sum(dtype=np.float64)),
}))
"""


def section(repeats: int, seed: int, quick: bool):
    """The largest resident set of a process that scores blocks drawn on the fly."""
    # One run: memory hardly varies.
    del repeats
    num_rows, block_rows = (20_000, 5_000) if quick else (NUM_ROWS, BLOCK_ROWS)
    table = results.ResultTable(
        f"Streaming leverage scores of {num_rows:,} x {NUM_COLUMNS}, float32, in "
        f"blocks of {block_rows:,} rows",
        [
            "matrix",
            "matrix, MiB",
            "peak of the process, MiB",
            "JAX alone, MiB",
            "seconds",
            "of them drawing",
            "sum of scores",
        ],
    )
    numbers = []
    for name, rank in RANKS.items():
        arguments = num_rows, NUM_COLUMNS, block_rows, rank, seed
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        numbers.append({"matrix": name, **found})
        table.add_row(
            name,
            f"{num_rows * NUM_COLUMNS * 4 / 2**20:,.0f}",
            f"{found['mebibytes']:.0f}",
            f"{found['mebibytes_before']:.0f}",
            f"{found['seconds']:.1f}",
            f"{2 * found['seconds_of_drawing_once']:.1f}",
            f"{found['sum_of_scores']:.3f}",
        )
    return table, numbers
