"""Whether the recommended sketch sizes keep what they promise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import results
from experiments.sections import Effort, Section
from experiments.sketching import data
from jaxwgc import sketching

EPSILON, DELTA = 0.5, 0.05
# The size for `count_sketch` grows with the square of p.
NUM_COLUMNS = 5
# The smaller size for `sparse_sign` needs log(p / δ) / ε of them.
NUM_NONZEROS = 10
NUM_ROWS, FEW_ROWS = 16_384, 2048
KINDS = ("GA", "T1")


class Setting(NamedTuple):
    """A line of the table: `size` and `make` get the leverage scores of the data."""

    label: str
    size: Callable[[Any], int]
    make: Callable[[jax.Array, int, Any], sketching.Embedding]


def recommend(name: str, **options: Any) -> int:
    """The size for this section's p, ε and δ."""
    return sketching.recommended_sketch_size(
        getattr(sketching, name), NUM_COLUMNS, EPSILON, DELTA, **options
    )


SETTINGS = (
    Setting(
        "`gaussian`",
        lambda scores: recommend("gaussian"),
        lambda key, m, scores: sketching.gaussian(key, m, len(scores)),
    ),
    Setting(
        "`rademacher`",
        lambda scores: recommend("rademacher"),
        lambda key, m, scores: sketching.rademacher(key, m, len(scores)),
    ),
    Setting(
        "`srht`",
        lambda scores: recommend("srht", num_rows=len(scores)),
        lambda key, m, scores: sketching.srht(key, m, len(scores)),
    ),
    Setting(
        "`count_sketch`",
        lambda scores: recommend("count_sketch"),
        lambda key, m, scores: sketching.count_sketch(key, m, len(scores)),
    ),
    Setting(
        "`sparse_sign`",
        lambda scores: recommend("sparse_sign"),
        lambda key, m, scores: sketching.sparse_sign(key, m, len(scores)),
    ),
    Setting(
        f"`sparse_sign`, {NUM_NONZEROS} non-zeros",
        lambda scores: recommend("sparse_sign", num_nonzeros=NUM_NONZEROS),
        lambda key, m, scores: sketching.sparse_sign(
            key, m, len(scores), num_nonzeros=NUM_NONZEROS
        ),
    ),
    Setting(
        "`row_sampling`, leverage",
        lambda scores: recommend("row_sampling"),
        lambda key, m, scores: sketching.row_sampling(key, m, len(scores), scores),
    ),
    Setting(
        "`row_sampling`, uniform",
        lambda scores: recommend(
            "row_sampling", coherence=max(NUM_COLUMNS, len(scores) * scores.max())
        ),
        lambda key, m, scores: sketching.row_sampling(key, m, len(scores)),
    ),
)


def section(effort: Effort, key: jax.Array) -> Section:
    """The table."""
    num_rows = NUM_ROWS if effort.is_full else FEW_ROWS
    data_key, run_key = jax.random.split(key)
    every = data.regressions(data_key, num_rows, NUM_COLUMNS)
    table = results.ResultTable(
        f"Recommended sizes for p = {NUM_COLUMNS}, ε = {EPSILON} and δ = {DELTA}, "
        f"N = {num_rows:,}: of {effort.runs} embeddings those with a distortion of at "
        "most ε",
        [
            "embedding",
            *(
                f"{kind}: {what}"
                for kind in KINDS
                for what in ("size", f"at most {EPSILON}", "mean distortion")
            ),
        ],
    )
    numbers: dict[str, Any] = {}
    for setting in SETTINGS:
        cells, own_numbers = [], {}
        for kind in KINDS:
            size = setting.size(every[kind].scores)
            own_numbers[kind] = {"size": size}
            # More draws than there are rows embed nothing.
            if size > num_rows:
                cells += [f"{size:,}", "> N", "–"]
                continue
            found = measure(run_key, setting, size, every[kind], effort.runs)
            successes = int(np.sum(found <= EPSILON))
            summary = jaxwgc.summarize(found)
            own_numbers[kind] |= {
                "successes": successes,
                "distortion": results.summary_numbers(summary),
            }
            cells += [
                f"{size:,}",
                f"{successes} of {effort.runs}",
                results.interval(summary, 3),
            ]
        table.add_row(setting.label, *cells)
        numbers[setting.label.replace("`", "")] = own_numbers
    return Section(
        numbers={
            "num_rows": num_rows,
            "num_columns": NUM_COLUMNS,
            "epsilon": EPSILON,
            "delta": DELTA,
            "runs": effort.runs,
            "embeddings": numbers,
        },
        tables={"recommended": table},
        figures={},
    )


def measure(
    key: jax.Array, setting: Setting, size: int, own: data.Regression, runs: int
) -> np.ndarray:
    """Distortions (runs,)."""
    basis = jnp.asarray(own.basis, jnp.float32)
    scores = jnp.asarray(own.scores, jnp.float32)

    def trial(key: jax.Array) -> jax.Array:
        embedding = setting.make(key, size, scores)
        return sketching.embedding_distortion(basis, embedding)

    run = jax.jit(lambda keys: jax.lax.map(trial, keys))
    return jax.device_get(run(jax.random.split(key, runs)))
