"""Rows to label for a polynomial fit of a simulation: pivotal and other samplers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable
from experiments.sketching.samplers import median_cell, median_with_interval
from experiments.sketching.targets import Target, targets
from jaxwgc import sketching

# Points on each axis, and the total degree of the polynomials.
NUM_PER_AXIS = 100
DEGREE = 12
FEW_PER_AXIS = 20
LOW_DEGREE = 4
# Sampled rows per column.
FACTORS = (1.2, 1.5, 2, 3, 4, 6, 9, 12)
FEW_FACTORS = (1.5, 6)
# Medians of samples vary more than means over rows.
MORE_RUNS = 4
# Excess of the squared residual, relative to the smallest one, that the fit may have.
GOALS = (1.0, 0.5, 0.25, 0.1)
# Added to the Gram matrix of the sampled basis, so that it is never singular.
RIDGE = 1e-12


class Sampler(NamedTuple):
    """Arguments of `sketching.row_probabilities` and `sketching.sample_rows`."""

    rule: str
    method: str
    is_spatial: bool = False


INDEPENDENT = "leverage, Poisson"
DISTINCT = "leverage, without replacement"
SPATIAL = "leverage, pivotal in spatial order"
SAMPLERS = {
    "uniform, without replacement": Sampler("unif", "without_replacement"),
    "uniform, pivotal in spatial order": Sampler("unif", "pivotal", is_spatial=True),
    "leverage, with replacement": Sampler("lev", "with_replacement"),
    INDEPENDENT: Sampler("lev", "poisson"),
    DISTINCT: Sampler("lev", "without_replacement"),
    "leverage, pivotal in row order": Sampler("lev", "pivotal"),
    SPATIAL: Sampler("lev", "pivotal", is_spatial=True),
}


def one_run(
    key: jax.Array, problems: dict[str, Target], size: int
) -> dict[str, dict[str, jax.Array]]:
    """Returns the excess of the squared residual, by sampler and problem.

    All samplers have the same key.
    """
    regressions = [problem.regression for problem in problems.values()]
    bases = jnp.stack([regression.basis for regression in regressions])
    values = jnp.stack([regression.target for regression in regressions])
    scores = jnp.stack([regression.scores for regression in regressions])
    orders = jnp.stack([problem.order for problem in problems.values()])
    squares = np.array([regression.squared_residual for regression in regressions])
    solutions = np.stack([regression.coordinates for regression in regressions])

    def excesses(sampler: Sampler) -> dict[str, jax.Array]:
        def excess(problem):
            basis, target, scores, order, square, solution = problem
            probabilities = sketching.row_probabilities(scores, sampler.rule)
            sample = sketching.sample_rows(
                key,
                probabilities,
                size,
                sampler.method,
                order=order if sampler.is_spatial else None,
            )
            rows, labels = sample.apply((basis, target))
            gram = rows.T @ rows + RIDGE * jnp.eye(basis.shape[1])
            fitted = jax.scipy.linalg.solve(gram, rows.T @ labels, assume_a="pos")
            return jnp.sum((fitted - solution) ** 2) / square

        # Sequential, so that one program serves all problems.
        by_problem = jax.lax.map(
            excess, (bases, values, scores, orders, squares, solutions)
        )
        return dict(zip(problems, by_problem, strict=True))

    return {name: excesses(sampler) for name, sampler in SAMPLERS.items()}


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per number of rows."""
    num_per_axis = NUM_PER_AXIS if effort.is_full else FEW_PER_AXIS
    degree = DEGREE if effort.is_full else LOW_DEGREE
    factors = FACTORS if effort.is_full else FEW_FACTORS
    data_key, run_key = jax.random.split(key)
    problems = targets(num_per_axis, degree, seed=int(jax.random.bits(data_key)))
    num_columns = (degree + 1) * (degree + 2) // 2
    sizes = [round(factor * num_columns) for factor in factors]
    return Study(
        {
            "num_rows": num_per_axis**2,
            "num_columns": num_columns,
            "sizes": sizes,
            "cells": [Trial(one_run, problems, size) for size in sizes],
        },
        key=run_key,
        runs=MORE_RUNS * effort.runs,
        batch_size=25,
        x64=True,
        reduce=reduce,
        tables={"pivotal": tabulate, "pivotal_rows": tabulate_rows},
    )


def reduce(trials: Numbers) -> Numbers:
    """Returns the median excess with its interval, by sampler and problem."""
    return {
        sampler: {
            problem: median_with_interval(np.asarray(excesses))
            for problem, excesses in by_problem.items()
        }
        for sampler, by_problem in trials.items()
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per problem and sampler, and a column per number of rows."""
    heads = [f"{size} rows" for size in numbers["sizes"]]
    table = ResultTable(
        "Excess of the squared residual over all {num_rows:,} rows in percent of the "
        "smallest one, {num_columns} polynomials, median of {runs} samples and its 95% "
        "interval".format_map(numbers),
        ["problem", "rows", *heads],
    )
    cells = numbers["cells"]
    for problem in cells[0][INDEPENDENT]:
        for sampler in SAMPLERS:
            medians = [median_cell(cell[sampler][problem]) for cell in cells]
            table.rows.append([problem, sampler, *medians])
    return table


def tabulate_rows(numbers: Numbers) -> ResultTable:
    """Returns a row per problem and goal, with the number of rows that it takes."""
    names = (INDEPENDENT, DISTINCT, SPATIAL)
    table = ResultTable(
        "Rows that a median excess takes, interpolated, and the share of them that "
        "pivotal sampling saves",
        [
            "problem",
            "excess",
            *names,
            "saved against Poisson",
            "saved against without replacement",
        ],
    )

    def share(rows: float, other_rows: float) -> str:
        if np.isnan(rows) or np.isnan(other_rows):
            return "–"
        return f"{100 * (1 - rows / other_rows):.0f}%"

    cells = numbers["cells"]
    sizes = numbers["sizes"]
    for problem in cells[0][INDEPENDENT]:
        for goal in GOALS:
            needed = {}
            for name in names:
                medians = [cell[name][problem]["median"] for cell in cells]
                needed[name] = rows_for(goal, sizes, medians)
            shown = [_count(rows) for rows in needed.values()]
            saved = [share(needed[SPATIAL], needed[name]) for name in names[:2]]
            table.rows.append([problem, f"{goal:.0%}", *shown, *saved])
    return table


def rows_for(goal: float, sizes: list[int], medians: list[float]) -> float:
    """Returns the number of rows with this excess; NaN if it is not between two sizes.

    Interpolated linearly between logarithms.
    """
    for i in range(1, len(sizes)):
        if medians[i - 1] > goal >= medians[i]:
            falls = np.log([medians[i], medians[i - 1]])
            logs = np.log([sizes[i], sizes[i - 1]])
            return float(np.exp(np.interp(np.log(goal), falls, logs)))
    return float("nan")


def _count(rows: float) -> str:
    return "–" if np.isnan(rows) else f"{rows:.0f}"
