"""Time of the paper's table 2."""

import functools
import time

import jax

import jaxwgc
from experiments import linear_regression, results

TABLE2_RUNS = 2_000


def section(repeats: int, seed: int, quick: bool):
    """Wall time of the four cells of table 2, compilation included."""
    del repeats
    runs = 20 if quick else TABLE2_RUNS
    start = time.perf_counter()
    with jax.enable_x64(True):
        for compression in linear_regression.COMPRESSIONS:
            jaxwgc.monte_carlo(
                functools.partial(
                    linear_regression.one_run,
                    compression=compression,
                    step_size=linear_regression.PROTOCOLS["doubled"],
                ),
                jax.random.key(seed),
                runs,
                batch_size=linear_regression.BATCH_SIZE,
            )
    seconds = time.perf_counter() - start
    table = results.ResultTable(
        "Table 2, four cells, float64, compilation included", ["runs a cell", "seconds"]
    )
    table.add_row(f"{runs:,}", f"{seconds:.1f}")
    return table, {"runs": runs, "seconds": seconds}
