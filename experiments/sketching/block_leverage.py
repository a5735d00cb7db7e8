"""Iterative block leverage: a new sample of parts at every step, or one for all."""

import functools
import itertools
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxwgc
from experiments.figures import new_figure, style
from experiments.sketching.block_descent import CODE, DELAYS, NUM_PARTS, one_run
from experiments.studies import Effort, Study
from experiments.tables import ResultTable, half_width, with_half

NUM_STEPS, FEW_STEPS = 2_000, 200


def study(effort: Effort, key: jax.Array) -> Study:
    """One cell, in which all methods run on the same data."""
    steps = shown_steps(NUM_STEPS if effort.is_full else FEW_STEPS)
    return Study(
        {
            "workers, slots, load": (
                CODE.num_workers,
                CODE.num_parts,
                int(CODE.loads[0]),
            ),
            "num_parts": NUM_PARTS,
            "runs": effort.runs,
            "steps": steps,
            "": functools.partial(one_run, num_steps=int(steps[-1])),
        },
        key=key,
        runs=effort.runs,
        batch_size=10,
        x64=True,
        reduce=functools.partial(reduce, steps),
        tables={"block_leverage": tabulate},
        figures={"block_leverage": draw},
    )


def shown_steps(num_steps: int) -> np.ndarray:
    """Evenly spaced in their logarithm, from 1, and 0."""
    return np.unique(np.append(0, np.geomspace(1, num_steps, 25).round())).astype(int)


def table_steps(num_steps: int) -> list[int]:
    """A few of them, to the last."""
    steps = shown_steps(num_steps)
    return [int(steps[np.searchsorted(steps, num_steps / f)]) for f in (100, 10, 1)]


def reduce(steps: np.ndarray, trials: dict[str, Any]) -> dict[str, Any]:
    """Means, with the delay of the smallest mean error at the end where there are."""
    delays, errors = {}, {}
    for name, own in trials["errors"].items():
        delays[name] = None
        if "iterative" in name:
            final = own[:, :, -1].mean(axis=0)
            index = int(np.argmin(np.where(np.isfinite(final), final, np.inf)))
            delays[name], own = DELAYS[index], own[:, index]
        errors[name] = jaxwgc.summarize(own[:, steps])
    limits = jaxwgc.summarize(trials["limits"])
    return {"delays": delays, "errors": errors, "limits": limits}


def tabulate(numbers: Any) -> ResultTable:
    """Errors at a few steps, and where they end."""
    steps, limits = numbers["steps"].tolist(), numbers["limits"]
    shown = table_steps(steps[-1])

    def row(name, own):
        cells = [
            show(own.mean[at], half_width(own)[at]) for at in map(steps.index, shown)
        ]
        limit = limits.get(name)
        end = "0" if limit is None else show(limit.mean, half_width(limit))
        return name, str(numbers["delays"][name] or ""), *cells, end

    return ResultTable(
        f"‖X(θ − θ*)‖² / ‖Xθ*‖² in percent, mean of {numbers['runs']} runs",
        ["parts", "delay", *(f"step {step:,}" for step in shown), "limit"],
        itertools.starmap(row, numbers["errors"].items()),
    )


def show(mean: float, half: float) -> str:
    """In percent, to three digits of the mean."""
    digits = max(2 - int(np.floor(np.log10(100 * mean))), 0)
    return with_half(100 * mean, 100 * half, digits)


def draw(numbers: Any) -> Figure:
    """Log-log; the start is left out."""
    figure, (axes,) = new_figure(7.5, 4.6)
    steps = numbers["steps"][1:]
    for index, (name, own) in enumerate(numbers["errors"].items()):
        look = style(index)
        band = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
        axes.plot(steps, own.mean[1:], markersize=4, label=name, **look)
        axes.fill_between(steps, own.low[1:], own.high[1:], **band)
    axes.set(xscale="log", yscale="log", xlabel="step")
    axes.set_ylabel("error ‖X(θ − θ*)‖² / ‖Xθ*‖²")
    axes.legend()
    return figure
