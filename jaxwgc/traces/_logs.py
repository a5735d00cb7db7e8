"""Step times in logs of Megatron and in traces of PyTorch's profiler."""

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Lines in logs of Megatron-LM that have an iteration, a timer, or the time of a rank.
_ELAPSED_WORDS = "elapsed time per iteration (ms):"
_ITERATION = re.compile(r"\biteration +(\d+)/")
_TIMER = re.compile(r"\s+([\w-]+):\s*")
_OF_RANK = re.compile(r"\s+rank +(\d+): ([\d.]+)\s*")
# Timers that measure only a rank's own work. Logs without these timers have a timer of
# the whole pass, which includes some waiting.
_OWN_TIMERS = ("forward-compute", "backward-compute")
_WHOLE_TIMER = "forward-backward"
# Names of steps and of collective operations in traces of PyTorch's profiler.
_STEP = re.compile(r"ProfilerStep#(\d+)")
_COLLECTIVE = re.compile(r"nccl|gloo|c10d::|all_?reduce|all_?gather|reduce_?scatter")
# Category of events on the GPU that repeat the step events of the host.
_ON_GPU = "gpu_user_annotation"
_MICROSECONDS = 1e-6
_MILLISECONDS = 1e-3


def read_megatron(lines: Iterable[str]) -> list[dict[str, Any]] | None:
    """Reads step times from a log of Megatron-LM; returns None for any other text.

    Args:
      lines: Lines of the log.

    Returns:
      Rows with `step`, `rank` and `seconds`.

    Raises:
      ValueError: If the log does not have the times of all ranks.
    """
    steps: list[int] = []
    of_ranks: list[dict[str, Any]] = []
    step = 0
    timer = ""
    for line in lines:
        if _ELAPSED_WORDS in line:
            iteration = _ITERATION.search(line)
            if iteration is not None:
                step = int(iteration[1])
                if steps and step <= steps[-1]:
                    # Training that starts again from a checkpoint repeats steps. Their
                    # earlier times are dropped.
                    of_ranks = [row for row in of_ranks if row["step"] < step]
                steps.append(step)
        elif not steps:
            continue
        elif timer_line := _TIMER.fullmatch(line):
            timer = timer_line[1]
        elif of_rank := _OF_RANK.fullmatch(line):
            if timer in (*_OWN_TIMERS, _WHOLE_TIMER):
                row = {"step": step, "rank": int(of_rank[1]), "timer": timer}
                of_ranks.append(row | {"seconds": _MILLISECONDS * float(of_rank[2])})
    if not steps:
        return None
    if not of_ranks:
        raise ValueError(
            "a log of Megatron must have the times of all ranks: train with "
            "--timing-log-option all --timing-log-level 2. The elapsed time of an "
            "iteration includes the wait for the slowest rank"
        )
    return _summed(of_ranks)


def _summed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the time of a rank's own work, summed over timers, for each step."""
    timers = {row["timer"] for row in rows}
    chosen = timers.intersection(_OWN_TIMERS) or {_WHOLE_TIMER}
    sums: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["timer"] in chosen:
            place = row["step"], row["rank"]
            sums[place] = sums.get(place, 0.0) + row["seconds"]
    return [
        {"step": step, "rank": rank, "seconds": seconds}
        for (step, rank), seconds in sums.items()
    ]


def read_profile(path: Path) -> list[dict[str, Any]]:
    """Reads step times, without waits for other ranks, from a PyTorch profile.

    The time in which a collective runs alone, without a kernel or, on a CPU, without
    another operator, is the wait for other ranks, and is subtracted.

    Args:
      path: Trace of one rank (`export_chrome_trace`), .json or .json.gz.

    Returns:
      Rows with `step` and `seconds`.

    Raises:
      ValueError: If the file is no such trace, or has no steps.
    """
    is_packed = path.suffix == ".gz"
    text = gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path.name} must be a trace of PyTorch's profiler, in JSON; {error}. If "
            "the file has one object per line, rename it to .jsonl"
        ) from error
    events = content.get("traceEvents", []) if isinstance(content, dict) else []
    whole = [event for event in events if event.get("ph") == "X" and "dur" in event]
    steps = [
        (int(match[1]), event)
        for event in whole
        if (match := _STEP.fullmatch(event["name"])) and event.get("cat") != _ON_GPU
    ]
    if not steps:
        raise ValueError(
            f"{path.name} must have events ProfilerStep#N of PyTorch's profiler: call "
            "profiler.step() in each step, with a schedule"
        )
    kernels = [event for event in whole if event.get("cat") == "kernel"]
    work = kernels or [event for event in whole if event.get("cat") == "cpu_op"]
    in_collectives = _intervals([event for event in whole if _is_collective(event)])
    in_others = _intervals([event for event in work if not _is_collective(event)])
    rows = []
    for step, event in sorted(steps, key=lambda item: item[0]):
        ends = np.array([[event["ts"], event["ts"] + event["dur"]]])
        in_step = _common(in_collectives, ends)
        waited = _length(in_step) - _length(_common(in_step, in_others))
        rows.append({"step": step, "seconds": _MICROSECONDS * (event["dur"] - waited)})
    return rows


def _is_collective(event: dict[str, Any]) -> bool:
    """Returns whether an event is a collective operation."""
    return _COLLECTIVE.search(event["name"].lower()) is not None


def _intervals(events: Sequence[dict[str, Any]]) -> np.ndarray:
    """Merges the times of events into disjoint intervals, in order."""
    times = sorted((event["ts"], event["ts"] + event["dur"]) for event in events)
    union: list[list[float]] = []
    for start, end in times:
        if union and start <= union[-1][1]:
            union[-1][1] = max(union[-1][1], end)
        else:
            union.append([start, end])
    return np.array(union).reshape(-1, 2)


def _common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersects two sorted lists of disjoint intervals."""
    parts = []
    place = 0
    for start, end in first:
        while place < len(second) and second[place, 1] <= start:
            place += 1
        at = place
        while at < len(second) and second[at, 0] < end:
            parts.append([max(start, second[at, 0]), min(end, second[at, 1])])
            at += 1
    return np.array(parts).reshape(-1, 2)


def _length(intervals: np.ndarray) -> float:
    """Sums the lengths of intervals."""
    return float(np.sum(intervals[:, 1] - intervals[:, 0]))
