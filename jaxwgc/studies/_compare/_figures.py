"""Figures of a comparison: lines with intervals, one panel per name."""

from typing import Any, NamedTuple

import numpy as np

from jaxwgc.studies._monte_carlo import Summary

# Lines are also told apart by their markers, in print and for color-blind readers.
_MARKERS = "osD^vP*X<>"
# Largest number of panels side by side.
_MOST_COLUMNS = 3
# Size of a panel, and width of the legend, in inches.
_WIDTH = 3.6
_HEIGHT = 3.2
_LEGEND_WIDTH = 1.5


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
    size = (_WIDTH * num_columns + _LEGEND_WIDTH, _HEIGHT * num_rows)
    figure = Figure(size, layout="constrained")
    positions = _positions(names.points)
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for panel, axes in enumerate(grid.flat):
        if panel >= len(names.panels):
            axes.set_axis_off()
            continue
        for line, name in enumerate(names.lines):
            y = _part(vertical, panel, line)
            x = positions if horizontal is None else _part(horizontal, panel, line)
            marker = _MARKERS[line % len(_MARKERS)]
            _draw_line(axes, x, y, label=name, marker=marker)
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


def _draw_line(axes: Any, x: Any, y: Summary, **look: str) -> None:
    """Draws one line with intervals; x is a `Summary`, too, or numbers."""
    x_error = None
    if isinstance(x, Summary):
        x_error = _distances(x)
        x = x.mean
    axes.errorbar(
        x, y.mean, yerr=_distances(y), xerr=x_error, markersize=4, capsize=2, **look
    )


def _part(summary: Summary, panel: int, line: int) -> Summary:
    """Returns the points of one line."""
    return Summary(*(values[panel, line] for values in summary))


def _distances(summary: Summary) -> np.ndarray:
    """Returns the distances of the ends of intervals from their means, (2, points)."""
    below = summary.mean - summary.low
    above = summary.high - summary.mean
    return np.nan_to_num(np.maximum([below, above], 0), posinf=0)


def _positions(names: tuple[str, ...]) -> np.ndarray:
    """Returns names that are numbers, otherwise the order of the names."""
    numbers = _numbers(names)
    return np.arange(len(names)) if numbers is None else numbers


def _numbers(names: tuple[str, ...]) -> np.ndarray | None:
    """Returns names as numbers, or None if one of them is not a number."""
    try:
        return np.array([float(name) for name in names])
    except ValueError:
        return None
