"""Finds the columns of steps, workers and times in tables, by their names."""

import fnmatch
import re
from collections.abc import Sequence
from typing import NamedTuple

# Known column names. A name of times or waits may end with a unit, e.g. "time_ms".
_STEP_NAMES = ("step", "iteration", "iter", "global_step", "round")
_WORKER_NAMES = ("worker", "rank", "host", "node", "device", "process")
_TIME_NAMES = "seconds|time|duration|step_time"
_WAIT_NAMES = "wait|waits|wait_time|waiting_time|wait_seconds"
# Names of columns of waiting times, if no column name contains "wait".
_NAMES_OF_ANY_TIME = "seconds|time|duration"
# Number of units per second, by the last word of a column name.
_UNITS_PER_SECOND = {
    "s": 1.0,
    "sec": 1.0,
    "seconds": 1.0,
    "ms": 1e3,
    "msec": 1e3,
    "milliseconds": 1e3,
    "us": 1e6,
    "usec": 1e6,
    "microseconds": 1e6,
    "ns": 1e9,
    "nsec": 1e9,
    "nanoseconds": 1e9,
}
_UNITS = "|".join(_UNITS_PER_SECOND)
# Replaces the micro sign and the Greek letter mu by "u", as in "us".
_MICRO = str.maketrans("\u00b5\u03bc", "uu")
# Name and number (or letter) of a worker in a column name: "host0", "rank-3", "host-a".
_WORKER_IN_NAME = re.compile(
    rf"(?<![a-z])({'|'.join(_WORKER_NAMES)})([ _/.:#-]?\d+|[ _/.:#-][a-z](?![a-z0-9]))",
    re.IGNORECASE,
)
# Maximum number of column names in an error message.
_NUM_LISTED = 12
# Name with a number that may identify a worker: "gpu0", "ip-10-0-1-17.internal".
_NUMBERED_NAME = re.compile(r"(?P<before>\D+)\d(.*\d)?(?P<after>([.-]\D*)?)")
# Endings of the columns that an export of wandb adds to each column "run - metric", for
# the range of the values in a point of the plot.
_ENDS_OF_RANGE = ("__MIN", "__MAX")
_OF_RUN = " - "
# Columns "Wall time", "Step" and "Value" of an export of TensorBoard, as one text.
_TENSORBOARD = "wall_time_step_value"


class FileOptions(NamedTuple):
    """Options for reading a file of times. Columns that are None are found by name.

    Attributes:
      step: Name of the column of steps.
      worker: Name of the column of workers.
      seconds: Name of the column of times.
      workers: Pattern for the names of columns that each hold a worker, such as
        `"host*"`.
      array: Name of the array in an .npz file.
      decimal: Decimal mark of a text file, "." or ","; the other mark may separate
        thousands. None for points, and no separators.
      skip_bad_rows: Whether to skip rows that cannot be read, in place of an error.
      waits: Whether the file holds waiting times.
      own_steps: Whether each worker counts its own steps, so that its times are
        numbered from 0.
      in_python: Whether the table is a DataFrame of the user, so that errors name
        arguments of Python in place of options of the command line.
    """

    step: str | None = None
    worker: str | None = None
    seconds: str | None = None
    workers: str | None = None
    array: str | None = None
    decimal: str | None = None
    skip_bad_rows: bool = False
    waits: bool = False
    own_steps: bool = False
    in_python: bool = False


class LongForm(NamedTuple):
    """Names of the columns of a table with one time per row.

    Attributes:
      step: Column of steps.
      worker: Column of workers.
      seconds: Column of times.
      units_per_second: Units of the times per second; 1 if the name has no unit.
    """

    step: str
    worker: str
    seconds: str
    units_per_second: float


class WideForm(NamedTuple):
    """Names of the columns of a table with one worker per column.

    Attributes:
      workers: Name of the worker of each column of times.
      units_per_second: Units of the times per second; 1 if the names have no unit.
      step: Column of steps, or None.
      skipped: Columns that hold neither steps nor times of a worker.
    """

    workers: dict[str, str]
    units_per_second: float = 1.0
    step: str | None = None
    skipped: tuple[str, ...] = ()


_NOTHING_CHOSEN = FileOptions()


def form_of(
    names: Sequence[str], options: FileOptions = _NOTHING_CHOSEN
) -> LongForm | WideForm:
    """Finds the columns of steps, workers and times by their names.

    Args:
      names: Name of each column.
      options: Columns that the user has chosen, and whether they hold waiting times.

    Raises:
      ValueError: If a name occurs twice, or the columns are unknown or ambiguous.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"each column must have its own name; got {name!r} twice")
    for role in ("step", "worker", "seconds"):
        chosen = getattr(options, role)
        if chosen is not None and chosen not in names:
            raise ValueError(
                f"--{role} must name a column, one of {listed(names)}; got {chosen!r}"
            )
    is_long_form_chosen = options.worker is not None or options.seconds is not None
    if options.workers is not None:
        if is_long_form_chosen:
            raise ValueError(
                "--workers is for a table with a column per worker, and --worker and "
                "--seconds are for a table with a row per time; choose one form"
            )
        return _matching(names, options.workers, options.step)
    time_names = _time_names(names, options.waits)
    times = [name for name in names if _is_time(name, time_names)]
    workers = [name for name in names if is_worker_name(name)]
    worker = options.worker or _only_one("worker", workers, options)
    seconds = options.seconds or _only_one("seconds", times, options)
    if worker is None and not is_long_form_chosen:
        if _columns_of_runs(names):
            return _form_of_runs(names, time_names, options)
        return _numbered(names, time_names, options)
    steps = [name for name in names if _plain(name) in _STEP_NAMES]
    step = options.step or _only_one("step", steps, options)
    if step is None or worker is None or seconds is None:
        raise ValueError(
            "a table with a row per time must have a column of steps, a column of "
            f"workers and a column of seconds; got the columns {listed(names)}. "
            f"{_how_to_choose(names, options)}. If the columns are steps, transpose "
            "the table"
        )
    return LongForm(
        step=step,
        worker=worker,
        seconds=seconds,
        units_per_second=_units_per_second(seconds),
    )


def form_of_one_worker(
    names: Sequence[str], worker: str, options: FileOptions
) -> WideForm:
    """Finds the columns of steps and times, by name, in a table of one worker.

    Raises:
      ValueError: If the column of its times is unknown or ambiguous.
    """
    if options.seconds is not None and options.seconds not in names:
        raise ValueError(
            f"--seconds must name a column, one of {listed(names)}; got "
            f"{options.seconds!r}"
        )
    others = [
        name
        for name in names
        if not (is_step_name(name) or name == options.step or _is_range(name, names))
    ]
    times = [name for name in others if _is_time(name, _TIME_NAMES)]
    if not times:
        times = [name for name in others if _may_be_time(name, _TIME_NAMES)]
    if is_of_tensorboard(names):
        times = [names[-1]]
    if options.seconds is not None:
        times = [options.seconds]
    elif not times and len(others) == 1 and others[0].isdecimal():
        # The file has no column names, so that its only column is called "0".
        times = others
    if len(times) != 1:
        raise ValueError(
            "a file of one worker must have one column of times; got the columns "
            f"{listed(names)}. Choose the times by --seconds COLUMN"
        )
    (seconds,) = times
    form = wide_form(names, {seconds: worker}, _units_per_second(seconds), options.step)
    return form._replace(skipped=()) if is_of_tensorboard(names) else form


def is_of_tensorboard(names: Sequence[str]) -> bool:
    """Returns whether these are the columns of an export of TensorBoard."""
    return _plain(" ".join(names)) == _TENSORBOARD


def holds_numbered_worker(name: str) -> bool:
    """Returns whether a name begins with a numbered worker, e.g. "host0"."""
    return name.isdecimal() or _WORKER_IN_NAME.match(name) is not None


def is_worker_name(name: str) -> bool:
    """Returns whether a column of this name holds names of workers."""
    return _plain(name) in _WORKER_NAMES


def is_step_name(name: str) -> bool:
    """Returns whether a column name is a name of steps, or no name."""
    return _plain(name) in ("", "unnamed_0", *_STEP_NAMES)


def listed(names: Sequence[str]) -> str:
    """Returns column names as text: the first ones, and how many more there are."""
    text = ", ".join(repr(name) for name in names[:_NUM_LISTED])
    num_others = len(names) - _NUM_LISTED
    return f"{text} and {num_others} more" if num_others > 0 else text


def _only_one(role: str, candidates: Sequence[str], options: FileOptions) -> str | None:
    """Returns the only candidate, or None; raises ValueError if there are several."""
    if len(candidates) > 1:
        how = f"Choose the column by --{role} COLUMN"
        if options.in_python:
            how = "Leave out the other columns: table.drop(columns=…)"
        raise ValueError(
            f"a table must have one column for the {role}; got {listed(candidates)}. "
            f"{how}"
        )
    return candidates[0] if candidates else None


def _how_to_choose(names: Sequence[str], options: FileOptions) -> str:
    """Returns the part of an error message that says how to choose columns."""
    if options.in_python:
        return (
            "For a column per worker, pass these columns with their names: "
            "straggler_report(table[columns], names=columns). For a row per time, "
            "rename the columns to step, worker and seconds"
        )
    pattern = _fitting_pattern(names) or "PATTERN"
    return (
        f"Choose columns by --workers {pattern} (a column per worker), or by --step, "
        "--worker and --seconds COLUMN (a row per time)"
    )


def _fitting_pattern(names: Sequence[str]) -> str | None:
    """Returns a pattern for the names that differ only in a number, or None.

    The pattern is quoted for a shell, such as "'gpu*'".
    """
    groups: dict[tuple[str, str], int] = {}
    for name in names:
        match = _NUMBERED_NAME.fullmatch(name)
        if match is not None and not is_step_name(name):
            group = (match["before"], match["after"])
            groups[group] = groups.get(group, 0) + 1
    if not groups or max(groups.values()) < 2:
        return None
    before, after = max(groups, key=lambda group: groups[group])
    return f"'{before}*{after}'"


def _columns_of_runs(names: Sequence[str]) -> list[str]:
    """Returns the columns "run - metric" in an export of wandb."""
    return [
        name
        for name in names
        if _OF_RUN in name and all(name + end in names for end in _ENDS_OF_RANGE)
    ]


def _run_of(column: str) -> str:
    """Returns the name of the run of a column "run - metric"."""
    return column.rpartition(_OF_RUN)[0]


def _form_of_runs(
    names: Sequence[str], time_names: str, options: FileOptions
) -> WideForm:
    """Finds the column of each run in an export of wandb."""
    columns = _columns_of_runs(names)
    runs = {name: _run_of(name) for name in columns}
    metrics = {name.rpartition(_OF_RUN)[2] for name in columns}
    (first, *others) = sorted(metrics)
    if others or not _may_be_time(first, time_names):
        raise ValueError(
            "an export of wandb must have one metric, the time of a step; got "
            f"{listed(sorted(metrics))}. Choose the metric that is a time, e.g. by "
            f"--workers '*{_OF_RUN}{first}'"
        )
    return wide_form(names, runs, _units_per_second(first), options.step)


def _time_names(names: Sequence[str], waits: bool) -> str:
    """Returns the regular expression for names of columns of times, or of waits."""
    if not waits:
        return _TIME_NAMES
    has_waits = any("wait" in _plain(name) for name in names)
    return _WAIT_NAMES if has_waits else _NAMES_OF_ANY_TIME


def _is_time(name: str, time_names: str) -> bool:
    """Returns whether a column name is a name of times, with or without a unit."""
    return re.fullmatch(rf"({time_names})(_({_UNITS}))?", _plain(name)) is not None


def _units_per_second(name: str) -> float:
    """Returns the units per second if a name ends with a unit, e.g. 1000 for "ms".

    A word behind a point is the end of a host name, as in "gpu0.company.us".
    """
    if re.search(r"\.[A-Za-z]+$", name):
        return 1.0
    return _UNITS_PER_SECOND.get(_plain(name).rpartition("_")[2], 1.0)


def _matching(names: Sequence[str], pattern: str, step: str | None) -> WideForm:
    """Finds the columns of workers whose names match a pattern."""
    matches = []
    for name in names:
        # A column of steps, or of minima or maxima in an export of wandb, is not a
        # worker, unless the pattern is its full name.
        is_other = is_step_name(name) or name == step or _is_range(name, names)
        if name == pattern or (fnmatch.fnmatchcase(name, pattern) and not is_other):
            matches.append(name)
    if not matches:
        raise ValueError(
            f"--workers must match at least one column; {pattern!r} matches none of "
            f"{listed(names)}"
        )
    units = {_units_per_second(name) for name in matches}
    if len(units) > 1:
        raise ValueError(
            f"all columns of times must have one unit; got {listed(matches)}"
        )
    runs = _columns_of_runs(names)
    workers = {name: _run_of(name) if name in runs else name for name in matches}
    return wide_form(names, workers, units.pop(), step)


def _is_range(name: str, names: Sequence[str]) -> bool:
    """Returns whether a column of wandb holds minima or maxima of another column."""
    return any(name.removesuffix(end) in names for end in _ENDS_OF_RANGE if end in name)


def _numbered(names: Sequence[str], time_names: str, options: FileOptions) -> WideForm:
    """Finds the columns of times of numbered workers, e.g. "host0"."""
    # Columns and their workers, in groups with equal text around the worker: a worker
    # may have several columns of times. Numbers and letters form separate groups.
    groups: dict[tuple[str, bool], dict[str, str]] = {}
    for name in names:
        match = _WORKER_IN_NAME.search(name)
        if match is not None:
            word, number = match.groups()
            # "worker/0" is shortened to "0", since reports have a column "worker".
            is_plain = word.lower() == "worker"
            worker = number.lstrip(" _/.:#-") if is_plain else match[0]
            rest = f"{name[: match.start()]} {name[match.end() :]}".strip()
        elif name.isdecimal():
            worker = name
            rest = ""
        else:
            continue
        if _may_be_time(rest, time_names):
            group = groups.setdefault((rest, worker[-1].isdecimal()), {})
            group[name] = worker
    if len(groups) != 1:
        problem = "no column is known to hold"
        if groups:
            problem = "several groups of columns may hold"
        hint = _how_to_choose(names, options)
        times = [name for name in names if _may_be_time(name, time_names)]
        if len(times) == 1 and not options.in_python:
            hint += ". If this is the file of one worker, give the files of all workers"
        raise ValueError(
            f"{problem} times of workers; got the columns {listed(names)}. {hint}"
        )
    (((rest, _), workers),) = groups.items()
    different = {_plain(worker).replace("_", "") for worker in workers.values()}
    if len(different) < len(workers):
        raise ValueError(
            f"each worker must have one column; got the columns {listed(names)}"
        )
    return wide_form(names, workers, _units_per_second(rest), options.step)


def _may_be_time(rest: str, time_names: str) -> bool:
    """Returns whether a column name without the worker's name may mean a time.

    A worker may have columns of other quantities, such as its loss or its waits.
    """
    plain_rest = _plain(rest)
    if plain_rest == "" or (plain_rest in _UNITS_PER_SECOND and plain_rest != "us"):
        return True
    if time_names == _NAMES_OF_ANY_TIME:
        return _is_time(rest, time_names)
    if time_names == _TIME_NAMES and "wait" in plain_rest:
        return False
    end = re.search(rf"(^|_)({time_names})(_({_UNITS}))?$", plain_rest)
    return end is not None


def wide_form(
    names: Sequence[str],
    workers: dict[str, str],
    units_per_second: float = 1.0,
    step: str | None = None,
) -> WideForm:
    """Describes a table with given columns of workers; finds its column of steps."""
    others = [name for name in names if name not in workers]
    possible_steps = [name for name in others if is_step_name(name)]
    if step is None and len(possible_steps) == 1:
        step = possible_steps[0]
    skipped = [
        name
        for name in others
        if name != step and not (is_step_name(name) or _is_range(name, names))
    ]
    return WideForm(
        workers=workers,
        units_per_second=units_per_second,
        step=step,
        skipped=tuple(skipped),
    )


def _plain(name: str) -> str:
    """Converts a name to lower-case words joined by underscores."""
    words = re.findall(r"[a-z0-9]+", name.lower().translate(_MICRO))
    return "_".join(words)
