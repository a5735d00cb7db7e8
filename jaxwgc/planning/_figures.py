"""Figure of a plan: times to the target, and decoding errors against step times."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jaxwgc.planning._choice import Choice, Estimate
from jaxwgc.planning._results import PlanData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Number of standard errors on each side of a time, for a 95% interval.
_NUM_ERRORS = 1.96
# Maximum number of characters of a label. Longer labels are cut.
_NUM_CHARACTERS = 40
# Width of the figure in inches. Letters of ten points are then legible on a phone.
_INCHES = 5.0
# Height in inches of a row of times, which has its label above the points.
_INCHES_PER_ROW = 0.45
# Distances below a label, in rows: of the measured times, of the times with stalls, and
# of the line below the row.
_MEASURED_BELOW = 0.14
_STALLED_BELOW = 0.34
_SEPARATOR_BELOW = 0.52
# Height in inches of the panel with decoding errors.
_INCHES_OF_ERRORS = 2.8


def draw(plan: PlanData) -> "Figure":
    """Draws the figure of `Plan.plot`, with a panel of times and a panel of errors."""
    from jaxwgc._common.notebook_figure import NotebookFigure

    plan = plan.followed
    rows = [choice for choice in plan.shown if math.isfinite(choice.time.value)]
    height_of_times = 0.9 + _INCHES_PER_ROW * len(rows)
    heights = (height_of_times, _INCHES_OF_ERRORS)
    figure = NotebookFigure((_INCHES, sum(heights)), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    _draw_times(upper, plan, rows)
    _draw_errors(lower, plan)
    return figure


def _draw_times(axes: "Axes", plan: PlanData, rows: list[Choice]) -> None:
    """Draws times to the target, with a row for the best choice of each code."""
    places = np.arange(len(rows))
    times = [choice.time for choice in rows]
    _draw_case(
        axes,
        places + _MEASURED_BELOW,
        times,
        label="as measured",
        marker="o",
        color="C0",
    )
    if plan.stalls is not None:
        _draw_case(
            axes,
            places + _STALLED_BELOW,
            [choice.stalled_time for choice in rows],
            label="with stalls",
            marker="s",
            color="C1",
        )
    labels = [_label(choice) for choice in rows]
    # Labels are above the points, because beside them they would take half of the
    # width.
    axes.set_yticks(places, labels=labels, ha="left", va="bottom")
    axes.tick_params(axis="y", length=0, pad=-4)
    axes.set(
        xlim=(0, None),
        xlabel="in the unit of the delay model",
        title=f"time to a loss of {plan.goal.target:g} of the start",
    )
    axes.grid(axis="x", alpha=0.3)
    axes.grid(visible=False, axis="y")
    for place in places[:-1]:
        axes.axhline(place + _SEPARATOR_BELOW, color="0.8", linewidth=0.8, zorder=0)
    if rows:
        # The first row is at the top, with room for its label.
        axes.set_ylim(len(rows) - 0.3, -0.6)
    if plan.stalls is not None and rows:
        axes.legend()
    if not rows:
        axes.set(xlabel="no choice reaches it", xticks=[])


def _draw_case(
    axes: "Axes",
    places: np.ndarray,
    times: list[Estimate],
    *,
    label: str,
    marker: str,
    color: str,
) -> None:
    """Draws times with 95% intervals, one row per choice."""
    errors = [_NUM_ERRORS * time.standard_error for time in times]
    axes.errorbar(
        [time.value for time in times],
        places,
        xerr=np.nan_to_num(errors),
        fmt=marker,
        color=color,
        capsize=3,
        label=label,
    )


def _draw_errors(axes: "Axes", plan: PlanData) -> None:
    """Draws the decoding error of every choice against its step time."""
    ending = [
        choice for choice in plan.choices if math.isfinite(choice.step_time.value)
    ]
    uncoded = [choice for choice in ending if not choice.is_coded]
    coded = [choice for choice in ending if choice.is_coded]
    _draw_choices(axes, uncoded, label="uncoded", marker="o")
    _draw_choices(axes, coded, label="coded", marker="^")
    best = plan.best
    if math.isfinite(best.step_time.value):
        error = 100 * best.decoding_error.value
        axes.plot(best.step_time.value, error, "k*", markersize=11, label="best")
    axes.set(
        xlim=(0, None),
        title="all choices",
        xlabel="time of a step",
        ylabel="decoding error, %",
    )
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_choices(
    axes: "Axes", choices: list[Choice], *, label: str, marker: str
) -> None:
    """Draws a marker for each choice, at its step time and decoding error."""
    axes.plot(
        [choice.step_time.value for choice in choices],
        [100 * choice.decoding_error.value for choice in choices],
        marker,
        fillstyle="none",
        label=label,
    )


def _label(choice: Choice) -> str:
    copies = f" × {choice.copies:.2g}" if choice.is_coded else ""
    label = f"{choice.name}{copies}, {choice.waits_for}"
    if len(label) > _NUM_CHARACTERS:
        label = f"{label[: _NUM_CHARACTERS - 1]}…"
    return label
