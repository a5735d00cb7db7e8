"""Figures of a comparison: lines with intervals, one panel per delay model."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from jaxwgc.simulation._monte_carlo import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Markers tell lines apart in print, and for color-blind readers.
_MARKERS = "osD^vP*X<>"
# Maximum number of panels side by side.
_MOST_COLUMNS = 3
# Size of a panel, and width of the legend, in inches.
_WIDTH = 3.6
_HEIGHT = 3.2
_LEGEND_WIDTH = 1.5
# Maximum number of characters per line of a panel's title, and maximum number of lines.
_TITLE_WIDTH = 38
_MOST_TITLE_LINES = 3


def draw(
    summary: Summary,
    *,
    label: str,
    panels: tuple[str, ...],
    lines: tuple[str, ...],
    points: tuple[str, ...],
    is_log: bool,
) -> "Figure":
    """Plots the means of a quantity, with intervals, against the waiting rules.

    Args:
      summary: Quantity on the y-axis, arrays (lines, panels, points).
      label: Label of the y-axis.
      panels: Titles of the panels.
      lines: Names in the legend.
      points: Names on the x-axis, which is numeric if they are different numbers.
      is_log: Whether the y-axis is logarithmic.

    Raises:
      ImportError: If matplotlib (extra `plot`) is not installed.
    """
    from jaxwgc._common.notebook_figure import NotebookFigure

    num_columns = min(len(panels), _MOST_COLUMNS)
    num_rows = -(-len(panels) // num_columns)
    size = (_WIDTH * num_columns + _LEGEND_WIDTH, _HEIGHT * num_rows)
    figure = NotebookFigure(size, layout="constrained")
    numbers = numbers_of(points)
    positions = np.arange(len(points)) if numbers is None else numbers
    in_order = np.argsort(positions, kind="stable")
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for panel, axes in enumerate(grid.flat):
        if panel >= len(panels):
            axes.set_axis_off()
            continue
        for line, name in enumerate(lines):
            place = (line, panel, in_order)
            mean = summary.mean[place]
            # Means of equal trials have no bar. Otherwise exact codes would have the
            # longest bars, since the upper limits of their errors are not 0.
            is_drawn = summary.standard_error[place] > 0
            distances = [mean - summary.low[place], summary.high[place] - mean]
            bars = np.where(is_drawn, np.fmax(distances, 0), 0)
            if is_log:
                # Means of 0 are gaps: on a logarithmic axis, a line to 0 would drop
                # vertically.
                mean = np.where(mean > 0, mean, np.nan)
            axes.errorbar(
                positions[in_order],
                mean,
                yerr=np.nan_to_num(bars, posinf=0),
                markersize=4,
                capsize=2,
                label=name,
                marker=_MARKERS[line % len(_MARKERS)],
            )
        axes.set_title(_wrapped(panels[panel]), fontsize="medium")
        axes.set_xlabel("waiting")
        if is_log:
            # Bars to 0 are drawn to the lower end of the axis.
            axes.set_yscale("log", nonpositive="clip")
        if numbers is None:
            axes.set_xticks(range(len(points)), labels=points, rotation=30)
    for axes in grid[:, 0]:
        axes.set_ylabel(label)
    handles, texts = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right upper")
    return figure


def _wrapped(title: str) -> str:
    """Breaks a title into lines that fit a panel, and shortens it if necessary."""
    lines = textwrap.wrap(
        title, _TITLE_WIDTH, max_lines=_MOST_TITLE_LINES, placeholder=" ..."
    )
    return "\n".join(lines)


def numbers_of(names: tuple[str, ...]) -> np.ndarray | None:
    """Converts names to finite, different numbers, or returns None if they are not.

    The result is also None if two names are one number, as "1" and "1.0".
    """
    # Python reads float("1_2") as 12, but such a name is not meant as a number.
    if any("_" in name for name in names):
        return None
    try:
        numbers = np.array([float(name) for name in names])
    except ValueError:
        return None
    if not np.isfinite(numbers).all() or len(np.unique(numbers)) < len(names):
        return None
    is_whole = np.all(numbers == numbers.round())
    return numbers.astype(int) if is_whole else numbers
