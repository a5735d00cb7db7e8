"""Norms of Xᵀr at condition number 1e12 and residual 1e-3: Table 1."""

from collections.abc import Iterator

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


def measure(key: jax.Array, shape: tuple[int, int], runs: int) -> Iterator[Numbers]:
    """Yields ‖Xᵀr‖, θ's norm and error, and the iterations of every method."""
    rng = problems.generator(key)
    for run in range(runs):
        problem = problems.random_problem(rng, shape, CONDITION, RESIDUAL)
        exact = problems.reference(problem)
        run_key = jax.random.fold_in(key, run)
        for method in METHODS:
            solved = SOLVERS[method](run_key, problem)
            solution = solved.solution
            yield {
                "method": method,
                "gradient": problems.gradient_norm(problem, solution),
                "backward": problems.backward_error(problem, solution),
                "forward": problems.forward_error(exact, solution),
                "iterations": solved.num_iterations,
                "converged": solved.converged,
            }


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns medians over problems."""
    num_rows, num_columns = numbers["shape"]
    rows = numbers["measured"]
    num_problems = sum(row.method == QR for row in rows)
    eps = np.finfo(float).eps
    table = ResultTable(
        f"{num_rows:,} × {num_columns}, float64, condition 1e12, residual 1e-3: "
        f"medians of {num_problems} problems",
        [
            "method",
            "‖Xᵀr‖",
            "over QR's",
            "backward error",
            "forward error",
            "iterations",
        ],
    )

    def median(method: str, quantity: str) -> float:
        return float(np.median([row[quantity] for row in rows if row.method == method]))

    for method in METHODS:
        is_iterative = method in {row.method for row in rows if row.iterations}
        gradient = median(method, "gradient")
        table.rows.append(
            [
                method,
                f"{gradient:.1e}",
                f"{gradient / median(QR, 'gradient'):.2g}",
                f"{median(method, 'backward') / eps:.2g} eps",
                f"{median(method, 'forward'):.2g}",
                f"{median(method, 'iterations'):.0f}" if is_iterative else "",
            ]
        )
    return table
