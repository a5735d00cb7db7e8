"""What a section of a comparison gets and gives, and how its numbers look."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import jaxwgc
from experiments import results

# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow.
COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#8C6D31",
)
MARKERS = "osD^vPX*"
# Of the squared norm of the target: errors below are rounding.
ROUNDING = 1e-12


class Effort(NamedTuple):
    """How much is computed: random patterns a mean, and full or small sizes."""

    runs: int
    is_full: bool


class Section(NamedTuple):
    """Numbers for JSON; tables and figures by the names of their files."""

    numbers: Any
    tables: dict[str, results.ResultTable]
    figures: dict[str, Figure]


def add(folder: results.Results, prefix: str, section: Section) -> None:
    """Its tables, which are printed too, and figures, in files `prefix_NAME`."""
    for name, table in section.tables.items():
        folder.add_table(f"{prefix}_{name}.md", table)
        table.print()
    for name, figure in section.figures.items():
        folder.add_figure(f"{prefix}_{name}.png", figure)


def percent(mean: float, half: float = 0.0) -> str:
    """A share in percent, with half of its interval where there is one.

    To the first digit of the interval, or the second where the first is a one.
    """
    mean, half = 100 * float(mean), 100 * float(half)
    if 100 * ROUNDING < mean < 1e-3:
        return "< 0.001"
    if not np.isfinite(half) or half < 100 * ROUNDING:
        return "0" if abs(mean) < 100 * ROUNDING else f"{mean:.3g}"
    digits = max(-int(np.floor(np.log10(half / 2))), 0)
    return f"{mean:z.{digits}f} ± {half:.{digits}f}"


def panels(columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """Axes side by side that need no display, drawn like all other figures."""
    figure = Figure(layout="constrained", figsize=(width, height))
    every = figure.subplots(ncols=columns, sharex=True, sharey=True)
    for axes in every:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, every


def half_width(summary: jaxwgc.Summary) -> np.ndarray:
    """Half of the 95% confidence interval."""
    return (np.asarray(summary.high) - np.asarray(summary.low)) / 2
