"""Two of four machines half as fast: loads by speed, in `plan` and on processes."""

import functools
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.ray import busy
from experiments.runner.study import Numbers, Once, Study
from experiments.runner.tables import ResultTable, with_half
from jaxwgc import codes, stragglers

# Parts a second.
SPEEDS = np.array([10.0, 10.0, 5.0, 5.0])
NUM_PARTS = 12


def entries() -> dict[str, jaxwgc.GradientCode]:
    """With one copy and with two, the same load for all or by speed."""
    key = jax.random.key(0)
    placed = {}
    for name, speeds in {"alike": np.ones(len(SPEEDS)), "by speed": SPEEDS}.items():
        for copies in (1, 2):
            held = codes.proportional_placement(speeds, NUM_PARTS, copies)
            code = codes.any_placement(key, held, num_stragglers=copies - 1)
            placed[f"{copies} cop{'ies' if copies > 1 else 'y'}, {name}"] = code
    return placed


def study(steps: int) -> Study:
    """Mean seconds of a step, planned and measured, over the least that loads allow."""
    cells = {
        name: {
            "bound": float(np.sum(code.parts_per_worker) / SPEEDS.sum()),
            "planned": Once(planned, code),
            "measured": Once(measure, code, steps),
        }
        for name, code in entries().items()
    }

    def tabulate(numbers: Numbers) -> ResultTable:
        rows = []
        for name, row in numbers.items():
            mean, half = row["measured"]["mean"], row["measured"]["half"]
            shares = [f"{time / row['bound']:.3f}" for time in (row["planned"], mean)]
            milliseconds = (
                f"{1e3 * row['bound']:.0f}",
                with_half(1e3 * mean, 1e3 * half, 0),
            )
            rows.append([name, *milliseconds, *shares])
        title = (
            f"{NUM_PARTS} parts on four processes, two of them half as fast, mean of "
            f"{steps} steps: the bound is the time if all took the same"
        )
        heads = ["placement", "bound, ms", "measured, ms", "plan / bound"]
        return ResultTable(title, [*heads, "measured / bound"], rows)

    return Study(cells, tables={"": tabulate})


def awaited(code: jaxwgc.GradientCode) -> stragglers.WaitingRule:
    """As many as decode, whoever they are."""
    return stragglers.fastest(code.num_workers - code.num_stragglers)


def planned(code: jaxwgc.GradientCode) -> float:
    """Seconds of a step in `plan`."""
    work = stragglers.bernoulli_slowdown(0.0, slowdown=1.0)
    plan = jaxwgc.plan(
        # So many parts are a load of 1.
        stragglers.unequal_speeds(work, SPEEDS / (NUM_PARTS / len(SPEEDS))),
        len(SPEEDS),
        jax.random.key(0),
        codes={"placement": code},
        waiting=[awaited],
        exact=True,
    )
    [choice] = [choice for choice in plan.choices if choice.name == "placement"]
    return choice.step_time.value


def measure(code: jaxwgc.GradientCode, steps: int) -> dict[str, Any]:
    """Mean seconds of a step, and half of its 95% interval; workers sleep."""
    seconds = np.asarray(code.parts_per_worker) / SPEEDS
    delay = functools.partial(_delay, seconds.tolist())
    return busy.measure(code, awaited(code), delay, steps)


def _delay(seconds, worker, step):
    del step
    return seconds[worker]
