"""Time of the paper's table 2."""

import time

import jax

import jaxwgc
from experiments.paper import linear_regression
from experiments.runner.study import Once, Study, Trial
from experiments.runner.tables import ResultTable

TABLE2_RUNS = 2_000


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Wall time of the four cells of table 2, compilation included."""
    del repeats
    runs = 20 if quick else TABLE2_RUNS

    def measure():
        start = time.perf_counter()
        for compression in linear_regression.COMPRESSIONS:
            trial = Trial(linear_regression.one_run, compression, ["doubled"]).run
            key, size = jax.random.key(seed), linear_regression.BATCH_SIZE
            jaxwgc.monte_carlo(trial, key, runs, size)
        return {"runs": runs, "seconds": time.perf_counter() - start}

    def tabulate(numbers):
        return ResultTable(
            "Table 2, four cells, float64, compilation included",
            ["runs a cell", "seconds"],
            [[f"{runs:,}", f"{numbers['seconds']:.1f}"]],
        )

    return Study(Once(measure), x64=True, tables={"": tabulate})
