"""Training on real processes of which some are slow or killed, by code."""

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.paper.mnist import load_digits, logistic_loss, test_error
from experiments.ray import steps as step_times
from experiments.runner import figures
from experiments.runner.results import check_positive
from experiments.runner.study import Numbers, Once, Sections, Study, command
from experiments.runner.tables import ResultTable, table_of
from jaxwgc import codes, stragglers

NUM_WORKERS = 8
# On request: parts per worker in a step without stragglers.
PARTS_EACH = 8
# Seconds that a worker sleeps for its share of the data, so that copies take time; on
# request, it sleeps for each part.
SECONDS_A_SHARE = 0.2
SLOW_WORKERS = (0, 3)
SLOWDOWN = 10.0
OPTIMIZER = optax.sgd(5e-6, momentum=0.9)
# Longest time in seconds until all workers are back after a run: long against the start
# of a process on a busy machine.
SETTLE_SECONDS = 600.0
# Seconds for which a step waits for the replacement of a worker that it needs.
REPLACEMENT_SECONDS = 60.0
# Offset between the numbers of the steps of two scenarios.
STEPS_A_SCENARIO = 1_000_000


class Entry(NamedTuple):
    """A code and a waiting rule."""

    code: jaxwgc.GradientCode
    wait: stragglers.WaitingRule

    @property
    def on_request(self) -> bool:
        """Returns whether workers send sums of finished parts."""
        return self.code.messages_per_worker > 1


def entries() -> dict[str, Entry]:
    """Returns codes for 8 workers with 8 parts, or with 64 on request.

    All coded ones with one message per worker tolerate some pairs of stragglers.
    """
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    cyclic = codes.cyclic_repetition(jax.random.key(0), NUM_WORKERS, num_stragglers=2)
    uncoded = codes.uncoded(NUM_WORKERS)
    six = stragglers.fastest(6)
    named = {
        "uncoded, all": Entry(uncoded, stragglers.fastest(8)),
        "uncoded, first 6": Entry(uncoded, six),
        "fractional repetition": Entry(halves, stragglers.until_decodable(halves)),
        "cyclic repetition": Entry(cyclic, six),
        "cyclic MDS": Entry(codes.cyclic_mds(NUM_WORKERS, num_stragglers=2), six),
    }
    for copies in (2, 3, 5):
        code = codes.replicated(NUM_WORKERS, PARTS_EACH * NUM_WORKERS, copies)
        wait = stragglers.until_decodable(code)
        named[f"on request, {copies} copies"] = Entry(code, wait)
    return named


@command("cluster", "Eight processes on MNIST")
def cluster(runs: int = 3, steps: int = 50, seed: int = 0) -> Sections:
    """Trains on real workers that are slow or killed: test error by time.

    Also the overhead of a step on request, the accuracy of simulated step times, and
    the gain of loads by speed.

    Args:
        runs: Runs of each code in each scenario.
        steps: Steps of each run.
    """
    check_positive(steps=steps)

    def study():
        cells = {}
        for name, entry in entries().items():
            cells[name] = Once(measure, entry, runs, steps, seed)
        return Study(
            {"codes": cells},
            derive=summarize,
            tables={"": tabulate, "tandon": tabulate_tandon},
            figures={"": draw},
        )

    return {
        "": study,
        "price": lambda: step_times.overhead(steps),
        "busy": lambda: step_times.waiting(4 * steps),
        "placement": lambda: step_times.loads_by_speed(steps),
    }


def delays(code: jaxwgc.GradientCode) -> Callable[[int, int], float]:
    """Returns the seconds that a worker sleeps, by the scenario of the step.

    The seconds are for all of its parts, or for one part on request.
    """
    seconds = SECONDS_A_SHARE * np.asarray(code.loads)
    if code.messages_per_worker > 1:
        seconds = seconds / code.parts_per_worker

    def delay(worker: int, step: int) -> float:
        is_slow = step // STEPS_A_SCENARIO == 1 and worker in SLOW_WORKERS
        slowdown = SLOWDOWN if is_slow else 1.0
        return float(seconds[worker] * slowdown)

    return delay


SCENARIOS = {"calm": 0, "two slow": 1, "two killed": 2}
# Both codes of Tandon et al., and the same workers without a code.
TANDON = (
    "uncoded, all",
    "uncoded, first 6",
    "fractional repetition",
    "cyclic repetition",
)


def measure(entry: Entry, runs: int, steps: int, seed: int) -> Numbers:
    """Returns seconds since the start and test errors (runs, steps) by scenario.

    Also returns the relative distance of the final parameters from those of a single
    process, (runs,).
    """
    training, test = load_digits()
    parts, row_weights = jaxwgc.partition(tuple(training), entry.code.num_parts)
    images, labels = parts
    data = (images, labels, row_weights, jnp.ones_like(row_weights))
    decoder = jaxwgc.decode_aggregate(entry.code, on_request=entry.on_request)
    chain = optax.chain(decoder, OPTIMIZER)

    @jax.jit
    def update(messages, state, params: Any, received):
        updates, state = chain.update(messages, state, params, received=received)
        params = optax.apply_updates(params, updates)
        return params, state, test_error(jnp.asarray(params), test)

    random = np.random.default_rng(seed)
    start_params = jnp.zeros(784)
    true_params = in_one_process(data, start_params, steps)
    numbers = {}
    with jaxwgc.distributed.RayCluster(
        logistic_loss,
        entry.code,
        data,
        wait=entry.wait,
        timeouts=jaxwgc.distributed.Timeouts(replacement=REPLACEMENT_SECONDS),
        faults=jaxwgc.distributed.Faults(delay=delays(entry.code)),
    ) as workers:
        for scenario, offset in SCENARIOS.items():
            records = {"seconds": [], "errors": [], "distances": []}
            for run in range(runs):
                done = settle(workers, start_params)
                # Compiles the update, which is not part of a step.
                state = chain.init(start_params)
                update(done.messages, state, start_params, arrived(done))
                workers.resume(offset * STEPS_A_SCENARIO + run * steps)
                params = start_params
                state = chain.init(start_params)
                seconds = []
                errors = []
                begin = time.monotonic()
                for step in range(steps):
                    if scenario == "two killed" and step in (steps // 3, steps // 2):
                        done = compute_with_a_kill(workers, params, random)
                    else:
                        done = workers.compute(params)
                    params, state, error = update(
                        done.messages, state, params, arrived(done)
                    )
                    errors.append(float(error))
                    seconds.append(time.monotonic() - begin)
                records["seconds"].append(seconds)
                records["errors"].append(errors)
                distance = jnp.linalg.norm(params - true_params)
                relative_distance = distance / jnp.linalg.norm(true_params)
                records["distances"].append(float(relative_distance))
            numbers[scenario] = records
    return numbers


def arrived(
    done: jaxwgc.distributed.Round,
) -> np.ndarray | jax.Array | jaxwgc.Decoding:
    """Returns `received` for the decoder of a round."""
    return done.received if done.decoding is None else done.decoding


def in_one_process(
    data: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    params: jax.Array,
    steps: int,
) -> jax.Array:
    """Returns the parameters after that many steps in a single process."""

    def total_loss(params):
        return jax.vmap(logistic_loss, (None, 0))(params, data).sum()

    @jax.jit
    def step(params, state):
        gradient = jax.grad(total_loss)(params)
        updates, state = OPTIMIZER.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = OPTIMIZER.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def settle(
    workers: jaxwgc.distributed.RayCluster, params: jax.Array
) -> jaxwgc.distributed.Round:
    """Runs rounds until all workers are up to date, and returns the last round.

    Raises:
      RuntimeError: If a worker has not come back within SETTLE_SECONDS.
    """
    workers.resume(0)
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        done = workers.compute(params)
        time.sleep(SLOWDOWN * SECONDS_A_SHARE)
        troubles = [slot.trouble for slot in workers.workers]
        if all(slot.pid for slot in workers.workers) and not any(troubles):
            return done
        if time.monotonic() > end:
            raise RuntimeError(
                "a run must begin with all workers, and some have not come back within "
                f"{SETTLE_SECONDS:g} s: {troubles}"
            )


def compute_with_a_kill(
    workers: jaxwgc.distributed.RayCluster,
    params: jax.Array,
    random: np.random.Generator,
) -> jaxwgc.distributed.Round:
    """Runs a round in which a random worker is killed, and returns the round.

    The process is killed before this function returns, also if the round is over
    sooner. A late signal would be one of the next step, or of the next run.
    """
    moment = random.uniform(0, SECONDS_A_SHARE)
    timer = threading.Timer(moment, kill_one, (workers, random))
    timer.start()
    done = workers.compute(params)
    timer.join()
    return done


def kill_one(
    workers: jaxwgc.distributed.RayCluster, random: np.random.Generator
) -> None:
    """Kills a random worker, unless it has just ended by itself."""
    up = [slot.pid for slot in workers.workers if slot.pid]
    if up:
        with contextlib.suppress(ProcessLookupError):
            os.kill(up[random.integers(len(up))], signal.SIGKILL)


def summarize(numbers: Numbers) -> dict[str, Numbers]:
    """Returns milliseconds per step and final errors: medians over runs, and range."""

    def of_runs(runs):
        seconds = np.array(runs["seconds"])
        num_steps = seconds.shape[1]
        milliseconds = 1e3 * seconds[:, -1] / num_steps
        return {
            "milliseconds": {
                "median": np.median(milliseconds),
                "low": milliseconds.min(),
                "high": milliseconds.max(),
            },
            "error": np.median(np.array(runs["errors"])[:, -1]),
            "distance": max(runs["distances"]),
        }

    summary = {
        name: {scenario: of_runs(runs) for scenario, runs in scenarios.items()}
        for name, scenarios in numbers["codes"].items()
    }
    return {"summary": summary}


def milliseconds(row: Numbers, scenario: str) -> str:
    """Returns the median time of a step in a scenario, and its range over runs."""
    times = row[scenario]["milliseconds"]
    if times["low"] == times["high"]:
        return f"{times['median']:.0f}"
    return f"{times['median']:.0f} ({times['low']:.0f}–{times['high']:.0f})"


def largest_distance(row: Numbers) -> str:
    """Returns the largest distance of the parameters over the scenarios."""
    distances = [row[scenario]["distance"] for scenario in SCENARIOS]
    return f"{max(distances):.0e}"


def about_runs(numbers: Numbers) -> str:
    """Returns how many runs a table of medians is made from."""
    records = numbers["codes"]["uncoded, all"]["calm"]
    num_runs = len(records["seconds"])
    return "one run" if num_runs == 1 else f"medians of {num_runs} runs (and range)"


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns times of a step and final test errors, by code and scenario."""
    columns = {
        "code and waiting rule": "{name}",
        **{
            f"{scenario}: ms per step": functools.partial(
                milliseconds, scenario=scenario
            )
            for scenario in SCENARIOS
        },
        **{f"{name}: test error, %": f"{{{name}[error]:.2f}}" for name in SCENARIOS},
        "largest distance of the parameters": largest_distance,
    }
    title = f"Eight processes on MNIST 4 vs 9: {about_runs(numbers)}"
    return table_of(title, columns, "summary")(numbers)


def tabulate_tandon(numbers: Numbers) -> ResultTable:
    """Returns times of a step with the codes of Tandon et al. and without a code."""
    table = ResultTable(
        f"Eight processes, milliseconds of a step: {about_runs(numbers)}",
        ["code and waiting rule", *SCENARIOS],
    )
    for name in TANDON:
        row = numbers["summary"][name]
        times = [row[scenario]["milliseconds"]["median"] for scenario in SCENARIOS]
        table.rows.append([name, *(f"{median:.0f}" for median in times)])
    return table


def draw(numbers: Numbers) -> figures.Figure:
    """Draws test error against seconds by scenario, with bands over the runs."""
    figure, panels = figures.new_figure(10.8, 3.8, len(SCENARIOS))
    num_codes = len(numbers["codes"])
    for axes, scenario in zip(panels, SCENARIOS, strict=True):
        for index, (name, by_scenario) in enumerate(numbers["codes"].items()):
            records = by_scenario[scenario]
            seconds = np.array(records["seconds"])
            grid = np.geomspace(seconds[:, 0].max(), seconds[:, -1].max(), 60)
            on_grid = []
            for clock, error in zip(seconds, records["errors"], strict=True):
                on_grid.append(np.interp(grid, clock, error))
            errors = np.array(on_grid)
            figures.line(
                axes,
                index,
                x=grid,
                y=np.median(errors, axis=0),
                band=(errors.min(axis=0), errors.max(axis=0)),
                num_lines=num_codes,
                label=name,
            )
        axes.set(title=scenario, xlabel="seconds", xscale="log", yscale="log")
    panels[0].set_yticks([4, 6, 10, 20], ["4", "6", "10", "20"])
    panels[0].minorticks_off()
    panels[0].set_ylabel("test error, percent")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
