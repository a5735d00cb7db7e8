"""Whether the recommended sketch sizes keep what they promise."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.sketching import data
from experiments.sketching.distortion import (
    EMBEDDINGS,
    KINDS,
    label,
    oblivious,
    one_run,
)
from experiments.studies import Effort, Study
from experiments.tables import ResultTable, interval
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
    """A cell a setting and a kind of data."""
    num_rows = NUM_ROWS if effort.is_full else FEW_ROWS
    data_key, run_key = jax.random.split(key)
    every = data.regressions(data_key, num_rows, NUM_COLUMNS)
    makes = EMBEDDINGS | {
        FEW_NONZEROS: oblivious(sketching.sparse_sign, num_nonzeros=NUM_NONZEROS)
    }

    def cells(name, kind):
        own = every[kind]
        size = sketching.recommended_sketch_size(
            name.split(", ")[0],
            NUM_COLUMNS,
            EPSILON,
            DELTA,
            **SETTINGS[name](own.scores),
        )
        trial = functools.partial(
            one_run, make=makes[name], size=size, every={kind: own}
        )
        # More draws than there are rows embed nothing.
        return {"size": size} | ({"": trial} if size <= num_rows else {})

    return Study(
        {
            "num_rows": num_rows,
            "num_columns": NUM_COLUMNS,
            "epsilon": EPSILON,
            "delta": DELTA,
            "runs": effort.runs,
            "embeddings": {
                name: {kind: cells(name, kind) for kind in KINDS} for name in SETTINGS
            },
        },
        key=run_key,
        runs=effort.runs,
        batch_size=1,
        reduce=reduce,
        tables={"recommended": tabulate},
    )


def reduce(distortions: dict[str, np.ndarray]) -> dict[str, Any]:
    """How many keep the promise, and the mean."""
    (found,) = distortions.values()
    return {
        "successes": int(np.sum(found <= EPSILON)),
        "distortion": jaxwgc.summarize(found),
    }


def tabulate(numbers: Any) -> ResultTable:
    """A row a setting."""

    def cells(own):
        size = f"{own['size']:,}"
        if "successes" not in own:
            return size, "> N", "–"
        successes = f"{own['successes']} of {numbers['runs']}"
        return size, successes, interval(own["distortion"], 3)

    return ResultTable(
        f"Recommended sizes for p = {NUM_COLUMNS}, ε = {EPSILON} and δ = {DELTA}, "
        f"N = {numbers['num_rows']:,}: of {numbers['runs']} embeddings those with a "
        "distortion of at most ε",
        [
            "embedding",
            *(
                f"{kind}: {what}"
                for kind in KINDS
                for what in ("size", f"at most {EPSILON}", "mean distortion")
            ),
        ],
        [
            [label(name), *(cell for kind in KINDS for cell in cells(own[kind]))]
            for name, own in numbers["embeddings"].items()
        ],
    )
