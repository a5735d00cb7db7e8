"""Step times in the loop: false alarms, delays until a slow process is told, cost."""

import functools
import itertools
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.runner.results import check_positive
from experiments.runner.study import Once, Sections, Study, command
from experiments.runner.tables import Columns, table_of
from jaxwgc.reports import Kind, SpeedChange, StepTimes

EVERY = 50
# Steps of runs without and with a delay.
NUM_STEADY = 1000
NUM_DELAYED = 600
# The process that is delayed, since when, and how much longer it takes.
DELAYED = 1
START = 100
SLOWDOWN = 1.5
NUM_WORKERS = (2, 8)
# Shortest and longest seconds of a lap of a real process that is not delayed.
SHORTEST_LAP = 0.001
LONGEST_LAP = 0.0012
# Processes that exchange laps, and the numbers of laps and exchanges that are timed.
NUM_PROCESSES = (2, 8)
NUM_LAPS = 100_000
NUM_EXCHANGES = 50


@command("step-times", "Step times in the loop", count="runs")
def step_times(runs: int = 50, seed: int = 0) -> Sections:
    """Names slow processes while they run: how soon, how often in error, at what cost.

    Args:
        runs: Runs with a delay, and runs without, of each kind of noise.
    """
    check_positive(runs=runs)
    return {
        "noise": functools.partial(noise, runs, seed),
        "processes": functools.partial(processes, runs, seed),
        "overhead": overhead,
    }


def lognormal(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draws independent times with a spread of 30%."""
    return draw.lognormal(0.0, 0.3, shape)


def exponential(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draws independent times of one second and an exponential one."""
    return 1 + draw.exponential(1.0, shape)


def correlated(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draws times with a spread of 10%, of which the next remembers 0.8."""
    logs = draw.normal(size=shape)
    for step in range(1, len(logs)):
        logs[step] = 0.8 * logs[step - 1] + 0.6 * logs[step]
    return np.exp(0.1 * logs)


def in_spells(length: int) -> Callable[..., np.ndarray]:
    """Returns a law of workers that are 1.5 times slower in a tenth of the time.

    Args:
        length: Mean number of steps of a slow spell.
    """

    def draw_times(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        times = 1 + 0.05 * draw.random(shape)
        is_slow = np.zeros(shape[1], bool)
        for step, ends in enumerate(draw.random(shape)):
            is_slow = np.where(is_slow, ends > 1 / length, ends < 1 / (9 * length))
            times[step, is_slow] *= 1.5
        return times

    return draw_times


LAWS = {
    "log-normal, spread of 30%": lognormal,
    "1 + Exp(1)": exponential,
    "correlated, 0.8": correlated,
    "slow spells of 5 steps": in_spells(5),
    "slow spells of 20 steps": in_spells(20),
}


def changes_of(times: np.ndarray) -> list[SpeedChange]:
    """Returns the changes that are told of laps (laps, workers) of a simulation."""
    windows = iter(times.reshape(-1, EVERY, times.shape[1]))
    changes: list[SpeedChange] = []
    own = StepTimes(
        lambda laps: [*next(windows).T],
        every=EVERY,
        on_change=changes.append,
        before_collective=True,
    )
    for _ in times:
        with own:
            pass
    return changes


def step_of(changes: list[SpeedChange]) -> int | None:
    """Returns the number of steps after which the delayed worker is told, or None."""
    for change in changes:
        if change.kind == Kind.SINCE and change.worker == str(DELAYED):
            return int(change.report.rounds.steps[-1]) + 1
    return None


def summary(
    of_steady: list[list[SpeedChange]], of_delayed: list[list[SpeedChange]]
) -> dict[str, Any]:
    """Returns the numbers of a row of a table."""
    told = [step for changes in of_delayed if (step := step_of(changes)) is not None]
    return {
        "false": sum(map(bool, of_steady)),
        "told": len(told),
        "median": float(np.median(told)) if told else None,
        "last": max(told, default=None),
        "others": sum(
            any(change.worker != str(DELAYED) for change in changes)
            for changes in of_delayed
        ),
    }


COLUMNS = {
    "workers": "{workers}",
    "runs with a false alarm": "{false} of {runs}",
    "slow worker told": "{told} of {runs}",
    "at step, median": "{median}",
    "at step, last": "{last}",
    "another worker told": "{others} of {runs}",
}
TITLE = (
    f"Runs of {NUM_STEADY} steps without a slow worker, and of {NUM_DELAYED} steps in "
    f"which one takes {SLOWDOWN} times as long from step {START} on; an exchange every "
    f"{EVERY} steps"
)


def study_of(
    rows: Callable[[], Iterator[dict[str, Any]]], title: str, columns: Columns
) -> Study:
    """Returns a study of rows with a table of them."""
    tables = {"": table_of(title, columns, "rows")}
    return Study({"rows": Once(rows)}, tables=tables)


def noise(runs: int, seed: int) -> Study:
    """Simulated processes with noise of several kinds."""

    def rows() -> Iterator[dict[str, Any]]:
        for (name, law), workers in itertools.product(LAWS.items(), NUM_WORKERS):
            of_steady = []
            of_delayed = []
            for run in range(runs):
                draw = np.random.default_rng([seed, run])
                of_steady.append(changes_of(law(draw, (NUM_STEADY, workers))))
                times = law(draw, (NUM_DELAYED, workers))
                times[START:, DELAYED] *= SLOWDOWN
                of_delayed.append(changes_of(times))
            row = {"noise": name, "workers": workers, "runs": runs}
            yield row | summary(of_steady, of_delayed)

    return study_of(rows, TITLE, {"noise": "{noise}"} | COLUMNS)


def processes(runs: int, seed: int) -> Study:
    """Two processes of JAX on this machine."""

    def rows() -> Iterator[dict[str, Any]]:
        of_steady, of_delayed = run_processes(2, loop_of_process, runs, seed)
        yield {"workers": 2, "runs": runs} | summary(of_steady, of_delayed)

    return study_of(rows, TITLE, COLUMNS)


def run_processes(number: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function on processes of JAX, and returns the result of process 0."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    started = [
        context.Process(
            target=_run_process,
            args=(number, rank, address, queue, function, arguments),
            daemon=True,
        )
        for rank in range(number)
    ]
    for process in started:
        process.start()
    result = queue.get()
    for process in started:
        process.join()
    return result


def _run_process(number, rank, address, queue, function, arguments):
    jax.distributed.initialize(address, num_processes=number, process_id=rank)
    result = function(rank, *arguments)
    if rank == 0:
        queue.put(result)
    jax.distributed.shutdown()


def loop_of_process(
    rank: int, runs: int, seed: int
) -> tuple[list[list[SpeedChange]], list[list[SpeedChange]]]:
    """Takes laps of random lengths; returns the changes of runs without a delay."""
    results: tuple[list[list[SpeedChange]], list[list[SpeedChange]]] = ([], [])
    draw = np.random.default_rng([seed, rank])
    for _ in range(runs):
        for of_runs, num_steps in zip(results, (NUM_STEADY, NUM_DELAYED), strict=True):
            changes: list[SpeedChange] = []
            own = StepTimes(
                "jax",
                every=EVERY,
                on_change=changes.append,
                before_collective=True,
            )
            for step in range(num_steps):
                is_delayed = of_runs is results[1] and rank == DELAYED and step >= START
                seconds = draw.uniform(SHORTEST_LAP, LONGEST_LAP) * (
                    SLOWDOWN if is_delayed else 1
                )
                with own:
                    time.sleep(seconds)
            of_runs.append(changes)
    return results


def overhead() -> Study:
    """Seconds of a lap and of an exchange."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in NUM_PROCESSES:
            yield {"processes": number} | run_processes(number, time_process)

    title = (
        f"Overhead of a lap, and of an exchange of {EVERY} laps with its reports, on "
        "processes of this machine"
    )
    columns = {
        "processes": "{processes}",
        "µs per lap": "{lap:.2f}",
        "ms per exchange": "{exchange:.1f}",
        "of these for reports": "{report:.1f}",
    }
    return study_of(rows, title, columns)


def time_process(rank: int) -> dict[str, float]:
    """Returns median microseconds of laps, and milliseconds of exchanges."""
    own = StepTimes(lambda laps: None, every=NUM_LAPS + 1)
    start = time.perf_counter()
    for _ in range(NUM_LAPS):
        with own:
            pass
    lap = (time.perf_counter() - start) / NUM_LAPS
    draw = np.random.default_rng(rank)
    rows = draw.uniform(1.0, 1.5, (jax.process_count(), EVERY))
    options: dict[str, Any] = {"every": EVERY, "on_change": lambda change: None}
    return {
        "lap": 1e6 * lap,
        "exchange": 1e3 * seconds_of_exchange(StepTimes("jax", **options)),
        "report": 1e3 * seconds_of_exchange(StepTimes(lambda laps: rows, **options)),
    }


def seconds_of_exchange(own: StepTimes) -> float:
    """Returns the median seconds of the last lap before an exchange."""
    seconds = []
    for _ in range(NUM_EXCHANGES):
        for _ in range(EVERY - 1):
            with own:
                pass
        own.start()
        start = time.perf_counter()
        own.stop()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
