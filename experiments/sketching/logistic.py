"""Logistic regression on MNIST, 4 against 9: the Newton sketch and scikit-learn."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import sklearn.linear_model

from experiments.paper import mnist
from experiments.runner import timing
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import YES_NO, ResultTable
from jaxwgc import sketching

RIDGE = 1e-3
# Small: so many images, whose pixels are means of 4 × 4.
SMALL_IMAGES = 1_000
REPEATS, BUDGET = 3, 10.0
MAX_STEPS = 40
# As (m / p, num_refinements).
SETTINGS = ((2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2))
# Of the objective: gaps below are rounding.
FLOOR = 1e-16


def study(effort: Effort, key: jax.Array) -> Study:
    """A row a solver."""
    features, labels = load(effort)
    problem = key, features, labels, REPEATS if effort.is_full else 1
    return Study(
        {
            "shape": features.shape,
            "ridge": RIDGE,
            "measured": Once(compare, *problem, num_rows=2 + len(SETTINGS)),
        },
        x64=True,
        tables={"logistic": tabulate},
        figures={"logistic": draw},
    )


def load(effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    """All images, and whether they show a nine."""
    with np.load(mnist.DATA) as file:
        images = file["images"].reshape(-1, 784) / 255
        labels = file["labels"] == 9
    if effort.is_full:
        return images, labels
    order = np.random.default_rng(0).permutation(len(images))[:SMALL_IMAGES]
    images = images[order].reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4))
    return images.reshape(-1, 49), labels[order]


def objective(features: np.ndarray, labels: np.ndarray, params: np.ndarray) -> float:
    """The mean loss with its ridge."""
    logits = features @ params
    loss = np.mean(np.logaddexp(0, logits) - labels * logits)
    return float(loss + RIDGE / 2 * np.sum(params**2))


def peer(features: np.ndarray, labels: np.ndarray, solver: str, tolerance: float):
    """Scikit-learn, fitted."""
    options = {"fit_intercept": False, "max_iter": 10_000}
    options["C"] = 1 / (len(labels) * RIDGE)
    model = sklearn.linear_model.LogisticRegression
    return model(solver=solver, tol=tolerance, **options).fit(features, labels)


def compare(key, features, labels, repeats) -> Iterator[Numbers]:
    """Against Newton-Cholesky to the last digit, which makes exact Newton steps."""
    x, y = jax.device_put((features, labels))

    def ours(factor, refinements, tolerance=None):
        size = factor * features.shape[1]
        options = {"num_refinements": refinements, "max_iterations": MAX_STEPS}
        options |= {"ridge": RIDGE, "tolerance": tolerance}
        return sketching.logistic_newton_sketch(key, x, y, size, **options)

    optimum = minimum = None
    for solver, tolerance in (("newton-cholesky", 1e-13), ("lbfgs", 1e-10)):
        fit = functools.partial(peer, features, labels, solver, tolerance)
        fitted, time = timing.measure(fit, repeats, BUDGET)
        params, steps = fitted.coef_[0], int(fitted.n_iter_[0])
        if optimum is None:
            optimum, minimum = params, objective(features, labels, params)
        name = {"name": f"scikit-learn, {solver}", "converged": None, "gaps": None}
        yield name | {"time": time, "steps": steps} | _off(params, optimum)
    for setting in SETTINGS:
        solve = functools.partial(ours, *setting)
        # With a tolerance that the first step meets, compiling costs one step.
        warm = functools.partial(solve, tolerance=1e9)
        solved, time = timing.measure(solve, repeats, BUDGET / 2, warm)
        refined = f", {setting[1]} ref." if setting[1] else ""
        yield {
            "name": f"`logistic_newton_sketch`, {setting[0]}p{refined}",
            "time": time,
            "steps": int(solved.num_iterations),
            "converged": bool(solved.converged),
            "gaps": np.asarray(solved.residual_history) - minimum,
        } | _off(np.asarray(solved.solution), optimum)


def _off(params: np.ndarray, optimum: Any) -> dict[str, Any]:
    """The largest difference, and the relative one."""
    difference = params - optimum
    relative = np.linalg.norm(difference) / np.linalg.norm(optimum)
    largest = np.abs(difference).max()
    return {"largest_difference": largest, "relative_difference": relative}


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a solver."""
    rows, columns = numbers["shape"]

    def scientific(value: float, otherwise: str = "") -> str:
        return f"{value:.1e}" if value else otherwise

    return ResultTable.of_records(
        f"Logistic regression on {rows:,} × {columns}, ridge {RIDGE}",
        lambda row: {
            "solver": row.name,
            "steps": str(row.steps),
            "largest difference": scientific(row.largest_difference, "reference"),
            "relative difference": scientific(row.relative_difference),
            "seconds": row.time.cell(),
            "runs": str(row.time.runs),
            "converged": YES_NO[row.converged],
        },
        numbers["measured"],
    )


def draw(numbers: Numbers) -> Figure:
    """Draws how far the objective is above its minimum, step by step."""
    figure, (axes,) = new_figure(7.5, 4.4)
    ours = [row for row in numbers["measured"] if row.gaps is not None]
    for index, row in enumerate(ours):
        gaps = np.maximum(row.gaps[: row.steps + 1], FLOOR)
        label = row.name.split(", ", 1)[1]
        line(axes, index, np.arange(len(gaps)), gaps, label=label)
    axes.set(yscale="log", xticks=range(0, max(row.steps for row in ours) + 1, 2))
    axes.set_ylim(bottom=FLOOR / 3)
    axes.set(xlabel="Newton step", ylabel="objective above its minimum")
    axes.legend(title="sketch size; ref.: refinements")
    return figure
