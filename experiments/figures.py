"""The look of all figures."""

from typing import Any

from matplotlib.figure import Figure

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
# While a figure is made: quiet grid lines behind what is drawn.
LOOK = {
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


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """Panels side by side that need no display."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(
        ncols=columns, sharex=True, sharey=True, squeeze=False
    )[0]


def style(index: int) -> dict[str, Any]:
    """Colour and marker of a line."""
    return {"color": COLORS[index], "marker": MARKERS[index]}
