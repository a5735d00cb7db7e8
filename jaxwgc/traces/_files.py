"""Reads times of workers from text, JSON, parquet and NumPy files."""

import codecs
import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.traces._column_names import (
    FileOptions,
    form_of,
    is_of_tensorboard,
    is_step_name,
    is_worker_name,
)
from jaxwgc.traces._frames import MIN_INCREASES, WorkerTimes, times_of
from jaxwgc.traces._logs import read_megatron, read_profile

_TEXT_FILES = (".csv", ".tsv", ".txt", ".log")
_JSON_FILES = (".jsonl", ".ndjson")
_PROFILES = (".json", ".json.gz")
_PARQUET_FILES = (".parquet",)
_NUMPY_FILES = (".npy", ".npz")
# Endings of file names that do not belong to the name of a worker. There may be several
# endings, as in "rank0.pt.trace.json".
ENDINGS = (
    *_TEXT_FILES,
    *_JSON_FILES,
    *_PROFILES,
    *_PARQUET_FILES,
    *_NUMPY_FILES,
    ".pt.trace",
)
# Delimiters of text files, in order of preference. Spaces delimit cells if the first
# line has none of them.
_DELIMITERS = ("\t", ";", "|", ",")
_SPACES = r"\s+"
# Lines without data: blank lines, comments, and lines such as "sep=;" for Excel.
_NO_DATA = re.compile(r"\s*(#.*|sep=.)?\s*", re.IGNORECASE)
# A number with a decimal point, with or without groups of three digits.
_NUMBER = re.compile(
    r"[+-]?(\d*\.?\d+([eE][+-]?\d+)?|\d+\.|[1-9]\d{0,2}(,\d{3})+(\.\d*)?|nan|inf)"
)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")
_SWAPPED_MARKS = str.maketrans(".,", ",.")


def read_trace(path: str | Path, options: FileOptions) -> WorkerTimes:
    """Reads the times of workers from a file that has times at one load only.

    Raises:
      ImportError: If the file is no NumPy file and pandas is not installed.
      ValueError: If the type of the file, a column, a row or a cell is wrong, or the
        file has a column of several loads.
    """
    traces = read_traces(path, options)
    if len(traces) > 1:
        loads = ", ".join(f"{load:g}" for load in traces)
        raise ValueError(
            f"{path} must have times at one load; got the loads {loads} in a column "
            "load. Keep the rows of one load (python -m jaxwgc plan takes all loads), "
            "or rename the column if it holds no loads"
        )
    (trace,) = traces.values()
    return trace


def read_traces(
    path: str | Path, options: FileOptions
) -> dict[float | None, WorkerTimes]:
    """Reads the times of workers from a file, for each load in a column `load`.

    Returns:
      Times by load, in the order of loads; by None without a column of loads.

    Raises:
      ImportError: If the file is no NumPy file and pandas is not installed.
      ValueError: If the type of the file, a column, a row or a cell is wrong.
    """
    path = Path(path)
    if path.suffix.lower() in _NUMPY_FILES:
        times = _read_numpy(path, options.array)
        if times.ndim == 2:
            _check_is_no_step(times[:, 0])
        workers = [str(worker) for worker in range(times.shape[1])]
        trace = WorkerTimes(
            times=times,
            workers=workers,
            steps=np.arange(len(times)),
            has_steps=False,
        )
        return {None: trace}
    table = read_table(path, options)
    if _is_of_one_worker(table.frame):
        raise ValueError(
            f"{path.name} must have times of several workers; got times of one worker. "
            "Give the files of all workers, e.g. python -m jaxwgc report rank0.csv "
            "rank1.csv"
        )
    traces = {}
    for load, frame in _tables_by_load(table.frame).items():
        form = form_of(list(frame.columns), options)
        trace = times_of(frame, form, options)
        # Columns without names are called "0", "1", ...: the first may count steps.
        if all(name.isdecimal() for name in frame.columns):
            _check_is_no_step(trace.times[:, 0])
        traces[load] = trace
    # Notes on skipped lines concern the whole file. One trace is enough to show them.
    load, trace = next(iter(traces.items()))
    traces[load] = trace._replace(notes=(*trace.notes, *table.notes))
    return traces


class Table(NamedTuple):
    """Table of times from a file, and notes on the lines that were skipped.

    Attributes:
      frame: DataFrame with the number of each line as its index.
      notes: Sentences about lines that were skipped.
    """

    frame: Any
    notes: tuple[str, ...] = ()


def read_table(path: Path, options: FileOptions) -> Table:
    """Reads a table from a text, JSON or parquet file.

    Raises:
      ImportError: If pandas, or what it needs for parquet, is not installed.
      ValueError: If the type of the file or a row is wrong, or it has several runs.
    """
    name = path.name.lower()
    known = (*_TEXT_FILES, *_JSON_FILES, *_PROFILES, *_PARQUET_FILES)
    if not name.endswith(known):
        raise ValueError(
            f"FILE must end with {', '.join((*known, *_NUMPY_FILES))}; got {path.name}"
        )
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"pandas is needed to read {path.name}: in a checkout, "
            "pip install '.[report]'"
        ) from error
    if name.endswith(_PROFILES):
        table = Table(pandas.DataFrame(read_profile(path)))
    elif name.endswith(_PARQUET_FILES):
        try:
            frame = pandas.read_parquet(path)
        except ImportError as error:
            raise ImportError(
                f"pyarrow is needed to read {path.name}: pip install pyarrow"
            ) from error
        names = [str(name) for name in frame.columns]
        table = Table(frame.set_axis(names, axis="columns"))
    elif name.endswith(_JSON_FILES):
        table = _read_json_lines(path, options)
    else:
        table = _read_text(path, options)
    if table.frame.empty:
        raise ValueError(f"{path.name} must have rows of times; got none")
    return table


def _is_of_one_worker(frame: Any) -> bool:
    """Returns whether a table has the columns of a file of one worker."""
    names = list(frame.columns)
    return is_of_tensorboard(names) or names == ["step", "seconds"]


def _tables_by_load(frame: Any) -> dict[float | None, Any]:
    """Splits a table by its column of loads; without it, the only key is None."""
    names = [name for name in frame.columns if _is_load(name)]
    if len(names) != 1:
        return {None: frame}
    import pandas

    (name,) = names
    loads: Any = pandas.to_numeric(frame[name], errors="coerce")
    is_load = (loads >= 0) & (loads < np.inf)
    if not is_load.all():
        row = is_load.idxmin()
        raise ValueError(
            f"row {row}, column {name} must be a load of at least 0; got "
            f"{frame[name][row]}. Rename the column if it holds no loads"
        )
    tables = frame.drop(columns=name).groupby(loads)
    return {float(load): table for load, table in tables}


def _is_load(name: str) -> bool:
    """Returns whether a column of this name holds loads."""
    return name.lower() == "load"


def _read_numpy(path: Path, name: str | None) -> np.ndarray:
    """Reads an array of times from an .npy file, or by its name from an .npz file."""
    try:
        content: Any = np.load(path)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path.name} must be a NumPy file with an array of numbers; {error}"
        ) from error
    if not isinstance(content, np.ndarray):
        arrays = dict(content)
        if name is None and len(arrays) == 1:
            (name,) = arrays
        if name not in arrays:
            raise ValueError(
                f"--array must name an array of {path}, one of {', '.join(arrays)}; "
                f"got {name}"
            )
        content = arrays[name]
    if content.ndim not in (2, 3) or content.size == 0:
        raise ValueError(
            f"{path.name} must have times (rounds, workers) or (rounds, workers, "
            f"parts); got shape {content.shape}"
        )
    return content


def _read_json_lines(path: Path, options: FileOptions) -> Table:
    """Reads a file of JSON lines: each line has a list of times, or an object."""
    import pandas

    rows: dict[int, Any] = {}
    num_bad_lines = 0
    is_cut = False
    with path.open(encoding=_encoding(path), errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if _NO_DATA.fullmatch(line):
                continue
            row: Any = None
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                pass
            first = next(iter(rows.values()), row)
            is_row = isinstance(row, list | dict) and type(row) is type(first)
            if is_row and (isinstance(row, dict) or len(row) == len(first)):
                rows[number] = row
            elif rows and not line.endswith("\n"):
                # The last line is not complete: another process is writing the file.
                is_cut = True
            elif options.skip_bad_rows:
                num_bad_lines += 1
            else:
                raise ValueError(
                    f"row {number} must be JSON: a list of as many times as in the "
                    f"first row, or an object like the first row; got {line.strip()}"
                )
    if any(isinstance(row, dict) and row.get("late") for row in rows.values()):
        _put_late_times(rows.values())
    frame = pandas.DataFrame(list(rows.values()), index=list(rows))
    names = [str(name) for name in frame.columns]
    frame = frame.set_axis(names, axis="columns").drop(columns="late", errors="ignore")
    _check_is_one_run(path, frame)
    return Table(frame, _notes_on_lines(num_bad_lines, is_cut=is_cut))


def _put_late_times(rows: Iterable[dict[str, Any]]) -> None:
    """Moves times of late responses to the rows of their steps."""
    by_step = {row.get("step"): row for row in rows}
    for row in list(by_step.values()):
        for worker, step, seconds in row.get("late") or ():
            if step in by_step:
                by_step[step][f"worker/{worker}/seconds"] = seconds


def _check_is_one_run(path: Path, frame: Any) -> None:
    """Raises ValueError if a file of `JsonLines` has the steps of several runs."""
    if "run" in frame.columns and frame["run"].nunique() > 1:
        runs = ", ".join(str(run) for run in frame["run"].unique())
        raise ValueError(
            f"{path.name} must have the steps of one run; got the runs {runs}. Keep "
            "the lines of one run"
        )


def _notes_on_lines(num_bad_lines: int, *, is_cut: bool) -> tuple[str, ...]:
    """Returns sentences about lines that were skipped."""
    notes = ()
    if num_bad_lines:
        notes += (f"skipped rows that cannot be read: {num_bad_lines}",)
    if is_cut:
        notes += ("skipped the last line, which is not finished",)
    return notes


class _TextLayout(NamedTuple):
    """Lines with times, and column names, of a text file.

    Attributes:
      delimiter: Delimiter of cells, or `_SPACES`.
      names: Name of each column; "0", "1", ... without a header.
      lines: Lines with times, without the header, comments, blank and bad lines.
      line_numbers: Number of each of these lines, from 1.
      num_bad_lines: Number of lines with another number of cells.
      is_cut: Whether the last line was skipped, since it is not finished.
    """

    delimiter: str
    names: list[str]
    lines: list[str]
    line_numbers: list[int]
    num_bad_lines: int
    is_cut: bool


def _read_text(path: Path, options: FileOptions) -> Table:
    """Reads a log of Megatron, or a text file with a delimiter."""
    import pandas

    with path.open(encoding=_encoding(path), errors="replace") as file:
        rows = read_megatron(file)
    if rows is not None:
        return Table(pandas.DataFrame(rows))
    layout = _text_layout(path, options.skip_bad_rows)
    names = layout.names
    # Names of workers stay text: "1.10" is not the number 1.1.
    workers = [
        place
        for place, name in enumerate(names)
        if is_worker_name(name) or name == options.worker
    ]
    # If commas do not separate cells, they may be decimal marks. Cells are then read as
    # text, and converted below.
    has_marks = options.decimal is not None or layout.delimiter not in (",", _SPACES)
    frame: Any = pandas.read_csv(
        io.StringIO("".join(layout.lines)),
        sep=layout.delimiter,
        header=None,
        names=range(len(names)),
        index_col=False,
        skipinitialspace=True,
        dtype=str if has_marks else dict.fromkeys(workers, str),
    )
    if len(frame) != len(layout.line_numbers):
        raise ValueError(
            f"{path.name} must have one row per line; got a cell of several lines"
        )
    frame.index = pandas.Index(layout.line_numbers)
    if options.decimal is None and has_marks:
        counts = np.array([is_step_name(name) or _is_load(name) for name in names])
        _check_points_are_decimal(frame.loc[:, counts])
        _check_points_are_decimal(frame.loc[:, ~counts])
    for place in frame.columns.difference(workers):
        if frame[place].dtype.kind not in "iufb":
            frame[place] = frame[place].map(
                lambda cell: _number(cell, options.decimal), na_action="ignore"
            )
    notes = _notes_on_lines(layout.num_bad_lines, is_cut=layout.is_cut)
    return Table(frame.set_axis(names, axis="columns"), notes)


def _text_layout(path: Path, skip_bad_rows: bool) -> _TextLayout:
    """Divides a text file into lines and columns.

    Raises:
      ValueError: If the file is empty, or lines differ in their number of cells.
    """
    delimiter = _SPACES
    names: list[str] = []
    comment = ""
    lines = []
    line_numbers = []
    num_bad_lines = 0
    is_cut = False
    with path.open(encoding=_encoding(path), errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if _NO_DATA.fullmatch(line):
                comment = line
                continue
            if not names:
                delimiter = _delimiter(line)
                names = _cells(line, delimiter)
                if _is_header(names):
                    continue
                # `numpy.savetxt` writes column names as a comment above the rows.
                commented = _cells(comment.strip("# \n"), delimiter)
                if len(commented) == len(names) and _is_header(commented):
                    names = commented
                else:
                    names = [str(at) for at in range(len(names))]
            num_cells = len(_cells(line, delimiter))
            if num_cells == len(names):
                lines.append(line)
                line_numbers.append(number)
            elif lines and not line.endswith("\n"):
                # The last line is not complete: another process is writing the file.
                is_cut = True
            elif skip_bad_rows:
                num_bad_lines += 1
            else:
                raise ValueError(
                    f"row {number} must have {len(names)} columns, like the first "
                    f"row; got {num_cells}"
                )
    if not line_numbers:
        raise ValueError(f"{path.name} must have rows of times; got none")
    return _TextLayout(
        delimiter=delimiter,
        names=names,
        lines=lines,
        line_numbers=line_numbers,
        num_bad_lines=num_bad_lines,
        is_cut=is_cut,
    )


def _encoding(path: Path) -> str:
    """Returns the encoding of a text file; raises ValueError if it is binary."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in start:
        raise ValueError(
            f"{path.name} must be text in UTF-8 or UTF-16; got a binary file"
        )
    return "utf-8-sig"


def _delimiter(line: str) -> str:
    """Finds the delimiter of cells in the first line."""
    words = line.split()
    if len(words) > 1 and "\t" not in line and all(map(_may_be_number, words)):
        # All words are numbers, and their commas may be decimal marks.
        return _SPACES
    return next((mark for mark in _DELIMITERS if mark in line), _SPACES)


def _cells(line: str, delimiter: str) -> list[str]:
    """Divides a line into cells."""
    if delimiter == _SPACES:
        return line.split()
    cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    return [cell.strip() for cell in cells]


def _is_header(cells: list[str]) -> bool:
    """Returns whether the cells of the first row are column names."""
    workers = cells[1:] if cells[0] == "" else cells
    counts = [[str(first + at) for at in range(len(workers))] for first in (0, 1)]
    if len(workers) > 1 and workers in counts:
        return True
    return not all(cell == "" or _may_be_number(cell) for cell in cells)


def _may_be_number(cell: str) -> bool:
    """Returns whether a cell holds a number, with any decimal mark, or NaN."""
    if cell.endswith(","):
        return False
    texts = (cell, cell.translate(_SWAPPED_MARKS))
    return any(_NUMBER.fullmatch(text) for text in texts)


def _number(cell: str, decimal: str | None) -> float | str:
    """Converts a cell to a number, or returns a cell that is no number unchanged.

    Raises:
      ValueError: If it is a number with other marks of decimals and thousands.
    """
    text = cell.strip()
    if not _may_be_number(text):
        return cell
    if decimal == ",":
        text = text.translate(_SWAPPED_MARKS)
    if not _NUMBER.fullmatch(text) or (decimal is None and "," in text):
        raise ValueError(
            f"numbers must have the decimal mark {decimal or '.'!r}; got {cell!r}. "
            "Choose the mark by --decimal , or --decimal ."
        )
    text = text.replace(",", "")
    return int(text) if text.isdecimal() else float(text)


def _check_points_are_decimal(texts: Any) -> None:
    """Raises ValueError if points may separate thousands."""
    cells = [cell for cell in texts.stack().dropna() if _NUMBER.fullmatch(cell.strip())]
    marked = [cell for cell in cells if "." in cell]
    if 0 < len(marked) < len(cells) and all(
        _GROUPED.fullmatch(cell.strip()) for cell in marked
    ):
        raise ValueError(
            "the decimal mark must be known, since points may separate thousands; got "
            f"{marked[0]!r}. Choose the mark by --decimal , or --decimal ."
        )


def _check_is_no_step(column: np.ndarray) -> None:
    """Raises ValueError if the first column seems to count steps."""
    if len(column) < 3 or column.dtype.kind not in "iuf":
        return
    increases = np.diff(column)
    counts = np.all(increases == increases[0]) and increases[0] > 0
    if counts or (len(column) > MIN_INCREASES and np.all(increases > 0)):
        raise ValueError(
            "the first column must not count steps if columns have no names; got a "
            "first column that increases in each row. Leave out this column, or add a "
            "first row such as step,host0,host1"
        )
