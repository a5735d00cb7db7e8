"""Straggler reports of measured traces, and of traces with simulated stragglers."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

import jaxwgc
from experiments.delays.traces import read_traces
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable, console
from experiments.runner.timing import measure

# Kinds of the straggler, with its slowdown.
STRAGGLERS = [
    ("steady", 1.0),
    *(
        (kind, slowdown)
        for kind in ("chronic", "since")
        for slowdown in (1.1, 1.3, 2.0)
    ),
    ("intermittent", 5.0),
]
NUM_WORKERS, STRAGGLER = 10, 3
NUM_ROUNDS = 30, 300
# Lag-1 autocorrelation of the workers' speeds.
CORRELATIONS = 0.0, 0.8
# Standard deviations of the logarithms of a worker's times, and of a round's.
NOISE, COMMON_NOISE = 0.05, 0.1
# Share of rounds in which an intermittent straggler stalls.
STALLED = 0.05
SIZES = (2_000, 10), (100_000, 256), (1_000_000, 64)


def report(traces: int = 1000, seed: int = 0, out: Path = Path("results")) -> None:
    """Which workers are slow: measured traces, and simulated stragglers.

    Args:
        traces: Simulated traces of each kind of straggler.
        seed: Of the random numbers.
        out: Folder for tables, figures and numbers.
    """
    sections = {
        "measured": measured,
        "simulated": functools.partial(simulated, traces, seed),
        "speed": speed,
    }
    run("report", "Straggler reports", sections, traces, seed, out, option="traces")


class Printed(ResultTable):
    """A report as it is printed."""

    def __init__(self, text: str):
        self.text = text

    def print(self) -> None:
        console.print(self.text, highlight=False, soft_wrap=True)

    def to_markdown(self) -> str:
        return f"```text\n{self.text}\n```\n"


def measured() -> Study:
    """Returns a printed report and a picture of each trace; reports take no time."""
    reports = {
        name: jaxwgc.straggler_report(times) for name, times in read_traces().items()
    }
    return Study(
        {name: {"text": str(report)} for name, report in reports.items()},
        tables={
            name: lambda numbers, name=name: Printed(numbers[name]["text"])
            for name in reports
        },
        figures={
            name: lambda _, report=report: report.plot()
            for name, report in reports.items()
        },
    )


def draw(
    generator: np.random.Generator,
    kind: str,
    slowdown: float,
    num_rounds: int,
    correlation: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns times (rounds, workers), and those without the straggler's slowdown."""
    noise = generator.standard_normal((num_rounds, NUM_WORKERS))
    for number in range(1, num_rounds):
        noise[number] *= np.sqrt(1 - correlation**2)
        noise[number] += correlation * noise[number - 1]
    common = COMMON_NOISE * generator.standard_normal((num_rounds, 1))
    times = np.exp(NOISE * noise + common)
    is_slow = np.full(num_rounds, True)
    if kind == "since":
        is_slow = np.arange(num_rounds) >= num_rounds // 2
    if kind == "intermittent":
        is_slow = generator.random(num_rounds) < STALLED
    slowed = times.copy()
    slowed[is_slow, STRAGGLER] *= slowdown
    return slowed, times


def judge(
    kind: str,
    slowdown: float,
    num_rounds: int,
    correlation: float,
    traces: int,
    seed: int,
) -> dict[str, Any]:
    """Compares reports with what was simulated."""
    right, others, true, reported, errors = [], [], [], [], []
    for number in range(traces):
        generator = np.random.default_rng([seed, num_rounds, number])
        times, clean = draw(generator, kind, slowdown, num_rounds, correlation)
        found = jaxwgc.straggler_report(times)
        right.append(found.kinds[STRAGGLER].startswith(kind))
        # A worker that is named without being slow.
        is_steady = (np.arange(NUM_WORKERS) != STRAGGLER) | (kind == "steady")
        others.append(np.any(found.kinds[is_steady] != "steady"))
        true.append(np.mean(times.max(1) - clean.max(1)) / clean.max(1).mean())
        reported.append(found.time_lost[STRAGGLER] / clean.max(1).mean())
        errors.append(found.time_lost_error[STRAGGLER] / clean.max(1).mean())
    covered = np.abs(np.array(reported) - np.mean(true)) <= errors
    shares = {"right": right, "others": others, "covered": covered}
    times = {"true": true, "reported": reported}
    return {name: float(np.mean(each)) for name, each in (shares | times).items()}


def simulated(traces: int, seed: int) -> Study:
    """A row per kind, slowdown and number of rounds; a cell per correlation."""
    rows = [
        {
            "kind": kind,
            "slowdown": slowdown,
            "rounds": num_rounds,
            "cells": [
                Once(judge, kind, slowdown, num_rounds, correlation, traces, seed)
                for correlation in CORRELATIONS
            ],
        }
        for kind, slowdown in STRAGGLERS
        for num_rounds in NUM_ROUNDS
    ]
    return Study({"rows": rows}, tables={"simulated": tabulate})


def tabulate(numbers: Numbers) -> ResultTable:
    """Shares of traces in percent."""

    def show(row):
        first, second = row["cells"]
        is_steady = row["kind"] == "steady"
        times = (first[name] for name in ("true", "reported"))
        return {
            "straggler": row["kind"],
            "slowdown": f"{row['slowdown']:g}",
            "rounds": f"{row['rounds']}",
            "named right": f"{first['right']:.1%}",
            "others": f"{first['others']:.1%}",
            "right, correlated": f"{second['right']:.1%}",
            "others, correlated": f"{second['others']:.1%}",
            "time lost": "" if is_steady else f"{next(times):.1%}",
            "reported": "" if is_steady else f"{next(times):.1%}",
            "in its interval": "" if is_steady else f"{first['covered']:.0%}",
        }

    return ResultTable.of_records(
        f"One straggler of {NUM_WORKERS} workers whose times vary by {NOISE:.0%}: "
        "traces in which its kind is named right and in which another worker is named, "
        "for independent rounds and for an autocorrelation of "
        f"{CORRELATIONS[1]}; time lost to it, over that of a round without it",
        show,
        numbers["rows"],
    )


def speed() -> Study:
    """Seconds of a report by the size of the trace."""

    def time(num_rounds, num_workers):
        generator = np.random.default_rng(0)
        times = 1 + generator.exponential(0.1, (num_rounds, num_workers))
        _, timing = measure(lambda: jaxwgc.straggler_report(times), repeats=3)
        return {"rounds": num_rounds, "workers": num_workers, "timing": timing}

    def show(row):
        return {
            "rounds": f"{row['rounds']:,}",
            "workers": f"{row['workers']}",
            "seconds": row["timing"].cell(),
        }

    cells = {"sizes": [Once(time, *size) for size in SIZES]}
    title = "Seconds of a report: median of three runs, shortest and longest"
    return Study(
        cells,
        tables={
            "speed": lambda numbers: ResultTable.of_records(
                title, show, numbers["sizes"]
            )
        },
    )
