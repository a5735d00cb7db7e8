"""Least squares on sampled rows: what each sampler loses, against the rows it takes."""

import functools
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.figures import new_figure, style
from experiments.sketching import data
from experiments.sketching.sampled_rows import SAMPLERS, compare, one_run
from experiments.studies import Effort, Study
from experiments.tables import ROUNDING, ResultTable

FACTORS, FEW_FACTORS = (4, 8, 16, 32, 64), (4, 16)
SHOWN_FACTOR = 16


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a sampler."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    every = data.regressions(data_key, num_rows, num_columns)
    factors = FACTORS if effort.is_full else FEW_FACTORS
    sizes = [factor * num_columns for factor in factors]
    return Study(
        {
            "num_rows": num_rows,
            "num_columns": num_columns,
            "runs": effort.runs,
            "sizes": sizes,
            "coherence": {kind: own.coherence for kind, own in every.items()},
            "largest_score": {kind: own.scores.max() for kind, own in every.items()},
            "excess": {
                name: functools.partial(
                    one_run, sampler=sampler, every=every, sizes=sizes
                )
                for name, sampler in SAMPLERS.items()
            },
        },
        key=run_key,
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=lambda found: {kind: reduce(found[kind], every[kind]) for kind in every},
        tables={
            "data": tabulate_data,
            "samplers": tabulate_excess,
            "samplers_bias": tabulate_bias,
        },
        figures={"samplers": draw},
    )


def reduce(solutions: np.ndarray, own: data.Regression) -> dict[str, np.ndarray]:
    """Of each size."""
    excess, squared_bias, variance = compare(solutions, own)
    median, low, high = median_interval(excess)
    return {
        "median": median,
        "low": low,
        "high": high,
        "squared_bias": squared_bias,
        "variance": variance,
    }


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


def tabulate_data(numbers: Any) -> ResultTable:
    """What is sampled from."""
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


def tabulate_excess(numbers: Any) -> ResultTable:
    """Medians."""

    def cell(median, low, high):
        if high - low <= 1e-9 * median:
            return _percent(median)
        return f"{_percent(median)} ({_percent(low)} to {_percent(high)})"

    title = (
        "Excess of the squared residual in percent of the smallest one, {size} of "
        "{num_rows:,} rows, p = {num_columns}, median of {runs} samples and its 95% "
        "interval"
    )
    return _tabulate(numbers, title, cell, ("median", "low", "high"))


def tabulate_bias(numbers: Any) -> ResultTable:
    """What the excess is made of."""
    title = (
        "Squared bias / variance of the fitted values in percent of the smallest "
        "squared residual, {size} rows"
    )
    return _tabulate(
        numbers,
        title,
        lambda bias, variance: f"{_percent(bias)} / {_percent(variance)}",
        ("squared_bias", "variance"),
    )


def _tabulate(
    numbers: Any, title: str, cell: Any, names: tuple[str, ...]
) -> ResultTable:
    """A row a sampler, a column a kind of data, at one of the sizes."""
    size = SHOWN_FACTOR * numbers["num_columns"]
    at = numbers["sizes"].index(size)
    return ResultTable(
        title.format(size=size, **numbers),
        ["sampler", *(data.KINDS[kind].label for kind in numbers["coherence"])],
        [
            [
                sampler,
                *(cell(*(own[name][at] for name in names)) for own in row.values()),
            ]
            for sampler, row in numbers["excess"].items()
        ],
    )


def _percent(share: float) -> str:
    value = 100 * share
    if share < ROUNDING:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def draw(numbers: Any) -> Figure:
    """Log-log, a panel a kind of data."""
    sizes, num_columns = np.array(numbers["sizes"]), numbers["num_columns"]
    figure, panels = new_figure(11, 5.6, len(numbers["coherence"]))
    for axes, kind in zip(panels, numbers["coherence"], strict=True):
        is_first = axes is panels[0]
        for index, (name, row) in enumerate(numbers["excess"].items()):
            own, look = row[kind], style(index)
            band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            label = name if is_first else None
            axes.plot(sizes, own["median"], linewidth=1.4, label=label, **look)
            axes.fill_between(sizes, own["low"], own["high"], **band)
        label = "Gaussian embedding, mean p / (r − p − 1)" if is_first else None
        gaussian = num_columns / (sizes - num_columns - 1)
        axes.plot(sizes, gaussian, ":", color="0.3", label=label)
        axes.set_xscale("log", base=2)
        ticks = sizes[::2]
        axes.set_xticks(ticks, [f"{size // num_columns}p\n{size:,}" for size in ticks])
        axes.set(yscale="log", title=data.KINDS[kind].label, xlabel="sampled rows r")
    panels[0].set_ylabel("excess of ‖Xθ − y‖², median, over the smallest")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
