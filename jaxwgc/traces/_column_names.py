"""Column names of tables of step times: which hold steps, workers and seconds."""

import fnmatch
import re
from collections.abc import Sequence
from typing import NamedTuple

# Known column names.
_STEP_NAMES = ("step", "iteration", "iter", "global_step", "round")
_WORKER_NAMES = ("worker", "rank", "host", "node", "device", "process")
_TIME_NAMES = ("seconds", "time", "duration", "step_time")
_WAIT_NAMES = ("wait", "waits", "wait_time", "waiting_time", "wait_seconds")
# Units per second, by the last word of a column name.
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
# The micro sign and the Greek letter.
_MICRO = str.maketrans("\u00b5\u03bc", "uu")
# Units that mean nothing else in a column name.
_CLEAR_UNITS = ("ms", "msec", "milliseconds", "usec", "microseconds", "ns", "nsec")
# Column names that mean times or waits. They may mean waits if no other column names
# waits.
_NAMES_OF_ANY_TIME = ("seconds", "time", "duration")
# Name and number (or letter) of a worker in a column name: "host0", "rank-3", "host-a".
_WORKER_IN_NAME = re.compile(
    rf"(?<![a-z])({'|'.join(_WORKER_NAMES)})([ _/.:#-]?\d+|[ _/.:#-][a-z](?![a-z0-9]))",
    re.IGNORECASE,
)
# Maximum number of column names in an error message.
_NUM_LISTED = 12
_HOW_TO_CHOOSE = (
    "Choose columns by --workers PATTERN (a column per worker), or by --step, --worker "
    "and --seconds COLUMN (a row per time). In Python, rename the columns, or pass "
    "table[columns].to_numpy()"
)


class ColumnOptions(NamedTuple):
    """Columns that the user has chosen; None for columns that are found by name.

    Attributes:
      step: Name of the column of steps.
      worker: Name of the column of workers.
      seconds: Name of the column of times.
      workers: Pattern for the names of columns that each hold a worker, such as
        `"host*"`.
    """

    step: str | None = None
    worker: str | None = None
    seconds: str | None = None
    workers: str | None = None


class LongForm(NamedTuple):
    """Columns of a table with a row per time.

    Attributes:
      step: Place of the column of steps.
      worker: Place of the column of workers.
      seconds: Place of the column of times.
      units_per_second: Units of the times per second; 1 if the name has no unit.
    """

    step: int
    worker: int
    seconds: int
    units_per_second: float

    @property
    def places(self) -> tuple[int, ...]:
        """Places of all columns that are read."""
        return self.step, self.worker, self.seconds

    @property
    def numeric(self) -> tuple[int, ...]:
        """Places of the columns that must hold numbers."""
        return self.step, self.seconds


class WideForm(NamedTuple):
    """Columns of a table with a column per worker.

    Attributes:
      times: Place of the column of each worker.
      workers: Name of each worker.
      units_per_second: Units of the times per second; 1 if the names have no unit.
      step: Place of the column of steps, or None.
      skipped: Names of columns that hold neither steps nor times of a worker.
    """

    times: tuple[int, ...]
    workers: tuple[str, ...]
    units_per_second: float = 1.0
    step: int | None = None
    skipped: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """Places of all columns that are read."""
        return self.times if self.step is None else (self.step, *self.times)

    @property
    def numeric(self) -> tuple[int, ...]:
        """Places of the columns that must hold numbers."""
        return self.times


_NOTHING_CHOSEN = ColumnOptions()


def form_of(
    names: Sequence[str], options: ColumnOptions = _NOTHING_CHOSEN, waits: bool = False
) -> LongForm | WideForm:
    """Returns the form of a table with these column names.

    Args:
      names: Name of each column.
      options: Columns that the user has chosen.
      waits: Whether the table holds waiting times.

    Raises:
      ValueError: If a name occurs twice, or the columns are unknown or ambiguous.
    """
    if options.step is not None and options.step not in names:
        raise ValueError(
            f"--step must name a column, one of {listed(names)}; got {options.step!r}"
        )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"each column must have its own name; got {name!r} twice")
    is_long_form_chosen = options.worker is not None or options.seconds is not None
    if options.workers is not None:
        if is_long_form_chosen:
            raise ValueError(
                "--workers is for a table with a column per worker, and --worker and "
                "--seconds are for a table with a row per time; choose one form"
            )
        return _matching(names, options.workers, options.step)
    worker = _place(names, "worker", options.worker, _known(names, _WORKER_NAMES))
    time_names = _time_names(names, waits)
    times = [name for name in names if _names_time(name, time_names)]
    seconds = _place(names, "seconds", options.seconds, times)
    if worker is None or seconds is None:
        if is_long_form_chosen:
            raise ValueError(
                "a table with a row per time must have a column of workers and one of "
                f"seconds; the columns are {listed(names)}. {_HOW_TO_CHOOSE}"
            )
        if worker is not None:
            raise ValueError(
                f"a table with the column {names[worker]!r} must have a row per time "
                f"and a column of seconds; the columns are {listed(names)}. "
                f"{_HOW_TO_CHOOSE}. If the columns are steps, transpose the table"
            )
        return _numbered(names, time_names, options.step)
    step = _place(names, "step", options.step, _known(names, _STEP_NAMES))
    if step is None:
        raise ValueError(
            "a table with a row per time must have a column of steps; the columns are "
            f"{listed(names)}. {_HOW_TO_CHOOSE}"
        )
    return LongForm(
        step=step,
        worker=worker,
        seconds=seconds,
        units_per_second=_UNITS_PER_SECOND.get(_last_word(names[seconds]), 1.0),
    )


def holds_numbered_worker(name: str) -> bool:
    """Returns whether a name begins with a numbered worker, such as "host0" or "3"."""
    return name.isdecimal() or _WORKER_IN_NAME.match(name) is not None


def is_worker_name(name: str) -> bool:
    """Returns whether a column with this name holds names of workers."""
    return _plain(name) in _WORKER_NAMES


def is_step_name(name: str) -> bool:
    """Returns whether a column with this name holds steps, or has no name."""
    return _plain(name) in ("", "unnamed_0", *_STEP_NAMES)


def listed(names: Sequence[str]) -> str:
    """Returns column names as text, the first ones if there are many."""
    text = ", ".join(repr(name) for name in names[:_NUM_LISTED])
    num_others = len(names) - _NUM_LISTED
    return f"{text} and {num_others} more" if num_others > 0 else text


def _time_names(names: Sequence[str], waits: bool) -> Sequence[str]:
    """Returns the known names of times or, if a column has one, of waits."""
    if not waits:
        return _TIME_NAMES
    has_waits = any("wait" in _plain(name) for name in names)
    return _WAIT_NAMES if has_waits else _NAMES_OF_ANY_TIME


def _known(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the names that are known ones, in any spelling."""
    return [name for name in names if _plain(name) in known]


def _names_time(name: str, known: Sequence[str]) -> bool:
    """Returns whether a name is a known one of times, with or without a unit."""
    plain_name = _plain(name)
    if plain_name in known:
        return True
    stem, _, last_word = plain_name.rpartition("_")
    return last_word in _UNITS_PER_SECOND and stem in known


def _place(
    names: Sequence[str], role: str, chosen: str | None, candidates: Sequence[str]
) -> int | None:
    """Returns the place of the column with a role, or None if there is none."""
    if chosen is not None:
        if chosen not in names:
            raise ValueError(
                f"--{role} must name a column, one of {listed(names)}; got {chosen!r}"
            )
        return names.index(chosen)
    if len(candidates) > 1:
        raise ValueError(
            f"the column of the {role} must be known, and may be {listed(candidates)}; "
            f"choose it by --{role} COLUMN. In Python, rename the others"
        )
    return names.index(candidates[0]) if candidates else None


def _matching(names: Sequence[str], pattern: str, step: str | None) -> WideForm:
    """Returns the wide form with the columns that match a pattern."""
    matches = []
    for name in names:
        if not fnmatch.fnmatchcase(name, pattern):
            continue
        # A column of steps is not a worker, unless its full name is given.
        is_step = is_step_name(name) or name == step
        if name == pattern or not is_step:
            matches.append(name)
    if not matches:
        raise ValueError(
            "--workers must be a pattern of column names, such as 'host*'; got "
            f"{pattern!r}, and the columns are {listed(names)}"
        )
    units = {_units_per_second(name) for name in matches}
    if len(units) > 1:
        raise ValueError(
            f"all times must have one unit; the columns are {listed(matches)}"
        )
    return wide_form(names, dict(zip(matches, matches)), units.pop(), step)


def _numbered(
    names: Sequence[str], time_names: Sequence[str], step: str | None
) -> WideForm:
    """Returns the wide form with columns of numbered workers, such as "host0"."""
    # Columns, grouped by the text around the worker. Numbers and letters form separate
    # groups.
    groups: dict[tuple[str, bool], list[_NumberedColumn]] = {}
    for name in names:
        column = _numbered_column(name)
        if column is not None and _may_be_time(column.rest, time_names):
            has_number = column.worker[-1].isdecimal()
            groups.setdefault((column.rest, has_number), []).append(column)
    if len(groups) == 1:
        (columns,) = groups.values()
        workers = {column.name: column.worker for column in columns}
        _check_are_different(workers)
        return wide_form(names, workers, _units_per_second(columns[0].rest), step)
    problem = "no column is known to hold times of workers"
    if groups:
        problem = "several groups of columns may hold times of workers"
    raise ValueError(f"{problem}; the columns are {listed(names)}. {_HOW_TO_CHOOSE}")


class _NumberedColumn(NamedTuple):
    """Column with a worker in its name.

    Attributes:
      name: Name of the column.
      worker: Name of the worker.
      rest: Text around the worker.
    """

    name: str
    worker: str
    rest: str


def _numbered_column(name: str) -> _NumberedColumn | None:
    """Returns the column of a numbered worker, or None if no worker is in its name."""
    match = _WORKER_IN_NAME.search(name)
    if match is None:
        if name.isdecimal():
            return _NumberedColumn(name=name, worker=name, rest="")
        return None
    word, number = match.groups()
    worker = match[0]
    if word.lower() == "worker":
        # In a table of workers, "worker/0" is shown as "0".
        worker = number.lstrip(" _/.:#-")
    before = name[: match.start()]
    after = name[match.end() :]
    return _NumberedColumn(name=name, worker=worker, rest=f"{before} {after}".strip())


def _check_are_different(workers: dict[str, str]) -> None:
    """Raises ValueError if two columns are of one worker, as "rank0" and "Rank 0"."""
    columns: dict[str, str] = {}
    for name, worker in workers.items():
        first = columns.setdefault(_plain(worker).replace("_", ""), name)
        if first != name:
            raise ValueError(
                f"each worker must have one column; {first!r} and {name!r} are of the "
                "same worker"
            )


def wide_form(
    names: Sequence[str],
    workers: dict[str, str],
    units_per_second: float = 1.0,
    step: str | None = None,
) -> WideForm:
    """Returns the wide form with these workers, by column name, and chosen step."""
    others = [name for name in names if name not in workers]
    possible_steps = [name for name in others if is_step_name(name)]
    if step is None and len(possible_steps) == 1:
        step = possible_steps[0]
    skipped = [name for name in others if name != step and not is_step_name(name)]
    return WideForm(
        times=tuple(names.index(name) for name in workers),
        workers=tuple(workers.values()),
        units_per_second=units_per_second,
        step=None if step is None else names.index(step),
        skipped=tuple(skipped),
    )


def _may_be_time(rest: str, time_names: Sequence[str]) -> bool:
    """Returns whether a name without its worker is empty, a unit, or ends with a time.

    A worker may have columns of other quantities, such as its loss or its waits.
    """
    words = _plain(rest).split("_")
    if words == [""]:
        return True
    if len(words) == 1 and words[0] in _CLEAR_UNITS:
        # A point here is the start of a domain name.
        return not rest.startswith(".")
    if time_names is _NAMES_OF_ANY_TIME:
        return _names_time(rest, time_names)
    if time_names is not _WAIT_NAMES and "wait" in words:
        return False
    ends = ["_".join(words[first:]) for first in range(len(words))]
    return any(_names_time(end, time_names) for end in ends)


def _plain(name: str) -> str:
    """Returns a name in lower case, with underscores between its words."""
    words = re.findall(r"[a-z0-9]+", name.lower().translate(_MICRO))
    return "_".join(words)


def _last_word(name: str) -> str:
    """Returns the last word of a name, in lower case."""
    return _plain(name).rpartition("_")[2]


def _units_per_second(name: str) -> float:
    """Returns the units per second of times, from the end of a name; 1 if unknown.

    A unit that may be another word must stand behind a name of a time:
    "host.company.us" has no unit.
    """
    words = _plain(name).split("_")
    known = (*_TIME_NAMES, *_WAIT_NAMES)
    stems = ["_".join(words[first:-1]) for first in range(len(words))]
    is_named = any(stem in known for stem in stems)
    if is_named or words[-1] in _CLEAR_UNITS:
        return _UNITS_PER_SECOND.get(words[-1], 1.0)
    return 1.0
