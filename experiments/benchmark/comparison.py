"""Monte Carlo study of codes, delays and numbers of awaited workers, beside NumPy."""

import functools
import time
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

import jaxwgc
from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.timing import in_own_process, run_program
from jaxwgc import codes, stragglers

NUM_WORKERS = 20
AWAITED = range(15, 21)
NUM_TRIALS = 10_000
MANY_TRIALS = 100_000
# Half of a 95% interval in standard errors.
HALF_WIDTH = 1.96


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns seconds of a new process: first calls, compilation included, and more."""
    few, many = (100, 200) if quick else (NUM_TRIALS, MANY_TRIALS)
    return timed(
        [Once(in_own_process, run, seed, few, many)],
        f"Time, error and exact rounds of 5 codes x 3 delay models x {len(AWAITED)} "
        f"numbers of awaited workers, {NUM_WORKERS} workers: seconds of a new process, "
        "float32, and of NumPy in the same process. The last column counts means "
        "outside of the 95% interval of the difference from NumPy's",
        {
            "trials": lambda row: f"{row['few']:,} / {row['many']:,}",
            "NumPy": "{numpy:.2f} / {numpy_many:.2f}",
            "jaxwgc, first call": "{first:.2f}",
            "again": "{again:.2f} / {again_many:.2f}",
            "NumPy / first call": "{ratio:.1f}",
            "NumPy / again, more trials": "{ratio_many:.1f}",
            "outside": "{outside} of {means}",
        },
    )


def run(seed: int, few: int, many: int) -> Numbers:
    """Returns seconds of `jaxwgc.compare` and NumPy, and means that disagree."""
    compared_codes = all_codes(seed)
    run_jaxwgc = functools.partial(by_jaxwgc, compared_codes, seed)
    run_numpy = functools.partial(by_numpy, compared_codes, seed)
    first, _ = seconds_of(run_jaxwgc, few)
    later = []
    for _ in range(3):
        seconds, _ = seconds_of(run_jaxwgc, few)
        later.append(seconds)
    again_many, comparison = seconds_of(run_jaxwgc, many)
    numpy_seconds, _ = seconds_of(run_numpy, few)
    numpy_many, means = seconds_of(run_numpy, many)
    return {
        "few": few,
        "many": many,
        "first": first,
        "again": min(later),
        "again_many": again_many,
        "numpy": numpy_seconds,
        "numpy_many": numpy_many,
        "ratio": numpy_seconds / first,
        "ratio_many": numpy_many / again_many,
        **disagreement(comparison, means),
    }


Result = TypeVar("Result")


def seconds_of(
    function: Callable[[int], Result], num_trials: int
) -> tuple[float, Result]:
    """Returns the seconds of a study of some trials, and its result."""
    start = time.perf_counter()
    result = function(num_trials)
    return time.perf_counter() - start, result


def all_codes(seed: int) -> dict[str, jaxwgc.GradientCode]:
    """Returns the codes by name."""
    return {
        "uncoded": codes.uncoded(NUM_WORKERS),
        "repetition": codes.fractional_repetition(NUM_WORKERS, num_stragglers=3),
        "cyclic": codes.cyclic_mds(NUM_WORKERS, num_stragglers=3),
        "reed_solomon": codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, copies=4),
        "bernoulli": codes.bernoulli(jax.random.key(seed), NUM_WORKERS, NUM_WORKERS, 4),
    }


Codes = dict[str, jaxwgc.GradientCode]
# Means and standard errors, (2, quantities), by code, delay and number of workers.
Means = dict[tuple[str, str, int], np.ndarray]


def by_jaxwgc(compared: Codes, seed: int, num_trials: int) -> jaxwgc.Comparison:
    """Returns the study by this library."""
    delays = {
        "exponential": stragglers.shifted_exponential(shift=1.0, rate=1.0),
        "pareto": stragglers.pareto(scale=1.0, shape=3.0),
        "weibull": stragglers.weibull(scale=1.0, shape=0.8),
    }
    waiting = {f: stragglers.fastest(f) for f in AWAITED}
    return jaxwgc.compare(compared, delays, waiting, jax.random.key(seed), num_trials)


def by_numpy(compared: Codes, seed: int, num_trials: int) -> Means:
    """Returns means and standard errors of a study by NumPy, (2, quantities)."""
    rng = np.random.default_rng(seed)
    shape = (num_trials, NUM_WORKERS)
    results = {}
    drawn = {
        "exponential": 1 + rng.exponential(1.0, shape),
        "pareto": 1 + rng.pareto(3.0, shape),
        "weibull": rng.weibull(0.8, shape),
    }
    for delay, base in drawn.items():
        for name, code in compared.items():
            matrix = np.asarray(code.encoding_matrix)
            loads = np.asarray(code.loads)
            times = loads * base
            rank = times.argsort(axis=1).argsort(axis=1)
            in_order = np.sort(times, axis=1)
            for f in AWAITED:
                masks, mask_of_trial = np.unique(rank < f, axis=0, return_inverse=True)
                rows = np.where(masks[:, :, None], matrix, 0)
                weights = np.linalg.pinv(rows, rcond=1e-9).sum(axis=1)
                reached = np.einsum("mi,mij->mj", weights, rows)
                error_of_mask = np.sum(np.abs(reached - 1) ** 2, axis=1)
                error = error_of_mask[mask_of_trial] / code.num_parts
                trials = np.stack([in_order[:, f - 1], error, error <= 1e-6])
                spread = trials.std(axis=1, ddof=1) / np.sqrt(num_trials)
                results[name, delay, f] = np.stack([trials.mean(axis=1), spread])
    return results


def disagreement(comparison: jaxwgc.Comparison, means: Means) -> dict[str, int]:
    """Returns how many means are outside of the interval of their difference."""
    outside = 0
    for (name, delay, f), (expected, spread) in means.items():
        cell = (
            comparison.codes.index(name),
            comparison.delays.index(delay),
            comparison.waiting.index(str(f)),
        )
        summaries = (comparison.time, comparison.error, comparison.exact)
        for index, summary in enumerate(summaries):
            distance = abs(summary.mean[cell] - expected[index])
            error = np.hypot(summary.standard_error[cell], spread[index])
            # Residuals of float32 differ by up to 1e-7 from those of float64.
            if distance > HALF_WIDTH * error + 1e-6:
                outside += 1
    return {"outside": outside, "means": 3 * len(means)}


MEMORY = """
import jax, jaxwgc
from jaxwgc import codes, stragglers

num_workers, num_trials = int(sys.argv[1]), int(sys.argv[2])
code = codes.reed_solomon(num_workers, num_workers, num_workers // 5)
delay = stragglers.shifted_exponential(shift=1.0, rate=1.0)
least = num_workers - code.num_stragglers
waiting = {f: stragglers.fastest(f) for f in range(least, num_workers + 1, 3)}
key = jax.random.key(0)
jaxwgc.compare([code], [delay], waiting, key, 10)
before, start = peak(), time.perf_counter()
jaxwgc.compare([code], [delay], waiting, key, num_trials)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "before": before, "after": peak()}))
"""
MEMORY_SETTINGS = ((50, 100_000), (50, 1_000_000))


def memory(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the peak of memory of studies of many trials, in new processes."""

    def measure(num_workers, num_trials):
        measured = run_program(MEMORY, num_workers, num_trials)
        return measured | {"workers": num_workers, "trials": num_trials}

    settings = [(10, 1_000)] if quick else MEMORY_SETTINGS
    return timed(
        [Once(measure, *setting) for setting in settings],
        "Peak of memory of `jaxwgc.compare`: Reed–Solomon codes with n / 5 copies, "
        "every third number of awaited workers from n - s on",
        {
            "workers": "{workers}",
            "trials": "{trials:,}",
            "seconds": "{seconds:.1f}",
            "peak, MiB": "{after:,.0f}",
            "before, MiB": "{before:,.0f}",
        },
    )
