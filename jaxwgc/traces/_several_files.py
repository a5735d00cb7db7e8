"""Times of workers in several files, one for each worker."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxwgc.traces._column_names import FileOptions, form_of_one_worker
from jaxwgc.traces._files import ENDINGS, read_table, read_trace
from jaxwgc.traces._frames import (
    WorkerTimes,
    hardly_share_rounds,
    in_own_order,
    times_of,
)

# Name of a file that TensorBoard exports, e.g. "run-rank0-tag-time". The first group is
# the name of the run.
_OF_TENSORBOARD = re.compile(r"run-(.+)-tag-.+")
# A file may lack this number of last rows, or this fraction of all rows, because it is
# written later than other files. If it lacks more rows, the worker has stopped.
_LARGEST_LAG = 10
_LAG_SHARE = 0.05


def read_workers(paths: Sequence[str | Path], options: FileOptions) -> WorkerTimes:
    """Reads the times of all workers, from one file or from a file per worker.

    Workers of several files are named after the files, and compared in the steps that
    they share.

    Raises:
      ImportError: If pandas is not installed.
      ValueError: If a file, a column, a row or a cell is wrong, or if workers hardly
        share any steps.
    """
    if len(paths) == 1:
        trace = read_trace(paths[0], options)
    else:
        trace = _together([Path(path) for path in paths], options)
    if options.own_steps:
        return in_own_order(trace)
    _check_are_shared(trace)
    return trace


def _together(paths: Sequence[Path], options: FileOptions) -> WorkerTimes:
    """Reads a file per worker, and joins the times at equal steps."""
    import pandas

    columns: dict[str, Any] = {}
    # Several files may have equal notes, which are reduced to one at the end.
    notes: list[str] = []
    have_steps = set()
    for worker, path in zip(_names_of(paths), paths, strict=True):
        trace = _read_one(worker, path, options)
        columns[worker] = pandas.Series(trace.times[:, 0], index=trace.steps)
        have_steps.add(trace.has_steps and not options.own_steps)
        notes += trace.notes
    if len(have_steps) > 1:
        raise ValueError(
            "all files must have a column of steps, or none of them; choose it by "
            "--step COLUMN, or add --own-steps"
        )
    (has_steps,) = have_steps
    if not has_steps:
        notes.append("without a column of steps, rows of equal number are compared")
    table = pandas.DataFrame(columns).sort_index()
    last_steps = pandas.Series({name: own.index.max() for name, own in columns.items()})
    is_common = table.index <= last_steps.min()
    num_more = np.count_nonzero(~is_common)
    is_behind = 0 < num_more <= _largest_lag(len(table))
    if is_behind and not options.own_steps:
        # Training may still run: some files are written later than others.
        table = table[is_common]
        notes.append(
            f"left out the last {num_more} rows, which {last_steps.idxmin()} does not "
            "have yet"
        )
    return WorkerTimes(
        times=table.to_numpy(dtype=np.float64),
        workers=list(columns),
        steps=table.index.to_numpy(),
        has_steps=has_steps,
        notes=tuple(dict.fromkeys(notes)),
    )


def _largest_lag(num_rows: int) -> int:
    """Returns how many of the last rows a file may lack because it is written later."""
    return max(_LARGEST_LAG, int(_LAG_SHARE * num_rows))


def _read_one(worker: str, path: Path, options: FileOptions) -> WorkerTimes:
    """Reads the times of the only worker of a file.

    Raises:
      ValueError: If the file cannot be read, or has a step several times. The text
        begins with the name of the file.
    """
    try:
        table = read_table(path, options)
        form = form_of_one_worker(list(table.frame.columns), worker, options)
        frame = table.frame.reset_index(drop=form.step is None)
        trace = times_of(frame, form, options)
        is_repeated = form.step is not None and not trace.has_steps
        if is_repeated and not options.own_steps:
            raise ValueError(
                "each step must occur once; got repeated steps in the column "
                f"{form.step!r}. Keep the rows of one run, or add --own-steps to "
                "number the rows from 0"
            )
    except ValueError as error:
        text = str(error)
        raise ValueError(
            text if text.startswith(path.name) else f"{path.name}: {text}"
        ) from error
    steps = trace.steps
    if options.own_steps or not trace.has_steps:
        steps = np.arange(len(trace.times))
    return trace._replace(steps=steps, notes=(*trace.notes, *table.notes))


def _names_of(paths: Sequence[Path]) -> list[str]:
    """Derives the names of workers from the names of their files or folders."""
    absolute = [path.absolute() for path in paths]
    if len(set(absolute)) < len(absolute):
        raise ValueError("files must differ; got a file twice")
    stems = [_stem(path.name) for path in paths]
    places = [path.with_name(stem) for path, stem in zip(absolute, stems)]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(
                f"files must be of different workers; got several files of {place.name}"
            )
    folders = [path.parent.name for path in absolute]
    both = [f"{folder}/{stem}" for folder, stem in zip(folders, stems)]
    for names in (stems, folders, both):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _stem(name: str) -> str:
    """Returns a file name without its endings, or the run in a name of TensorBoard."""
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return _stem(name[: -len(ending)])
    of_run = _OF_TENSORBOARD.fullmatch(name)
    return name if of_run is None else of_run[1]


def _check_are_shared(trace: WorkerTimes) -> None:
    """Raises ValueError if hardly any row has times of two workers."""
    times = trace.times.reshape(*trace.times.shape[:2], -1)
    is_response = np.isfinite(times).any(axis=2)
    if hardly_share_rounds(is_response):
        num_times = is_response.sum(axis=1)
        num_rows = np.count_nonzero(num_times)
        num_shared = np.count_nonzero(num_times > 1)
        raise ValueError(
            "rows must have times of several workers to compare; only "
            f"{num_shared} of {num_rows} rows do. If each worker counts its own steps, "
            "e.g. runs of wandb, add --own-steps to number the times of each worker "
            "from 0"
        )
