"""Seconds of steps on real processes, and seconds that a simulation predicts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.tables import with_half
from jaxwgc import codes, stragglers

NUM_WORKERS = 8
# Seconds at load 1: the minimum, and the mean of what is added to it.
SHIFT, MEAN = 0.1, 0.1
NUM_SIMULATED = 20_000


def study(steps: int) -> Study:
    """Returns the mean seconds of a step under three waiting rules."""
    uncoded = codes.uncoded(NUM_WORKERS)
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    third = stragglers.relative_deadline(1.5, quorum=NUM_WORKERS * 3 // 8)
    rules = {
        "uncoded, first 6": (uncoded, stragglers.fastest(NUM_WORKERS * 3 // 4)),
        "uncoded, half more than the third": (uncoded, third),
        "fractional repetition": (halves, stragglers.until_decodable(halves)),
    }
    cells = {
        name: {
            "measured": Once(measure, *rule, drawn_delay(rule[0]), steps),
            **{late: Once(simulate, *rule, late) for late in ("busy", "cancelled")},
        }
        for name, rule in rules.items()
    }
    return timed(
        cells,
        f"Mean of {steps} steps of eight processes, and simulations relative to it",
        {
            "code and waiting rule": "{name}",
            "ms": milliseconds,
            'late="busy"': lambda row: f"{row['busy'] / row['measured']['mean']:.2f}",
            'late="cancelled"': lambda row: (
                f"{row['cancelled'] / row['measured']['mean']:.2f}"
            ),
        },
    )


def milliseconds(row: Numbers) -> str:
    """Returns the measured milliseconds of a step with their interval."""
    return with_half(*(1e3 * row["measured"][name] for name in ("mean", "half")), 0)


def simulate(
    code: jaxwgc.GradientCode, wait: stragglers.WaitingRule, late: str
) -> float:
    """Returns the mean seconds of a simulated step."""
    delay = stragglers.shifted_exponential(shift=SHIFT, rate=1 / MEAN)
    model = stragglers.delayed(delay, wait, late=late)
    loads = jnp.asarray(code.loads, jnp.float32)

    def step(state, key):
        arrivals, state = model.sample(key, state, loads)
        return state, arrivals.elapsed

    keys = jax.random.split(jax.random.key(0), NUM_SIMULATED)
    _, elapsed = jax.lax.scan(step, model.init(code.num_workers), keys)
    return float(elapsed.mean())


def drawn_delay(code: jaxwgc.GradientCode) -> Callable[[int, int], float]:
    """Returns the seconds that a worker sleeps in a step for all of its parts."""
    loads = np.asarray(code.loads)

    def delay(worker: int, step: int) -> float:
        drawn = np.random.default_rng((worker, step)).exponential(MEAN)
        return float(loads[worker] * (SHIFT + drawn))

    return delay


def measure(
    code: jaxwgc.GradientCode,
    wait: stragglers.WaitingRule,
    delay: Callable[[int, int], float],
    steps: int,
) -> dict[str, float]:
    """Returns the mean seconds of a step, and half of its 95% interval."""
    with jaxwgc.distributed.RayCluster(
        lambda params, part: jnp.sum(params * part),
        code,
        np.ones((code.num_parts, 1), np.float32),
        wait=wait,
        faults=jaxwgc.distributed.Faults(delay=delay),
    ) as cluster:
        params = jnp.zeros(1)
        cluster.compute(params)
        elapsed = [cluster.compute(params).elapsed for _ in range(steps)]
    # From ten blocks: busy workers make neighbouring steps similar.
    blocks = [block.mean() for block in np.array_split(elapsed, min(10, steps))]
    deviation = np.std(blocks, ddof=1) if len(blocks) > 1 else 0.0
    half = 2.26 * deviation / np.sqrt(len(blocks))
    return {"mean": float(np.mean(elapsed)), "half": float(half)}
