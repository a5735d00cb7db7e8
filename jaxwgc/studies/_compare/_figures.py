"""Figures of a comparison: lines with intervals, one panel per name."""

from typing import Any, NamedTuple

import numpy as np

from jaxwgc.studies._monte_carlo import Summary

# Lines are also told apart by their markers, in print and for color-blind readers.
_MARKERS = "osD^vP*X<>"
# Largest number of panels side by side, and the size of a panel in inches.
_MOST_COLUMNS = 3
_WIDTH, _HEIGHT = 3.6, 3.2


class Names(NamedTuple):
    """Names of panels, lines and points."""

    panels: tuple[str, ...]
    lines: tuple[str, ...]
    points: tuple[str, ...]


def draw(
    horizontal: Summary | None,
    vertical: Summary,
    names: Names,
    labels: tuple[str, str],
    is_log: bool,
) -> Any:
    """Returns a `matplotlib.figure.Figure`.

    Args:
      horizontal: Quantity on the x-axis, arrays (panels, lines, points). None for the
        names of the points.
      vertical: Quantity on the y-axis, arrays (panels, lines, points).
      names: Names of the three axes.
      labels: Labels of the x-axis and the y-axis.
      is_log: Whether the y-axis is logarithmic.

    Raises:
      ImportError: If matplotlib (extra `plot`) is not installed.
    """
    from matplotlib.figure import Figure

    num_columns = min(len(names.panels), _MOST_COLUMNS)
    num_rows = -(-len(names.panels) // num_columns)
    size = (_WIDTH * num_columns + 1.5, _HEIGHT * num_rows)
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for panel, axes in enumerate(grid.flat):
        if panel >= len(names.panels):
            axes.set_axis_off()
            continue
        for line, name in enumerate(names.lines):
            _draw_line(axes, horizontal, vertical, names.points, panel, line, name)
        axes.set(title=names.panels[panel], xlabel=labels[0])
        if is_log:
            axes.set_yscale("log")
        if horizontal is None and _numbers(names.points) is None:
            axes.set_xticks(range(len(names.points)), labels=names.points, rotation=30)
    for axes in grid[:, 0]:
        axes.set_ylabel(labels[1])
    handles, texts = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right upper")
    return figure


def _draw_line(axes, horizontal, vertical, points, panel, line, name):
    """Draws one line with intervals."""
    y = vertical.mean[panel, line]
    x_error = None
    if horizontal is not None:
        x = horizontal.mean[panel, line]
        x_error = _distances(horizontal, panel, line)
    else:
        x = _numbers(points)
        x = np.arange(len(points)) if x is None else x
    axes.errorbar(
        x,
        y,
        yerr=_distances(vertical, panel, line),
        xerr=x_error,
        marker=_MARKERS[line % len(_MARKERS)],
        markersize=4,
        capsize=2,
        label=name,
    )


def _distances(summary: Summary, panel: int, line: int) -> np.ndarray:
    """Returns the distances of the ends of intervals from their means, (2, points)."""
    mean = summary.mean[panel, line]
    below = mean - summary.low[panel, line]
    above = summary.high[panel, line] - mean
    return np.nan_to_num(np.maximum([below, above], 0), posinf=0)


def _numbers(names: tuple[str, ...]) -> np.ndarray | None:
    """Returns names as numbers, or None if one of them is not a number."""
    try:
        return np.array([float(name) for name in names])
    except ValueError:
        return None
