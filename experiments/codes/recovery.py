"""Parts recovered by peeling and by elimination, by number of responses."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.figures import Figure, new_figure, style
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, percents
from jaxwgc import codes
from jaxwgc.decoders import Peeling

NUM_WORKERS = 100
NUM_PARTS = 50
FEW_WORKERS = 20
FEW_PARTS = 10
SHARES = tuple(np.round(np.arange(0.1, 1.01, 0.1), 1))
FEW_SETTINGS = ("ldgm, parity degree 5", "batch_raptor, batch size 1")
SHOWN_SHARES = (0.2, 0.5, 0.8)
# Elimination takes longer than peeling.
MAX_RUNS = 500

# Makes a code from a key, the number of workers and the number of parts.
Make = Callable[[jax.Array, int, int], jaxwgc.GradientCode]


def settings() -> dict[str, Make]:
    """Returns constructors by name."""
    constructors: dict[str, Make] = {}
    for degree in (2, 3, 5):
        name = f"ldgm, parity degree {degree}"
        constructors[name] = functools.partial(codes.ldgm, parity_degree=degree)
    for batch_size, max_degree in ((1, None), (1, 5), (5, None), (5, 2)):
        name = f"batch_raptor, batch size {batch_size}"
        if max_degree:
            name += f", max. degree {max_degree}"
        constructors[name] = functools.partial(
            codes.batch_raptor, batch_size=batch_size, max_degree=max_degree
        )
    return constructors


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per setting."""
    num_workers = NUM_WORKERS if effort.is_full else FEW_WORKERS
    num_parts = NUM_PARTS if effort.is_full else FEW_PARTS
    cells = {}
    for name, make in settings().items():
        if effort.is_full or name in FEW_SETTINGS:
            cells[name] = Trial(one_run, make, num_workers, num_parts)
    return Study(
        {"num_workers": num_workers, "num_parts": num_parts, "recovered": cells},
        key=jax.random.fold_in(key, 6),
        runs=min(effort.runs, MAX_RUNS),
        batch_size=50,
        x64=True,
        tables={"recovery": tabulate},
        figures={"recovery": draw},
    )


def one_run(
    key: jax.Array, make: Make, num_workers: int, num_parts: int
) -> dict[str, jax.Array]:
    """Returns fractions of recovered parts by fraction of responses, (shares,)."""
    code_key, order_key = jax.random.split(key)
    code = make(code_key, num_workers, num_parts)
    rank = jax.random.permutation(order_key, num_workers)
    numbers = np.round(np.array(SHARES) * num_workers)
    received = rank < numbers[:, None]
    [peeling] = code.decoders_of(Peeling)
    # A recovered part has the weight k / k' of at least 1, the others 0.
    peeled = jaxwgc.decoding(code, received, Peeling).effective_weights > 0.5
    # Elimination on the batches, since all parts of a batch are determined together.
    solved = jax.vmap(determined, in_axes=(None, 0))(peeling.assignment, received)
    return {
        "peeling": peeled.mean(axis=-1, dtype=float),
        "elimination": solved.mean(axis=-1, dtype=float),
        "parts": jnp.mean(jnp.asarray(code.parts_per_worker, float)),
    }


def determined(matrix: jax.Array, received: jax.Array) -> jax.Array:
    """Returns which parts the received messages determine, bool (num_parts,).

    Their unit vectors are orthogonal to the null space of the received rows.
    """
    rows = jnp.where(received[:, None], jnp.asarray(matrix, float), 0)
    values, vectors = jnp.linalg.eigh(rows.T @ rows)
    # Rows are sums of parts: the largest value is at least 1 unless there are none.
    is_zero = values < 1e-9 * jnp.maximum(values[-1], 1)
    null_space = jnp.where(is_zero, vectors, 0)
    return jnp.sum(null_space**2, axis=1) < 1e-9


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns peeling beside elimination."""
    heads = [f"{100 * share:.0f}% respond" for share in SHOWN_SHARES]
    table = ResultTable(
        f"Parts recovered in percent, n = {numbers['num_workers']} and k = "
        f"{numbers['num_parts']}, mean of {numbers['runs']} codes and patterns: "
        "peeling / elimination",
        ["code", "parts", *heads],
    )
    for name, record in numbers["recovered"].items():
        family, label = name.split(", ", 1)
        peeling = percents(record["peeling"])
        elimination = 100 * record["elimination"].mean
        row = [f"`{family}`, {label}", f"{record['parts'].mean:.2f}"]
        for share in SHOWN_SHARES:
            index = SHARES.index(share)
            row.append(f"{peeling[index]} / {elimination[index]:.1f}")
        table.rows.append(row)
    return table


def draw(numbers: Numbers) -> Figure:
    """Draws a panel per family."""
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
        axes.set_xlabel("fraction of workers that respond")
    panels[0].set_ylabel("fraction of parts recovered")
    return figure
