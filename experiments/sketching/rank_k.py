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


def of_values(values, rng, num_rows, num_columns) -> np.ndarray:
    """Returns a matrix with these singular values, by their number."""
    left = np.linalg.qr(rng.standard_normal((num_rows, num_columns)))[0]
    right = np.linalg.qr(rng.standard_normal((num_columns, num_columns)))[0]
    return left * values(np.arange(1, num_columns + 1)) @ right


def counts(rng, num_rows, num_columns) -> np.ndarray:
    """Returns counts of words of 20 topics, about 100 words per row."""
    topics = rng.dirichlet(np.full(num_columns, 0.05), 20)
    shares = rng.dirichlet(np.full(20, 0.1), num_rows)
    return rng.poisson(100 * shares @ topics).astype(float)


MATRICES = {
    "σ = 1 / j": functools.partial(of_values, lambda j: 1 / j),
    "σ = 1 / √j": functools.partial(of_values, lambda j: j**-0.5),
    "counts": counts,
}


def errors(matrix: np.ndarray, rank: int, key: jax.Array) -> Numbers:
    """Returns the worst relative error, and the bound, by passes."""
    left = np.linalg.svd(matrix, full_matrices=False)[0]
    exact = np.sum(left[:, :rank] ** 2, axis=1)
    is_large = exact > np.median(exact)

    def worst(scores):
        return float(np.max(np.abs(np.asarray(scores) / exact - 1)[is_large]))

    score = functools.partial(sketching.rank_k_leverage_scores, key, matrix, rank)
    ours = [score(num_passes=number) for number in NUM_PASSES]
    power = [by_power_iterations(key, matrix, rank, number) for number in NUM_PASSES]
    return {
        KRYLOV: [worst(found.scores) for found in ours],
        POWER: [*map(worst, power)],
        "`error_bound`": [float(found.error_bound) for found in ours],
    }


def by_power_iterations(key, matrix, rank: int, num_passes: int) -> np.ndarray:
    """Returns scores by as many passes and columns, without the earlier passes."""
    num_columns = matrix.shape[1]
    shape = num_columns, min(2 * rank + 10, num_columns)
    basis = np.linalg.qr(jax.random.normal(key, shape))[0]
    values = np.ones(rank)
    for _ in range(num_passes - 1):
        rows = np.linalg.qr(matrix @ basis)[0]
        basis, values, _ = np.linalg.svd(matrix.T @ rows, full_matrices=False)
    image = matrix @ basis[:, :rank] / values[:rank]
    return np.sum(image**2, axis=1)


def tabulate_passes(numbers: Numbers) -> ResultTable:
    """Returns a row per matrix and kind of space."""
    num_rows, num_columns = numbers["shape"]
    return ResultTable(
        f"Scores in {numbers['rank']} directions of {num_rows:,} × {num_columns:,}: "
        "the worst relative error of rows above the median score, by passes over the "
        "rows",
        ["matrix", "", *map(str, NUM_PASSES)],
        [
            [name, kind, *(f"{value:.0e}" for value in values)]
            for name, misses in numbers["matrices"].items()
            for kind, values in misses.items()
        ],
    )
