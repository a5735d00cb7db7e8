"""Least squares by the solver for lineax, beside lineax's own solvers."""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from experiments.runner.study import Numbers, Once, Study
from experiments.runner.tables import table_of
from experiments.runner.timing import measure_in_turn
from jaxwgc.sketching.lineax import SketchPreconditioned

SHAPE = (100_000, 100)
QUICK_SHAPE = (1_000, 10)
CONDITIONS = (1e1, 1e8)
# Seconds after which a solver is not run again.
BUDGET = 5.0
TOLERANCE = 1e-12
MAX_STEPS = 200


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns time and errors of solvers of dense least squares, in float64."""
    num_rows, num_columns = QUICK_SHAPE if quick else SHAPE
    title = (
        f"`lx.linear_solve` of {num_rows:,} × {num_columns}, float64; `lx.CG` and "
        f"`lx.LSMR` with tolerances of {TOLERANCE:.0e}, and at most {MAX_STEPS} steps"
    )
    columns = {
        "condition number": "{condition:,.0f}",
        "solver": "{solver}",
        "seconds": "{time}",
        "error of θ": "{error:.1e}",
        "excess of the residual": "{excess:.1e}",
        "steps": lambda row: "" if row["steps"] is None else f"{row['steps']}",
        "successful": lambda row: "yes" if row["successful"] else "no",
    }
    cells = []
    for condition in CONDITIONS:
        cell = Once(rows, (num_rows, num_columns), condition, repeats, seed)
        cells.append(cell)
    table = table_of(title, columns, lambda numbers: itertools.chain(*numbers))
    return Study(cells, x64=True, tables={"": table})


def solvers(seed: int) -> dict[str, lx.AbstractLinearSolver]:
    """Returns solvers by name."""
    key = jax.random.key(seed)
    conjugate_gradients = lx.CG(TOLERANCE, TOLERANCE, max_steps=MAX_STEPS)
    return {
        "`SketchPreconditioned`, gram": SketchPreconditioned(key),
        "`SketchPreconditioned`, sketch": SketchPreconditioned(key, method="sketch"),
        "`lx.QR`": lx.QR(),
        "`lx.SVD`": lx.SVD(),
        "`lx.Normal(lx.Cholesky())`": lx.Normal(lx.Cholesky()),
        "`lx.Normal(lx.CG)`": lx.Normal(conjugate_gradients),
        "`lx.LSMR`": lx.LSMR(TOLERANCE, TOLERANCE, max_steps=MAX_STEPS),
    }


def rows(
    shape: tuple[int, int], condition: float, repeats: int, seed: int
) -> Iterator[Numbers]:
    """Yields a row per solver, all timed in turn."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal(shape))
    rotation, _ = np.linalg.qr(rng.standard_normal((shape[1], shape[1])))
    matrix = basis * np.geomspace(1, 1 / condition, shape[1]) @ rotation.T
    exact = rng.standard_normal(shape[1])
    noise = rng.standard_normal(shape[0])
    # Orthogonal to the columns, so that the solution is known.
    noise -= basis @ (basis.T @ noise)
    target = matrix @ exact
    target += 0.1 * np.linalg.norm(target) / np.linalg.norm(noise) * noise
    least = np.linalg.norm(target - matrix @ exact)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    vector = jnp.asarray(target)
    by_name = solvers(seed)
    runs = [
        functools.partial(lx.linear_solve, operator, vector, solver, throw=False)
        for solver in by_name.values()
    ]
    timings = measure_in_turn(runs, repeats, BUDGET, warm=True)
    for solver, (result, time) in zip(by_name, timings, strict=True):
        difference = np.linalg.norm(result.value - exact)
        residual = np.linalg.norm(target - matrix @ np.asarray(result.value))
        steps = result.stats.get("num_steps")
        yield {
            "condition": condition,
            "solver": solver,
            "time": time,
            "error": float(difference / np.linalg.norm(exact)),
            "excess": float(residual / least - 1),
            "steps": None if steps is None else int(steps),
            "successful": bool(result.result == lx.RESULTS.successful),
        }
