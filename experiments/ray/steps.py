"""Time of steps on real processes: by waiting rule, by loads, and on request."""

import collections
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.tables import with_half
from jaxwgc import codes, stragglers
from jaxwgc.distributed.ray._actors import Actors
from jaxwgc.distributed.ray._events import Response
from jaxwgc.distributed.ray._messages import Progress
from jaxwgc.planning import Candidates

NUM_WORKERS = 8
# Steps before a measurement: they allocate memory and compile.
NUM_WARM = 5
# Seconds at load 1: the minimum, and the mean of what is added to it.
SHIFT = 0.1
MEAN = 0.1
NUM_SIMULATED = 20_000
TIMEOUTS = jaxwgc.distributed.Timeouts()


def timed_rounds(cluster, params, steps: int, num_warm: int = NUM_WARM) -> list[Any]:
    """Returns seconds and results of rounds, after others that are not measured."""
    rounds = []
    for _ in range(num_warm + steps):
        start = time.perf_counter()
        done = cluster.compute(params)
        rounds.append((time.perf_counter() - start, done))
    return rounds[num_warm:]


def waiting(steps: int) -> Study:
    """Returns the mean seconds of a step under three waiting rules."""
    uncoded = codes.uncoded(NUM_WORKERS)
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    third = stragglers.relative_deadline(1.5, quorum=NUM_WORKERS * 3 // 8)
    rules = {
        "uncoded, first 6": (uncoded, stragglers.fastest(NUM_WORKERS * 3 // 4)),
        "uncoded, half more than the third": (uncoded, third),
        "fractional repetition": (halves, stragglers.until_decodable(halves)),
    }
    cells = {}
    for name, (code, wait) in rules.items():
        cells[name] = {
            "measured": Once(measure, code, wait, drawn_delay(code), steps),
            "busy": Once(simulate, code, wait, "busy"),
            "cancelled": Once(simulate, code, wait, "cancelled"),
        }
    return timed(
        cells,
        f"Mean of {steps} steps of eight processes, and simulations relative to it",
        {
            "code and waiting rule": "{name}",
            "ms": milliseconds,
            'late="busy"': ratio("busy", 2),
            'late="cancelled"': ratio("cancelled", 2),
        },
    )


def ratio(name: str, digits: int) -> Callable[[Numbers], str]:
    """Returns the column of a time relative to the measured one."""

    def column(row):
        return f"{row[name] / row['measured']['mean']:.{digits}f}"

    return column


def milliseconds(row: Numbers) -> str:
    """Returns the measured milliseconds of a step with their interval."""
    seconds = row["measured"]
    return with_half(1e3 * seconds["mean"], 1e3 * seconds["half"], 0)


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
        timeouts=TIMEOUTS,
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


# Parts per second.
SPEEDS = np.array([10.0, 10.0, 5.0, 5.0])
SPEED_PARTS = 12


def entries() -> dict[str, jaxwgc.GradientCode]:
    """Returns codes with one copy and with two, with equal loads and loads by speed."""
    key = jax.random.key(0)
    placed = {}
    for name, speeds in {"alike": np.ones(len(SPEEDS)), "by speed": SPEEDS}.items():
        for copies in (1, 2):
            held = codes.proportional_placement(speeds, SPEED_PARTS, copies)
            code = codes.any_placement(key, held, num_stragglers=copies - 1)
            noun = "copy" if copies == 1 else "copies"
            placed[f"{copies} {noun}, {name}"] = code
    return placed


def loads_by_speed(steps: int) -> Study:
    """Returns the mean seconds of a step, planned and measured, and their bound."""
    cells = {}
    for name, code in entries().items():
        bound = np.sum(code.parts_per_worker) / SPEEDS.sum()
        cells[name] = {
            "bound": float(bound),
            "planned": Once(planned, code),
            "measured": Once(measure_loads, code, steps),
        }
    return timed(
        cells,
        f"{SPEED_PARTS} parts on four processes, two of them half as fast, mean of "
        f"{steps} steps. The bound is the time if all workers finish together",
        {
            "placement": "{name}",
            "bound, ms": "{bound:1e3 .0f}",
            "measured, ms": milliseconds,
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
        # SPEED_PARTS / n parts are a load of 1.
        stragglers.unequal_speeds(work, SPEEDS / (SPEED_PARTS / len(SPEEDS))),
        len(SPEEDS),
        jax.random.key(0),
        candidates=Candidates(codes={"placement": code}, waiting=[awaited], exact=True),
    )
    [choice] = [choice for choice in plan.choices if choice.name == "placement"]
    return choice.step_time.value


def measure_loads(code: jaxwgc.GradientCode, steps: int) -> dict[str, float]:
    """Returns the mean seconds of a step of workers that sleep, and its interval."""
    seconds = np.asarray(code.parts_per_worker) / SPEEDS
    return measure(code, awaited(code), lambda worker, step: seconds[worker], steps)


PARTS_EACH = 8
NUM_PARAMS = 1_000_000
FEW_PARAMS = 10


def overhead(steps: int) -> Study:
    """Returns the overhead of steps with empty work, without a code and on request."""
    num_parts = NUM_WORKERS * PARTS_EACH
    uncoded = np.eye(NUM_WORKERS).repeat(PARTS_EACH, 1)
    measured_codes = {
        # As many parts as on request, added up as they are computed.
        "uncoded": jaxwgc.GradientCode.from_matrix(uncoded),
        "on request, 1 copy": codes.replicated(NUM_WORKERS, num_parts, copies=1),
        "on request, 2 copies": codes.replicated(NUM_WORKERS, num_parts, copies=2),
    }
    cells = {}
    for name, code in measured_codes.items():
        cells[name] = Once(measure_overhead, code, NUM_PARAMS, steps)
        few = f"{name}, {FEW_PARAMS} parameters"
        cells[few] = Once(measure_overhead, code, FEW_PARAMS, steps)
    return timed(
        cells,
        f"A step with empty work, {NUM_WORKERS} workers with {PARTS_EACH} parts "
        f"each and their copies, {NUM_PARAMS:,} parameters in float32",
        {
            "code": "{name}",
            "ms per step": "{milliseconds:,.0f}",
            "calls": "{calls:,.0f}",
            "control bytes": "{control_bytes:,.0f}",
            "vectors sent": "{vectors:,.0f}",
            "MB per worker": "{megabytes:,.0f}",
        },
    )


def measure_overhead(
    code: jaxwgc.GradientCode, num_params: int, steps: int
) -> dict[str, float]:
    """Returns median milliseconds, mean traffic and memory per worker."""
    calls: collections.Counter[str] = collections.Counter()
    perform = Actors.perform
    next_event = Actors.next_event

    def counted_perform(actors, actions):
        calls["calls"] += len(actions)
        # Parameters go into the object store, as without a code.
        calls["control_bytes"] += sum(len(pickle.dumps(action)) for action in actions)
        perform(actors, actions)

    def counted_event(actors, seconds):
        event = next_event(actors, seconds)
        if isinstance(event, Response) and isinstance(event.result, Progress):
            calls["control_bytes"] += len(pickle.dumps(event.result.reports))
            calls["vectors"] += event.result.expected_sum is not None
        elif event is not None:
            calls["vectors"] += 1
        return event

    patches = {"perform": counted_perform, "next_event": counted_event}
    parts = np.ones((code.num_parts, 1), np.float32)
    params = np.zeros(num_params, np.float32)
    with jaxwgc.distributed.RayCluster(
        lambda params, part: jnp.sum(part) * params[0], code, parts
    ) as cluster:
        timed_rounds(cluster, params, 0)
        with mock.patch.multiple(Actors, **patches):
            rounds = timed_rounds(cluster, params, steps, num_warm=0)
        private_pages = [private_pages_of(slot.pid) for slot in cluster.workers]
    page_megabytes = os.sysconf("SC_PAGE_SIZE") / 1e6
    return {
        "milliseconds": 1e3 * float(np.median([seconds for seconds, _ in rounds])),
        "megabytes": page_megabytes * float(np.mean(private_pages)),
        "calls": calls["calls"] / steps,
        "control_bytes": calls["control_bytes"] / steps,
        "vectors": calls["vectors"] / steps,
    }


def private_pages_of(pid: int | None) -> int:
    """Returns the resident pages of a process that it does not share."""
    statistics = Path(f"/proc/{pid}/statm").read_text().split()
    _, resident, shared, *_ = map(int, statistics)
    return resident - shared
