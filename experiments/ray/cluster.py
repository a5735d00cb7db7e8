"""Training on real processes, some slow or killed: codes, requests and neither."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.paper.mnist import load_digits, logistic_loss, test_error
from experiments.ray import busy, placement, price
from experiments.runner import figures
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable
from jaxwgc import codes, stragglers

NUM_WORKERS = 8
# Of a worker on request in a step without stragglers, whose data are one part else.
PARTS_EACH = 8
# A worker sleeps so long for its share of the data, so that a copy more costs time as
# it would; on request part by part.
SECONDS_A_SHARE = 0.2
SLOW_WORKERS, SLOWDOWN = (0, 3), 10.0
OPTIMIZER = optax.sgd(5e-6, momentum=0.9)
# The steps of a run are counted from here, for each scenario.
STEPS_A_SCENARIO = 1_000_000


class Entry(NamedTuple):
    """A code and how long the coordinator waits."""

    code: jaxwgc.GradientCode
    wait: stragglers.WaitingRule

    @property
    def on_request(self) -> bool:
        """Says whether workers send sums of finished parts."""
        return self.code.messages_per_worker > 1

    def aggregate(self) -> optax.GradientTransformationExtraArgs:
        """Returns the transformation that decodes it."""
        return jaxwgc.decode_aggregate(self.code, on_request=self.on_request)


def entries() -> dict[str, Entry]:
    """With 8 workers, and 8 parts or on request 64.

    Those with a code of one message survive two workers or more.
    """
    key = jax.random.key(0)
    halves = codes.fractional_repetition(NUM_WORKERS, num_stragglers=1)
    cyclic = codes.cyclic_repetition(key, NUM_WORKERS, num_stragglers=2)
    mds = codes.cyclic_mds(NUM_WORKERS, num_stragglers=2)
    uncoded = codes.uncoded(NUM_WORKERS)
    named = {
        "uncoded, all": Entry(uncoded, stragglers.fastest(8)),
        "uncoded, first 6": Entry(uncoded, stragglers.fastest(6)),
        "fractional repetition": Entry(halves, stragglers.until_decodable(halves)),
        "cyclic repetition": Entry(cyclic, stragglers.fastest(6)),
        "cyclic MDS": Entry(mds, stragglers.fastest(6)),
    }
    for copies in (2, 3, 5):
        code = codes.replicated(NUM_WORKERS, PARTS_EACH * NUM_WORKERS, copies)
        wait = stragglers.until_decodable(code)
        named[f"on request, {copies} copies"] = Entry(code, wait)
    return named


def cluster(
    runs: int = 3, steps: int = 50, seed: int = 0, out: Path = Path("results")
) -> None:
    """Real workers on MNIST 4 vs 9, slow and killed: test error against time.

    And what a step on request costs, whether simulations say how long steps take, and
    what loads by speed gain.

    Args:
        runs: Of each code in each scenario.
        steps: Of each run.
        seed: Of who is killed.
        out: Folder for table, figure and numbers.
    """
    if steps < 1:
        raise ExperimentError(f"--steps must be at least 1; got {steps}")
    # Each loss would be a line between those of the progress.
    logging.getLogger("jaxwgc.distributed").setLevel(logging.ERROR)

    def study():
        cells = {
            name: Once(measure, entry, runs, steps, seed)
            for name, entry in entries().items()
        }
        return Study(
            {"codes": cells},
            derive=summarize,
            tables={"": tabulate},
            figures={"": draw},
        )

    sections = {
        "": study,
        "price": lambda: price.study(steps),
        "busy": lambda: busy.study(4 * steps),
        "placement": lambda: placement.study(steps),
    }
    run("cluster", "Eight processes on MNIST", sections, runs, seed, out)


def delays(code: jaxwgc.GradientCode) -> Callable[[int, int], float]:
    """Seconds that a worker sleeps, by the scenario that the step belongs to.

    For all of its parts, or on request for one of them.
    """
    on_request = code.messages_per_worker > 1
    seconds = SECONDS_A_SHARE * np.asarray(code.loads)
    if on_request:
        seconds = seconds / code.parts_per_worker

    def delay(worker: int, step: int) -> float:
        is_slow = step // STEPS_A_SCENARIO == 1 and worker in SLOW_WORKERS
        return float(seconds[worker] * (SLOWDOWN if is_slow else 1))

    return delay


SCENARIOS = {"calm": 0, "two slow": 1, "two killed": 2}


def measure(entry: Entry, runs: int, steps: int, seed: int) -> dict[str, Any]:
    """Returns by scenario seconds since the start and test errors, (runs, steps).

    And how far params are in the end from those of a single process, relative (runs,).
    """
    training, test = load_digits()
    parts, row_weights = jaxwgc.partition(tuple(training), entry.code.num_parts)
    data = (*parts, row_weights, jnp.ones_like(row_weights))
    chain = optax.chain(entry.aggregate(), OPTIMIZER)

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
        faults=jaxwgc.distributed.Faults(delay=delays(entry.code)),
    ) as workers:
        for scenario, offset in SCENARIOS.items():
            records = {"seconds": [], "errors": [], "distances": []}
            for run in range(runs):
                round = settle(workers, start_params)
                # Compiles it, which is no part of a step.
                update(
                    round.messages,
                    chain.init(start_params),
                    start_params,
                    arrived(round),
                )
                workers.resume(offset * STEPS_A_SCENARIO + run * steps)
                params, state = start_params, chain.init(start_params)
                seconds, errors = [], []
                begin = time.monotonic()
                for step in range(steps):
                    if scenario == "two killed" and step in (steps // 3, steps // 2):
                        moment = random.uniform(0, SECONDS_A_SHARE)
                        threading.Timer(moment, kill_one, (workers, random)).start()
                    round = workers.compute(params)
                    params, state, error = update(
                        round.messages, state, params, arrived(round)
                    )
                    errors.append(float(error))
                    seconds.append(time.monotonic() - begin)
                records["seconds"].append(seconds)
                records["errors"].append(errors)
                distance = jnp.linalg.norm(params - true_params)
                distance /= jnp.linalg.norm(true_params)
                records["distances"].append(float(distance))
            numbers[scenario] = records
    return numbers


def arrived(round: jaxwgc.distributed.Round) -> Any:
    """Returns what decodes its messages."""
    return round.received if round.decoding is None else round.decoding


def in_one_process(data: Any, params: jax.Array, steps: int) -> jax.Array:
    """Params after as many steps without any worker."""

    @jax.jit
    def step(params, state):
        gradient = jax.grad(
            lambda params: jax.vmap(logistic_loss, (None, 0))(params, data).sum()
        )(params)
        updates, state = OPTIMIZER.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = OPTIMIZER.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def settle(workers: Any, params: jax.Array) -> jaxwgc.distributed.Round:
    """Rounds until everyone has come back and is up to date; gives the last."""
    workers.resume(0)
    end = time.monotonic() + 60
    while True:
        round = workers.compute(params)
        time.sleep(SLOWDOWN * SECONDS_A_SHARE)
        is_well = all(slot.pid and not slot.trouble for slot in workers.workers)
        if is_well or time.monotonic() > end:
            return round


def kill_one(workers: Any, random: Any) -> None:
    """A worker at random."""
    up = [slot.pid for slot in workers.workers if slot.pid]
    if up:
        os.kill(up[random.integers(len(up))], signal.SIGKILL)


def summarize(numbers: Numbers) -> dict[str, Any]:
    """Milliseconds a step, and the last errors: medians over runs, and their range."""
    summary = {}
    for name, scenarios in numbers["codes"].items():
        summary[name] = {
            scenario: {
                "milliseconds": _range(
                    1e3 * np.array(runs["seconds"])[:, -1] / len(runs["seconds"][0])
                ),
                "error": float(np.median(np.array(runs["errors"])[:, -1])),
                "distance": max(runs["distances"]),
            }
            for scenario, runs in scenarios.items()
        }
    return {"summary": summary}


def _range(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a code; what a step takes, and where training ends."""
    summary = numbers["summary"]
    scenarios = list(next(iter(summary.values())))
    heads = [f"{scenario}: ms a step" for scenario in scenarios]
    heads += [f"{scenario}: test error, %" for scenario in scenarios]
    rows = []
    for name, record in summary.items():
        cells = []
        for each in scenarios:
            taken = record[each]["milliseconds"]
            cells.append(
                f"{taken['median']:.0f} ({taken['low']:.0f}–{taken['high']:.0f})"
            )
        cells += [f"{record[each]['error']:.2f}" for each in scenarios]
        distance = max(record[each]["distance"] for each in scenarios)
        rows.append([name, *cells, f"{distance:.0e}"])
    title = "Eight processes on MNIST 4 vs 9, medians (and range) over runs"
    heads = ["code and whom it waits for", *heads, "params off by at most"]
    return ResultTable(title, heads, rows)


def draw(numbers: Numbers) -> figures.Figure:
    """Test error against seconds, a panel a scenario, with bands over the runs."""
    scenarios = list(next(iter(numbers["codes"].values())))
    figure, panels = figures.new_figure(3.6 * len(scenarios), 3.8, len(scenarios))
    number = len(numbers["codes"])
    for axes, scenario in zip(panels, scenarios):
        for index, (name, by_scenario) in enumerate(numbers["codes"].items()):
            records = by_scenario[scenario]
            seconds = np.array(records["seconds"])
            grid = np.geomspace(seconds[:, 0].max(), seconds[:, -1].max(), 60)
            errors = np.array(
                [np.interp(grid, *run) for run in zip(seconds, records["errors"])]
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
