"""A study says what is tried and what is shown; the runner does it, for all of them."""

import contextlib
import contextvars
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import matplotlib
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

import jaxwgc
from experiments.runner import interrupts
from experiments.runner.figures import LOOK, Figure
from experiments.runner.results import Results, read_json, to_builtin
from experiments.runner.tables import ResultTable, console

# What is measured: nested dicts and lists.
Numbers = Any
Made = TypeVar("Made")
Watch = Callable[[str, float], Any]
Shown = Mapping[str, Callable[[Numbers], Made]]
# Between two lines that say how far it is, where output is not seen as it changes.
SECONDS_BETWEEN_LINES = 20
# Whether what was measured before is shown anew: `python -m experiments redraw NAME`.
is_redrawing = contextvars.ContextVar("is_redrawing", default=False)


class Effort(NamedTuple):
    """How much is computed: random patterns a mean, and full or small sizes."""

    runs: int
    is_full: bool


class Trial:
    """A cell of pure trials: `function(key, *parameters)`."""

    num_rows = 1

    def __init__(self, function: Callable[..., Any], *parameters: Any):
        self.run = lambda key: function(key, *parameters)


class Once:
    """A cell measured once: `function(*parameters)` gives numbers, or yields rows."""

    def __init__(self, function: Callable, *parameters: Any, num_rows: int = 1):
        self.run = lambda: function(*parameters)
        self.num_rows = num_rows


@dataclasses.dataclass(frozen=True)
class Study:
    """What is measured and shown: tables and figures are drawn from the numbers.

    Attributes:
        numbers: Nested dicts and lists, as they get into JSON. What is known before
            stands there: sizes, published numbers. The others are cells, each a `Trial`
            or `Once`, in whose places their numbers come; those of a cell called "" are
            put beside its neighbours.
        key: Of the trials; all cells get the same.
        runs: Trials a cell; in a study of trials also among the numbers.
        batch_size: Trials side by side.
        x64: Whether cells compute in float64.
        reduce: Makes numbers of a cell's trials, means with intervals by default.
        derive: `derive(numbers)` gives further ones.
        tables: `table(numbers)`, by the ends of the names of their files.
        figures: `figure(numbers)`, likewise.
        note: `note(numbers)` is printed.
    """

    numbers: Numbers
    key: Any = None
    runs: int = 1
    batch_size: int | None = None
    x64: bool = False
    reduce: Callable[[Any], Numbers] = jaxwgc.summarize
    derive: Callable[[Numbers], dict[str, Any]] = lambda numbers: {}
    tables: Shown[ResultTable] = dataclasses.field(default_factory=dict)
    figures: Shown[Figure] = dataclasses.field(default_factory=dict)
    note: Callable[[Numbers], str] = lambda numbers: ""


def timed(cells: Any, title: str, show: Callable[[Any], dict[str, str]]) -> Study:
    """Records, and a table that shows them."""
    table = functools.partial(ResultTable.of_records, title, show)
    return Study(cells, tables={"": table})


class Section(NamedTuple):
    """What a study gave: numbers for JSON; tables and figures by their names."""

    numbers: Numbers
    tables: dict[str, ResultTable]
    figures: dict[str, Figure]
    note: str


def measure(study: Study, watch: Watch = lambda cell, share: None) -> Section:
    """Runs the cells in turn; `watch` hears the name of the cell and what is done."""
    cells: list[Trial | Once] = []
    _filled(study.numbers, lambda cell, name: cells.append(cell))
    total = sum(cell.num_rows for cell in cells)
    done = 0

    def run(cell: Trial | Once, name: str) -> Any:
        nonlocal done
        watch(name, done / total)
        if isinstance(cell, Trial):
            found = jaxwgc.monte_carlo(
                cell.run,
                study.key,
                study.runs,
                study.batch_size,
                lambda runs, of: watch(name, (done + runs / of) / total),
            )
            done += 1
            return study.reduce(found)
        found = cell.run()
        if isinstance(found, Iterator):
            rows = []
            for row in found:
                rows.append(row)
                watch(name, (done + min(len(rows), cell.num_rows)) / total)
            found = rows
        done += cell.num_rows
        return found

    with jax.enable_x64(study.x64):
        numbers = _filled(study.numbers, run)
    if study.key is not None:
        numbers |= {"runs": study.runs}
    if derived := study.derive(numbers):
        numbers |= derived
    return show(study, numbers)


def show(study: Study, numbers: Numbers) -> Section:
    """Tables and figures of numbers that were measured, now or before."""
    with matplotlib.rc_context(LOOK):
        return Section(
            to_builtin(numbers),
            {name: table(numbers) for name, table in study.tables.items()},
            {name: draw(numbers) for name, draw in study.figures.items()},
            study.note(numbers),
        )


def _filled(node: Any, run: Callable[[Trial | Once, str], Any], name: str = "") -> Any:
    """The same nested dicts and lists, with what `run(cell, name)` gives."""
    if isinstance(node, dict):
        found = {own: _filled(child, run, own or name) for own, child in node.items()}
        return found | (found.pop("", None) or {})
    if isinstance(node, list):
        return [_filled(child, run, name) for child in node]
    return run(node, name) if isinstance(node, Trial | Once) else node


def run(
    command: str,
    title: str,
    sections: dict[str, Callable[[], Study]],
    runs: int,
    seed: int,
    out: Path,
    prefix: str = "",
    option: str = "runs",
) -> None:
    """Runs the studies of a command, and writes what each gives as soon as it is done.

    Files are called after the section and the table or figure; a section without a name
    is alone, and its numbers are those of the whole file. While `is_redrawing` nothing
    is measured: tables and figures are made of the numbers that the folder has.
    """
    folder = Results(title, out, runs, option)
    prefix = prefix or command
    origin = f"python -m experiments {command} --{option} {runs} --seed {seed}"
    content: dict[str, Any] = {"command": origin}
    waiting = list(sections)

    def file_name(name, kind):
        return f"{prefix}_{name}.{kind}" if name else f"{prefix}.{kind}"

    kept = read_json(out / file_name("", "json")) if is_redrawing.get() else None
    with progress_bar() as progress:
        for name, build in sections.items():
            watch = _watcher(progress, name.replace("_", " ") or command)
            watch("preparing", 0.0)
            if kept is None:
                section = measure(build(), watch)
            else:
                try:
                    section = show(build(), kept[name] if name else kept)
                except (AttributeError, KeyError) as error:
                    console.print(f"{name}: measured before there was {error}")
                    continue
            watch("", 1.0)
            for own, table in section.tables.items():
                table.print()
                folder.add_table(file_name(own or name, "md"), table)
            for own, figure in section.figures.items():
                folder.add_figure(file_name(own or name, "png"), figure)
            if section.note:
                console.print(section.note, highlight=False)
            content |= {name: section.numbers} if name else section.numbers
            waiting.remove(name)
            unfinished = {"unfinished": waiting} if waiting else {}
            if kept is None:
                folder.add_json(file_name("", "json"), content | unfinished)
            folder.save()
    console.print()
    for path in interrupts.written:
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)


def _watcher(progress: Progress, section: str) -> Watch:
    task = progress.add_task(section, total=1.0)
    return lambda cell, share: progress.update(
        task, completed=share, description=f"{section} {cell}"[:38].strip()
    )


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar a section; plain lines now and then where that would not be seen."""
    is_seen = console.is_terminal
    columns = SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not is_seen) as progress:
        ended = threading.Event()

        def say() -> None:
            while not is_seen and not ended.wait(SECONDS_BETWEEN_LINES):
                for task in progress.tasks[-1:]:
                    done = f"{task.percentage:.0f}% after {task.elapsed or 0:.0f} s"
                    console.print(f"{task.description}: {done}", highlight=False)

        threading.Thread(target=say, daemon=True).start()
        try:
            yield progress
        finally:
            ended.set()
