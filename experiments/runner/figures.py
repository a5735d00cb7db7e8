"""Style of all figures, and shared plotting functions."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

import jaxwgc

# Okabe and Ito's colours for colour-blind readers, without yellow.
COLORS = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #000000 #8C6D31".split()
MARKERS = "osD^vPX*"
# Matplotlib settings while a figure is made.
LOOK: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "grid.color": "0.9",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.markersize": 5,
}


def new_figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Returns a figure that needs no display, and its panels row by row.

    Panels share both axes unless `options` of `Figure.subplots` say otherwise.
    """
    figure = Figure(figsize=(width, height))
    options.setdefault("sharex", True)
    options.setdefault("sharey", True)
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, panels.ravel()


def style(index: int) -> dict[str, str]:
    """Returns colour and marker of a line; dashed if colours repeat."""
    repetition, position = divmod(index, len(COLORS))
    look = {"color": COLORS[position], "marker": MARKERS[position]}
    if repetition:
        look["linestyle"] = "--"
        look["markerfacecolor"] = "white"
    return look


def line(
    axes: Axes,
    index: int,
    x: ArrayLike,
    y: ArrayLike,
    band: tuple[ArrayLike, ArrayLike] | None = None,
    num_lines: int = 0,
    **look: Any,
) -> None:
    """Draws a line with markers, and a band from its low to its high end.

    `num_lines` makes overlapping lines visible: a line is narrower than the lines below
    it, every second line is dashed, and markers alternate.
    """
    options: dict[str, Any] = {**style(index)}
    if num_lines:
        num_above = num_lines - 1 - index
        options["linewidth"] = 1.2 + 1.4 * num_above / max(num_lines - 1, 1)
        options["linestyle"] = (0, (5, 2)) if index % 2 else "-"
        options["markevery"] = (index, num_lines + 2)
    options.update(look)
    axes.plot(x, y, **options)
    if band is not None:
        low, high = band
        axes.fill_between(x, low, high, color=COLORS[index], alpha=0.2, linewidth=0)


def log_interval(summary: jaxwgc.Summary) -> tuple[np.ndarray, np.ndarray]:
    """Returns the interval of a positive mean for a logarithmic axis.

    By the delta method, it is the relative interval of the mean in logarithms.
    """
    mean = np.asarray(summary.mean)
    ratio = np.exp((np.asarray(summary.high) - mean) / mean)
    return mean / ratio, mean * ratio


def threshold(
    axes: Axes, level: float, text: str, at: float, linestyle: str, **look: Any
) -> None:
    """Draws a horizontal line with a label at `at`; `look` is that of the label."""
    axes.axhline(level, color="0.3", linewidth=1, linestyle=linestyle)
    look.setdefault("fontsize", 9)
    look.setdefault("color", "0.3")
    axes.annotate(text, (at, level), textcoords="offset points", **look)
