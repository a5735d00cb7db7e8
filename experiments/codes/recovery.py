"""Parts that peeling recovers against the workers that answer, and what it misses."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.figures import Figure, new_figure, style
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, percents
from jaxwgc import codes as constructors
from jaxwgc.decoders import Peeling

NUM_WORKERS, NUM_PARTS = 100, 50
FEW_WORKERS, FEW_PARTS = 20, 10
SHARES = tuple(np.round(np.arange(0.1, 1.01, 0.1), 1))
FEW_SETTINGS = "ldgm, parity degree 5", "batch_raptor, batch size 1"
SHOWN_SHARES = (0.2, 0.4, 0.5, 0.6, 0.8)
# Eliminating is dearer than peeling, and more of the same says little.
MAX_RUNS = 500


# Makes a code of a key, workers and parts.
Make = Callable[[jax.Array, int, int], jaxwgc.GradientCode]


def ldgm(degree: int) -> tuple[str, Make]:
    """Low-density generator matrices, by name."""
    name = f"ldgm, parity degree {degree}"
    return name, lambda key, n, k: constructors.ldgm(key, n, k, degree)


def raptor(size: int, limit: int | None) -> tuple[str, Make]:
    """Raptor codes of batches, by name."""
    make = functools.partial(
        constructors.batch_raptor, batch_size=size, max_degree=limit
    )
    limited = f", max. degree {limit}" if limit else ""
    return f"batch_raptor, batch size {size}{limited}", make


SETTINGS = dict(
    [
        *map(ldgm, (2, 3, 5)),
        *itertools.starmap(raptor, ((1, None), (1, 5), (5, None), (5, 2))),
    ]
)


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a setting."""
    sizes = (NUM_WORKERS, NUM_PARTS) if effort.is_full else (FEW_WORKERS, FEW_PARTS)
    return Study(
        {
            "num_workers": sizes[0],
            "num_parts": sizes[1],
            "recovered": {
                name: Trial(one_run, make, *sizes)
                for name, make in SETTINGS.items()
                if effort.is_full or name in FEW_SETTINGS
            },
        },
        key=jax.random.fold_in(key, 6),
        runs=min(effort.runs, MAX_RUNS),
        batch_size=50,
        x64=True,
        tables={"recovery": tabulate},
        figures={"recovery": draw},
    )


def one_run(key: jax.Array, make: Make, num_workers: int, num_parts: int):
    """Shares of parts (shares,) that are recovered as more workers of a code answer."""
    code_key, order_key = jax.random.split(key)
    code = make(code_key, num_workers, num_parts)
    rank = jax.random.permutation(order_key, num_workers)
    numbers = np.round(np.array(SHARES) * num_workers)
    received = rank < numbers[:, None]
    [peeling] = code.decoders_of(Peeling)
    # Each recovered part has the weight k / k' of at least one, the others none.
    peeled = jaxwgc.effective_weights(code, received, Peeling) > 0.5
    # The parts of a batch come together, and are determined together.
    solved = jax.vmap(determined, in_axes=(None, 0))(peeling.assignment, received)
    return {
        "peeling": peeled.mean(axis=-1, dtype=float),
        "elimination": solved.mean(axis=-1, dtype=float),
        "parts": jnp.mean(jnp.asarray(code.parts_per_worker, float)),
    }


def determined(matrix: jax.Array, received: jax.Array) -> jax.Array:
    """Which parts the received messages determine, bool (num_parts,).

    Those whose unit vectors are orthogonal to the null space of the received rows.
    """
    rows = jnp.where(received[:, None], jnp.asarray(matrix, float), 0)
    values, vectors = jnp.linalg.eigh(rows.T @ rows)
    # Of sums of parts: the largest is at least one, unless there are none.
    null_space = jnp.where(values < 1e-9 * jnp.maximum(values[-1], 1), vectors, 0)
    return jnp.sum(null_space**2, axis=1) < 1e-9


def tabulate(numbers: Numbers) -> ResultTable:
    """Peeling beside elimination."""

    def row(name, record):
        family, label = name.split(", ", 1)
        peeling, elimination = percents(record["peeling"]), record["elimination"].mean
        shown = [SHARES.index(share) for share in SHOWN_SHARES]
        return [
            f"`{family}`, {label}",
            f"{record['parts'].mean:.2f}",
            *(f"{peeling[at]} / {100 * elimination[at]:.1f}" for at in shown),
        ]

    return ResultTable(
        f"Parts recovered in percent, n = {numbers['num_workers']} and k = "
        f"{numbers['num_parts']}, mean of {numbers['runs']} codes and patterns: "
        "peeling / elimination",
        ["code", "parts", *(f"{100 * share:.0f}% answer" for share in SHOWN_SHARES)],
        itertools.starmap(row, numbers["recovered"].items()),
    )


def draw(numbers: Numbers) -> Figure:
    """A panel a family."""
    names = [name.split(", ", 1) for name in numbers["recovered"]]
    families = list(dict.fromkeys(family for family, _ in names))
    figure, panels = new_figure(10, 5.4, len(families))
    for axes, family in zip(panels, families, strict=True):
        labels = [label for kind, label in names if kind == family]
        for index, label in enumerate(labels):
            record = numbers["recovered"][f"{family}, {label}"]
            look = style(index)
            axes.plot(SHARES, record["peeling"].mean, label=label, **look)
            axes.plot(SHARES, record["elimination"].mean, ":", color=look["color"])
        axes.plot([], [], ":", color="0.4", label="dotted: elimination")
        axes.set_title(family, family="monospace")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
        axes.set(xlim=(0.08, 1.02), ylim=(-0.02, 1.02), yticks=np.arange(0, 1.01, 0.2))
        axes.set_xlabel("share of the workers that answer")
    panels[0].set_ylabel("share of the parts that are recovered")
    return figure
