"""Training on real processes, some of them slow or killed: codes against no code."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments import figures, interrupts, studies
from experiments.delays import read_traces
from experiments.mnist import load_digits, logistic_loss, test_error
from experiments.results import ExperimentError
from experiments.studies import Numbers, Once, Study
from experiments.tables import ResultTable
from jaxwgc import codes, stragglers

NUM_WORKERS = 8
# A worker sleeps so long for a part, so that a copy more costs time as it would.
SECONDS_A_PART = 0.05
SLOW_WORKERS, SLOWDOWN = (0, 1), 10.0
# Where a trace says that a worker never answered.
NEVER = 30.0
OPTIMIZER = optax.sgd(5e-6, momentum=0.9)
# The steps of a run are counted from here, for each scenario.
STEPS_A_SCENARIO = 1_000_000


class Entry(NamedTuple):
    """A code and how long the coordinator waits."""

    code: jaxwgc.GradientCode
    wait: stragglers.WaitingRule


def entries() -> dict[str, Entry]:
    """With 8 workers and 8 parts; those with a code survive two workers or more."""
    key = jax.random.key(0)
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    cyclic = codes.cyclic_repetition(key, NUM_WORKERS, num_stragglers=2)
    mds = codes.cyclic_mds(NUM_WORKERS, num_stragglers=2)
    uncoded = codes.uncoded(NUM_WORKERS)
    return {
        "uncoded, all": Entry(uncoded, stragglers.fastest(8)),
        "uncoded, first 6": Entry(uncoded, stragglers.fastest(6)),
        "fractional repetition": Entry(halves, stragglers.until_decodable(halves)),
        "cyclic repetition": Entry(cyclic, stragglers.fastest(6)),
        "cyclic MDS": Entry(mds, stragglers.fastest(6)),
    }


def cluster(
    runs: int = 3,
    steps: int = 50,
    trace: Path | None = None,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Real workers on MNIST 4 vs 9, slow and killed: test error against time.

    Args:
        runs: Of each code in each scenario.
        steps: Of each run.
        trace: Times that were measured, (rounds, workers) in NumPy's format, such as
            those of `RayCluster.trace`; replayed as a scenario of its own, with their
            median as the time of a part.
        seed: Of who is killed.
        out: Folder for table, figure and numbers.
    """
    if steps < 1:
        raise ExperimentError(f"--steps must be at least 1; got {steps}")
    times = None if trace is None else read_trace(trace)
    # Each loss would be a line between those of the progress.
    logging.getLogger("jaxwgc.distributed").setLevel(logging.ERROR)

    def study():
        cells = {
            name: Once(measure, own, runs, steps, seed, times)
            for name, own in entries().items()
        }
        return Study(
            {"seconds_a_part": SECONDS_A_PART, "slowdown": SLOWDOWN, "codes": cells},
            derive=summarize,
            tables={"": tabulate},
            figures={"": draw},
            note=note,
        )

    with interrupts.as_exception():
        studies.run("cluster", "Eight processes on MNIST", {"": study}, runs, seed, out)


def read_trace(path: Path) -> np.ndarray:
    """Seconds that workers took, (rounds, 8), with the median of a part."""
    traces = read_traces(path)
    if len(traces) > 1:
        raise ExperimentError(
            f"--trace must hold one array of times; got {', '.join(traces)} in {path}"
        )
    # Of several loads the largest.
    times = traces.popitem()[1].seconds[-1]
    if times.shape[1] < NUM_WORKERS:
        raise ExperimentError(
            f"--trace must hold times (rounds, workers) of at least {NUM_WORKERS} "
            f"workers; got shape {times.shape}"
        )
    times = times[:, :NUM_WORKERS]
    answered = np.isfinite(times)
    if not answered.any():
        raise ExperimentError(f"--trace must have an answer; got none in {path}")
    scaled = times * (SECONDS_A_PART / np.median(times[answered]))
    return np.where(answered, np.minimum(scaled, NEVER), NEVER)


def delays(loads: np.ndarray, times: np.ndarray | None) -> Callable[[int, int], float]:
    """Seconds that a worker sleeps, by the scenario that the step belongs to."""

    def delay(worker: int, step: int) -> float:
        scenario, number = divmod(step, STEPS_A_SCENARIO)
        each = SECONDS_A_PART
        if scenario == 1 and worker in SLOW_WORKERS:
            each *= SLOWDOWN
        if scenario == 3 and times is not None:
            each = times[number % len(times), worker]
        return float(min(loads[worker] * each, NEVER))

    return delay


SCENARIOS = {"calm": 0, "two slow": 1, "two killed": 2, "trace": 3}


def measure(
    entry: Entry, runs: int, steps: int, seed: int, times: np.ndarray | None
) -> dict[str, Any]:
    """Seconds since the start (runs, steps) and test errors, of each scenario."""
    training, test = load_digits()
    parts, row_weights = jaxwgc.partition(tuple(training), NUM_WORKERS)
    data = (*parts, row_weights, jnp.ones_like(row_weights))
    chain = optax.chain(jaxwgc.decode_aggregate(entry.code), OPTIMIZER)

    @jax.jit
    def update(messages, state, params: Any, received):
        updates, state = chain.update(messages, state, params, received=received)
        params = optax.apply_updates(params, updates)
        return params, state, test_error(jnp.asarray(params), test)

    random = np.random.default_rng(seed)
    start_params = jnp.zeros(784)
    # Compiles it, which is no part of a step.
    size = (entry.code.num_messages, 392 if entry.code.is_complex else 784)
    dtype = jnp.complex64 if entry.code.is_complex else jnp.float32
    everyone = np.ones(NUM_WORKERS, bool)
    update(np.zeros(size, dtype), chain.init(start_params), start_params, everyone)
    numbers = {}
    with jaxwgc.distributed.RayCluster(
        logistic_loss,
        entry.code,
        data,
        wait=entry.wait,
        delay=delays(np.asarray(entry.code.loads), times),
    ) as workers:
        for scenario, offset in SCENARIOS.items():
            if scenario == "trace" and times is None:
                continue
            records = {"seconds": [], "errors": []}
            for run in range(runs):
                settle(workers, start_params)
                workers.resume(offset * STEPS_A_SCENARIO + run * steps)
                params, state = start_params, chain.init(start_params)
                seconds, errors = [], []
                begin = time.monotonic()
                for step in range(steps):
                    if scenario == "two killed" and step in (steps // 3, steps // 2):
                        kill_one(workers, random)
                    found = workers.compute(params)
                    params, state, error = update(
                        found.messages, state, params, found.received
                    )
                    errors.append(float(error))
                    seconds.append(time.monotonic() - begin)
                records["seconds"].append(seconds)
                records["errors"].append(errors)
            numbers[scenario] = records
    return numbers


def settle(workers: Any, params: jax.Array) -> None:
    """Rounds until everyone has come back and is up to date."""
    workers.resume(0)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        workers.compute(params)
        time.sleep(SLOWDOWN * SECONDS_A_PART)
        if all(slot.pid and not slot.trouble for slot in workers.workers):
            return


def kill_one(workers: Any, random: Any) -> None:
    """A worker at random."""
    up = [slot.pid for slot in workers.workers if slot.pid]
    if up:
        os.kill(up[random.integers(len(up))], signal.SIGKILL)


def summarize(numbers: Numbers) -> dict[str, Any]:
    """Seconds a step, mean over a run and median over runs, and the last errors."""
    found = {}
    for name, scenarios in numbers["codes"].items():
        found[name] = {
            scenario: {
                "seconds_a_step": float(
                    np.median(np.array(own["seconds"])[:, -1]) / len(own["seconds"][0])
                ),
                "error": float(np.median(np.array(own["errors"])[:, -1])),
            }
            for scenario, own in scenarios.items()
        }
    return {"summary": found}


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a code; what a step takes, and where training ends."""
    summary = numbers["summary"]
    scenarios = list(next(iter(summary.values())))
    heads = [f"{own}: ms a step" for own in scenarios]
    heads += [f"{own}: test error, %" for own in scenarios]
    rows = []
    for name, own in summary.items():
        seconds = [f"{1e3 * own[each]['seconds_a_step']:.0f}" for each in scenarios]
        errors = [f"{own[each]['error']:.2f}" for each in scenarios]
        rows.append([name, *seconds, *errors])
    title = "Eight processes on MNIST 4 vs 9, medians over runs"
    return ResultTable(title, ["code and whom it waits for", *heads], rows)


def draw(numbers: Numbers) -> figures.Figure:
    """Test error against seconds, a panel a scenario, with bands over the runs."""
    scenarios = list(next(iter(numbers["codes"].values())))
    figure, panels = figures.new_figure(3.6 * len(scenarios), 3.8, len(scenarios))
    number = len(numbers["codes"])
    for axes, scenario in zip(panels, scenarios):
        for index, (name, own) in enumerate(numbers["codes"].items()):
            seconds = np.array(own[scenario]["seconds"])
            grid = np.geomspace(seconds[:, 0].max(), seconds[:, -1].max(), 60)
            errors = np.array(
                [np.interp(grid, *run) for run in zip(seconds, own[scenario]["errors"])]
            )
            band = errors.min(0), errors.max(0)
            figures.line(
                axes, index, grid, np.median(errors, 0), band, label=name, of=number
            )
        axes.set(title=scenario, xlabel="seconds", xscale="log", yscale="log")
    panels[0].set_yticks([4, 6, 10, 20], ["4", "6", "10", "20"])
    panels[0].minorticks_off()
    panels[0].set_ylabel("test error, percent")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=number)
    return figure


def note(numbers: Numbers) -> str:
    """Where coding wins, and where it loses."""
    summary = numbers["summary"]

    def step(name, scenario):
        return summary[name][scenario]["seconds_a_step"]

    plain = step("uncoded, all", "calm")
    lines = []
    for name in list(summary)[2:]:
        calm, slow = step(name, "calm"), step(name, "two slow")
        lines.append(
            f"{name}: with two workers {SLOWDOWN:.0f} times slower a step takes "
            f"{slow / calm:.2f} times one with none, and waiting for all without a "
            f"code {step('uncoded, all', 'two slow') / slow:.1f} times as long. With "
            f"none slow the code loses: {calm / plain:.1f} times the uncoded step."
        )
    ignoring = summary["uncoded, first 6"]["two slow"]
    exact = summary["uncoded, all"]["two slow"]["error"]
    lines.append(
        "Ignoring two of eight without a code takes "
        f"{1e3 * ignoring['seconds_a_step']:.0f} ms a step, less than any code, and "
        f"ends at {ignoring['error']:.2f}% after as many steps; exact gradients end at "
        f"{exact:.2f}%."
    )
    return "\n".join(lines)
