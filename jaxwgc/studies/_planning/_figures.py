"""Draws a plan: times to the target, and step times against decoding errors."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxwgc.studies._planning._results import Plan

# Number of standard errors on each side of a time: an interval of 95%.
_NUM_ERRORS = 1.96
# Maximum length of a label.
_NUM_CHARACTERS = 40


def draw(plan: "Plan") -> Any:
    """Returns the figure of `Plan.plot`."""
    from matplotlib.figure import Figure

    plan = plan.followed
    rows = [choice for choice in plan.shown if math.isfinite(choice.time.value)]
    figure = Figure((9.0, 2.2 + 0.25 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_times(left, plan, rows)
    _draw_errors(right, plan)
    return figure


def _draw_times(axes: Any, plan: "Plan", rows: list[Any]) -> None:
    """Draws the time to the target of the best choice per code."""
    places = np.arange(len(rows))
    cases = {"as measured" if plan.has_stalls else "": "time"}
    if plan.has_stalls:
        cases["with stalls"] = "stalled_time"
    for number, (label, name) in enumerate(cases.items()):
        times = [getattr(choice, name) for choice in rows]
        errors = [_NUM_ERRORS * time.standard_error for time in times]
        axes.errorbar(
            [time.value for time in times],
            places + 0.2 * number,
            xerr=np.nan_to_num(errors),
            fmt="os"[number],
            color=f"C{number}",
            capsize=3,
            label=label,
        )
    labels = [_label(choice) for choice in rows]
    axes.set_yticks(places, labels=labels)
    axes.set(
        xlim=(0, None),
        xlabel="in the unit of the delay model",
        title=f"time to a loss of {plan.target:g} of the start",
    )
    axes.grid(axis="x", alpha=0.3)
    if rows:
        axes.invert_yaxis()
    if plan.has_stalls and rows:
        axes.legend()
    if not rows:
        axes.set(xlabel="no choice reaches it", xticks=[])


def _draw_errors(axes: Any, plan: "Plan") -> None:
    """Draws the step time of every choice against its decoding error."""
    for label, is_coded, marker in (("uncoded", False, "o"), ("coded", True, "^")):
        choices = [
            choice
            for choice in plan.choices
            if choice.is_coded == is_coded and math.isfinite(choice.step_time.value)
        ]
        axes.plot(
            [choice.step_time.value for choice in choices],
            [100 * choice.decoding_error.value for choice in choices],
            marker,
            fillstyle="none",
            label=label,
        )
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


def _label(choice: Any) -> str:
    copies = f" × {choice.replication:.2g}" if choice.is_coded else ""
    label = f"{choice.name}{copies}, {choice.waits_for}"
    if len(label) > _NUM_CHARACTERS:
        label = f"{label[: _NUM_CHARACTERS - 1]}…"
    return label
