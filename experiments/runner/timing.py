"""Seconds of functions, with their range."""

import concurrent.futures
import json
import math
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds: median, minimum and maximum of several runs."""

    median: float
    shortest: float
    longest: float
    runs: int

    def cell(self) -> str:
        """Returns the median, and the range of several runs, for a table."""
        if self.runs == 1:
            return f"{self.median:.3g}"
        return f"{self.median:.3g} ({self.shortest:.3g}–{self.longest:.3g})"


def measure_in_turn(
    functions: Sequence[Callable[[], Any]], repeats: int, budget=math.inf, warm=False
) -> list[tuple[Any, Timing]]:
    """Returns results and times of several functions, which run in turn.

    So a machine that is busy for a while slows down all functions. A function does not
    run again if the sum of its times exceeds the budget. `warm` calls each function
    once before, for example to compile it.
    """
    if warm:
        for function in functions:
            jax.block_until_ready(function())
    results: list[Any] = [None] * len(functions)
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for index, function in enumerate(functions):
            if sum(times[index]) > budget:
                continue
            start = time.perf_counter()
            results[index] = jax.block_until_ready(function())
            times[index].append(time.perf_counter() - start)
    return [
        (result, Timing(float(np.median(runs)), min(runs), max(runs), runs=len(runs)))
        for result, runs in zip(results, times, strict=True)
    ]


def median_seconds(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Returns median times of functions, which run in turn after one call each."""
    timed = measure_in_turn(functions, repeats, warm=True)
    return [timing.median for _, timing in timed]


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of a function in a new process without a compilation cache."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _disable_cache) as process:
        return process.submit(function, *arguments).result()


def _disable_cache():
    jax.config.update("jax_enable_compilation_cache", False)


# The beginning of programs of `run_program`.
_PRELUDE = r"""
import json, pathlib, re, sys, time
import numpy as np

def peak():
    # Unlike ru_maxrss, this does not include the process that forked.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
"""


def run_program(program: str, *arguments: Any) -> dict[str, Any]:
    """Returns the JSON that a program prints in a process with its own peak memory.

    The program finds `peak()`, its largest resident set in MiB, and common imports.
    """
    command = [sys.executable, "-c", _PRELUDE + program, *map(str, arguments)]
    return json.loads(subprocess.check_output(command))
