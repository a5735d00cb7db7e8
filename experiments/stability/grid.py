"""Backward errors and iterations by condition number and residual: Figure 3."""

import itertools
from typing import Any

import jax
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from experiments.runner.figures import Figure, new_figure
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from experiments.stability import problems
from experiments.stability.solvers import FACTOR, GRAM, PLAIN, QR, SKETCH, SOLVERS

EXPONENTS = tuple(range(16))
FEW_EXPONENTS = (0, 12)
METHODS = tuple(name for name in SOLVERS if name != PLAIN)
SHOWN = (GRAM, FACTOR, SKETCH, "FOSSILS", "SPIR", QR)
EPS = float(np.finfo(float).eps)


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns one cell with a problem per condition number and residual."""
    shape = problems.SHAPE if effort.is_full else problems.SMALL_SHAPE
    exponents = EXPONENTS if effort.is_full else FEW_EXPONENTS
    return Study(
        {
            "shape": shape,
            "exponents": exponents,
            "measured": Once(measure, key, shape, exponents),
        },
        x64=True,
        tables={"grid": tabulate},
        figures={"grid": draw},
    )


def measure(
    key: jax.Array, shape: tuple[int, int], exponents: tuple[int, ...]
) -> dict[str, dict[str, list[Any]]]:
    """Returns errors and iterations by method, one entry per problem.

    Condition numbers are powers of ten, and norms of the residual their inverses.
    Problems are sorted by condition number, then by residual.
    """
    rng = problems.generator(key)
    measured = {method: empty_record() for method in METHODS}
    for condition, residual in itertools.product(exponents, exponents):
        problem = problems.random_problem(rng, shape, 10.0**condition, 10.0**-residual)
        for method, record in measured.items():
            solved = SOLVERS[method](key, problem)
            solution = solved.solution
            record["backward"].append(problems.backward_error(problem, solution))
            record["gradient"].append(problems.gradient_norm(problem, solution))
            record["iterations"].append(solved.num_iterations)
            record["converged"].append(solved.converged)
    return measured


def empty_record() -> dict[str, list[Any]]:
    """Returns lists for the quantities of one method."""
    return {"backward": [], "gradient": [], "iterations": [], "converged": []}


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns backward errors, ‖Xᵀr‖ relative to QR, and iterations by method."""
    num_rows, num_columns = numbers["shape"]
    num_problems = len(numbers["exponents"]) ** 2
    largest = max(numbers["exponents"])
    table = ResultTable(
        f"{num_rows:,} × {num_columns}, float64, {num_problems} problems: condition "
        f"1 to 1e{largest}, residual 1e-{largest} to 1",
        [
            "method",
            "backward error: median",
            "worst",
            "worst if converged",
            "‖Xᵀr‖ / QR's: median",
            "at most 3",
            "iterations",
            "converged",
        ],
    )
    measured = numbers["measured"]
    gradients_of_qr = np.array(measured[QR]["gradient"])
    for method in METHODS:
        record = measured[method]
        errors = np.array(record["backward"]) / EPS
        ratios = np.array(record["gradient"]) / gradients_of_qr
        flags = np.array([flag is not False for flag in record["converged"]])
        counts = record["iterations"]
        iterations = ""
        converged = ""
        if None not in counts:
            iterations = f"{min(counts)}–{max(counts)}"
            converged = f"{sum(flags)} of {len(flags)}"
        table.rows.append(
            [
                method,
                f"{np.median(errors):.2g} eps",
                f"{errors.max():.2g} eps",
                f"{errors[flags].max():.2g} eps",
                f"{np.median(ratios):.2g}",
                f"{np.sum(ratios <= 3)} of {len(ratios)}",
                iterations,
                converged,
            ]
        )
    return table


def draw(numbers: Numbers) -> Figure:
    """Draws a panel per method: backward errors above, iterations below."""
    exponents = numbers["exponents"]
    figure, panels = new_figure(12, 4.6, len(SHOWN), 2)
    above, below = np.split(panels, 2)
    error_map = ScalarMappable(LogNorm(1e-18, 1e-13))
    count_map = ScalarMappable(Normalize(0, 50))
    for axes, lower_axes, method in zip(above, below, SHOWN, strict=True):
        record = numbers["measured"][method]
        shape = (len(exponents), len(exponents))
        errors = np.array(record["backward"]).reshape(shape)
        clipped = np.maximum(errors, 1e-18)
        axes.pcolormesh(exponents, exponents, clipped, norm=error_map.norm)
        axes.set_title(method.replace("`", ""), fontsize=8)
        if method == QR:
            lower_axes.set_axis_off()
            continue
        counts = np.array(record["iterations"]).reshape(shape)
        lower_axes.pcolormesh(exponents, exponents, counts, norm=count_map.norm)
        lower_axes.set_xlabel("−log₁₀ residual")
    for axes in (above[0], below[0]):
        axes.set_ylabel("log₁₀ condition")
    figure.colorbar(error_map, ax=above, label="backward error / ‖X‖")
    figure.colorbar(count_map, ax=below, label="iterations")
    return figure
