"""Least squares on sampled rows: what each sampler loses, against the rows it takes."""

from typing import Any

import jax
import numpy as np

from experiments import results
from experiments.sections import COLORS, MARKERS, ROUNDING, Effort, Section, panels
from experiments.sketching import data
from experiments.sketching.sampled_rows import SAMPLERS, measure

FACTORS, FEW_FACTORS = (4, 8, 16, 32, 64), (4, 16)
SHOWN_FACTOR = 16


def section(effort: Effort, key: jax.Array) -> Section:
    """Tables and the figure."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    every = data.regressions(data_key, num_rows, num_columns)
    factors = FACTORS if effort.is_full else FEW_FACTORS
    sizes = [factor * num_columns for factor in factors]
    with jax.enable_x64(True):
        found = {
            factor: measure(run_key, every, size, effort.runs)
            for factor, size in zip(factors, sizes, strict=True)
        }
    # (sizes, runs) by the sampler and the kind of the data.
    excess = {
        name: {
            kind: np.stack([own[name][kind].excess for own in found.values()])
            for kind in every
        }
        for name in SAMPLERS
    }
    size = SHOWN_FACTOR * num_columns
    described = results.ResultTable(
        f"The data, N = {num_rows:,} and p = {num_columns}",
        ["data", "rows", "columns", "largest leverage score", "coherence"],
    )
    for own in every.values():
        described.add_row(
            own.label,
            f"{num_rows:,}",
            str(num_columns),
            f"{own.scores.max():.2g}",
            f"{own.coherence:.3g}",
        )
    table = results.ResultTable(
        f"Excess of the squared residual in percent of the smallest one, {size} of "
        f"{num_rows:,} rows, p = {num_columns}, median of {effort.runs} samples and "
        "its 95% interval",
        ["sampler", *(own.label for own in every.values())],
    )
    parts = results.ResultTable(
        "Squared bias / variance of the fitted values in percent of the smallest "
        f"squared residual, {size} rows",
        ["sampler", *(own.label for own in every.values())],
    )
    for name in SAMPLERS:
        cells = [found[SHOWN_FACTOR][name][kind] for kind in every]
        table.add_row(name, *(_median_interval(cell.excess) for cell in cells))
        parts.add_row(
            name,
            *(
                f"{_percent(cell.squared_bias)} / {_percent(cell.variance)}"
                for cell in cells
            ),
        )
    return Section(
        numbers={
            "num_rows": num_rows,
            "num_columns": num_columns,
            "runs": effort.runs,
            "sizes": sizes,
            "coherence": {kind: own.coherence for kind, own in every.items()},
            "excess": {
                name: {
                    kind: dict(
                        zip(
                            ("median", "low", "high"),
                            median_interval(values).tolist(),
                            strict=True,
                        )
                    )
                    for kind, values in own.items()
                }
                for name, own in excess.items()
            },
        },
        tables={"data": described, "samplers": table, "samplers_bias": parts},
        figures={"samplers": draw(excess, every, sizes, num_columns)},
    )


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


def draw(
    excess: dict[str, dict[str, np.ndarray]],
    every: dict[str, data.Regression],
    sizes: list[int],
    num_columns: int,
) -> Any:
    """Log-log, a panel a kind of data."""
    figure, axes_row = panels(len(every), 11, 5.6)
    for axes, (kind, own) in zip(axes_row, every.items(), strict=True):
        is_first = axes is axes_row[0]
        for index, name in enumerate(excess):
            median, low, high = median_interval(excess[name][kind])
            style = {"color": COLORS[index]}
            axes.plot(
                sizes,
                median,
                marker=MARKERS[index],
                markersize=5,
                linewidth=1.4,
                label=name if is_first else None,
                **style,
            )
            axes.fill_between(sizes, low, high, alpha=0.15, linewidth=0, **style)
        gaussian = num_columns / (np.array(sizes) - num_columns - 1)
        axes.plot(
            sizes,
            gaussian,
            ":",
            color="0.3",
            label="Gaussian embedding, mean p / (r − p − 1)" if is_first else None,
        )
        axes.set_title(own.label, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        shown = sizes[::2]
        axes.set_xticks(shown, [f"{size // num_columns}p\n{size:,}" for size in shown])
        axes.set_xlabel("sampled rows r")
    axes_row[0].set_ylabel("excess of ‖Xθ − y‖², median, over the smallest")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _percent(share: float) -> str:
    value = 100 * share
    if share < ROUNDING:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _median_interval(excess: np.ndarray) -> str:
    median, low, high = median_interval(excess)
    if high - low <= 1e-9 * median:
        return _percent(median)
    return f"{_percent(median)} ({_percent(low)} to {_percent(high)})"
