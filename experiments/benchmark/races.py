"""A race of nine methods, and one of them beside a loop over events in NumPy."""

import heapq
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.delays.asynchronous import methods_of
from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.timing import in_own_process
from jaxwgc import asynchronous, stragglers

NUM_WORKERS = 32
NUM_FEATURES = 20
NUM_SEEDS = 20
CONDITION = 50.0
LENGTH = 200.0
STEP_SIZES = np.geomspace(0.003, 3.0, 13)
METHODS = (
    "wait for all",
    "ignore a quarter",
    "stored messages",
    "code, 2 copies",
    "every arrival",
    "Rescaled",
    "Ringmaster",
    "Rennala",
    "Ringleader",
)
# Seeds on which `jaxwgc.race` chooses the step size.
NUM_SEEDS_OF_CHOICE = 3


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns seconds of a new process: first calls, compilation included, and more."""
    length = LENGTH / 20 if quick else LENGTH
    return timed(
        [Once(in_own_process, run, seed, length)],
        f"Race of nine methods, {NUM_WORKERS} workers, {NUM_SEEDS} seeds, "
        f"{len(STEP_SIZES)} step sizes on {NUM_SEEDS_OF_CHOICE} other seeds: seconds "
        "of a new process, float32; one method alone, compiled; and a loop over its "
        "events in NumPy, for equally many runs in the same process",
        {
            "length": "{length:.0f}",
            "first call": "{first:.1f}",
            "again": "{again:.2f}",
            "every arrival": "{alone:.2f}",
            "NumPy": "{numpy:.1f}",
            "NumPy / every arrival": "{ratio:.0f}",
        },
    )


def run(seed: int, length: float) -> Numbers:
    """Returns seconds of races, and of a loop in NumPy."""
    rng = np.random.default_rng(seed)
    curvatures = np.geomspace(1 / CONDITION, 1, NUM_FEATURES, dtype=np.float32)
    centers = 0.5 * rng.normal(size=(NUM_WORKERS, NUM_FEATURES)).astype(np.float32)
    start = np.full(NUM_FEATURES, 3.0, np.float32)

    def loss(params, part):
        return jnp.sum(curvatures * (params - part) ** 2) / (2 * NUM_WORKERS)

    problem = asynchronous.Problem(loss, centers, start, NUM_WORKERS)
    delay = stragglers.shifted_exponential(shift=1.0, rate=1.0)
    all_methods = methods_of(NUM_WORKERS)

    def race(names):
        begin = time.perf_counter()
        jaxwgc.race(
            {name: all_methods[name] for name in names},
            problem,
            delay,
            jax.random.key(seed),
            seconds=length,
            step_sizes=STEP_SIZES,
            solution=centers.mean(axis=0),
            num_seeds=NUM_SEEDS,
        )
        return time.perf_counter() - begin

    first = race(METHODS)
    again = race(METHODS)
    alone = race(["every arrival"])
    begin = time.perf_counter()
    for size in np.repeat(STEP_SIZES, NUM_SEEDS_OF_CHOICE):
        every_arrival(rng, curvatures, centers, start, size, length)
    for _ in range(NUM_SEEDS):
        every_arrival(rng, curvatures, centers, start, STEP_SIZES[5], length)
    numpy_seconds = time.perf_counter() - begin
    return {
        "length": length,
        "first": first,
        "again": again,
        "alone": alone,
        "numpy": numpy_seconds,
        "ratio": numpy_seconds / alone,
    }


def every_arrival(
    rng: np.random.Generator,
    curvatures: np.ndarray,
    centers: np.ndarray,
    start: np.ndarray,
    step_size: float,
    length: float,
) -> np.ndarray:
    """Returns parameters after updates at every arrival, from a loop over events."""
    params = start
    copies = [start] * NUM_WORKERS
    finishes = [(1 + rng.exponential(), worker) for worker in range(NUM_WORKERS)]
    heapq.heapify(finishes)
    while finishes[0][0] <= length:
        now, worker = finishes[0]
        gradient = curvatures * (copies[worker] - centers[worker])
        with np.errstate(over="ignore", invalid="ignore"):
            params = params - step_size * gradient
        copies[worker] = params
        heapq.heapreplace(finishes, (now + 1 + rng.exponential(), worker))
    return params
