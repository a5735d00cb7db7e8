"""Figures of a comparison: lines with intervals, one panel per name."""

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxwgc.simulation._monte_carlo import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Markers tell lines apart in print, and for color-blind readers.
_MARKERS = "osD^vP*X<>"
# Maximum number of panels side by side.
_MOST_COLUMNS = 3
# Size of a panel, and width of the legend, in inches.
_WIDTH = 3.6
_HEIGHT = 3.2
_LEGEND_WIDTH = 1.5
# Maximum number of characters of a line of a title, and of lines, that fit a panel.
_TITLE_WIDTH = 38
_MOST_TITLE_LINES = 3


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
) -> "Figure":
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
    from jaxwgc._common.notebook_figure import NotebookFigure

    num_columns = min(len(names.panels), _MOST_COLUMNS)
    num_rows = -(-len(names.panels) // num_columns)
    size = (_WIDTH * num_columns + _LEGEND_WIDTH, _HEIGHT * num_rows)
    figure = NotebookFigure(size, layout="constrained")
    numbers = numbers_of(names.points)
    positions = np.arange(len(names.points)) if numbers is None else numbers
    in_order = np.argsort(positions, kind="stable")
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for panel, axes in enumerate(grid.flat):
        if panel >= len(names.panels):
            axes.set_axis_off()
            continue
        for line, name in enumerate(names.lines):
            y = _part(vertical, panel, line, in_order)
            if is_log:
                # On a logarithmic axis, a line to a mean of 0 would drop vertically.
                y = y._replace(mean=np.where(y.mean > 0, y.mean, np.nan))
            x = positions[in_order]
            if horizontal is not None:
                x = _part(horizontal, panel, line, in_order)
            marker = _MARKERS[line % len(_MARKERS)]
            _draw_line(axes, x, y, label=name, marker=marker)
        axes.set_title(_wrapped(names.panels[panel]), fontsize="medium")
        axes.set_xlabel(labels[0])
        if is_log:
            # Bars to 0 are drawn to the lower end of the axis.
            axes.set_yscale("log", nonpositive="clip")
        if horizontal is None and numbers is None:
            axes.set_xticks(range(len(names.points)), labels=names.points, rotation=30)
    for axes in grid[:, 0]:
        axes.set_ylabel(labels[1])
    handles, texts = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right upper")
    return figure


def _draw_line(
    axes: "Axes", x: Summary | np.ndarray, y: Summary, *, label: str, marker: str
) -> None:
    """Draws one line with intervals; x is a `Summary`, too, or numbers."""
    if isinstance(x, Summary):
        x_values = x.mean
        x_error = _distances(x)
    else:
        x_values = x
        x_error = None
    axes.errorbar(
        x_values,
        y.mean,
        yerr=_distances(y),
        xerr=x_error,
        markersize=4,
        capsize=2,
        label=label,
        marker=marker,
    )


def _part(summary: Summary, panel: int, line: int, in_order: np.ndarray) -> Summary:
    """Returns the points of one line, in an order."""
    place = (panel, line, in_order)
    return Summary(
        mean=summary.mean[place],
        low=summary.low[place],
        high=summary.high[place],
        standard_error=summary.standard_error[place],
    )


def _distances(summary: Summary) -> np.ndarray:
    """Returns the lengths of bars below and above the means, (2, points).

    Means of equal trials have no bar.
    """
    below = summary.mean - summary.low
    above = summary.high - summary.mean
    is_drawn = summary.standard_error > 0
    lengths = np.where(is_drawn, np.fmax([below, above], 0), 0)
    return np.nan_to_num(lengths, posinf=0)


def _wrapped(title: str) -> str:
    """Breaks a title into lines that fit a panel, and shortens it if necessary."""
    lines = textwrap.wrap(
        title, _TITLE_WIDTH, max_lines=_MOST_TITLE_LINES, placeholder=" ..."
    )
    return "\n".join(lines)


def numbers_of(names: tuple[str, ...]) -> np.ndarray | None:
    """Returns names as ints or floats, or None if they are no finite numbers.

    The result is also None if two names are one number, as "1" and "1.0".
    """
    # float("1_2") is 12.
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
