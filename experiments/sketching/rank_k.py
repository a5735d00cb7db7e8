"""Leverage scores in leading directions: error by passes over the rows."""

import functools

import jax
import numpy as np

from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from jaxwgc import sketching

RANK = 20
NUM_PASSES = (3, 4, 5, 6, 8)
SHAPE = (4_000, 500)
FEW_SHAPE = (400, 80)
KRYLOV = "block Krylov"
POWER = "power iterations"


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns errors of rows above the median score, by passes and kind of space."""
    num_rows, num_columns = SHAPE if effort.is_full else FEW_SHAPE
    rank = RANK if effort.is_full else 5
    seed = int(jax.random.bits(key) >> 1)

    def measure(make):
        matrix = make(np.random.default_rng(seed), num_rows, num_columns)
        return errors(matrix, rank, key)

    return Study(
        {
            "rank": rank,
            "shape": (num_rows, num_columns),
            "matrices": {name: Once(measure, make) for name, make in MATRICES.items()},
        },
        x64=True,
        tables={"rank_k": tabulate_passes},
    )


def with_decay(
    exponent: float, rng: np.random.Generator, num_rows: int, num_columns: int
) -> np.ndarray:
    """Returns a matrix whose singular values are powers of their numbers."""
    left, _ = np.linalg.qr(rng.standard_normal((num_rows, num_columns)))
    right, _ = np.linalg.qr(rng.standard_normal((num_columns, num_columns)))
    values = np.arange(1, num_columns + 1) ** exponent
    return left * values @ right


def counts(rng: np.random.Generator, num_rows: int, num_columns: int) -> np.ndarray:
    """Returns counts of words of 20 topics, about 100 words per row."""
    topics = rng.dirichlet(np.full(num_columns, 0.05), 20)
    shares = rng.dirichlet(np.full(20, 0.1), num_rows)
    return rng.poisson(100 * shares @ topics).astype(float)


MATRICES = {
    "σ = 1 / j": functools.partial(with_decay, -1.0),
    "σ = 1 / √j": functools.partial(with_decay, -0.5),
    "counts": counts,
}


def errors(matrix: np.ndarray, rank: int, key: jax.Array) -> Numbers:
    """Returns the worst relative error, and the bound, by passes."""
    left, _, _ = np.linalg.svd(matrix, full_matrices=False)
    exact = np.sum(left[:, :rank] ** 2, axis=1)
    is_large = exact > np.median(exact)

    def worst(scores):
        relative_errors = np.abs(np.asarray(scores) / exact - 1)
        return float(relative_errors[is_large].max())

    krylov_errors = []
    power_errors = []
    bounds = []
    for num_passes in NUM_PASSES:
        krylov = sketching.rank_k_leverage_scores(
            key, matrix, rank, num_passes=num_passes
        )
        krylov_errors.append(worst(krylov.scores))
        bounds.append(float(krylov.error_bound))
        power_scores = by_power_iterations(key, matrix, rank, num_passes)
        power_errors.append(worst(power_scores))
    return {KRYLOV: krylov_errors, POWER: power_errors, "`error_bound`": bounds}


def by_power_iterations(
    key: jax.Array, matrix: np.ndarray, rank: int, num_passes: int
) -> np.ndarray:
    """Returns scores by as many passes and columns, without the earlier passes."""
    num_columns = matrix.shape[1]
    block_size = min(2 * rank + 10, num_columns)
    basis, _ = np.linalg.qr(jax.random.normal(key, (num_columns, block_size)))
    values = np.ones(rank)
    for _ in range(num_passes - 1):
        rows, _ = np.linalg.qr(matrix @ basis)
        basis, values, _ = np.linalg.svd(matrix.T @ rows, full_matrices=False)
    image = matrix @ basis[:, :rank] / values[:rank]
    return np.sum(image**2, axis=1)


def tabulate_passes(numbers: Numbers) -> ResultTable:
    """Returns a row per matrix and kind of space."""
    num_rows, num_columns = numbers["shape"]
    table = ResultTable(
        f"Scores in {numbers['rank']} directions of {num_rows:,} × {num_columns:,}: "
        "the worst relative error of rows above the median score, by passes over the "
        "rows",
        ["matrix", "", *map(str, NUM_PASSES)],
    )
    for name, by_kind in numbers["matrices"].items():
        for kind, values in by_kind.items():
            shown = [f"{value:.0e}" for value in values]
            table.rows.append([name, kind, *shown])
    return table
