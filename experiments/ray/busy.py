"""How long steps take on real processes, and how long a simulation says they take."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Numbers, Once, Study
from experiments.runner.tables import ResultTable, with_half
from jaxwgc import codes, stragglers

NUM_WORKERS = 8
# Seconds at load 1: at least, and beyond on average.
SHIFT, MEAN = 0.1, 0.1
NUM_SIMULATED = 20_000


def rules() -> dict[str, tuple[jaxwgc.GradientCode, stragglers.WaitingRule]]:
    """Codes of one message a worker, and whom they wait for."""
    uncoded = codes.uncoded(NUM_WORKERS)
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    return {
        "uncoded, first 6": (uncoded, stragglers.fastest(NUM_WORKERS * 3 // 4)),
        "uncoded, half more than the third": (
            uncoded,
            stragglers.relative_deadline(1.5, quorum=NUM_WORKERS * 3 // 8),
        ),
        "fractional repetition": (halves, stragglers.until_decodable(halves)),
    }


def study(steps: int) -> Study:
    """Mean seconds of a step under three rules."""
    cells = {
        name: {
            "measured": Once(measure, code, wait, drawn_delay(code), steps),
            **{
                late: Once(simulate, code, wait, late) for late in ("busy", "cancelled")
            },
        }
        for name, (code, wait) in rules().items()
    }

    def tabulate(numbers: Numbers) -> ResultTable:
        rows = []
        for name, row in numbers.items():
            mean, half = row["measured"]["mean"], row["measured"]["half"]
            shares = [f"{row[late] / mean:.2f}" for late in ("busy", "cancelled")]
            rows.append([name, with_half(1e3 * mean, 1e3 * half, 0), *shares])
        title = f"Mean of {steps} steps of eight processes, and simulations over it"
        heads = ["code and whom it waits for", "ms", 'late="busy"', 'late="cancelled"']
        return ResultTable(title, heads, rows)

    return Study(cells, tables={"": tabulate})


def simulate(
    code: jaxwgc.GradientCode, wait: stragglers.WaitingRule, late: str
) -> float:
    """Mean seconds of a step."""
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
    """Seconds that a worker sleeps in a step, for all of its parts."""
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
) -> dict[str, Any]:
    """Mean seconds of a step, and half of its 95% interval, from ten blocks."""
    parts = np.ones((code.num_parts, 1), np.float32)
    with jaxwgc.distributed.RayCluster(
        lambda params, part: jnp.sum(params * part),
        code,
        parts,
        wait=wait,
        faults=jaxwgc.distributed.Faults(delay=delay),
    ) as cluster:
        params = jnp.zeros(1)
        cluster.compute(params)
        elapsed = [cluster.compute(params).elapsed for _ in range(steps)]
    # Busy workers make neighbours alike.
    blocks = [block.mean() for block in np.array_split(elapsed, min(10, steps))]
    deviation = np.std(blocks, ddof=1) if len(blocks) > 1 else 0.0
    half = 2.26 * deviation / np.sqrt(len(blocks))
    return {"mean": float(np.mean(elapsed)), "half": float(half)}
