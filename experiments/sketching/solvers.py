"""Least squares: how far from the optimum a solver ends, and how long it takes."""

from typing import NamedTuple

import jax
import numpy as np

from experiments import results, timing
from experiments.sections import COLORS, MARKERS, Effort, Section, panels
from experiments.sketching.least_squares import (
    PRODUCTS,
    Entry,
    entries,
    orthonormal,
    scipy_solution,
    system,
)
from jaxwgc import sketching

SHAPE, SMALL_SHAPE = (100_000, 200), (4_000, 20)
CONDITIONS = (1e8, 10.0)
# Slow solvers are run less often: no further run after so many seconds.
REPEATS, BUDGET = 5, 5.0
# What the accuracy of the figures ends at: rounding below.
FLOOR = 1e-15
OURS = ("`preconditioned`", "`sketch_and_solve`", "`iterative")


class Measured(NamedTuple):
    """What the table says of an entry."""

    family: str
    setting: str
    time: timing.Timing
    excess: float | None
    iterations: int | None = None
    converged: bool | None = None


def section(effort: Effort, key: jax.Array) -> Section:
    """A table for each condition number, and a figure."""
    shape = SHAPE if effort.is_full else SMALL_SHAPE
    with jax.enable_x64(True):
        factors = orthonormal(jax.random.fold_in(key, 0), shape)
        measured = {}
        for condition in CONDITIONS:
            matrix, target = system(jax.random.fold_in(key, 1), *factors, condition)
            measured[condition] = compare(
                entries(jax.random.fold_in(key, 2), matrix, target, effort.is_full),
                matrix,
                target,
                REPEATS if effort.is_full else 1,
            )
    tables = {}
    for name, condition in zip(("ill", "well"), CONDITIONS, strict=True):
        table = results.ResultTable(
            f"{shape[0]:,} × {shape[1]}, float64, condition number {condition:.0e}",
            ["solver", "seconds", "runs", "excess", "iterations", "converged"],
        )
        for row in measured[condition]:
            table.add_row(
                f"{row.family} {row.setting}".strip(),
                row.time.cell(),
                str(row.time.runs),
                "" if row.excess is None else f"{row.excess:.1e}",
                "" if row.iterations is None else str(row.iterations),
                {None: "", True: "yes", False: "no"}[row.converged],
            )
        tables[f"solvers_{name}"] = table
    return Section(
        numbers={
            "shape": shape,
            "measured": {
                f"{condition:.0e}": [
                    row._asdict() | {"time": row.time._asdict()} for row in rows
                ]
                for condition, rows in measured.items()
            },
        },
        tables=tables,
        figures={"solvers": draw(measured)},
    )


def compare(
    own: list[Entry], matrix: np.ndarray, target: np.ndarray, repeats: int
) -> list[Measured]:
    """Every solver in turn; excess is against SciPy's default, as the bar is."""
    best = float(
        np.linalg.norm(target - matrix @ scipy_solution(matrix, target, "gelsd"))
    )
    for entry in own:
        if entry.is_compiled:
            jax.block_until_ready(entry.run())
    timed = timing.measure_in_turn([entry.run for entry in own], repeats, BUDGET)
    measured = []
    for entry, (result, time) in zip(own, timed, strict=True):
        iterations = converged = None
        if isinstance(result, sketching.Solution):
            iterations, converged = int(result.num_iterations), bool(result.converged)
            result = result.solution
        elif "lsqr" in entry.family:
            # Reasons 3 and 7: the condition number, and the limit of iterations.
            iterations, converged = result[2], result[1] not in (3, 6, 7)
            result = result[0]
        excess = None
        if entry.family != PRODUCTS:
            norm = np.linalg.norm(target - matrix @ np.asarray(result))
            excess = float(norm / best - 1)
        measured.append(
            Measured(entry.family, entry.setting, time, excess, iterations, converged)
        )
    return measured


def draw(measured: dict[float, list[Measured]]):
    """A panel a condition number."""
    figure, every = panels(len(measured), 11, 5)
    families = list(dict.fromkeys(row.family for row in next(iter(measured.values()))))
    families.remove(PRODUCTS)
    num_ours = sum(f.startswith(OURS) for f in families)
    handles = []
    for axes, (condition, rows) in zip(every, measured.items(), strict=True):
        handles = []
        for index, family in enumerate(families):
            own = [row for row in rows if row.family == family]
            # Filled and joined: ours; hollow: peers, in the same colours.
            is_ours = index < num_ours
            place = index if is_ours else index - num_ours
            (handle,) = axes.plot(
                [row.time.median for row in own],
                [max(row.excess or 0.0, FLOOR) for row in own],
                color=COLORS[place],
                marker=MARKERS[place],
                markersize=6,
                markerfacecolor=COLORS[place] if is_ours else "white",
                linestyle="-" if "sketch" in family else "none",
                linewidth=1,
                label=family.replace("`", ""),
            )
            handles.append(handle)
        products = next(row for row in rows if row.family == PRODUCTS)
        handles.append(
            axes.axvline(
                products.time.median,
                color="0.4",
                linestyle=":",
                label=PRODUCTS,
            )
        )
        axes.set_title(
            f"condition number $10^{{{np.log10(condition):.0f}}}$", fontsize=10
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("time (s), median")
    every[0].set_ylabel(f"relative excess of the residual (at least {FLOOR:.0e})")
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return figure
