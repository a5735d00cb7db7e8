"""Least squares on sampled rows, and labels of rows that scores choose."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ROUNDING, ResultTable, table_of
from experiments.sketching import data, solvers
from jaxwgc import sketching

# Sampled rows per column.
FACTOR = 16
# Rows of a block that are drawn together.
BLOCK_SIZE = 4
# Problems by the kind of their data.
Problems = dict[str, data.Regression]
# Relative cutoff of squared singular values of the sampled basis.
CUTOFF = 1e-13


class Sampler(NamedTuple):
    """Arguments of `sketching.row_probabilities` and `sketching.sample_rows`."""

    rule: str = "lev"
    method: str = "with_replacement"
    weighted: bool = True


SAMPLERS = {
    "LEV": Sampler(),
    "UNIF": Sampler("unif"),
    "SLEV": Sampler("slev"),
    "LEVUNW": Sampler(weighted=False),
    "LEV, without replacement": Sampler(method="without_replacement"),
    "LEV, Poisson": Sampler(method="poisson"),
    "LEV, top k": Sampler(method="top_k"),
    "LEV, blocks": Sampler(method="blocks"),
}


def draw_rows(
    key: jax.Array, probabilities: jax.Array, size: int, sampler: Sampler
) -> tuple[jax.Array, jax.Array]:
    """Returns indices of rows, and their factors, which are 0 for padding."""
    if sampler.method != "blocks":
        sample = sketching.sample_rows(
            key, probabilities, size, sampler.method, weighted=sampler.weighted
        )
        return sample.indices, sample.scale
    # Neighbouring rows together, by their share of the scores, as in the paper.
    num_blocks = len(probabilities) // BLOCK_SIZE
    shares = jaxwgc.parts.partition_probabilities(probabilities, num_blocks)
    blocks = jaxwgc.parts.sample_partitions(key, shares, num_draws=size // BLOCK_SIZE)
    indices = BLOCK_SIZE * blocks.indices[:, None] + jnp.arange(BLOCK_SIZE)
    return indices.reshape(-1), jnp.repeat(blocks.scale, BLOCK_SIZE)


def one_run(
    key: jax.Array, problems: Problems, size: int, samplers: dict[str, Sampler]
) -> Numbers:
    """Returns minimum-norm coordinates (p,) from sampled rows, by sampler and data.

    All samplers have the same key.
    """
    all_scores = jnp.stack([problem.scores for problem in problems.values()])
    all_bases = jnp.stack([problem.basis for problem in problems.values()])
    all_targets = jnp.stack([problem.target for problem in problems.values()])

    def solutions(sampler):
        def solve(problem):
            scores, basis, target = problem
            probabilities = sketching.row_probabilities(scores, sampler.rule)
            indices, scale = draw_rows(key, probabilities, size, sampler)
            sampled = (basis[indices], target[indices])
            rows, values = jaxwgc.parts.scale_rows(sampled, scale)
            inverse = jnp.linalg.pinv(rows.T @ rows, rtol=CUTOFF, hermitian=True)
            return inverse @ (rows.T @ values)

        # Sequential, so that one program serves all kinds of data.
        solved = jax.lax.map(solve, (all_scores, all_bases, all_targets))
        return dict(zip(problems, solved, strict=True))

    return {name: solutions(sampler) for name, sampler in samplers.items()}


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns one cell for all samplers."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    problems = data.regressions(data_key, num_rows, num_columns)
    size = FACTOR * num_columns
    records = {}
    for kind, problem in problems.items():
        records[kind] = {
            "num_rows": num_rows,
            "num_columns": num_columns,
            "largest": problem.scores.max(),
            "coherence": problem.coherence,
        }

    def reduce_all(trials):
        return {
            name: {
                kind: reduce(solutions, problems[kind])
                for kind, solutions in by_kind.items()
            }
            for name, by_kind in trials.items()
        }

    return Study(
        {
            "num_rows": num_rows,
            "num_columns": num_columns,
            "size": size,
            "data": records,
            "excess": {"": Trial(one_run, problems, size, SAMPLERS)},
        },
        key=run_key,
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=reduce_all,
        tables={
            "data": tabulate_data,
            "samplers": tabulate(
                "Excess of the squared residual in percent of the smallest one, {size} "
                "of {num_rows:,} rows, p = {num_columns}, median of {runs} samples and "
                "its 95% interval",
                median_cell,
            ),
            "samplers_bias": tabulate(
                "Squared bias / variance of the fitted values in percent of the "
                "smallest squared residual, {size} rows",
                bias_cell,
            ),
        },
    )


def reduce(solutions: np.ndarray, problem: data.Regression) -> Numbers:
    """Returns median, bias and variance of coordinates (runs, p) in the basis.

    All are relative to the smallest squared residual. In an orthonormal basis, bias and
    variance are those of the fitted values Xθ, and their sum is the mean excess.
    """
    errors = solutions - problem.coordinates
    runs = len(solutions)
    excesses = np.sum(errors**2, axis=1) / problem.squared_residual
    mean = errors.mean(axis=0)
    variance = np.sum((errors - mean) ** 2) / max(runs - 1, 1)
    # The square of the mean has a share of the variance in expectation.
    bias = max(np.sum(mean**2) - variance / runs, 0.0)
    return {
        **median_with_interval(excesses),
        "squared_bias": bias / problem.squared_residual,
        "variance": variance / problem.squared_residual,
    }


def median_with_interval(values: np.ndarray) -> Numbers:
    """Returns the median and its interval, by order statistics.

    Their ranks are n / 2 ± 0.98 √n, rounded outwards: 95% for any distribution without
    atoms.
    """
    num_values = len(values)
    ordered = np.sort(values)
    half = 0.98 * np.sqrt(num_values)
    low_rank = max(int(np.floor(num_values / 2 - half)), 1)
    high_rank = min(int(np.ceil(num_values / 2 + half)) + 1, num_values)
    return {
        "median": np.median(ordered),
        "low": ordered[low_rank - 1],
        "high": ordered[high_rank - 1],
    }


tabulate_data = table_of(
    "The data, N = {num_rows:,} and p = {num_columns}",
    {
        "data": lambda row: data.KINDS[row["name"]].label,
        "rows": "{num_rows:,}",
        "columns": "{num_columns}",
        "largest leverage score": "{largest:.2g}",
        "coherence": "{coherence:.3g}",
    },
    "data",
)


def tabulate(
    title: str, cell: Callable[[Numbers], str]
) -> Callable[[Numbers], ResultTable]:
    """Returns a table with a row per sampler, and a column per kind of data."""

    def table(numbers):
        heads = [data.KINDS[kind].label for kind in numbers["data"]]
        result = ResultTable(title.format_map(numbers), ["sampler", *heads])
        for name, by_kind in numbers["excess"].items():
            shown = [cell(record) for record in by_kind.values()]
            result.rows.append([name, *shown])
        return result

    return table


def median_cell(record: Numbers) -> str:
    """Returns the median with its interval, in percent."""
    median = _percent(record.median)
    if record.high - record.low <= 1e-9 * record.median:
        return median
    return f"{median} ({_percent(record.low)} to {_percent(record.high)})"


def bias_cell(record: Numbers) -> str:
    """Returns the squared bias and the variance, in percent."""
    return f"{_percent(record.squared_bias)} / {_percent(record.variance)}"


def _percent(share: float) -> str:
    if share < ROUNDING:
        return "0"
    # Two digits of 99.5% are 100%.
    if share >= 0.995:
        return f"{100 * share:.0f}"
    return f"{100 * share:.2g}"


# Without replacement, so that there are as many labels as rows.
CHOICES = {
    "leverage": Sampler(method="without_replacement"),
    "uniform": Sampler("unif", "without_replacement"),
}
# Labels per column.
FACTORS = (4, 16)
ACTIVE_KINDS = ("T3", "T1")


def digits(effort: Effort) -> data.Regression:
    """Returns the target 1 for a nine, -1 for a four, and means of 4 × 4 pixels."""
    pixels, is_nine = solvers.load(effort)
    if pixels.shape[1] == 784:
        pixels = solvers.coarse(pixels)
    # Without the corners, where no image has ink.
    inked = pixels[:, pixels.any(axis=0)]
    matrix = np.column_stack([np.ones(len(inked)), inked])
    target = np.where(is_nine, 1.0, -1.0)
    return data.Regression.of("MNIST, 4 against 9", matrix, target)


def active(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per kind of data and number of labels."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    drawn = data.regressions(data_key, num_rows, num_columns)
    problems = {kind: drawn[kind] for kind in ACTIVE_KINDS}
    problems["digits"] = digits(effort)

    def cell(kind: str, factor: int) -> Numbers:
        problem = problems[kind]
        num_rows, num_columns = problem.basis.shape
        labels = factor * num_columns
        return {
            "data": problem.label,
            "size": f"{num_rows:,} × {num_columns}",
            "coherence": problem.coherence,
            "labels": f"{factor}p = {labels:,}",
            "": Trial(one_run, {kind: problem}, labels, CHOICES),
        }

    def ratio(row: Numbers) -> str:
        ratio = row["uniform"].median / row["leverage"].median
        return f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"

    columns = {
        "data": "{data}",
        "size": "{size}",
        "coherence": "{coherence:.3g}",
        "labels": "{labels}",
        **{name: lambda row, name=name: median_cell(row[name]) for name in CHOICES},
        "uniform / leverage": ratio,
    }
    title = (
        "Excess of the squared residual over all rows in percent of the smallest one, "
        "median of {runs} choices of rows and its 95% interval"
    )

    def reduce_cell(trials):
        numbers = {}
        for choice, by_kind in trials.items():
            # A cell has one kind of data.
            [(kind, solutions)] = by_kind.items()
            numbers[choice] = reduce(solutions, problems[kind])
        return numbers

    return Study(
        {"cells": [cell(kind, factor) for kind in problems for factor in FACTORS]},
        key=run_key,
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=reduce_cell,
        tables={"active": table_of(title, columns, "cells")},
    )
