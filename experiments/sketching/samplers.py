"""Least squares on sampled rows: what each sampler loses, against the rows it takes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.figures import Figure, line, new_figure, sketch_sizes
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ROUNDING, ResultTable
from experiments.sketching import data
from jaxwgc import sketching

FACTORS, FEW_FACTORS = (4, 8, 16, 32, 64), (4, 16)
SHOWN_FACTOR = 16
# Data by their kind.
Every = dict[str, data.Regression]
# Rows of a block that are drawn together.
BLOCK_SIZE = 4
# Of singular values of the sampled basis, squared.
CUTOFF = 1e-13


class Sampler(NamedTuple):
    """How rows are drawn: arguments of the library's functions."""

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


def draw_rows(key, probabilities, size, method, weighted):
    """Indices of rows and the factor of each, which is 0 for those that are no rows."""
    if method != "blocks":
        sample = sketching.sample_rows(
            key, probabilities, size, method, weighted=weighted
        )
        return sample.indices, sample.scale
    # Neighbouring rows together, by their share of the scores, as in the paper.
    shares = sketching.partition_probabilities(
        probabilities, len(probabilities) // BLOCK_SIZE
    )
    blocks = sketching.sample_partitions(key, shares, num_draws=size // BLOCK_SIZE)
    indices = BLOCK_SIZE * blocks.indices[:, None] + jnp.arange(BLOCK_SIZE)
    return indices.reshape(-1), jnp.repeat(blocks.scale, BLOCK_SIZE)


def one_run(
    key: jax.Array,
    every: Every,
    sizes: Any,
    chosen: dict[str, Sampler] | None = None,
) -> Numbers:
    """Least squares in sampled rows, by the sampler and the kind of data.

    Shortest coordinates (sizes, p); all samplers have the same key.
    """
    chosen = SAMPLERS if chosen is None else chosen
    names = "scores", "basis", "target"
    stacked = [jnp.stack([getattr(o, n) for o in every.values()]) for n in names]

    def solve(sampler, size, lane):
        scores, basis, target = lane
        probabilities = sketching.row_probabilities(scores, sampler.rule)
        drawn = draw_rows(key, probabilities, size, sampler.method, sampler.weighted)
        indices, scale = drawn
        rows, values = sketching.scale_rows((basis[indices], target[indices]), scale)
        inverse = jnp.linalg.pinv(rows.T @ rows, rtol=CUTOFF, hermitian=True)
        return inverse @ (rows.T @ values)

    def solutions(sampler):
        # One after the other: one program, compiled faster, serves all kinds.
        by_size = [
            jax.lax.map(functools.partial(solve, sampler, size), stacked)
            for size in sizes
        ]
        return dict(zip(every, jnp.stack(by_size, axis=1), strict=True))

    return {name: solutions(sampler) for name, sampler in chosen.items()}


def compare(solutions: np.ndarray, problem: data.Regression) -> Numbers:
    """Over the smallest squared residual: of all runs, and of their mean.

    Of coordinates (runs, sizes, p) in an orthonormal basis, so that bias and variance
    are those of the fitted values Xθ, and add up to the mean of the excess: excess
    (sizes, runs), the others (sizes,).
    """
    errors = solutions - problem.coordinates
    excess = np.sum(errors**2, axis=2) / problem.squared_residual
    mean = errors.mean(axis=0)
    runs = len(errors)
    spread = np.sum((errors - mean) ** 2, axis=(0, 2))
    spread /= max(runs - 1, 1) * problem.squared_residual
    # The mean of so many runs has a share of the variance in its square.
    bias = np.sum(mean**2, axis=1) / problem.squared_residual - spread / runs
    bias = np.maximum(bias, 0.0)
    return {"excess": excess.T, "squared_bias": bias, "variance": spread}


def study(effort: Effort, key: jax.Array) -> Study:
    """One cell for all samplers."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    every = data.regressions(data_key, num_rows, num_columns)
    factors = FACTORS if effort.is_full else FEW_FACTORS
    sizes = [factor * num_columns for factor in factors]
    return Study(
        {
            "num_rows": num_rows,
            "num_columns": num_columns,
            "sizes": sizes,
            "coherence": {kind: problem.coherence for kind, problem in every.items()},
            "largest_score": {
                kind: problem.scores.max() for kind, problem in every.items()
            },
            "excess": {"": Trial(one_run, every, sizes)},
        },
        key=run_key,
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=lambda trials: {
            name: {kind: reduce(trials[name][kind], every[kind]) for kind in every}
            for name in SAMPLERS
        },
        tables={
            "data": tabulate_data,
            "samplers": tabulate_excess,
            "samplers_bias": tabulate_bias,
        },
        figures={"samplers": draw},
    )


def reduce(solutions: np.ndarray, problem: data.Regression) -> dict[str, np.ndarray]:
    """Returns medians of the excess with intervals, bias and variance, by size."""
    errors = compare(solutions, problem)
    interval = median_interval(errors.pop("excess"))
    return dict(zip(("median", "low", "high"), interval, strict=True)) | errors


def median_interval(values: np.ndarray) -> np.ndarray:
    """Median, and order statistics around it: (3, ...) for (..., runs).

    Their ranks are n / 2 ± 0.98 √n, outwards: 95% for any distribution without atoms.
    """
    ordered = np.sort(values, axis=-1)
    runs = ordered.shape[-1]
    half = 0.98 * np.sqrt(runs)
    low = max(int(np.floor(runs / 2 - half)), 1) - 1
    high = min(int(np.ceil(runs / 2 + half)) + 1, runs) - 1
    return np.stack([np.median(ordered, -1), ordered[..., low], ordered[..., high]])


def tabulate_data(numbers: Numbers) -> ResultTable:
    """A row a kind of data: its largest leverage score and coherence."""
    shape = f"{numbers['num_rows']:,}", str(numbers["num_columns"])
    return ResultTable(
        f"The data, N = {numbers['num_rows']:,} and p = {numbers['num_columns']}",
        ["data", "rows", "columns", "largest leverage score", "coherence"],
        [
            [data.KINDS[kind].label, *shape, f"{score:.2g}", f"{coherence:.3g}"]
            for (kind, score), coherence in zip(
                numbers["largest_score"].items(), numbers["coherence"].values()
            )
        ],
    )


def tabulate_excess(numbers: Numbers) -> ResultTable:
    """Medians."""
    size = SHOWN_FACTOR * numbers["num_columns"]
    title = (
        "Excess of the squared residual in percent of the smallest one, "
        f"{size} of {numbers['num_rows']:,} rows, p = {numbers['num_columns']}, median "
        f"of {numbers['runs']} samples and its 95% interval"
    )
    return _tabulate(numbers, title, size, median_cell)


def median_cell(record: Numbers, at: int) -> str:
    """With its interval, in percent."""
    median, low, high = (record[name][at] for name in ("median", "low", "high"))
    if high - low <= 1e-9 * median:
        return _percent(median)
    return f"{_percent(median)} ({_percent(low)} to {_percent(high)})"


def tabulate_bias(numbers: Numbers) -> ResultTable:
    """Squared bias and variance, of which the excess is made."""
    size = SHOWN_FACTOR * numbers["num_columns"]
    title = (
        "Squared bias / variance of the fitted values in percent of the smallest "
        f"squared residual, {size} rows"
    )

    def cell(row, at):
        return f"{_percent(row['squared_bias'][at])} / {_percent(row['variance'][at])}"

    return _tabulate(numbers, title, size, cell)


def _tabulate(numbers: Numbers, title: str, size: int, cell: Callable) -> ResultTable:
    """A row a sampler, a column a kind of data."""
    at, excess = numbers["sizes"].index(size), numbers["excess"].items()
    return ResultTable(
        title,
        ["sampler", *(data.KINDS[kind].label for kind in numbers["coherence"])],
        [[name, *(cell(entry, at) for entry in row.values())] for name, row in excess],
    )


def _percent(share: float) -> str:
    value = 100 * share
    if share < ROUNDING:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def draw(numbers: Numbers) -> Figure:
    """Log-log, a panel a kind of data."""
    sizes, num_columns = np.array(numbers["sizes"]), numbers["num_columns"]
    figure, panels = new_figure(11, 5.6, len(numbers["coherence"]))
    for axes, kind in zip(panels, numbers["coherence"], strict=True):
        for index, (name, row) in enumerate(numbers["excess"].items()):
            record = row[kind]
            band = record["low"], record["high"]
            line(axes, index, sizes, record["median"], band, linewidth=1.4, label=name)
        label = "Gaussian embedding, mean p / (r − p − 1)"
        gaussian = num_columns / (sizes - num_columns - 1)
        axes.plot(sizes, gaussian, ":", color="0.3", label=label)
        sketch_sizes(axes, sizes, num_columns, every=2)
        axes.set(yscale="log", title=data.KINDS[kind].label, xlabel="sampled rows r")
    panels[0].set_ylabel("excess of ‖Xθ − y‖², median, over the smallest")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
