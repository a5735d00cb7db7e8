"""Converts tables to arrays of times, with names of workers and steps."""

import numbers
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.traces._column_names import (
    FileOptions,
    LongForm,
    WideForm,
    form_of,
    holds_numbered_worker,
    is_step_name,
    is_worker_name,
    listed,
    wide_form,
)

# Maximum number of pairs (step, worker) per time in a table with one time per row. If
# there are more pairs, the columns of steps and workers are probably wrong.
_MAX_ENTRIES_PER_ROW = 100
# Number of consecutive increases that chance does not explain. The values then count
# steps, or are times since a start.
MIN_INCREASES = 8
# Times are seconds since 1970 if they are above the first number, and if more than the
# second fraction of successive times increase.
_SECONDS_SINCE_1970 = 1e8
_MOST_INCREASES = 0.9
# Workers hardly share rounds if less than the first fraction of the rounds have several
# responses, and several workers respond alone in at least the second number of rounds.
_LEAST_SHARED = 0.1
_MIN_ALONE = 8


class WorkerTimes(NamedTuple):
    """Times of workers, the names of the workers, and the steps of the rounds.

    Attributes:
      times: (rounds, workers), or (rounds, workers, parts) in a NumPy file; in seconds
        if the column names have a unit; NaN if there was no response.
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
    """Returns whether a value is a pandas DataFrame."""
    return hasattr(value, "columns") and hasattr(value, "iloc")


def times_of_frame(
    frame: Any, waits: bool = False, names: Sequence[str] | None = None
) -> WorkerTimes:
    """Returns the times of workers in a user's DataFrame; warns of doubtful columns.

    If the columns are called "worker", as after `pivot(columns="worker")`, or there are
    as many names as columns, all of them are workers. Levels of a MultiIndex are read
    as columns.

    Args:
      frame: DataFrame with a row per time or a column per worker.
      waits: Whether these are waiting times.
      names: Names of workers that the user passes, or None.

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
    if frame.index.nlevels > 1 and None in frame.index.names:
        raise ValueError(
            f"all levels of a MultiIndex must have names; got {frame.index.names}. "
            "Name them, e.g. by table.rename_axis(['step', 'worker'])"
        )
    columns_name = str(frame.columns.name or "")
    index_name = str(frame.index.name or "")
    if is_worker_name(index_name) or (columns_name and is_step_name(columns_name)):
        raise ValueError(
            f"a table must have steps as rows and workers as columns; got rows "
            f"{index_name!r} and columns {columns_name!r}. Pass table.T"
        )
    if frame.index.nlevels > 1 or (index_name and is_step_name(index_name)):
        frame = frame.reset_index()
    columns = [str(name) for name in frame.columns]
    workers = [name for name in columns if not is_step_name(name)]
    are_called_workers = is_worker_name(columns_name) and not any(
        map(holds_numbered_worker, workers)
    )
    are_named = names is not None and len(names) == len(workers)
    options = FileOptions(waits=waits, in_python=True)
    if are_called_workers or (are_named and not any(map(is_worker_name, workers))):
        form = wide_form(columns, dict(zip(workers, workers)))
    else:
        form = form_of(columns, options)
    worker_times = times_of(frame.set_axis(columns, axis="columns"), form, options)
    for note in worker_times.notes:
        warnings.warn(note, stacklevel=4)
    return worker_times


def times_of(
    frame: Any, form: LongForm | WideForm, options: FileOptions
) -> WorkerTimes:
    """Returns the times of workers in given columns of a DataFrame.

    Args:
      frame: DataFrame. Errors name its rows by their index.
      form: Columns that hold times.
      options: Options for reading, such as whether to skip rows with a cell that is no
        number.

    Raises:
      ValueError: If a cell is no number, if a step and worker occurs twice, or if times
        are seconds since 1970.
    """
    if isinstance(form, LongForm):
        numeric = [form.step, form.seconds]
        required = [form.step, form.worker]
    else:
        required = [form.step] if _has_steps(frame, form) else []
        numeric = [*form.workers, *required]
    skip = "drop the row" if options.in_python else "pass --skip-bad-rows"
    is_bad = np.zeros(len(frame), bool)
    for name in numeric:
        is_number = frame[name].isna() | _are_numbers(frame[name])
        if not options.skip_bad_rows:
            hint = (
                f"Leave the cell empty if there was no response, or {skip}. Convert "
                "durations to seconds by .dt.total_seconds()"
            )
            _check_cells(frame[name], is_number, "be a number", hint)
        is_bad |= ~is_number.to_numpy()
    for name in required:
        is_given = frame[name].notna() & (frame[name].astype(str).str.strip() != "")
        if not options.skip_bad_rows:
            hint = f"Fill in the cell, or {skip}"
            _check_cells(frame[name], is_given, "not be empty", hint)
        is_bad |= ~is_given.to_numpy()
    frame = frame[~is_bad]
    if isinstance(form, LongForm):
        worker_times = _pivot(frame, form, options)
    else:
        worker_times = _in_order(frame, form)
    times = worker_times.times / form.units_per_second
    _check_are_durations(times)
    notes = [*worker_times.notes, *_notes_on_equal(times, worker_times.workers)]
    if is_bad.any():
        notes.append(f"skipped rows with a cell that is no number: {is_bad.sum()}")
    return worker_times._replace(times=times, notes=tuple(notes))


def hardly_share_rounds(is_response: np.ndarray) -> bool:
    """Returns whether rounds rarely have responses of several workers.

    False if one worker is left because all others have stopped.

    Args:
      is_response: Whether there is a response, bool (rounds, workers).
    """
    num_responses = is_response.sum(axis=1)
    num_alone = is_response[num_responses == 1].sum(axis=0)
    num_shared = np.count_nonzero(num_responses > 1)
    num_rounds = np.count_nonzero(num_responses)
    several_alone = np.count_nonzero(num_alone >= _MIN_ALONE) > 1
    return bool(several_alone and num_shared < _LEAST_SHARED * num_rounds)


def in_own_order(trace: WorkerTimes) -> WorkerTimes:
    """Numbers the times of each worker from 0, and drops missing times.

    Each worker keeps as many times as the worker with the fewest times has.

    Raises:
      ValueError: If times are (rounds, workers, parts).
    """
    if trace.times.ndim != 2:
        raise ValueError(
            "--own-steps needs times of shape (rounds, workers); got "
            f"{trace.times.shape}"
        )
    num_times = np.isfinite(trace.times).sum(axis=0)
    num_rounds = num_times.min()
    columns = [column[np.isfinite(column)][:num_rounds] for column in trace.times.T]
    notes = trace.notes
    if num_times.max() > num_rounds:
        fewest = trace.workers[num_times.argmin()]
        notes += (
            f"compares the first {num_rounds} times of each worker: {fewest} has no "
            "more",
        )
    return trace._replace(
        times=np.stack(columns, axis=1),
        steps=np.arange(num_rounds),
        has_steps=False,
        notes=notes,
    )


def _in_order(frame: Any, form: WideForm) -> WorkerTimes:
    """Converts a table with a column per worker to times in the order of its steps."""
    times = np.stack([_as_float(frame[name]) for name in form.workers], axis=1)
    notes = []
    if form.skipped:
        names = listed(form.skipped)
        notes.append(f"skipped columns that are not known to be workers: {names}")
    steps = frame.index.to_numpy()
    has_steps = False
    if _has_steps(frame, form):
        steps = _as_steps(frame[form.step])
        has_steps = len(np.unique(steps)) == len(steps)
        if has_steps:
            order = np.argsort(steps)
            times = times[order]
            steps = steps[order]
        else:
            notes.append(
                f"steps of the column {form.step!r} occur more than once: rows keep "
                "their order"
            )
    elif form.step is not None:
        cells = [str(cell) for cell in frame[form.step]]
        holds_workers = [
            holds_numbered_worker(cell) and not cell.isdecimal() for cell in cells
        ]
        if cells and all(holds_workers):
            raise ValueError(
                "a table must have steps as rows and workers as columns; got workers "
                f"in the column {form.step!r}. Transpose the table"
            )
        notes.append(f"skipped the column {form.step!r}: it has no numbers")
    return WorkerTimes(
        times=times,
        workers=list(form.workers.values()),
        steps=steps,
        has_steps=has_steps,
        notes=tuple(notes),
    )


def _pivot(frame: Any, form: LongForm, options: FileOptions) -> WorkerTimes:
    """Converts a table with one time per row to an array with a column per worker.

    Steps and workers are in order, "host2" before "host10"; gaps are NaN.
    """
    steps = _as_steps(frame[form.step])
    workers = frame[form.worker].map(_worker_name)
    table = frame[[form.seconds]].set_axis(["seconds"], axis="columns")
    table = table.assign(step=steps, worker=workers)
    names = sorted(workers.unique(), key=lambda name: (len(name), name))
    num_steps = len(np.unique(steps))
    if num_steps * len(names) > _MAX_ENTRIES_PER_ROW * max(len(table), 1):
        how = "Choose other columns by --step and --worker COLUMN"
        if options.in_python:
            how = "Pass table[[step, worker, seconds]] with the right columns"
        raise ValueError(
            "a table with one row per time must have a time for most pairs of step "
            f"and worker; got {len(table)} times for {num_steps} steps × "
            f"{len(names)} workers. {how}"
        )
    again = table[table.duplicated(["step", "worker"])]
    if len(again):
        how = "Keep the rows of one run, or choose another --step or --worker"
        if options.in_python:
            how = (
                "Keep one time, e.g. by table.drop_duplicates("
                f"[{form.step!r}, {form.worker!r}])"
            )
        raise ValueError(
            f"each step and worker must have one time; row {again.index[0]} has a "
            f"second time of step {again['step'].iloc[0]} and worker "
            f"{again['worker'].iloc[0]}. {how}"
        )
    wide = table.pivot(index="step", columns="worker", values="seconds")
    return WorkerTimes(
        times=np.stack([_as_float(wide[name]) for name in names], axis=1),
        workers=names,
        steps=wide.index.to_numpy(),
        has_steps=True,
    )


def _has_steps(frame: Any, form: WideForm) -> bool:
    """Returns whether a table has a column of steps with at least one number."""
    return form.step is not None and _are_numbers(frame[form.step].dropna()).any()


def _are_numbers(column: Any) -> Any:
    """Returns which cells of a column are real numbers or NaN."""
    if column.dtype.kind in "iuf":
        return column.notna() | True
    return column.map(_is_number).astype(bool)


def _is_number(cell: Any) -> bool:
    """Returns whether a cell is a real number or NaN, and not a bool."""
    return isinstance(cell, numbers.Real) and not isinstance(cell, bool)


def _check_cells(column: Any, is_right: Any, rule: str, hint: str) -> None:
    """Raises ValueError for the first cell that breaks a rule."""
    if not is_right.all():
        row = int(np.argmin(is_right))
        raise ValueError(
            f"row {column.index[row]}, column {column.name} must {rule}; got "
            f"{column.tolist()[row]!r}. {hint}"
        )


def _check_are_durations(times: np.ndarray) -> None:
    """Raises ValueError if times seem to be times of a clock, not durations."""
    increases = np.diff(times, axis=0)
    increases = increases[np.isfinite(increases)]
    if not len(increases):
        return
    share = np.mean(increases > 0)
    if share > _MOST_INCREASES and np.nanmin(times) > _SECONDS_SINCE_1970:
        raise ValueError(
            "times must be durations; got seconds since 1970. Choose a column of "
            "durations"
        )
    if share == 1 and len(times) > MIN_INCREASES:
        raise ValueError(
            "times must be durations; got times that increase in each step, as times "
            "since the start do. Take the differences of successive times"
        )


def _notes_on_equal(times: np.ndarray, workers: Sequence[str]) -> list[str]:
    """Returns sentences that name workers with equal times in all rounds."""
    by_times: dict[bytes, list[str]] = {}
    for worker, column in zip(workers, times.T):
        if np.isfinite(column).sum() > 1:
            by_times.setdefault(column.tobytes(), []).append(worker)
    return [
        f"times of {', '.join(equal)} are equal in all rows: they may be of one "
        "worker, or those of the slowest one"
        for equal in by_times.values()
        # If all workers have equal times, the report itself says that the times include
        # the wait for the slowest worker.
        if 1 < len(equal) < len(workers)
    ]


def _as_float(column: Any) -> np.ndarray:
    """Converts a column to float64; missing cells become NaN."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _as_steps(column: Any) -> np.ndarray:
    """Converts a column of steps to whole numbers; raises ValueError for fractions."""
    if column.dtype.kind in "iu":
        return column.to_numpy(dtype=np.int64)
    steps = _as_float(column)
    hint = "If points separate thousands, pass --decimal ,"
    _check_cells(column, steps % 1 == 0, "be a whole number", hint)
    return steps


def _worker_name(label: Any) -> str:
    """Converts a cell to the name of a worker, e.g. 3.0 to "3"."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()
