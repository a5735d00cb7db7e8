"""Reads times of workers from CSV, NumPy and JSON lines files."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Columns of the long form, and names of a first column that only counts the rows.
_LONG_FORM = ("step", "worker", "seconds")
_INDEX = ("", "step", "round")


def read_trace(
    path: str | Path, array: str | None = None
) -> tuple[np.ndarray, list[str] | None]:
    """Returns the times in a file and the names of its workers, None without names.

    Times are (rounds, workers), or (rounds, workers, parts) in a NumPy file.

    Raises:
      ValueError: If the file is of another type, or a row, column or array is wrong.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return np.load(path), None
    if path.suffix == ".npz":
        arrays = np.load(path)
        if array is None and len(arrays.files) == 1:
            array = arrays.files[0]
        if array not in arrays.files:
            known = ", ".join(arrays.files)
            raise ValueError(f"--array must be one of {known} in {path}; got {array}")
        return arrays[array], None
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"FILE must be .csv, .jsonl, .npy or .npz; got {path.name}")
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    header: list[str] = []
    if path.suffix == ".csv":
        rows: list[Any] = [*csv.reader(lines)]
        if rows and not any(map(_is_number, rows[0])):
            header = [name.strip() for name in rows[0]]
            rows[0] = None
    else:
        # Read as one list, so that errors name the line.
        rows = json.loads("[" + ",\n".join(lines) + "]")
        header = [*dict.fromkeys(key for row in rows for key in _keys(row))]
        rows = [[*map(row.get, header)] if _keys(row) else row for row in rows]
    columns = header or [f"{place + 1}" for place in range(len(rows[0]) if rows else 0)]
    numbered = [(line, row) for line, row in enumerate(rows, 1) if row is not None]
    for line, row in numbered:
        if not isinstance(row, list) or len(row) != len(columns):
            raise ValueError(f"row {line} must have {len(columns)} columns; got {row}")
    if {*_LONG_FORM} <= {*columns}:
        return _long_form(numbered, [columns.index(name) for name in _LONG_FORM])
    first = int(bool(header) and header[0].lower() in _INDEX)
    table = [
        [_time(cell, line, name) for name, cell in [*zip(columns, row)][first:]]
        for line, row in numbered
    ]
    return np.array(table), header[first:] or None


def _long_form(
    rows: Sequence[tuple[int, list[Any]]], places: Sequence[int]
) -> tuple[np.ndarray, list[str]]:
    """Returns a row per step and a column per worker of the long form, NaN in gaps."""
    found: dict[tuple[float, str], tuple[int, float]] = {}
    for line, row in rows:
        step, worker, seconds = (row[place] for place in places)
        key = _number(step, line, "step"), str(worker).strip()
        if key in found:
            raise ValueError(
                f"row {line} must differ from row {found[key][0]} in step or worker; "
                f"got step {step} and worker {worker}"
            )
        found[key] = line, _time(seconds, line, "seconds")
    steps = sorted({step for step, _ in found})
    names = sorted({name for _, name in found}, key=lambda name: (len(name), name))
    gap = 0, np.nan
    table = [[found.get((step, name), gap)[1] for name in names] for step in steps]
    return np.array(table), names


def _keys(row: Any) -> list[str]:
    return [*row] if isinstance(row, dict) else []


def _is_number(cell: str) -> bool:
    try:
        return np.isreal(float(cell))
    except ValueError:
        return False


def _number(cell: Any, line: int, column: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(
            f"row {line}, column {column} must be a number; got {cell!r}"
        ) from None


def _time(cell: Any, line: int, column: str) -> float:
    """Returns a time, NaN for an empty cell: there was no response."""
    return np.nan if cell in (None, "") else _number(cell, line, column)
