"""Time and error of regression diagnostics, beside statsmodels and plain QR."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import statsmodels.api
from jax.typing import ArrayLike

from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import measure_in_turn
from jaxwgc import sketching

NUM_COLUMNS = 50
# By dtype; a hundredth of the rows in a quick run.
NUM_ROWS = {"float32": 1_000_000, "float64": 200_000}
# Seconds of each way, after which it does not run again.
BUDGET = 10.0


class Diagnostics(NamedTuple):
    """Leave-one-out residuals, and HC3 standard errors if there are any."""

    left_out: ArrayLike
    errors: ArrayLike | None


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns time and error of the diagnostics of a fit in both precisions."""

    def size_and_dtype(row):
        rows, columns = row["shape"]
        return f"{rows:,} × {columns}, {row['dtype']}"

    def error_of_hc3(row):
        error = row["error_of_hc3"]
        return "–" if error is None else f"{error:.1e}"

    return timed(
        Once(rows, repeats, seed, quick),
        "Regression diagnostics: largest error of leave-one-out residuals, if those "
        "have variance 1, and largest relative error of HC3 standard errors",
        {
            "size": size_and_dtype,
            "way": "{way}",
            "seconds": "{time}",
            "leave-one-out": "{error:.1e}",
            "HC3": error_of_hc3,
        },
    )


def rows(repeats: int, seed: int, quick: bool) -> Iterator:
    """Yields a row per precision and way."""
    for dtype, num_rows in NUM_ROWS.items():
        yield from rows_of(dtype, num_rows // 100 if quick else num_rows, repeats, seed)


def rows_of(dtype: str, num_rows: int, repeats: int, seed: int) -> Iterator:
    """Yields a row per way, all timed in turn."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((num_rows, NUM_COLUMNS)).astype(dtype)
    noise = rng.standard_normal(num_rows)
    target = (matrix.sum(axis=1) + noise).astype(dtype)
    truth = reference(matrix.astype(float), target.astype(float))
    with jax.enable_x64(dtype == "float64"):
        ways = ways_for(matrix, target)
        timings = measure_in_turn([*ways.values()], repeats, BUDGET, warm=True)
    for way, (result, time) in zip(ways, timings, strict=True):
        difference = np.asarray(result.left_out, float) - truth.left_out
        error_of_hc3 = None
        if result.errors is not None:
            ratio = np.asarray(result.errors, float) / np.asarray(truth.errors)
            error_of_hc3 = np.abs(ratio - 1).max()
        yield {
            "dtype": dtype,
            "shape": matrix.shape,
            "way": way,
            "time": time,
            "error": np.abs(difference).max(),
            "error_of_hc3": error_of_hc3,
        }


def ways_for(
    matrix: np.ndarray, target: np.ndarray
) -> dict[str, Callable[[], Diagnostics]]:
    """Returns functions without arguments, by the names of ways."""
    x = jnp.asarray(matrix)
    y = jnp.asarray(target)
    compiled = jax.jit(sketching.influence)

    def ours() -> Diagnostics:
        fit = jax.block_until_ready(compiled(x, y))
        return Diagnostics(fit.leave_one_out_residuals, fit.standard_errors.hc3)

    def peer() -> Diagnostics:
        result = statsmodels.api.OLS(target, matrix).fit()
        diagnostics = result.get_influence()
        # No others, for which it repeats the fit without each row.
        diagnostics.cooks_distance  # noqa: B018
        return Diagnostics(diagnostics.resid_press, result.HC3_se)

    return {
        "`influence`": ours,
        "statsmodels `OLSInfluence`, without DFFITS": peer,
        "QR in `jax.numpy`, residuals alone": functools.partial(by_qr_in_jax, x, y),
        "QR in NumPy, residuals alone": functools.partial(by_qr, matrix, target),
    }


def by_qr(matrix: np.ndarray, target: np.ndarray) -> Diagnostics:
    """Returns leave-one-out residuals in four lines of NumPy."""
    basis, triangle = np.linalg.qr(matrix)
    solution = np.linalg.solve(triangle, basis.T @ target)
    leverage = np.sum(basis**2, axis=1)
    return Diagnostics((target - matrix @ solution) / (1 - leverage), None)


@jax.jit
def by_qr_in_jax(matrix: jax.Array, target: jax.Array) -> Diagnostics:
    """Returns leave-one-out residuals in four lines of JAX."""
    basis, triangle = jnp.linalg.qr(matrix)
    solution = jnp.linalg.solve(triangle, basis.T @ target)
    leverage = jnp.sum(basis**2, axis=1)
    return Diagnostics((target - matrix @ solution) / (1 - leverage), None)


def reference(matrix: np.ndarray, target: np.ndarray) -> Diagnostics:
    """Returns the diagnostics by QR in float64, with a second projection."""
    basis, triangle = np.linalg.qr(matrix)
    residuals = target - basis @ (basis.T @ target)
    residuals -= basis @ (basis.T @ residuals)
    left_out = residuals / (1 - np.sum(basis**2, axis=1))
    estimator = np.linalg.solve(triangle, basis.T)
    return Diagnostics(left_out, np.sqrt(estimator**2 @ left_out**2))
