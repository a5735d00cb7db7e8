"""Monte Carlo at ten thousand workers: how time and memory grow."""

import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxwgc
from experiments.runner.study import Once, Study, timed
from experiments.runner.tables import interval_power_of_ten
from experiments.runner.timing import in_own_process
from jaxwgc import codes, stragglers

# Workers in clusters of that many, with a code each: the code of all of them is block
# diagonal, so that nothing has the size of their number squared.
CLUSTER = 100
PROBABILITY = 0.1
REPLICATION = 4
TRIALS_AT_ONCE = 50


class Setting(NamedTuple):
    """Workers, parts of one row, columns, trials and steps of each."""

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
    """A row a setting, each in a process of its own, for the peak of its memory."""
    del repeats
    settings = [QUICK] if quick else SETTINGS
    return timed(
        [Once(in_own_process, run, setting, seed) for setting in settings],
        "Monte Carlo of coded descent, every worker lost in each step at a chance of "
        f"{PROBABILITY:g}, clusters of {CLUSTER} workers: all trials, compilation "
        "included",
        lambda row: {
            "code": f"`{row['code']}`",
            "workers n": f"{row['n']:,}",
            "parts k": f"{row['k']:,}",
            "columns p": f"{row['p']:,}",
            "trials": f"{row['trials']:,}",
            "steps": f"{row['steps']:,}",
            "seconds": f"{row['seconds']:.3g}",
            "peak, GiB": f"{row['peak'] / 2**30:.2f}",
            "‖θ − θ_ols‖² / ‖θ_ols‖²": interval_power_of_ten(row["error"]),
        },
    )


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Seconds, compilation included; the peak of resident memory in bytes."""
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
    """Returns the code of one cluster; all have the same."""
    num_parts = setting.k * CLUSTER // setting.n
    if setting.code == "stochastic":
        return codes.stochastic(key, CLUSTER, num_parts, REPLICATION, PROBABILITY)
    if setting.code == "fractional_repetition":
        return codes.fractional_repetition(CLUSTER, REPLICATION - 1)
    if setting.code == "reed_solomon":
        return codes.reed_solomon(CLUSTER, num_parts, CLUSTER // 5)
    return codes.uncoded(CLUSTER, num_parts)


def trial(key, code, setting, features, responses, solution) -> jax.Array:
    """‖θ - θ_ols‖² / ‖θ_ols‖² after the steps.

    A part is a row, so that a step is two products with all the data, whatever the
    number of trials; decoding is in the weights of the rows.
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
