"""Times of workers in tables: arrays (rounds, workers) and names of workers."""

import numbers
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.traces._column_names import (
    LongForm,
    WideForm,
    form_of,
    holds_numbered_worker,
    is_step_name,
    is_worker_name,
    listed,
    wide_form,
)

# Maximum number of entries (step, worker) per row of a table with one time per row.
# Above it, the chosen columns of steps and workers are probably wrong.
_MAX_ENTRIES_PER_ROW = 100
# Number of consecutive increases that chance does not explain.
MIN_INCREASES = 8
# Times in seconds since 1970 exceed this number. Nearly all of them increase.
_SECONDS_SINCE_1970 = 1e8
_MOST_INCREASES = 0.9


class WorkerTimes(NamedTuple):
    """Times of workers, from a table.

    Attributes:
      times: (rounds, workers), in seconds if the column names have a unit; NaN if there
        was no response.
      workers: Name of each worker.
      steps: Step of each round, or the name of its row without a column of steps,
        (rounds,).
      has_steps: Whether there is a column of steps, each of which occurs once.
      notes: Sentences about columns and rows that were skipped.
    """

    times: np.ndarray
    workers: list[str]
    steps: np.ndarray
    has_steps: bool
    notes: tuple[str, ...] = ()


def is_frame(value: Any) -> bool:
    """Returns whether a value is a pandas DataFrame; does not import pandas."""
    return hasattr(value, "columns") and hasattr(value, "iloc")


def times_of_frame(frame: Any, waits: bool = False) -> WorkerTimes:
    """Returns the times of workers in a DataFrame; warns about skipped columns.

    If the columns are called "worker", as after `pivot(columns="worker")`, all of them
    are workers. Levels of a MultiIndex are read as columns.

    Args:
      frame: DataFrame with a row per time or a column per worker.
      waits: Whether these are waiting times.

    Raises:
      ValueError: If columns are unknown or ambiguous, or have several levels, if levels
        of the index have no names, or a cell is no number.
    """
    if frame.columns.nlevels > 1:
        raise ValueError(
            "a table must have one level of column names; got "
            f"{frame.columns.nlevels} levels. Select the times of all workers, e.g. "
            "table['seconds']"
        )
    if frame.index.nlevels > 1:
        if None in frame.index.names:
            raise ValueError(
                "all levels of a MultiIndex must have names; got "
                f"{list(frame.index.names)}. Name them, e.g. by "
                "table.rename_axis(['step', 'worker'])"
            )
        frame = frame.reset_index()
    columns_name = str(frame.columns.name or "")
    index_name = str(frame.index.name or "")
    if is_worker_name(index_name) or (columns_name and is_step_name(columns_name)):
        raise ValueError(
            f"a table must have steps as rows and workers as columns; got rows "
            f"{index_name!r} and columns {columns_name!r}. Pass table.T"
        )
    if index_name and is_step_name(index_name):
        frame = frame.reset_index()
    names = [str(name) for name in frame.columns]
    workers = [name for name in names if not is_step_name(name)]
    if is_worker_name(columns_name) and not any(map(holds_numbered_worker, workers)):
        form = wide_form(names, dict(zip(workers, workers)))
    else:
        form = form_of(names, waits=waits)
    columns = {place: frame.iloc[:, place] for place in range(len(names))}
    worker_times = times_of(columns, form)
    for note in worker_times.notes:
        warnings.warn(note, stacklevel=4)
    return worker_times


def times_of(
    columns: Mapping[int, Any], form: LongForm | WideForm, skip_bad_rows: bool = False
) -> WorkerTimes:
    """Returns the times of workers in the columns of a table.

    Args:
      columns: pandas Series by place. Their index has the numbers of rows for errors.
      form: Columns that hold times.
      skip_bad_rows: Whether to skip rows with a cell that is no number, in place of an
        error.

    Raises:
      ValueError: If a cell is no number, if a step and worker occurs twice, or if times
        increase in each step, as times of day do.
    """
    is_bad = np.zeros(len(columns[form.places[0]]), bool)
    for place in form.numeric:
        is_bad |= _bad_cells(columns[place], skip_bad_rows)
    steps = _numbered_steps(columns, form) if isinstance(form, WideForm) else None
    if steps is not None:
        is_bad |= _bad_cells(steps, skip_bad_rows)
        is_bad |= _empty_cells(steps, skip_bad_rows)
    if isinstance(form, LongForm):
        is_bad |= _empty_cells(columns[form.worker], skip_bad_rows)
        is_bad |= _empty_cells(columns[form.step], skip_bad_rows)
    num_bad_rows = int(is_bad.sum())
    if num_bad_rows:
        columns = {place: column[~is_bad] for place, column in columns.items()}
    if isinstance(form, LongForm):
        worker_times = _pivot(columns, form)
    else:
        worker_times = _in_order(columns, form)
    times = worker_times.times
    if form.units_per_second != 1:
        times = times / form.units_per_second
    notes = [*worker_times.notes, *_notes_on_clocks(times)]
    if num_bad_rows:
        notes.append(f"skipped rows with a cell that is no number: {num_bad_rows}")
    return worker_times._replace(times=times, notes=tuple(notes))


def _in_order(columns: Mapping[int, Any], form: WideForm) -> WorkerTimes:
    """Returns the times of a column per worker, in the order of their steps."""
    times = np.stack([_as_float(columns[place]) for place in form.times], axis=1)
    workers = list(form.workers)
    notes = []
    if form.skipped:
        names = listed(form.skipped)
        notes.append(f"skipped columns that are not known to be workers: {names}")
    steps = columns[form.times[0]].index.to_numpy()
    step_column = _numbered_steps(columns, form)
    has_steps = False
    if step_column is not None:
        steps = _as_steps(step_column)
        has_steps = len(np.unique(steps)) == len(steps)
        if has_steps:
            if np.any(np.diff(steps) < 0):
                order = np.argsort(steps)
                times = times[order]
                steps = steps[order]
        else:
            notes.append(
                f"steps of the column {step_column.name!r} occur more than once: rows "
                "keep their order"
            )
    elif form.step is not None:
        name = columns[form.step].name
        cells = [str(cell) for cell in columns[form.step]]
        if all(holds_numbered_worker(cell) and not cell.isdecimal() for cell in cells):
            raise ValueError(
                f"a table must have steps as rows and workers as columns; the column "
                f"{name!r} holds workers. Transpose the table"
            )
        notes.append(f"skipped the column {name!r}: it has no numbers")
    return WorkerTimes(
        times=times,
        workers=workers,
        steps=steps,
        has_steps=has_steps,
        notes=tuple(notes),
    )


def _numbered_steps(columns: Mapping[int, Any], form: WideForm) -> Any:
    """Returns the column of steps, or None if there is none, or none with a number."""
    if form.step is None:
        return None
    column = columns[form.step]
    if column.dtype.kind in "iuf":
        return column if column.notna().any() else None
    return column if any(_is_number(cell) for cell in column) else None


def _is_number(cell: Any) -> bool:
    """Returns whether a cell is a real number; True and False are none."""
    return isinstance(cell, numbers.Real) and not isinstance(cell, bool)


def _notes_on_clocks(times: np.ndarray) -> list[str]:
    """Returns a note if the times of all workers increase in each step.

    Raises:
      ValueError: If they are seconds since 1970.
    """
    increases = np.diff(times, axis=0)
    increases = increases[np.isfinite(increases)]
    if not len(increases):
        return []
    share = np.mean(increases > 0)
    if share > _MOST_INCREASES and np.nanmin(times) > _SECONDS_SINCE_1970:
        raise ValueError(
            "times must be durations; these are seconds since 1970. Choose a column of "
            "durations by --seconds or --workers"
        )
    if share == 1 and len(times) > MIN_INCREASES:
        return [
            "all times increase in each step: they must be durations, and no times of "
            "day or since the start"
        ]
    return []


def _bad_cells(column: Any, skip_bad_rows: bool) -> np.ndarray:
    """Returns which cells are neither numbers nor missing, or raises for the first."""
    if column.dtype.kind in "iuf":
        return np.zeros(len(column), bool)
    if column.dtype.kind == "m":
        raise ValueError(
            f"column {column.name} must have numbers; got {column.dtype}. Convert it "
            "to seconds by .dt.total_seconds()"
        )
    is_missing = column.isna().to_numpy()
    is_number = np.array([_is_number(cell) for cell in column], bool)
    is_bad = ~(is_missing | is_number)
    if is_bad.any() and not skip_bad_rows:
        first = int(np.argmax(is_bad))
        raise ValueError(
            f"row {column.index[first]}, column {column.name} must be a number; got "
            f"{column.iloc[first]!r}. Leave the cell empty if there was no response, "
            "or pass --skip-bad-rows"
        )
    return is_bad


def _empty_cells(column: Any, skip_bad_rows: bool) -> np.ndarray:
    """Returns which cells of steps or workers are empty, or raises for the first."""
    is_empty = column.isna().to_numpy()
    if column.dtype.kind not in "iuf":
        is_blank = column.map(lambda cell: isinstance(cell, str) and not cell.strip())
        is_empty = is_empty | is_blank.to_numpy(dtype=bool)
    if is_empty.any() and not skip_bad_rows:
        raise ValueError(
            f"row {column.index[int(np.argmax(is_empty))]} must have a worker and a "
            f"step; its column {column.name} is empty. Complete it, or pass "
            "--skip-bad-rows"
        )
    return is_empty


def _as_float(column: Any) -> np.ndarray:
    """Converts a column of numbers to float64; missing cells become NaN."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _as_steps(column: Any) -> np.ndarray:
    """Converts a column of steps; integers keep all of their digits."""
    if column.dtype.kind in "iu" and not column.isna().any():
        return column.to_numpy(dtype=np.int64)
    steps = _as_float(column)
    is_fraction = steps % 1 != 0
    if is_fraction.any():
        first = int(np.argmax(is_fraction))
        raise ValueError(
            f"row {column.index[first]}, column {column.name} must be a whole number; "
            f"got {steps[first]:g}. If points separate thousands, pass --decimal ,"
        )
    return steps


def _pivot(columns: Mapping[int, Any], form: LongForm) -> WorkerTimes:
    """Returns the times of a row per time.

    Steps and workers are in order, "host2" before "host10"; gaps are NaN.
    """
    steps, row_of_time = np.unique(_as_steps(columns[form.step]), return_inverse=True)
    codes, labels = columns[form.worker].factorize()
    names = [_worker_name(label) for label in labels]
    workers = sorted(set(names), key=lambda name: (len(name), name))
    positions = np.array([workers.index(name) for name in names], int)
    column_of_time = positions[codes]
    num_times = len(codes)
    if len(steps) * len(workers) > _MAX_ENTRIES_PER_ROW * max(num_times, 1):
        raise ValueError(
            "a table with a row per time must have most workers in most steps; got "
            f"{num_times} times of {len(workers)} workers in {len(steps)} steps. "
            "Choose other columns by --step and --worker COLUMN"
        )
    places = row_of_time * len(workers) + column_of_time
    _, first_places = np.unique(places, return_index=True)
    if len(first_places) < num_times:
        again = int(np.setdiff1d(np.arange(num_times), first_places)[0])
        label = columns[form.step].index[again]
        raise ValueError(
            f"row {label} must be of another step or worker; got step "
            f"{columns[form.step].iloc[again]} and worker "
            f"{workers[column_of_time[again]]} again. Keep one of them, as by "
            "table.drop_duplicates, or choose another --step or --worker"
        )
    times = np.full((len(steps), len(workers)), np.nan)
    times[row_of_time, column_of_time] = _as_float(columns[form.seconds])
    return WorkerTimes(times=times, workers=workers, steps=steps, has_steps=True)


def _worker_name(label: Any) -> str:
    """Returns the name of a worker; numbers that are read as 2.0 become "2"."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()
