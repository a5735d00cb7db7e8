"""Recommended sketch sizes, and how often they keep what they promise."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, interval
from experiments.sketching import data, distortion
from experiments.sketching.distortion import KINDS
from jaxwgc import sketching

EPSILON, DELTA = 0.5, 0.05
# The size for `count_sketch` grows with the square of p.
NUM_COLUMNS = 5
# The smaller size for `sparse_sign` needs log(p / δ) / ε of them.
NUM_NONZEROS = 10
FEW_NONZEROS = f"sparse_sign, {NUM_NONZEROS} non-zeros"
NUM_ROWS, FEW_ROWS = 16_384, 2048

# A line of the table each: what the size depends on, from the leverage scores.
SETTINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "gaussian": lambda scores: {},
    "rademacher": lambda scores: {},
    "srht": lambda scores: {"num_rows": len(scores)},
    "count_sketch": lambda scores: {},
    "sparse_sign": lambda scores: {},
    FEW_NONZEROS: lambda scores: {"num_nonzeros": NUM_NONZEROS},
    "row_sampling, leverage": lambda scores: {},
    "row_sampling, uniform": lambda scores: {
        "coherence": max(NUM_COLUMNS, len(scores) * scores.max())
    },
}


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a setting, in which all kinds of data are embedded."""
    num_rows = NUM_ROWS if effort.is_full else FEW_ROWS
    data_key, run_key = jax.random.split(key)
    every = data.regressions(data_key, num_rows, NUM_COLUMNS)
    few = distortion.oblivious(sketching.sparse_sign, num_nonzeros=NUM_NONZEROS)
    makes = distortion.EMBEDDINGS | {FEW_NONZEROS: few}

    def cells(name):
        wanted = getattr(sketching, name.split(",")[0]), NUM_COLUMNS, EPSILON, DELTA
        sizes = {
            kind: sketching.recommended_sketch_size(
                *wanted, **SETTINGS[name](every[kind].scores)
            )
            for kind in KINDS
        }
        # More draws than there are rows embed nothing.
        fitting = {kind: size for kind, size in sizes.items() if size <= num_rows}
        trial = {"": Trial(one_run, makes[name], fitting, every)} if fitting else {}
        return {kind: {"size": size} for kind, size in sizes.items()} | trial

    return Study(
        {
            "num_rows": num_rows,
            "num_columns": NUM_COLUMNS,
            "epsilon": EPSILON,
            "delta": DELTA,
            "embeddings": {name: cells(name) for name in SETTINGS},
        },
        key=run_key,
        runs=effort.runs,
        batch_size=1,
        reduce=reduce,
        tables={"recommended": tabulate},
    )


def one_run(key, make, sizes, every) -> Numbers:
    """Returns size and distortion by kind of data: embeddings of one size are one."""
    by_kind = {}
    for kind, size in sizes.items():
        distortions = distortion.one_run(key, make, size, {kind: every[kind]})
        by_kind[kind] = {"size": size, "distortion": distortions[kind]}
    return by_kind


def reduce(trials: Numbers) -> Numbers:
    """How many keep the promise, and the mean, by the kind of data."""
    return {
        kind: {
            "size": int(record["size"][0]),
            "successes": int(np.sum(record["distortion"] <= EPSILON)),
            "distortion": jaxwgc.summarize(record["distortion"]),
        }
        for kind, record in trials.items()
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a setting."""

    def cells(record):
        size = f"{record['size']:,}"
        if "successes" not in record:
            return size, "> N", "–"
        successes = f"{record['successes']} of {numbers['runs']}"
        return size, successes, interval(record["distortion"], 3)

    whats = "size", f"at most {EPSILON}", "mean distortion"
    return ResultTable(
        f"Recommended sizes for p = {NUM_COLUMNS}, ε = {EPSILON} and δ = {DELTA}, "
        f"N = {numbers['num_rows']:,}: of {numbers['runs']} embeddings those with a "
        "distortion of at most ε",
        ["embedding", *(f"{kind}: {what}" for kind in KINDS for what in whats)],
        [
            [distortion.label(name), *itertools.chain(*map(cells, by_kind.values()))]
            for name, by_kind in numbers["embeddings"].items()
        ],
    )
