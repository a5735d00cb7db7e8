"""Figure of a report: a heat map of rounds and workers beside bars of workers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maximum number of workers with names beside the heat map.
_NUM_NAMES = 40


class Heat(NamedTuple):
    """Heat map of values (rounds, workers), and labels of its color bar."""

    values: np.ndarray
    limits: tuple[float, float]
    label: Callable[[float], str]
    colors: str
    title: str


class Bars(NamedTuple):
    """Bars of values (workers,) with errors."""

    values: np.ndarray
    errors: np.ndarray
    title: str


def draw(
    heat: Heat, bars: Bars, names: np.ndarray, steps: np.ndarray, noun: str
) -> "Figure":
    """Returns a `matplotlib.figure.Figure` of a report.

    Args:
      heat: Values of the rounds, or of a sample of them.
      bars: A value of each worker.
      names: Name of each worker.
      steps: Number of each round, int (rounds,).
      noun: What they count, "round" or "step".

    Raises:
      ImportError: If matplotlib (extra `plot`) is not installed.
    """
    from jaxwgc._common.notebook_figure import NotebookFigure

    rows = np.arange(len(names))
    figure = NotebookFigure(
        (9.0, min(1.2 + 0.2 * len(rows), 8.0)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    image = left.imshow(
        heat.values.T,
        cmap=heat.colors,
        vmin=heat.limits[0],
        vmax=heat.limits[1],
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, len(steps) - 0.5, len(rows) - 0.5, -0.5),
    )
    color_bar = figure.colorbar(image, ax=left)
    ticks = np.linspace(*heat.limits, 5).tolist()
    color_bar.set_ticks(ticks, labels=[heat.label(tick) for tick in ticks])
    left.set(xlabel=noun, ylabel="worker", title=heat.title)

    def step_at(place: float, _: int | None) -> str:
        index = round(place)
        return str(steps[index]) if 0 <= index < len(steps) else ""

    left.xaxis.set_major_formatter(step_at)
    if len(rows) <= _NUM_NAMES:
        left.set_yticks(rows, labels=names)
    right.barh(rows, bars.values, xerr=bars.errors, color="0.4")
    right.set(title=bars.title, xlim=(0, None))
    return figure
