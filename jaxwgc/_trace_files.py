"""Reads times of workers from CSV, NumPy and JSON lines files."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxwgc._validation import require

# Column names of the long form, and of columns that hold no times of a worker.
_LONG_FORM = ("step", "worker", "seconds")
_NO_WORKERS = """step global_step round iter iteration batch epoch time timestamp date
    loss""".split()
# Names of a worker's seconds among the metrics that `JsonLines` writes.
_METRIC = re.compile(r"worker/(\d+)/seconds")


def read_trace(
    path: str | Path, array: str | None = None
) -> tuple[np.ndarray, list[str] | None]:
    """Reads times of workers and their names (None if there are none) from a file.

    Times are (rounds, workers), or (rounds, workers, parts) in a NumPy file.

    Raises:
      ValueError: If the file type is unknown, or a row, column or array is invalid.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return np.load(path), None
    if path.suffix == ".npz":
        arrays = np.load(path)
        if array is None and len(arrays.files) == 1:
            array = arrays.files[0]
        rule = f"be one of {', '.join(arrays.files)} in {path}"
        require(array in arrays.files, "--array", rule, array)
        return arrays[array], None
    is_known = path.suffix in (".csv", ".jsonl")
    require(is_known, "FILE", "be .csv, .jsonl, .npy or .npz", path.name)
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    first_line, names = 1, []
    if path.suffix == ".csv":
        rows = [*csv.reader(lines)]
        if rows and _is_header(rows[0]):
            first_line, names = 2, [name.strip() for name in rows.pop(0)]
    else:
        # All lines are parsed as one list, so that errors name the line.
        rows = json.loads("[" + ",\n".join(lines) + "]")
        if rows and isinstance(rows[0], dict):
            keys = [*dict.fromkeys(key for row in rows for key in row)]
            keys = [*filter(_METRIC.fullmatch, keys)] or keys
            rows = [[*map(row.get, keys)] for row in rows]
            names = [_METRIC.sub(r"\1", key) for key in keys]
    columns = names or [*map(str, range(1, 1 + max(map(len, rows[:1]), default=0)))]
    for line, row in enumerate(rows, first_line):
        rule = f"have {len(columns)} columns"
        require(len(row) == len(columns), f"row {line}", rule, len(row))
    lower = [name.lower() for name in names]
    if {"worker", "seconds"} & {*lower}:
        rule = f"have the columns {', '.join(_LONG_FORM)}"
        is_right = {*_LONG_FORM} <= {*lower}
        require(is_right, "a file of one row per time", rule, names)
        places = [lower.index(name) for name in _LONG_FORM]
        return _long_form([[row[at] for at in places] for row in rows], first_line)
    if lower and not lower[0]:
        # Tables are often written with row numbers in a first column without a name.
        lower[0] = "step"
    kept = [at for at, name in enumerate(lower or columns) if name not in _NO_WORKERS]
    workers = [columns[at] for at in kept]
    is_right = all(workers) and len({*workers}) == len(workers)
    require(is_right, "row 1", "name each worker exactly once", workers)
    table = [
        [_time(row[at], line, columns[at]) for at in kept]
        for line, row in enumerate(rows, first_line)
    ]
    return np.array(table), workers if names else None


def _long_form(
    rows: Sequence[Sequence[Any]], first_line: int
) -> tuple[np.ndarray, list[str]]:
    """Converts rows to an array (steps, workers) and worker names; gaps are NaN."""
    found: dict[tuple[float, str], float] = {}
    for line, (step, worker, seconds) in enumerate(rows, first_line):
        is_named = worker not in (None, "")
        require(is_named, f"row {line}, column worker", "name a worker", worker)
        key = _checked(step, line, "step"), str(worker).strip()
        given = f"step {step} and worker {worker} again"
        require(key not in found, f"row {line}", "be of another step or worker", given)
        found[key] = _time(seconds, line, "seconds")
    steps = sorted({step for step, _ in found})
    names = sorted({name for _, name in found}, key=lambda name: (len(name), name))
    table = [[found.get((step, name), np.nan) for name in names] for step in steps]
    return np.array(table), names


def _is_header(row: Sequence[str]) -> bool:
    """Returns whether a row is a header: names, or consecutive worker numbers."""
    cells = [cell.strip() for cell in row]
    # The first column may hold row numbers.
    workers = cells[bool(cells) and cells[0].lower() in ("", *_NO_WORKERS) :]
    numbers = [*map(str, range(len(workers) + 1))]
    is_numbered = len(workers) > 1 and workers in (numbers[:-1], numbers[1:])
    return is_numbered or all(_number(cell) is None for cell in cells)


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _checked(cell: Any, line: int, column: str) -> Any:
    number, name = _number(cell), f"row {line}, column {column}"
    require(number is not None, name, "be a number", repr(cell))
    return number


def _time(cell: Any, line: int, column: str) -> float:
    """Parses a time; an empty cell means no response and gives NaN."""
    return np.nan if cell in (None, "") else _checked(cell, line, column)
