"""Distortion of every embedding against its size, on incoherent and coherent data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.figures import Figure, new_figure, sketch_sizes, style
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, half_width, interval
from experiments.sketching import data
from jaxwgc import sketching

FACTORS, FEW_FACTORS = (2, 4, 8, 16, 32, 64), (4, 16)
SHOWN_FACTORS = (4, 16, 64)
# Half of the rows of other sections: normal variables for 64 p rows of S take time.
MAX_ROWS = 4096
KINDS = ("GA", "T1")

# make(key, sketch_size, scores)
Make = Callable[[jax.Array, int, Any], sketching.Embedding]


def oblivious(construct: Callable[..., sketching.Embedding], **options: Any) -> Make:
    """An embedding that does not look at the scores."""
    return lambda key, size, scores: construct(key, size, len(scores), **options)


EMBEDDINGS: dict[str, Make] = {
    "gaussian": oblivious(sketching.gaussian),
    "rademacher": oblivious(sketching.rademacher),
    "srht": oblivious(sketching.srht),
    "count_sketch": oblivious(sketching.count_sketch),
    "sparse_sign": oblivious(sketching.sparse_sign),
    "row_sampling, uniform": oblivious(sketching.row_sampling),
    "row_sampling, leverage": lambda key, size, scores: sketching.row_sampling(
        key, size, len(scores), scores
    ),
}


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell an embedding and a size."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    num_rows = min(num_rows, MAX_ROWS)
    every = data.regressions(data_key, num_rows, num_columns)
    chosen = {kind: every[kind] for kind in KINDS}
    factors = FACTORS if effort.is_full else FEW_FACTORS
    sizes = [factor * num_columns for factor in factors]
    return Study(
        {
            "num_rows": num_rows,
            "num_columns": num_columns,
            "sketch_sizes": sizes,
            "coherence": {kind: problem.coherence for kind, problem in chosen.items()},
            "distortion": {
                name: [Trial(one_run, make, size, chosen) for size in sizes]
                for name, make in EMBEDDINGS.items()
            },
        },
        key=run_key,
        runs=effort.runs,
        # One after the other: compiled faster, and as fast on a CPU.
        batch_size=1,
        tables={"distortion": tabulate},
        figures={"distortion": draw},
    )


def one_run(key: jax.Array, make: Make, size: int, every: dict[str, Any]) -> Numbers:
    """Distortions by the kind of the data, in float32."""

    def of(problem: data.Regression) -> jax.Array:
        basis, scores = (
            jnp.asarray(a, jnp.float32) for a in (problem.basis, problem.scores)
        )
        return sketching.embedding_distortion(basis, make(key, size, scores))

    return {kind: of(problem) for kind, problem in every.items()}


def label(name: str) -> str:
    """For a table."""
    family, *options = name.split(", ")
    return ", ".join([f"`{family}`", *options])


def tabulate(numbers: Numbers) -> ResultTable:
    """A row an embedding, columns for sizes on both kinds of data."""
    factors = [size // numbers["num_columns"] for size in numbers["sketch_sizes"]]
    shown = [factor for factor in SHOWN_FACTORS if factor in factors]

    def cell(summary: jaxwgc.Summary) -> str:
        return interval(
            summary, 3 if summary.mean < 1 else 2 if summary.mean < 10 else 1
        )

    return ResultTable(
        f"Distortion, N = {numbers['num_rows']:,} and p = {numbers['num_columns']}, "
        f"mean of {numbers['runs']} embeddings",
        ["embedding", *(f"{kind}, m = {f}p" for kind in KINDS for f in shown)],
        [
            [
                label(name),
                *(cell(row[factors.index(f)][k]) for k in KINDS for f in shown),
            ]
            for name, row in numbers["distortion"].items()
        ],
    )


def draw(numbers: Numbers) -> Figure:
    """Log-log, a panel a kind of data."""
    figure, panels = new_figure(10, 5.2, len(KINDS))
    sizes, num_columns = np.array(numbers["sketch_sizes"]), numbers["num_columns"]
    for axes, kind in zip(panels, KINDS, strict=True):
        for index, (name, row) in enumerate(numbers["distortion"].items()):
            means = [summary[kind].mean for summary in row]
            look = style(index) | {"linewidth": 1.4, "label": name}
            # Lines that lie on each other.
            look["linestyle"] = "--" if name == "rademacher" else "-"
            halves = [half_width(summary[kind]) for summary in row]
            axes.errorbar(sizes, means, yerr=halves, **look)
        guide = np.sqrt(num_columns / sizes)
        axes.plot(sizes, guide, ":", color="0.3", label="√(p / m)")
        sketch_sizes(axes, sizes, num_columns)
        axes.set(yscale="log", title=data.KINDS[kind].label, xlabel="sketch size m")
    panels[0].set_ylabel("distortion ‖UᵀSᵀSU − I‖, mean")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside right upper")
    return figure
