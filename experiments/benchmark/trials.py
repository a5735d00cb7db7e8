"""Time and memory of Monte Carlo with ten thousand workers, and time of table 2."""

import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxwgc
from experiments.paper import linear_regression
from experiments.runner.study import Once, Study, Trial, timed
from experiments.runner.tables import ResultTable
from experiments.runner.timing import in_own_process
from jaxwgc import codes, stragglers

# Workers per cluster. Each cluster has its own code, so that the whole code is block
# diagonal, and no array grows with the square of the number of workers.
CLUSTER = 100
PROBABILITY = 0.1
REPLICATION = 4
TRIALS_AT_ONCE = 50


class Setting(NamedTuple):
    """Numbers of workers, parts of one row, columns, trials and steps per trial."""

    code: str = "stochastic"
    n: int = 10_000
    k: int = 10_000
    p: int = 100
    trials: int = 1_000
    steps: int = 200


SETTINGS = [
    Setting(),
    Setting(n=1_000),
    Setting(k=1_000),
    Setting(p=10),
    Setting(trials=100),
    Setting(n=100_000, k=100_000, trials=100),
    Setting("uncoded"),
    Setting("fractional_repetition"),
    Setting("reed_solomon", trials=10, steps=20),
]
QUICK = Setting(n=200, k=200, p=5, trials=20, steps=5)


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns a row per setting; processes of their own show the peak of memory."""
    settings = [QUICK] if quick else SETTINGS
    return timed(
        [Once(in_own_process, run, setting, seed) for setting in settings],
        f"Monte Carlo of coded descent; each worker straggles with probability "
        f"{PROBABILITY:g} in each step, clusters of {CLUSTER} workers: all trials, "
        "with compilation",
        {
            "code": "`{code}`",
            "workers n": "{n:,}",
            "parts k": "{k:,}",
            "columns p": "{p:,}",
            "trials": "{trials:,}",
            "steps": "{steps:,}",
            "seconds": "{seconds:.3g}",
            "peak, GiB": lambda row: f"{row['peak'] / 2**30:.2f}",
            "‖θ − θ_ols‖² / ‖θ_ols‖²": "{error:e}",
        },
    )


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Returns seconds with compilation, and peak resident memory in bytes."""
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), 4)
    code = cluster_code(keys[0], setting)
    features = jax.random.normal(keys[1], (setting.k, setting.p))
    responses = features.sum(axis=1) + jax.random.normal(keys[2], (setting.k,))
    solution = jnp.linalg.lstsq(features, responses)[0]
    errors = jaxwgc.monte_carlo(
        lambda key: trial(key, code, setting, features, responses, solution),
        keys[3],
        setting.trials,
        TRIALS_AT_ONCE,
    )
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return setting._asdict() | {
        "seconds": seconds,
        "peak": peak,
        "error": jaxwgc.summarize(errors),
    }


def cluster_code(key: jax.Array, setting: Setting) -> jaxwgc.GradientCode:
    """Returns the code of each cluster."""
    num_parts = setting.k * CLUSTER // setting.n
    if setting.code == "stochastic":
        return codes.stochastic(key, CLUSTER, num_parts, REPLICATION, PROBABILITY)
    if setting.code == "fractional_repetition":
        return codes.fractional_repetition(CLUSTER, REPLICATION - 1)
    if setting.code == "reed_solomon":
        return codes.reed_solomon(CLUSTER, num_parts, CLUSTER // 5)
    return codes.uncoded(CLUSTER, num_parts)


def trial(key, code, setting, features, responses, solution) -> jax.Array:
    """Returns ‖θ - θ_ols‖² / ‖θ_ols‖² after the steps.

    Parts are rows, and decoding weights are weights of rows. So a step is two products
    with all the data for any number of trials.
    """
    model = stragglers.bernoulli(PROBABILITY)
    loads = jnp.ones(setting.n)
    step_size = 0.5 / setting.k

    def step(params, key):
        arrivals, _ = model.sample(key, (), loads)
        received = arrivals.received.reshape(-1, CLUSTER)
        weights = jaxwgc.effective_weights(code, received).ravel()
        residuals = weights * (features @ params - responses)
        return params - step_size * (residuals @ features), None

    keys = jax.random.split(key, setting.steps)
    params, _ = jax.lax.scan(step, jnp.zeros_like(solution), keys)
    return jnp.sum((params - solution) ** 2) / jnp.sum(solution**2)


TABLE2_RUNS = 2_000


def table2(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the wall time of the four cells of table 2, with compilation."""
    runs = 20 if quick else TABLE2_RUNS

    def measure():
        start = time.perf_counter()
        for compression in linear_regression.COMPRESSIONS:
            trial = Trial(linear_regression.one_run, compression, ["doubled"]).run
            key, size = jax.random.key(seed), linear_regression.BATCH_SIZE
            jaxwgc.monte_carlo(trial, key, runs, size)
        return {"seconds": time.perf_counter() - start}

    def tabulate(numbers):
        return ResultTable(
            "Table 2, four cells, float64, with compilation",
            ["runs per cell", "seconds"],
            [[f"{runs:,}", f"{numbers['seconds']:.1f}"]],
        )

    return Study(Once(measure), x64=True, tables={"": tabulate})
