"""Reads times of workers from CSV, JSON lines and NumPy files."""

import codecs
import csv
import importlib.util
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.traces._column_names import (
    ColumnOptions,
    LongForm,
    WideForm,
    form_of,
    is_step_name,
)
from jaxwgc.traces._frames import MIN_INCREASES, WorkerTimes, times_of

_TEXT_FILES = (".csv", ".tsv", ".txt")
_JSON_FILES = (".jsonl", ".ndjson")
_NUMPY_FILES = (".npy", ".npz")
# Delimiters of text files. The first one that occurs in the first line is used, and
# spaces if none occurs.
_DELIMITERS = ("\t", ";", "|", ",")
# Numbers with a decimal point or a decimal comma, with or without groups of three
# digits.
_POINT_NUMBER = re.compile(
    r"[+-]?(\d*\.?\d+([eE][+-]?\d+)?|\d+\.|[1-9]\d{0,2}(,\d{3})+(\.\d*)?)"
)
_COMMA_NUMBER = re.compile(
    r"[+-]?(\d*,?\d+([eE][+-]?\d+)?|[1-9]\d{0,2}(\.\d{3})+(,\d*)?)"
)
# Excel reads a first line such as "sep=;" as the delimiter.
_EXCEL_DELIMITER = re.compile(r"sep=.", re.IGNORECASE)


class FileOptions(NamedTuple):
    """Options for reading a file of times.

    Attributes:
      columns: Columns that the user has chosen.
      array: Name of the array in an .npz file.
      decimal: Decimal mark of a text file, "." or ","; None to tell it from the cells.
      skip_bad_rows: Whether to skip rows that cannot be read, in place of an error.
      waits: Whether the file holds waiting times.
    """

    columns: ColumnOptions = ColumnOptions()
    array: str | None = None
    decimal: str | None = None
    skip_bad_rows: bool = False
    waits: bool = False


class Trace(NamedTuple):
    """Times of workers that were read from a file.

    Attributes:
      times: (rounds, workers), or (rounds, workers, parts) in a NumPy file; NaN if
        there was no response.
      workers: Name of each worker, or None if the file has no names.
      steps: Step of each round, (rounds,), or None if the file has no steps.
      notes: Sentences about what was skipped.
    """

    times: np.ndarray
    workers: list[str] | None
    steps: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def read_trace(path: str | Path, options: FileOptions) -> Trace:
    """Reads times of workers from a file.

    Raises:
      ImportError: If the file is no NumPy file and pandas is not installed.
      ValueError: If the type of the file, a column, a row or a cell is wrong.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _NUMPY_FILES:
        times = _read_numpy(path, options.array)
        if times.ndim == 2 and times.size:
            _check_is_no_step(times[:, 0])
        return Trace(times=times, workers=None)
    if suffix not in (*_TEXT_FILES, *_JSON_FILES):
        known = ", ".join((*_TEXT_FILES, *_JSON_FILES, *_NUMPY_FILES))
        raise ValueError(f"FILE must be one of {known}; got {path.name}")
    if importlib.util.find_spec("pandas") is None:
        raise ImportError(
            f"pandas is needed to read {path.name}: in a checkout, "
            "pip install '.[report]'"
        )
    if suffix in _JSON_FILES:
        return _read_json_lines(path, options)
    return _read_text(path, options)


def _read_numpy(path: Path, name: str | None) -> np.ndarray:
    """Returns the array of a NumPy file."""
    try:
        content = np.load(path)
        if isinstance(content, np.ndarray):
            return content
        if name is None and len(content.files) == 1:
            name = content.files[0]
        if name not in content.files:
            names = ", ".join(content.files)
            raise ValueError(f"--array must be one of {names} in {path}; got {name}")
        return content[name]
    except (EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is no NumPy file: {error}") from error
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(
            f"{path.name} must be a NumPy file with an array of numbers"
        ) from error


def _read_json_lines(path: Path, options: FileOptions) -> Trace:
    """Reads a list of times or an object per line."""
    import pandas

    rows: list[Any] = []
    line_numbers = []
    num_bad_lines = 0
    for place, line in _lines(path):
        if _holds_no_data(line):
            continue
        try:
            row = _json_row(line, like=rows[0] if rows else None)
        except ValueError as error:
            if not options.skip_bad_rows:
                raise ValueError(f"row {place + 1} must be {error}") from error
            num_bad_lines += 1
        else:
            rows.append(row)
            line_numbers.append(place + 1)
    if not rows:
        raise ValueError(f"{path.name} must have rows of times; got none")
    frame = pandas.DataFrame(rows, index=line_numbers)
    frame.columns = [str(name) for name in frame.columns]
    form = form_of(list(frame.columns), options.columns, options.waits)
    columns = {place: frame.iloc[:, place] for place in range(frame.shape[1])}
    if isinstance(rows[0], list):
        _check_is_no_step(columns[0].to_numpy())
    worker_times = times_of(columns, form, options.skip_bad_rows)
    return _trace(worker_times, num_bad_lines)


def _json_row(line: str, like: Any) -> list | dict:
    """Returns the list or object of a line, of the same form as the first row.

    Raises:
      ValueError: What a row must be, and what it is.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"JSON; {error}") from error
    if not isinstance(row, list | dict):
        raise ValueError(f"a list or an object; got {row}")
    if isinstance(like, list):
        if not isinstance(row, list) or len(row) != len(like):
            raise ValueError(
                f"a list of {len(like)} times, like the first row; got {row}"
            )
    elif isinstance(like, dict) and not isinstance(row, dict):
        raise ValueError(f"an object, like the first row; got {row}")
    return row


class _TextLayout(NamedTuple):
    """Lines and columns of a text file.

    Attributes:
      delimiter: Delimiter of cells; None for spaces.
      names: Name of each column; "0", "1", ... without a header.
      other_lines: Places of lines that hold no times: the header, comments, blank and
        bad lines. Places count from 0.
      line_numbers: Number of each line with times, from 1.
      num_bad_lines: Number of lines with another number of cells.
    """

    delimiter: str | None
    names: list[str]
    other_lines: list[int]
    line_numbers: np.ndarray
    num_bad_lines: int


def _read_text(path: Path, options: FileOptions) -> Trace:
    """Reads a text file with a delimiter."""
    layout = _text_layout(path, options.skip_bad_rows)
    form = form_of(layout.names, options.columns, options.waits)
    columns = _read_columns(path, layout, form, decimal=None)
    if options.decimal or _marks_are_in_doubt(columns, form, layout.delimiter):
        texts = _read_columns(path, layout, form, decimal=None, as_text=True)
        decimal = _decimal_mark(texts, form, options.decimal)
        columns = _read_columns(path, layout, form, decimal)
    for place in form.places:
        if isinstance(form, WideForm) or place != form.worker:
            columns[place] = _numbers_as_far_as_possible(columns[place])
    if isinstance(form, WideForm):
        # These are names of columns, e.g. "worker0". The name of this worker is "0".
        names = [layout.names[place] for place in form.times]
        has_numbered_columns = all(name.isdecimal() for name in names)
        if has_numbered_columns:
            _check_is_no_step(columns[form.times[0]].to_numpy())
    worker_times = times_of(columns, form, options.skip_bad_rows)
    return _trace(worker_times, layout.num_bad_lines)


def _trace(worker_times: WorkerTimes, num_bad_lines: int) -> Trace:
    """Returns times with notes about what was skipped."""
    notes = worker_times.notes
    if num_bad_lines:
        notes = (*notes, f"skipped rows that cannot be read: {num_bad_lines}")
    return Trace(
        times=worker_times.times,
        workers=worker_times.workers,
        steps=worker_times.steps if worker_times.has_steps else None,
        notes=notes,
    )


def _encoding(path: Path) -> str:
    """Returns the encoding of a text file."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in start:
        raise ValueError(f"{path.name} must be text in UTF-8 or UTF-16; it is binary")
    return "utf-8-sig"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the place, from 0, and the text of each line, without its end."""
    with path.open(encoding=_encoding(path)) as file:
        try:
            for place, line in enumerate(file):
                yield place, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path.name} must be text in UTF-8 or UTF-16; {error}"
            ) from error


def _holds_no_data(line: str) -> bool:
    """Returns whether a line is blank, a comment, or a delimiter for Excel."""
    text = line.strip()
    return not text or text[0] == "#" or bool(_EXCEL_DELIMITER.fullmatch(text))


def _text_layout(path: Path, skip_bad_rows: bool) -> _TextLayout:
    """Returns the lines and columns of a text file.

    Raises:
      ValueError: If the file is empty, or lines differ in their number of cells.
    """
    delimiter = None
    names: list[str] = []
    comment = ""
    other_lines = []
    line_numbers = []
    num_bad_lines = 0
    for place, line in _lines(path):
        if _holds_no_data(line):
            comment = line.strip().lstrip("# ")
            other_lines.append(place)
            continue
        if not names:
            delimiter = _delimiter(line)
            names = _cells(line, delimiter)
            if _is_header(names):
                other_lines.append(place)
                continue
            # `numpy.savetxt` writes column names as a comment.
            commented = _cells(comment, delimiter)
            if len(commented) == len(names) and _is_header(commented):
                names = commented
            else:
                names = [str(at) for at in range(len(names))]
        num_cells = _num_cells(line, delimiter)
        if num_cells == len(names):
            line_numbers.append(place + 1)
        elif skip_bad_rows:
            other_lines.append(place)
            num_bad_lines += 1
        else:
            raise ValueError(
                f"row {place + 1} must have {len(names)} columns, like the first row; "
                f"got {num_cells}"
            )
    if not line_numbers:
        raise ValueError(f"{path.name} must have rows of times; got none")
    return _TextLayout(
        delimiter=delimiter,
        names=names,
        other_lines=other_lines,
        line_numbers=np.array(line_numbers),
        num_bad_lines=num_bad_lines,
    )


def _delimiter(line: str) -> str | None:
    """Returns the delimiter of cells, from the first line; None for spaces."""
    words = line.split()
    if len(words) > 1 and all(_is_number(word) for word in words):
        return "\t" if "\t" in line else None
    for mark in _DELIMITERS:
        if mark in line:
            return mark
    return None


def _cells(line: str, delimiter: str | None) -> list[str]:
    """Returns the cells of a line."""
    if delimiter is None or not line:
        return line.split()
    (cells,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
    return [cell.strip() for cell in cells]


def _num_cells(line: str, delimiter: str | None) -> int:
    """Returns the number of cells of a line; fast for lines without quotes."""
    if delimiter is None or '"' in line:
        return len(_cells(line, delimiter))
    return line.count(delimiter) + 1


def _is_header(cells: list[str]) -> bool:
    """Returns whether the first row holds names, or consecutive numbers of workers."""
    workers = cells[1:] if is_step_name(cells[0]) else cells
    num_workers = len(workers)
    if num_workers > 1:
        from_zero = [str(number) for number in range(num_workers)]
        from_one = [str(number) for number in range(1, num_workers + 1)]
        if workers in (from_zero, from_one):
            return True
    return not all(cell == "" or _is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    """Returns whether a cell holds a number, with any decimal mark, or none."""
    if _POINT_NUMBER.fullmatch(cell) or _COMMA_NUMBER.fullmatch(cell):
        return True
    return cell.lower() in ("nan", "inf", "-inf")


def _read_columns(
    path: Path,
    layout: _TextLayout,
    form: LongForm | WideForm,
    decimal: str | None,
    as_text: bool = False,
) -> dict[int, Any]:
    """Returns the columns of a form, by place.

    Their index has the numbers of the lines, for errors.

    Args:
      path: File.
      layout: Lines and columns of the file.
      form: Columns to read.
      decimal: Decimal mark; the other mark separates thousands. None for points, and no
        separators.
      as_text: Whether to read all cells as text.
    """
    import pandas

    frame: Any = pandas.read_csv(
        path,
        sep=layout.delimiter or r"\s+",
        header=None,
        names=range(len(layout.names)),
        usecols=sorted(form.places),
        index_col=False,
        skiprows=layout.other_lines,
        skipinitialspace=True,
        decimal=decimal or ".",
        thousands={None: None, ".": ",", ",": "."}[decimal],
        encoding=_encoding(path),
        dtype=str if as_text else _text_columns(form),
    )
    if len(frame) != len(layout.line_numbers):
        raise ValueError(f"{path.name} must have a row per line; a cell spans several")
    frame.index = pandas.Index(layout.line_numbers)
    return {place: frame[place].rename(layout.names[place]) for place in form.places}


def _text_columns(form: LongForm | WideForm) -> Any:
    """Returns the columns that stay text: a worker may be called "1.10"."""
    return {form.worker: str} if isinstance(form, LongForm) else {}


def _number_groups(form: LongForm | WideForm) -> list[tuple[int, ...]]:
    """Returns the places of numbers that are written alike: steps, and times."""
    times = _time_places(form)
    return [times] if form.step is None else [(form.step,), times]


def _time_places(form: LongForm | WideForm) -> tuple[int, ...]:
    """Returns the places of the columns of times."""
    return form.times if isinstance(form, WideForm) else (form.seconds,)


def _marks_are_in_doubt(
    columns: dict[int, Any], form: LongForm | WideForm, delimiter: str | None
) -> bool:
    """Returns whether numbers may have decimal commas or separators of thousands.

    They may if cells have commas. Points may separate thousands if integers are among
    the numbers, all others have three digits behind the point, and cells are not
    separated by commas.
    """
    groups = _number_groups(form)
    for group in groups:
        for place in group:
            if _has_numbers_with_marks(columns[place]):
                return True
    if delimiter in (",", None):
        return False
    for group in groups:
        if _points_may_group([columns[place] for place in group]):
            return True
    return False


def _has_numbers_with_marks(column: Any) -> bool:
    """Returns whether a cell is text, and a number with a comma or several points."""
    if column.dtype.kind in "iufb":
        return False
    for cell in column:
        if not isinstance(cell, str):
            continue
        has_marks = "," in cell or cell.count(".") > 1
        if has_marks and _is_number(cell.strip()):
            return True
    return False


def _points_may_group(columns: list[Any]) -> bool:
    """Returns whether points may separate thousands in columns of numbers."""
    floats = [column.dropna() for column in columns if column.dtype.kind == "f"]
    if not floats:
        return False
    values = np.concatenate([column.to_numpy() for column in floats])
    fractions = values[values % 1 != 0]
    has_integers = len(fractions) < len(values) or len(floats) < len(columns)
    thousandths = fractions * 1000
    return bool(
        has_integers
        and len(fractions)
        and np.all(fractions > 1)
        and np.allclose(thousandths, np.round(thousandths), rtol=1e-12, atol=0)
    )


def _decimal_mark(
    texts: dict[int, Any], form: LongForm | WideForm, chosen: str | None
) -> str | None:
    """Returns the decimal mark of numbers, or None if there is no consistent one.

    Raises:
      ValueError: If marks may be decimal marks and may separate thousands, or do not
        fit the mark that the user has chosen.
    """
    steps = [] if form.step is None else _number_cells(texts, (form.step,))
    times = _number_cells(texts, _time_places(form))
    cells = [*steps, *times]
    if chosen is not None:
        pattern = _COMMA_NUMBER if chosen == "," else _POINT_NUMBER
        for cell in cells:
            if not pattern.fullmatch(cell):
                raise ValueError(
                    f"--decimal {chosen} must fit all numbers; got {cell!r}"
                )
        return chosen
    may_be_point = all(_POINT_NUMBER.fullmatch(cell) for cell in cells)
    may_be_comma = all(_COMMA_NUMBER.fullmatch(cell) for cell in cells)
    if may_be_point and may_be_comma:
        steps_have_marks = not all(cell.isdecimal() for cell in steps)
        if not steps_have_marks and all("." in cell for cell in times):
            # If these points grouped thousands, smaller numbers would have no point.
            return None
        marked = next(cell for cell in cells if not cell.isdecimal())
        raise ValueError(
            f"the decimal mark must be known; {marked!r} may be a fraction or in "
            "thousands. Choose by --decimal , or --decimal ."
        )
    if may_be_comma:
        return ","
    return "." if may_be_point else None


def _number_cells(texts: dict[int, Any], places: tuple[int, ...]) -> list[str]:
    """Returns the cells of some columns that are numbers and end in a digit."""
    cells = []
    for place in places:
        for text in texts[place].dropna():
            cell = text.strip()
            if _is_number(cell) and cell[-1].isdecimal():
                cells.append(cell)
    return cells


def _numbers_as_far_as_possible(column: Any) -> Any:
    """Converts the cells of a column to numbers; cells that hold none stay text."""
    import pandas

    if column.dtype.kind in "iufb":
        return column
    values: Any = pandas.to_numeric(column, errors="coerce")
    is_text = values.isna() & column.notna()
    if is_text.any():
        return values.astype(object).where(~is_text, column)
    return values


def _check_is_no_step(column: np.ndarray) -> None:
    """Raises ValueError if the first column of a table without names counts steps."""
    if len(column) < 3 or column.dtype.kind not in "iuf":
        return
    increases = np.diff(column)
    counts = np.all(increases == increases[0]) and increases[0] > 0
    if counts or (len(column) > MIN_INCREASES and np.all(increases > 0)):
        raise ValueError(
            "columns must have names if one of them counts steps; the first column "
            "increases in each row. Leave this column out, or add a first row such as "
            "step,host0,host1"
        )
