"""Two of four machines half as fast: loads by speed, in `plan` and on processes."""

import functools

import jax
import numpy as np

import jaxwgc
from experiments.ray import busy
from experiments.runner.study import Once, Study, timed
from jaxwgc import codes, stragglers

# Parts per second.
SPEEDS = np.array([10.0, 10.0, 5.0, 5.0])
NUM_PARTS = 12


def entries() -> dict[str, jaxwgc.GradientCode]:
    """Returns codes with one copy and with two, with equal loads and loads by speed."""
    key = jax.random.key(0)
    placed = {}
    for name, speeds in {"alike": np.ones(len(SPEEDS)), "by speed": SPEEDS}.items():
        for copies in (1, 2):
            held = codes.proportional_placement(speeds, NUM_PARTS, copies)
            code = codes.any_placement(key, held, num_stragglers=copies - 1)
            placed[f"{copies} cop{'ies' if copies > 1 else 'y'}, {name}"] = code
    return placed


def study(steps: int) -> Study:
    """Returns the mean seconds of a step, planned and measured, and their bound."""
    cells = {
        name: {
            "bound": float(np.sum(code.parts_per_worker) / SPEEDS.sum()),
            "planned": Once(planned, code),
            "measured": Once(measure, code, steps),
        }
        for name, code in entries().items()
    }
    return timed(
        cells,
        f"{NUM_PARTS} parts on four processes, two of them half as fast, mean of "
        f"{steps} steps. The bound is the time if all workers finish together",
        {
            "placement": "{name}",
            "bound, ms": "{bound:1e3 .0f}",
            "measured, ms": busy.milliseconds,
            "plan / bound": lambda row: f"{row['planned'] / row['bound']:.3f}",
            "measured / bound": lambda row: (
                f"{row['measured']['mean'] / row['bound']:.3f}"
            ),
        },
    )


def awaited(code: jaxwgc.GradientCode) -> stragglers.WaitingRule:
    """Returns the waiting rule for any set of workers that can be decoded."""
    return stragglers.fastest(code.num_workers - code.num_stragglers)


def planned(code: jaxwgc.GradientCode) -> float:
    """Returns the seconds of a step in `plan`."""
    work = stragglers.bernoulli_slowdown(0.0, slowdown=1.0)
    plan = jaxwgc.plan(
        # NUM_PARTS / n parts are a load of 1.
        stragglers.unequal_speeds(work, SPEEDS / (NUM_PARTS / len(SPEEDS))),
        len(SPEEDS),
        jax.random.key(0),
        codes={"placement": code},
        waiting=[awaited],
        exact=True,
    )
    [choice] = [choice for choice in plan.choices if choice.name == "placement"]
    return choice.step_time.value


def measure(code: jaxwgc.GradientCode, steps: int) -> dict[str, float]:
    """Returns the mean seconds of a step of workers that sleep, and its interval."""
    seconds = np.asarray(code.parts_per_worker) / SPEEDS
    delay = functools.partial(_delay, seconds.tolist())
    return busy.measure(code, awaited(code), delay, steps)


def _delay(seconds, worker, step):
    del step
    return seconds[worker]
