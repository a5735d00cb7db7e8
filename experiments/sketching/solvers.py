"""Least squares: how far from the optimum a solver ends, and how long it takes."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import timing
from experiments.figures import new_figure, style
from experiments.sketching.least_squares import (
    PRODUCTS,
    Entry,
    entries,
    orthonormal,
    scipy_solution,
    system,
)
from experiments.studies import Effort, Once, Study
from experiments.tables import YES_NO, ResultTable
from jaxwgc import sketching

SHAPE, SMALL_SHAPE = (100_000, 200), (4_000, 20)
CONDITIONS = {"ill": 1e8, "well": 10.0}
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


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a condition number."""
    shape = SHAPE if effort.is_full else SMALL_SHAPE
    repeats = REPEATS if effort.is_full else 1
    with jax.enable_x64(True):
        factors = orthonormal(jax.random.fold_in(key, 0), shape)

    def measure(condition: float) -> list[Measured]:
        matrix, target = system(jax.random.fold_in(key, 1), *factors, condition)
        own = entries(jax.random.fold_in(key, 2), matrix, target, effort.is_full)
        return compare(own, matrix, target, repeats)

    return Study(
        {
            "shape": shape,
            "measured": {
                f"{condition:.0e}": Once(functools.partial(measure, condition))
                for condition in CONDITIONS.values()
            },
        },
        x64=True,
        tables={
            f"solvers_{name}": functools.partial(tabulate, condition)
            for name, condition in CONDITIONS.items()
        },
        figures={"solvers": draw},
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


def tabulate(condition: float, numbers: Any) -> ResultTable:
    """A row a solver and setting."""
    rows, columns = numbers["shape"]
    return ResultTable.of_records(
        f"{rows:,} × {columns}, float64, condition number {condition:.0e}",
        numbers["measured"][f"{condition:.0e}"],
        {
            "solver": lambda row: f"{row.family} {row.setting}".strip(),
            "seconds": lambda row: row.time.cell(),
            "runs": lambda row: str(row.time.runs),
            "excess": lambda row: "" if row.excess is None else f"{row.excess:.1e}",
            "iterations": lambda row: str(row.iterations or ""),
            "converged": lambda row: YES_NO[row.converged],
        },
    )


def draw(numbers: Any) -> Figure:
    """A panel a condition number."""
    measured = numbers["measured"]
    figure, panels = new_figure(11, 5, len(measured))
    families = list(dict.fromkeys(row.family for row in next(iter(measured.values()))))
    families.remove(PRODUCTS)
    num_ours = sum(f.startswith(OURS) for f in families)
    for axes, (condition, rows) in zip(panels, measured.items(), strict=True):
        for index, family in enumerate(families):
            own = [row for row in rows if row.family == family]
            # Filled and joined: ours; hollow: peers, in the same colours.
            is_ours = index < num_ours
            look = style(index if is_ours else index - num_ours)
            axes.plot(
                [row.time.median for row in own],
                [max(row.excess or 0.0, FLOOR) for row in own],
                markersize=6,
                markerfacecolor=look["color"] if is_ours else "white",
                linestyle="-" if "sketch" in family else "none",
                linewidth=1,
                label=family.replace("`", ""),
                **look,
            )
        (products,) = (row.time.median for row in rows if row.family == PRODUCTS)
        axes.axvline(products, color="0.4", linestyle=":", label=PRODUCTS)
        power = f"$10^{{{np.log10(float(condition)):.0f}}}$"
        axes.set(title=f"condition number {power}", xlabel="time (s), median")
        axes.set(xscale="log", yscale="log")
    panels[0].set_ylabel(f"relative excess of the residual (at least {FLOOR:.0e})")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure
