"""Straggler reports of measured traces, and of traces with simulated stragglers."""

import functools
import itertools
from collections.abc import Callable

import numpy as np

import jaxwgc
from experiments.delays.traces import read_traces
from experiments.runner.study import Once, Sections, Study, command, timed
from experiments.runner.tables import Printed, table_of
from experiments.runner.timing import measure_in_turn

# Kind and slowdown of the straggler.
STRAGGLERS = [
    ("steady", 1.0),
    *itertools.product(("chronic", "since"), (1.1, 1.3, 2.0)),
    ("intermittent", 5.0),
]
NUM_WORKERS = 10
STRAGGLER = 3
NUM_ROUNDS = (30, 300)
# Lag-1 autocorrelation of the workers' speeds.
CORRELATIONS = (0.0, 0.8)
# Standard deviations of the logarithms of times, by worker and by round.
NOISE = 0.05
COMMON_NOISE = 0.1
ALARM_NOISE = 0.1
# Fraction of rounds in which an intermittent straggler stalls.
STALLED = 0.05
# Synchronous training: rounds, workers, and seconds by which they leave a barrier.
NUM_BARRIERS = 300
NUM_BARRIER_WORKERS = 8
BARRIER_JITTER_SECONDS = 0.005
# Probabilities with which equal workers become slow and fast again, in a round.
SPELLS = ((0.01, 0.2), (0.01, 0.3), (0.02, 0.2), (0.03, 0.25), (0.05, 0.2), (0.05, 0.3))
SLOWDOWN_OF_SPELLS = 5.0
# Share of responses that are lost by chance.
LOST_RESPONSES = 0.05
# Words of the advice that name a worker: for its missing responses or its lost time.
NAMING_WORDS = ("Check worker", "Find out what slowed", "Measure more rounds")
# Rounds and workers of traces of equal workers.
ALARM_SIZES = ((30, 10), (300, 8), (300, 32))
SIZES = ((2_000, 10), (100_000, 256), (1_000_000, 64))


@command("report", "Straggler reports", count="traces")
def report(traces: int = 1000, seed: int = 0) -> Sections:
    """Reports slow workers of measured traces, and of simulated stragglers.

    Args:
        traces: Simulated traces of each kind of straggler.
    """
    return {
        "measured": measured,
        "unusual": functools.partial(unusual, seed),
        "synchronous": functools.partial(synchronous, seed),
        "simulated": functools.partial(simulated, traces, seed),
        "alarms": functools.partial(alarms, traces, seed),
        "speed": speed,
    }


def measured() -> Study:
    """Returns a printed report and a figure of each trace."""
    numbers = {}
    tables = {}
    figures = {}
    for name, times in read_traces().items():
        report = jaxwgc.straggler_report(times)
        numbers[name] = {"text": str(report)}
        tables[name] = lambda numbers, name=name: Printed(numbers[name]["text"])
        figures[name] = lambda numbers, report=report: report.plot()
    return Study(numbers, tables=tables, figures=figures)


def unusual(seed: int) -> Study:
    """Returns printed reports of mostly slow workers, and of one long stall."""
    generator = np.random.default_rng(seed)
    times = np.exp(NOISE * generator.standard_normal((300, 8)))
    most_slow = times.copy()
    most_slow[:, [1, 2, 4, 6, 7]] *= 2
    one_stall = times.copy()
    one_stall[17, STRAGGLER] *= 1000
    return _printed(
        {
            "most_slow": str(jaxwgc.straggler_report(most_slow)),
            "one_stall": str(jaxwgc.straggler_report(one_stall)),
        }
    )


def _printed(texts: dict[str, str]) -> Study:
    """Returns a study of printed reports."""
    return Study(
        {name: {"text": text} for name, text in texts.items()},
        tables={
            name: lambda numbers, name=name: Printed(numbers[name]["text"])
            for name in texts
        },
    )


def synchronous(seed: int) -> Study:
    """Returns printed reports of times after a barrier, and of waits at the barrier."""
    generator = np.random.default_rng(seed)
    busy = 1 + generator.exponential(0.1, (NUM_BARRIERS, NUM_BARRIER_WORKERS))
    busy[:, STRAGGLER] *= 2
    end = busy.max(axis=1, keepdims=True)
    jitter = generator.uniform(0, BARRIER_JITTER_SECONDS, busy.shape)
    texts = {
        "barrier": str(jaxwgc.straggler_report(end + jitter)),
        "waits": str(jaxwgc.straggler_report(waits=end + jitter - busy)),
    }
    return _printed(texts)


def correlated_noise(
    generator: np.random.Generator, shape: tuple[int, int], correlation: float
) -> np.ndarray:
    """Returns normal variables (rounds, workers) of a lag-1 autocorrelation."""
    noise = generator.standard_normal(shape)
    for number in range(1, len(noise)):
        noise[number] *= np.sqrt(1 - correlation**2)
        noise[number] += correlation * noise[number - 1]
    return noise


def draw(generator, kind, slowdown, num_rounds, correlation):
    """Returns times (rounds, workers), and times without the straggler's slowdown."""
    noise = correlated_noise(generator, (num_rounds, NUM_WORKERS), correlation)
    common = COMMON_NOISE * generator.standard_normal((num_rounds, 1))
    times = np.exp(NOISE * noise + common)
    first = num_rounds // 2 if kind == "since" else 0
    is_slow = np.arange(num_rounds) >= first
    if kind == "intermittent":
        is_slow = generator.random(num_rounds) < STALLED
    slowed = times.copy()
    slowed[is_slow, STRAGGLER] *= slowdown
    return slowed, times


def judge(kind, slowdown, num_rounds, correlation, traces, seed) -> dict[str, float]:
    """Compares reports with simulated traces: fractions, and means of times."""
    rows = []
    for number in range(traces):
        generator = np.random.default_rng([seed, num_rounds, number])
        times, clean = draw(generator, kind, slowdown, num_rounds, correlation)
        report = jaxwgc.straggler_report(times)
        mean = clean.max(1).mean()
        is_steady = (np.arange(NUM_WORKERS) != STRAGGLER) | (kind == "steady")
        rows.append(
            {
                "right": report.kinds[STRAGGLER] == kind,
                # Whether a worker is named that is not slow.
                "others": np.any(report.kinds[is_steady] != "steady"),
                "true": np.mean(times.max(1) - clean.max(1)) / mean,
                "reported": report.time_lost[STRAGGLER] / mean,
                "error": report.time_lost_error[STRAGGLER] / mean,
            }
        )
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    distance = abs(columns["reported"] - columns["true"].mean())
    columns["covered"] = distance <= columns.pop("error")
    return {name: np.mean(values) for name, values in columns.items()}


def simulated(traces: int, seed: int) -> Study:
    """Returns a row per kind, slowdown and number of rounds."""

    def row(rounds, kind, slowdown):
        cells = [
            Once(judge, kind, slowdown, rounds, correlation, traces, seed)
            for correlation in CORRELATIONS
        ]
        return {"kind": kind, "slowdown": slowdown, "rounds": rounds, "cells": cells}

    def of_stragglers(template):
        def column(row):
            if row.kind == "steady":
                return ""
            return template.format(**row.cells[0])

        return column

    rows = []
    for kind, slowdown in STRAGGLERS:
        for num_rounds in NUM_ROUNDS:
            rows.append(row(num_rounds, kind, slowdown))
    table = table_of(
        f"One straggler of {NUM_WORKERS} workers with times that vary by {NOISE:.0%}: "
        "traces in which its kind is named correctly and in which another worker is "
        f"named, for independent rounds and for an autocorrelation of {CORRELATIONS[1]}"
        "; time lost to it, relative to a round without it",
        {
            "straggler": "{kind}",
            "slowdown": "{slowdown:g}",
            "rounds": "{rounds}",
            "named correctly": "{cells[0][right]:.1%}",
            "others": "{cells[0][others]:.1%}",
            "correctly, correlated": "{cells[1][right]:.1%}",
            "others, correlated": "{cells[1][others]:.1%}",
            "time lost": of_stragglers("{true:.1%}"),
            "reported": of_stragglers("{reported:.1%}"),
            "in its interval": of_stragglers("{covered:.0%}"),
        },
        "rows",
    )
    return Study({"rows": rows}, tables={"simulated": table})


def normal_times(generator, shape, correlation):
    """Returns log-normal times of equal workers."""
    return np.exp(ALARM_NOISE * correlated_noise(generator, shape, correlation))


def times_with_spells(generator, shape, becomes_slow, becomes_fast):
    """Returns times of equal workers that switch between two states."""
    num_rounds, num_workers = shape
    share = becomes_slow / (becomes_slow + becomes_fast)
    is_slow = generator.random(num_workers) < share
    times = normal_times(generator, shape, correlation=0.0)
    for number in range(num_rounds):
        draws = generator.random(num_workers)
        is_slow = np.where(is_slow, draws >= becomes_fast, draws < becomes_slow)
        times[number, is_slow] *= SLOWDOWN_OF_SPELLS
    return times


def times_with_losses(generator, shape):
    """Returns log-normal times of equal workers that lose responses by chance."""
    times = normal_times(generator, shape, correlation=0.0)
    times[generator.random(shape) < LOST_RESPONSES] = np.nan
    return times


# Times of equal workers, from a generator and a shape.
EQUAL_WORKERS: dict[str, Callable[..., np.ndarray]] = {
    "log-normal": functools.partial(normal_times, correlation=0.0),
    "log-normal, autocorrelation 0.5": functools.partial(normal_times, correlation=0.5),
    "log-normal, autocorrelation 0.8": functools.partial(normal_times, correlation=0.8),
    f"log-normal, {LOST_RESPONSES:.0%} of the responses lost": times_with_losses,
    "exponential": lambda generator, shape: generator.exponential(size=shape),
    "Pareto, shape 1.5": lambda generator, shape: 1 + generator.pareto(1.5, shape),
}
for becomes_slow, becomes_fast in SPELLS:
    name = f"slow spells, {becomes_slow:g} and {becomes_fast:g}"
    EQUAL_WORKERS[name] = functools.partial(
        times_with_spells, becomes_slow=becomes_slow, becomes_fast=becomes_fast
    )


def alarm_rate(law, size, traces, seed) -> float:
    """Returns the fraction of reports of equal workers that name any of them."""
    num_alarms = 0
    for number in range(traces):
        generator = np.random.default_rng([seed, *size, number])
        report = jaxwgc.straggler_report(EQUAL_WORKERS[law](generator, size))
        is_in_advice = any(words in report.advice for words in NAMING_WORDS)
        if is_in_advice or np.any(report.kinds != "steady"):
            num_alarms += 1
    return num_alarms / traces


def alarms(traces: int, seed: int) -> Study:
    """Returns a row per law of the times of equal workers."""
    rows = []
    for law in EQUAL_WORKERS:
        rates = [Once(alarm_rate, law, size, traces, seed) for size in ALARM_SIZES]
        rows.append({"law": law, "rates": rates})
    columns = {"times": "{law}"}
    for index, (num_rounds, num_workers) in enumerate(ALARM_SIZES):
        columns[f"{num_rounds} rounds of {num_workers}"] = f"{{rates[{index}]:.1%}}"
    table = table_of(
        "False alarms: fraction of reports of equal workers that name any of them, "
        "by its kind or in the advice. "
        f"Times vary by {ALARM_NOISE:.0%}. In a slow spell, a worker takes "
        f"{SLOWDOWN_OF_SPELLS:g} times as long; in each round, workers become slow and "
        "fast again with the two probabilities",
        columns,
        "rows",
    )
    return Study({"rows": rows}, tables={"alarms": table})


def speed() -> Study:
    """Returns the seconds of a report by the size of the trace."""

    def time(num_rounds, num_workers):
        generator = np.random.default_rng(0)
        times = 1 + generator.exponential(0.1, (num_rounds, num_workers))
        report = functools.partial(jaxwgc.straggler_report, times)
        [(_, timing)] = measure_in_turn([report], repeats=3)
        return {"rounds": num_rounds, "workers": num_workers, "timing": timing}

    return timed(
        [Once(time, *size) for size in SIZES],
        "Seconds of a report: median of three runs, shortest and longest",
        {"rounds": "{rounds:,}", "workers": "{workers}", "seconds": "{timing}"},
    )
