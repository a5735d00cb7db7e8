"""Forward, residual and backward errors of least squares by difficulty: Figure 2."""

import itertools
from collections.abc import Iterator

import jax
import numpy as np

from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from experiments.stability import problems
from experiments.stability.solvers import GRAM, PLAIN, QR, SKETCH, SOLVERS

NUM_DIFFICULTIES = 21
# Largest difficulty: about the inverse of machine epsilon.
PRECISIONS = {"float64": 1e16, "float32": 1e8}
METHODS = (PLAIN, SKETCH, GRAM, QR)
ERRORS = {
    "forward": "forward error ‖θ − θ*‖ / ‖θ*‖",
    "residual": "residual error ‖X(θ − θ*)‖ / ‖y‖",
    "backward": "backward error / ‖X‖",
}


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per precision, with a problem per difficulty."""
    shape = problems.SHAPE if effort.is_full else problems.SMALL_SHAPE
    return Study(
        {
            "shape": shape,
            "measured": {
                precision: Once(measure, key, shape, precision)
                for precision in PRECISIONS
            },
        },
        x64=True,
        tables={"difficulty": tabulate},
        figures={"difficulty": draw},
    )


def measure(
    key: jax.Array, shape: tuple[int, int], precision: str
) -> Iterator[Numbers]:
    """Yields errors of every method at every difficulty.

    The difficulty is the condition number, and the norm of the residual over half of
    machine epsilon.
    """
    rng = problems.generator(key)
    unit = np.finfo(precision).eps / 2
    for difficulty in np.geomspace(1, PRECISIONS[precision], NUM_DIFFICULTIES):
        problem = problems.random_problem(
            rng, shape, difficulty, difficulty * unit, precision
        )
        exact = problems.reference(problem)
        for method in METHODS:
            solved = SOLVERS[method](key, problem)
            solution = solved.solution
            yield {
                "method": method,
                "difficulty": difficulty,
                "converged": solved.converged,
                "forward": problems.forward_error(exact, solution),
                "residual": problems.residual_error(problem, exact, solution),
                "backward": problems.backward_error(problem, solution),
            }


def rows_of(numbers: Numbers, precision: str, method: str) -> list[Numbers]:
    """Returns the measured problems of a precision and a method."""
    return [row for row in numbers["measured"][precision] if row.method == method]


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns backward errors in units of machine epsilon of the precision."""
    num_rows, num_columns = numbers["shape"]
    table = ResultTable(
        f"{num_rows:,} × {num_columns}, {NUM_DIFFICULTIES} difficulties",
        ["precision", "method", "backward error: median", "worst", "converged"],
    )
    for precision, method in itertools.product(PRECISIONS, METHODS):
        runs = rows_of(numbers, precision, method)
        errors = [run.backward / np.finfo(precision).eps for run in runs]
        median = f"{np.median(errors):.2g} eps"
        worst = f"{max(errors):.2g} eps"
        flags = [run.converged for run in runs if run.converged is not None]
        converged = f"{sum(flags)} of {len(flags)}" if flags else ""
        table.rows.append([precision, method, median, worst, converged])
    return table


def draw(numbers: Numbers) -> Figure:
    """Draws a panel per precision and error; hollow: no convergence reported."""
    figure, panels = new_figure(
        11, 6.5, len(ERRORS), len(PRECISIONS), sharex=False, sharey=False
    )
    cells = itertools.product(PRECISIONS, ERRORS)
    for axes, (precision, error) in zip(panels, cells, strict=True):
        for index, method in enumerate(METHODS):
            runs = rows_of(numbers, precision, method)
            difficulties = np.array([run.difficulty for run in runs])
            # Zeros have no place on the axis.
            lowest = np.finfo(precision).eps * 1e-3
            errors = np.maximum([run[error] for run in runs], lowest)
            line(
                axes,
                index,
                difficulties,
                errors,
                label=method.replace("`", ""),
                linewidth=1,
                markersize=4,
            )
            is_hollow = np.array([run.converged is False for run in runs])
            axes.plot(
                difficulties[is_hollow],
                errors[is_hollow],
                "o",
                color="white",
                markersize=2,
                zorder=3,
            )
        axes.set(title=f"{ERRORS[error]}, {precision}", xscale="log", yscale="log")
    for axes in panels[-len(ERRORS) :]:
        axes.set_xlabel("difficulty")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(METHODS))
    return figure
