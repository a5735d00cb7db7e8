"""Style of all figures, and shared plotting functions."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

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
) -> tuple[Figure, Any]:
    """Returns a figure that needs no display, and its panels row by row.

    Panels share both axes unless `options` of `Figure.subplots` say otherwise.
    """
    figure = Figure(figsize=(width, height))
    options = {"sharex": True, "sharey": True, "squeeze": False} | options
    panels = figure.subplots(rows, columns, **options)
    return figure, panels.ravel()


def style(index: int) -> dict[str, Any]:
    """Returns colour and marker of a line; dashed if colours repeat."""
    turn, index = divmod(index, len(COLORS))
    look = {"color": COLORS[index], "marker": MARKERS[index]}
    return look | ({"linestyle": "--", "markerfacecolor": "white"} if turn else {})


def line(
    axes: Any, index: int, x: Any, y: Any, band: Any = None, of: int = 0, **look: Any
) -> None:
    """Draws a line with markers, and a band from its low to its high end.

    `of` is the number of lines, which makes overlapping lines visible: each is narrower
    than the lines below it, every second one is dashed, and markers alternate.
    """
    if of:
        look = {
            "linewidth": 1.2 + 1.4 * (of - 1 - index) / max(of - 1, 1),
            "linestyle": (0, (5, 2)) if index % 2 else "-",
            "markevery": (index, of + 2),
        } | look
    axes.plot(x, y, **style(index) | look)
    if band is not None:
        axes.fill_between(x, *band, color=COLORS[index], alpha=0.2, linewidth=0)


def log_interval(summary: Any) -> tuple[Any, Any]:
    """Returns the interval of a positive mean for a logarithmic axis.

    By the delta method, it is the relative interval of the mean in logarithms.
    """
    ratio = np.exp((np.asarray(summary.high) - summary.mean) / summary.mean)
    return summary.mean / ratio, summary.mean * ratio


def threshold(axes: Any, level: float, text: str, at: float, **look: Any) -> None:
    """Draws a horizontal line with a label."""
    axes.axhline(level, color="0.3", linewidth=1, linestyle=look.pop("linestyle"))
    look = {"textcoords": "offset points", "fontsize": 9, "color": "0.3"} | look
    axes.annotate(text, (at, level), **look)
