"""How often recommended sizes fail, of a thousand keys, for one column and for many."""

from typing import Any

import jax
import numpy as np

from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable
from experiments.sketching import data, distortion
from experiments.sketching.distortion import KINDS
from jaxwgc import sketching

EPSILON, DELTA = 0.5, 0.05
# So many times the runs of other sections: failures are rare.
MORE_RUNS = 10
# Rows and columns: one column, some, and nearly as many as rows.
SHAPES = {"one column": (16_384, 1), "p = 5": (16_384, 5), "p near N": (16, 15)}
SMALL_SHAPES = {"one column": (256, 1), "p near N": (16, 15)}
# Dense embeddings of so many rows take time and gain nothing else.
DENSE_ROWS = 1024
# Uniform rows of coherent data may take a hundred times as many as there are.
MAX_DRAWS = 20_000
# For the smaller size of `sparse_sign` in all shapes; its default is for one column.
NONZEROS = {"one column": 8, "p = 5": 10, "p near N": 12}
NAMES = tuple(distortion.EMBEDDINGS)


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a family, a shape and a kind of data."""
    data_key, run_key = jax.random.split(key)
    shapes = SHAPES if effort.is_full else SMALL_SHAPES

    def cell(name: str, shape: str, kind: str) -> Any:
        num_rows, num_columns = shapes[shape]
        if name in ("gaussian", "rademacher"):
            num_rows = min(num_rows, DENSE_ROWS)
        problem = data.regressions(data_key, num_rows, num_columns)[kind]
        options: dict[str, Any] = {}
        make = distortion.EMBEDDINGS[name]
        if name == "srht":
            options = {"num_rows": num_rows}
        elif name == "sparse_sign":
            options = {"num_nonzeros": NONZEROS[shape]}
            make = distortion.oblivious(sketching.sparse_sign, **options)
        elif name == "row_sampling, uniform":
            options = {"coherence": max(num_columns, num_rows * problem.scores.max())}
        size = sketching.recommended_sketch_size(
            getattr(sketching, name.split(",")[0]),
            num_columns,
            EPSILON,
            DELTA,
            **options,
        )
        known = {"num_rows": num_rows, "num_columns": num_columns, "size": size}
        if size > MAX_DRAWS:
            return known
        return known | {"": Trial(distortion.one_run, make, size, {"": problem})}

    return Study(
        {
            "epsilon": EPSILON,
            "delta": DELTA,
            "families": {
                name: {
                    shape: {kind: cell(name, shape, kind) for kind in KINDS}
                    for shape in shapes
                }
                for name in NAMES
            },
        },
        key=run_key,
        runs=MORE_RUNS * effort.runs,
        batch_size=1,
        reduce=reduce,
        tables={"promise": tabulate},
    )


def reduce(trials: Numbers) -> Numbers:
    """How many were above ε, and the largest of all."""
    distortions = np.asarray(trials[""])
    failures = int(np.sum(~(distortions <= EPSILON)))
    return {"failures": failures, "largest": float(distortions.max())}


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a family."""
    families, runs = numbers["families"], numbers["runs"]

    def show(record: Any) -> str:
        if "failures" not in record:
            return f"{record['size']:,}: –"
        return f"{record['size']:,}: {record['failures']:,} ({record['largest']:.2g})"

    shapes = next(iter(families.values()))
    return ResultTable(
        f"Recommended sizes for ε = {EPSILON} and δ = {DELTA}: how many of {runs:,} "
        f"distortions are above ε, where the promise is at most {DELTA * runs:.0f} "
        "(and the largest of all)",
        ["embedding", *(f"{shape}, {kind}" for shape in shapes for kind in KINDS)],
        [
            [
                distortion.label(name),
                *(show(record) for row in family.values() for record in row.values()),
            ]
            for name, family in families.items()
        ],
    )
