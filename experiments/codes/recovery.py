"""Parts that peeling recovers against the workers that answer, and what it misses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import results
from experiments.sections import (
    COLORS,
    MARKERS,
    Effort,
    Section,
    half_width,
    panels,
    percent,
)
from jaxwgc import codes as constructors
from jaxwgc.decoders import Peeling

NUM_WORKERS, NUM_PARTS = 100, 50
FEW_WORKERS, FEW_PARTS = 20, 10
SHARES = tuple(np.round(np.arange(0.1, 1.01, 0.1), 1))
SHOWN_SHARES = (0.2, 0.4, 0.5, 0.6, 0.8)
# Eliminating is dearer than peeling, and more of the same says little.
MAX_RUNS = 500
BATCH_SIZE = 50


class Setting(NamedTuple):
    """A construction: `make(key, num_workers, num_parts)`."""

    family: str
    label: str
    make: Callable[[jax.Array, int, int], jaxwgc.GradientCode]


SETTINGS = (
    *(
        Setting(
            "ldgm",
            f"parity degree {degree}",
            lambda key, n, k, degree=degree: constructors.ldgm(key, n, k, degree),
        )
        for degree in (2, 3, 5)
    ),
    *(
        Setting(
            "batch_raptor",
            f"batch size {size}" + (f", max. degree {limit}" if limit else ""),
            lambda key, n, k, size=size, limit=limit: constructors.batch_raptor(
                key, n, k, batch_size=size, max_degree=limit
            ),
        )
        for size, limit in ((1, None), (1, 5), (5, None), (5, 2))
    ),
)


def section(effort: Effort, key: jax.Array) -> Section:
    """Table and figure."""
    sizes = (NUM_WORKERS, NUM_PARTS) if effort.is_full else (FEW_WORKERS, FEW_PARTS)
    runs = min(effort.runs, MAX_RUNS)
    with jax.enable_x64(True):
        settings = SETTINGS if effort.is_full else SETTINGS[2:4]
        found = {
            setting: jaxwgc.summarize(
                jaxwgc.monte_carlo(
                    lambda key, setting=setting: one_run(key, setting, *sizes),
                    jax.random.fold_in(key, 6),
                    runs,
                    batch_size=BATCH_SIZE,
                )
            )
            for setting in settings
        }
    table = results.ResultTable(
        f"Parts recovered in percent, n = {sizes[0]} and k = {sizes[1]}, mean of "
        f"{runs} codes and patterns: peeling / elimination",
        [
            "code",
            "load",
            *(f"{100 * share:.0f}% answer" for share in SHOWN_SHARES),
        ],
    )
    for setting, summary in found.items():
        peeling, elimination = summary["peeling"], summary["elimination"]
        cells = [
            f"{percent(peeling.mean[at], half_width(peeling)[at])}"
            f" / {100 * elimination.mean[at]:.1f}"
            for at in (SHARES.index(share) for share in SHOWN_SHARES)
        ]
        table.add_row(
            f"`{setting.family}`, {setting.label}",
            f"{summary['load'].mean:.2f}",
            *cells,
        )
    return Section(
        numbers={
            "num_workers": sizes[0],
            "num_parts": sizes[1],
            "runs": runs,
            "shares": SHARES,
            "recovered": {
                f"{setting.family}, {setting.label}": results.summary_numbers(summary)
                for setting, summary in found.items()
            },
        },
        tables={"recovery": table},
        figures={"recovery": draw(found)},
    )


def one_run(key: jax.Array, setting: Setting, num_workers: int, num_parts: int):
    """Shares of parts (shares,) that are recovered as more workers of a code answer."""
    code_key, order_key = jax.random.split(key)
    code = setting.make(code_key, num_workers, num_parts)
    rank = jax.random.permutation(order_key, num_workers)
    numbers = np.round(np.array(SHARES) * num_workers)
    received = rank < numbers[:, None]
    [peeling] = code.decoders_of(Peeling)
    # Each recovered part has the weight k / k' of at least one, the others none.
    peeled = jaxwgc.effective_weights(code, received, Peeling) > 0.5
    return {
        "peeling": peeled.mean(axis=-1, dtype=float),
        # The parts of a batch come together, and are determined together.
        "elimination": jax.vmap(determined, in_axes=(None, 0))(
            jnp.asarray(code.encoding_matrix)[:, :: peeling.batch_size], received
        ).mean(axis=-1, dtype=float),
        "load": jnp.mean(jnp.asarray(code.loads, float)),
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


def draw(found: dict[Setting, Any]):
    """A panel a family."""
    families = list(dict.fromkeys(setting.family for setting in found))
    figure, every = panels(len(families), 10, 5.4)
    for axes, family in zip(every, families, strict=True):
        own = [setting for setting in found if setting.family == family]
        for index, setting in enumerate(own):
            style = {"color": COLORS[index], "markersize": 5}
            axes.plot(
                SHARES,
                found[setting]["peeling"].mean,
                marker=MARKERS[index],
                label=setting.label,
                **style,
            )
            axes.plot(SHARES, found[setting]["elimination"].mean, ":", **style)
        axes.plot([], [], ":", color="0.4", label="dotted: elimination")
        axes.set_title(family, family="monospace", fontsize=10)
        axes.set_xlabel("share of the workers that answer")
        axes.legend(
            frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15)
        )
        axes.set_xlim(0.08, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks(np.arange(0, 1.01, 0.2))
    every[0].set_ylabel("share of the parts that are recovered")
    return figure
