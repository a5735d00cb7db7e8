"""Norms of Xᵀr at condition number 1e12 and residual 1e-3: Table 1."""

from typing import Any

import jax
import numpy as np

from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from experiments.stability import problems
from experiments.stability.solvers import PLAIN, QR, SOLVERS

CONDITION = 1e12
RESIDUAL = 1e-3
METHODS = tuple(name for name in SOLVERS if name != PLAIN)


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns one cell of random problems, each with a sketch of its own."""
    shape = problems.SHAPE if effort.is_full else problems.SMALL_SHAPE
    return Study(
        {"shape": shape, "measured": Once(measure, key, shape, effort.runs)},
        x64=True,
        tables={"orthogonality": tabulate},
    )


def measure(
    key: jax.Array, shape: tuple[int, int], runs: int
) -> dict[str, dict[str, list[Any]]]:
    """Returns ‖Xᵀr‖, errors and iterations by method, one entry per problem."""
    rng = problems.generator(key)
    measured = {method: empty_record() for method in METHODS}
    for run in range(runs):
        problem = problems.random_problem(rng, shape, CONDITION, RESIDUAL)
        exact = problems.reference(problem)
        run_key = jax.random.fold_in(key, run)
        for method, record in measured.items():
            solved = SOLVERS[method](run_key, problem)
            solution = solved.solution
            record["gradient"].append(problems.gradient_norm(problem, solution))
            record["backward"].append(problems.backward_error(problem, solution))
            record["forward"].append(problems.forward_error(exact, solution))
            record["iterations"].append(solved.num_iterations)
    return measured


def empty_record() -> dict[str, list[Any]]:
    """Returns lists for the quantities of one method."""
    return {"gradient": [], "backward": [], "forward": [], "iterations": []}


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns medians over problems."""
    num_rows, num_columns = numbers["shape"]
    measured = numbers["measured"]
    num_problems = len(measured[QR]["gradient"])
    gradient_of_qr = np.median(measured[QR]["gradient"])
    eps = np.finfo(float).eps
    table = ResultTable(
        f"{num_rows:,} × {num_columns}, float64, condition 1e12, residual 1e-3: "
        f"medians of {num_problems} problems",
        [
            "method",
            "‖Xᵀr‖",
            "over QR's",
            "backward error",
            "iterations",
        ],
    )

    for method in METHODS:
        record = measured[method]
        gradient = np.median(record["gradient"])
        iterations = ""
        if None not in record["iterations"]:
            iterations = f"{np.median(record['iterations']):.0f}"
        table.rows.append(
            [
                method,
                f"{gradient:.1e}",
                f"{gradient / gradient_of_qr:.2g}",
                f"{np.median(record['backward']) / eps:.2g} eps",
                iterations,
            ]
        )
    return table
