"""Seconds of functions, with their range."""

import concurrent.futures
import math
import multiprocessing
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


def measure(
    function: Callable[[], Any],
    repeats: int,
    budget: float = math.inf,
    warm: Callable[[], Any] | None = None,
) -> tuple[Any, Timing]:
    """Returns the result and its times; stops if their sum exceeds the budget.

    `warm` is called first and not timed, for example to compile the function.
    """
    if warm is not None:
        jax.block_until_ready(warm())
    return measure_in_turn([function], repeats, budget)[0]


def measure_in_turn(
    functions: Sequence[Callable[[], Any]], repeats: int, budget: float = math.inf
) -> list[tuple[Any, Timing]]:
    """Returns results and times of several functions, which run in turn.

    So a machine that is busy for a while slows down all functions.
    """
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
    for function in functions:
        jax.block_until_ready(function())
    timed = measure_in_turn(functions, repeats)
    return [timing.median for _, timing in timed]


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of a function in a new process without a compilation cache."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _disable_cache) as process:
        return process.submit(function, *arguments).result()


def _disable_cache():
    jax.config.update("jax_enable_compilation_cache", False)
