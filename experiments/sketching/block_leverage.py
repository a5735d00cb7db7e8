"""Iterative block leverage: a new sample of parts at every step, or one for all."""

import functools

import jax
import numpy as np

import jaxwgc
from experiments import results
from experiments.sections import COLORS, MARKERS, Effort, Section
from experiments.sketching.block_descent import CODE, DELAYS, NUM_PARTS, one_run

NUM_STEPS, FEW_STEPS = 2_000, 200
BATCH_SIZE = 10


def section(effort: Effort, key: jax.Array) -> Section:
    """Table and figure."""
    steps = shown_steps(NUM_STEPS if effort.is_full else FEW_STEPS)
    with jax.enable_x64(True):
        trials = jaxwgc.monte_carlo(
            functools.partial(one_run, num_steps=int(steps[-1])),
            key,
            effort.runs,
            batch_size=BATCH_SIZE,
        )
    found = {
        name: best(own, steps) if "iterative" in name else (None, own[:, steps])
        for name, own in trials["errors"].items()
    }
    summaries = {name: jaxwgc.summarize(own) for name, (_, own) in found.items()}
    limits = jaxwgc.summarize(trials["limits"])
    at = [steps.tolist().index(step) for step in table_steps(int(steps[-1]))]
    table = results.ResultTable(
        f"‖X(θ − θ*)‖² / ‖Xθ*‖² in percent, mean of {effort.runs} runs",
        ["parts", "delay", *(f"step {steps[i]:,}" for i in at), "limit"],
    )
    for name, summary in summaries.items():
        delay, _ = found[name]
        table.add_row(
            name,
            "" if delay is None else str(delay),
            *(show(jax.tree.map(lambda leaf, i=i: leaf[i], summary)) for i in at),
            show(limits[name]) if name in limits else "0",
        )
    return Section(
        numbers={
            "workers, slots, load": (
                CODE.num_workers,
                CODE.num_parts,
                int(CODE.loads[0]),
            ),
            "num_parts": NUM_PARTS,
            "steps": steps,
            "delays": {name: delay for name, (delay, _) in found.items()},
            "errors": results.summary_numbers(summaries),
            "limits": results.summary_numbers(limits),
        },
        tables={"block_leverage": table},
        figures={"block_leverage": draw(steps, summaries)},
    )


def shown_steps(num_steps: int) -> np.ndarray:
    """Evenly spaced in their logarithm, from 1, and 0."""
    return np.unique(np.append(0, np.geomspace(1, num_steps, 25).round())).astype(int)


def table_steps(num_steps: int) -> list[int]:
    """A few of them, to the last."""
    steps = shown_steps(num_steps)
    return [int(steps[np.searchsorted(steps, num_steps / f)]) for f in (100, 10, 1)]


def best(errors: np.ndarray, steps: np.ndarray) -> tuple[int, np.ndarray]:
    """The delay of the smallest mean error at the end, and the errors with that."""
    final = errors[:, :, -1].mean(axis=0)
    index = int(np.argmin(np.where(np.isfinite(final), final, np.inf)))
    return DELAYS[index], errors[:, index][:, steps]


def show(summary: jaxwgc.Summary) -> str:
    """In percent, to three digits of the mean."""
    half = (summary.high - summary.low) / 2
    digits = max(2 - int(np.floor(np.log10(100 * summary.mean))), 0)
    return f"{100 * summary.mean:.{digits}f} ± {100 * half:.{digits}f}"


def draw(steps: np.ndarray, summaries: dict[str, jaxwgc.Summary]):
    """Log-log; the start is left out."""
    figure, axes = results.new_figure(figsize=(7.5, 4.6))
    for index, (name, summary) in enumerate(summaries.items()):
        axes.plot(
            steps[1:],
            summary.mean[1:],
            color=COLORS[index],
            marker=MARKERS[index],
            markersize=4,
            label=name,
        )
        axes.fill_between(
            steps[1:],
            summary.low[1:],
            summary.high[1:],
            color=COLORS[index],
            alpha=0.2,
            linewidth=0,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("error ‖X(θ − θ*)‖² / ‖Xθ*‖²")
    axes.legend(frameon=False, fontsize=9)
    return figure
