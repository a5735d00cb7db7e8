"""Distortion of every embedding against its size, on incoherent and coherent data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import results
from experiments.sections import COLORS, MARKERS, Effort, Section, half_width, panels
from experiments.sketching import data
from jaxwgc import sketching

FACTORS, FEW_FACTORS = (2, 4, 8, 16, 32, 64), (4, 16)
SHOWN_FACTORS = (4, 16, 64)
# Half of the rows of other sections: normal variables for 64 p rows of S take time.
MAX_ROWS = 4096
KINDS = ("GA", "T1")

# make(key, sketch_size, scores)
EMBEDDINGS: dict[str, Callable[[jax.Array, int, Any], sketching.Embedding]] = {
    "gaussian": lambda key, m, scores: sketching.gaussian(key, m, len(scores)),
    "rademacher": lambda key, m, scores: sketching.rademacher(key, m, len(scores)),
    "srht": lambda key, m, scores: sketching.srht(key, m, len(scores)),
    "count_sketch": lambda key, m, scores: sketching.count_sketch(key, m, len(scores)),
    "sparse_sign": lambda key, m, scores: sketching.sparse_sign(key, m, len(scores)),
    "row_sampling, uniform": lambda key, m, scores: sketching.row_sampling(
        key, m, len(scores)
    ),
    "row_sampling, leverage": lambda key, m, scores: sketching.row_sampling(
        key, m, len(scores), scores
    ),
}


def section(effort: Effort, key: jax.Array) -> Section:
    """Table and figure."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    num_rows = min(num_rows, MAX_ROWS)
    every = data.regressions(data_key, num_rows, num_columns)
    chosen = {kind: every[kind] for kind in KINDS}
    factors = FACTORS if effort.is_full else FEW_FACTORS
    shown = [factor for factor in SHOWN_FACTORS if factor in factors]
    sketch_sizes = [factor * num_columns for factor in factors]
    found = {
        name: [
            jaxwgc.summarize(measure(run_key, name, size, chosen, effort.runs))
            for size in sketch_sizes
        ]
        for name in EMBEDDINGS
    }
    table = results.ResultTable(
        f"Distortion, N = {num_rows:,} and p = {num_columns}, mean of {effort.runs} "
        "embeddings",
        [
            "embedding",
            *(f"{kind}, m = {factor}p" for kind in KINDS for factor in shown),
        ],
    )
    for name, row in found.items():
        cells = [row[factors.index(factor)] for factor in shown]
        table.add_row(
            _code(name), *(_interval(cell[kind]) for kind in KINDS for cell in cells)
        )
    return Section(
        numbers={
            "num_rows": num_rows,
            "num_columns": num_columns,
            "runs": effort.runs,
            "sketch_sizes": sketch_sizes,
            "coherence": {kind: own.coherence for kind, own in chosen.items()},
            "distortion": results.summary_numbers(found),
        },
        tables={"distortion": table},
        figures={"distortion": draw(found, sketch_sizes, num_columns, chosen)},
    )


def measure(
    key: jax.Array,
    name: str,
    sketch_size: int,
    chosen: dict[str, data.Regression],
    runs: int,
) -> dict[str, np.ndarray]:
    """Distortions (runs,) by the kind of the data, which get the same keys."""
    bases = {kind: jnp.asarray(own.basis, jnp.float32) for kind, own in chosen.items()}
    scores = {
        kind: jnp.asarray(own.scores, jnp.float32) for kind, own in chosen.items()
    }

    def trial(key: jax.Array) -> dict[str, jax.Array]:
        return {
            kind: sketching.embedding_distortion(
                basis, EMBEDDINGS[name](key, sketch_size, scores[kind])
            )
            for kind, basis in bases.items()
        }

    # One after the other: compiled faster than side by side, and as fast on a CPU.
    run = jax.jit(lambda keys: jax.lax.map(trial, keys))
    return jax.device_get(run(jax.random.split(key, runs)))


def draw(
    found: dict[str, list[Any]],
    sketch_sizes: list[int],
    num_columns: int,
    chosen: dict[str, data.Regression],
) -> Any:
    """Log-log, a panel a kind of data."""
    figure, every = panels(len(chosen), 10, 5.2)
    sizes = np.array(sketch_sizes)
    for axes, (kind, own) in zip(every, chosen.items(), strict=True):
        for index, (name, row) in enumerate(found.items()):
            axes.errorbar(
                sizes,
                [summary[kind].mean for summary in row],
                yerr=[half_width(summary[kind]) for summary in row],
                color=COLORS[index],
                marker=MARKERS[index],
                markersize=5,
                linewidth=1.4,
                # Lines that lie on each other.
                linestyle="--" if name == "rademacher" else "-",
                label=name if axes is every[0] else None,
            )
        guide = np.sqrt(num_columns / sizes)
        axes.plot(
            sizes, guide, ":", color="0.3", label="√(p / m)" if axes is every[0] else ""
        )
        axes.set_title(own.label, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(
            sizes, [f"{size // num_columns}p\n{size:,}" for size in sketch_sizes]
        )
        axes.set_xlabel("sketch size m")
    every[0].set_ylabel("distortion ‖UᵀSᵀSU − I‖, mean")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _code(name: str) -> str:
    own, *rest = name.split(", ")
    return ", ".join([f"`{own}`", *rest])


def _interval(summary: jaxwgc.Summary) -> str:
    digits = 3 if summary.mean < 1 else 2 if summary.mean < 10 else 1
    return results.interval(summary, digits)
