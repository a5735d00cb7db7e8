"""Logistic regression on MNIST, 4 against 9: the Newton sketch and scikit-learn."""

from typing import Any, NamedTuple

import jax
import numpy as np
import sklearn.linear_model

from experiments import mnist, results, timing
from experiments.sections import COLORS, MARKERS, Effort, Section
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


class Measured(NamedTuple):
    """How close a solver came to the reference, in how many steps."""

    name: str
    time: timing.Timing
    steps: int
    largest_difference: float
    relative_difference: float
    converged: bool | None
    gaps: np.ndarray | None


def section(effort: Effort, key: jax.Array) -> Section:
    """Table and figure."""
    features, labels = load(effort)
    with jax.enable_x64(True):
        measured = compare(key, features, labels, REPEATS if effort.is_full else 1)
    table = results.ResultTable(
        f"Logistic regression on {len(labels):,} × {features.shape[1]}, ridge {RIDGE}",
        [
            "solver",
            "steps",
            "largest difference",
            "relative difference",
            "seconds",
            "runs",
            "converged",
        ],
    )
    for row in measured:
        table.add_row(
            row.name,
            str(row.steps),
            f"{row.largest_difference:.1e}" if row.largest_difference else "reference",
            f"{row.relative_difference:.1e}" if row.relative_difference else "",
            row.time.cell(),
            str(row.time.runs),
            {None: "", True: "yes", False: "no"}[row.converged],
        )
    return Section(
        numbers={
            "shape": features.shape,
            "ridge": RIDGE,
            "measured": [
                row._asdict() | {"time": row.time._asdict()} for row in measured
            ],
        },
        tables={"logistic": table},
        figures={"logistic": draw(measured)},
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
    return sklearn.linear_model.LogisticRegression(
        C=1 / (len(labels) * RIDGE),
        fit_intercept=False,
        solver=solver,
        tol=tolerance,
        max_iter=10_000,
    ).fit(features, labels)


def compare(
    key: jax.Array, features: np.ndarray, labels: np.ndarray, repeats: int
) -> list[Measured]:
    """Against Newton-Cholesky to the last digit, which makes exact Newton steps."""
    reference, time = timing.measure(
        lambda: peer(features, labels, "newton-cholesky", 1e-13), repeats, BUDGET
    )
    optimum = reference.coef_[0]
    minimum = objective(features, labels, optimum)
    every: list[tuple[str, timing.Timing, Any]] = [
        ("scikit-learn, newton-cholesky", time, reference)
    ]
    found, time = timing.measure(
        lambda: peer(features, labels, "lbfgs", 1e-10), repeats, BUDGET
    )
    every.append(("scikit-learn, lbfgs", time, found))
    x, y = jax.device_put((features, labels))
    for factor, refinements in SETTINGS:

        def solve(tolerance=None, factor=factor, refinements=refinements):
            return sketching.logistic_newton_sketch(
                key,
                x,
                y,
                factor * features.shape[1],
                ridge=RIDGE,
                num_refinements=refinements,
                tolerance=tolerance,
                max_iterations=MAX_STEPS,
            )

        # With a tolerance that the first step meets, compiling costs one step.
        found, time = timing.measure(
            solve, repeats, BUDGET / 2, lambda solve=solve: solve(1e9)
        )
        name = f"`logistic_newton_sketch`, {factor}p"
        every.append(
            (name + (f", {refinements} ref." if refinements else ""), time, found)
        )
    measured = []
    for name, time, found in every:
        is_ours = isinstance(found, sketching.Solution)
        params = np.asarray(found.solution) if is_ours else found.coef_[0]
        difference = params - optimum
        measured.append(
            Measured(
                name,
                time,
                int(found.num_iterations if is_ours else found.n_iter_[0]),
                float(np.abs(difference).max()),
                float(np.linalg.norm(difference) / np.linalg.norm(optimum)),
                bool(found.converged) if is_ours else None,
                np.asarray(found.residual_history) - minimum if is_ours else None,
            )
        )
    return measured


def draw(measured: list[Measured]):
    """What is left of the objective, step by step."""
    figure, axes = results.new_figure(figsize=(7.5, 4.4))
    ours = [row for row in measured if row.gaps is not None]
    for index, row in enumerate(ours):
        assert row.gaps is not None
        gaps = row.gaps[: row.steps + 1]
        axes.plot(
            np.arange(len(gaps)),
            np.maximum(gaps, FLOOR),
            color=COLORS[index],
            marker=MARKERS[index],
            markersize=5,
            label=row.name.split(", ", 1)[1],
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=FLOOR / 3)
    axes.set_xticks(range(0, max(row.steps for row in ours) + 1, 2))
    axes.set_xlabel("Newton step")
    axes.set_ylabel("objective above its minimum")
    axes.legend(frameon=False, fontsize=9, title="sketch size; ref.: refinements")
    return figure
