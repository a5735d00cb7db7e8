"""A study says what is tried and what is shown; the runner does it, for all of them."""

import contextvars
import dataclasses
import functools
import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import matplotlib
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

import jaxwgc
from experiments.runner.figures import LOOK, Figure
from experiments.runner.results import (
    ExperimentError,
    check_folder,
    check_positive,
    environment,
    read_json,
    save_whole,
    to_builtin,
    to_json,
    to_records,
    was_read,
)
from experiments.runner.tables import Columns, ResultTable, console

# What is measured: nested dicts and lists.
Numbers = Any
Made = TypeVar("Made")
Watch = Callable[[str, float], Any]
Shown = Mapping[str, Callable[[Numbers], Made]]
# The sections to measure, all by default; with none, what was measured before is shown.
sections_to_measure: contextvars.ContextVar[frozenset[str] | None] = (
    contextvars.ContextVar("sections_to_measure", default=None)
)


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
    """Numbers to measure and show: tables and figures are drawn from them.

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


def timed(
    cells: Any, title: str, show: Columns | Callable[[Any], dict[str, str]]
) -> Study:
    """Returns a study of records, with a table of them."""
    table = functools.partial(ResultTable.of_records, title, show)
    return Study(cells, tables={"": table})


def sections_of(
    studies: Mapping[str, Callable[[Effort, jax.Array], Study]],
    effort: Effort,
    seed: int,
) -> dict[str, Callable[[], Study]]:
    """Returns the studies for `run`, each with a key of its own."""
    key = jax.random.key(seed)
    return {
        name: functools.partial(study, effort, jax.random.fold_in(key, index))
        for index, (name, study) in enumerate(studies.items())
    }


class Section(NamedTuple):
    """Results of a study: all numbers, and those shown; tables and figures by name."""

    numbers: Numbers
    shown: Numbers
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
            trials = jaxwgc.monte_carlo(
                cell.run,
                study.key,
                study.runs,
                study.batch_size,
                lambda runs, of: watch(name, (done + runs / of) / total),
            )
            done += 1
            return study.reduce(trials)
        measured = cell.run()
        if isinstance(measured, Iterator):
            rows = []
            for row in measured:
                rows.append(row)
                watch(name, (done + min(len(rows), cell.num_rows)) / total)
            measured = rows
        done += cell.num_rows
        return measured

    with jax.enable_x64(study.x64):
        numbers = _filled(study.numbers, run)
    if study.key is not None:
        numbers |= {"runs": study.runs}
    if derived := study.derive(numbers):
        numbers |= derived
    return show(study, to_builtin(numbers))


def show(study: Study, numbers: Numbers) -> Section:
    """Tables and figures of numbers that were measured, now or before."""
    records = to_records(numbers)
    with matplotlib.rc_context(LOOK):
        tables = {name: table(records) for name, table in study.tables.items()}
        figures = {name: draw(records) for name, draw in study.figures.items()}
    note = study.note(records)
    return Section(numbers, to_builtin(was_read(records)), tables, figures, note)


def _filled(node: Any, run: Callable[[Trial | Once, str], Any], name: str = "") -> Any:
    """The same nested dicts and lists, with what `run(cell, name)` gives."""
    if isinstance(node, dict):
        filled = {key: _filled(child, run, key or name) for key, child in node.items()}
        return filled | (filled.pop("", None) or {})
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
    is alone, and its numbers are those of the whole file. Of the numbers those are kept
    that tables and figures read. Where `sections_to_measure` names some, the others
    stay as they are in the folder; where it is empty, tables and figures are made of
    the numbers that the folder has.
    """
    check_positive(**{option: runs})
    check_folder(out)
    console.print(f"{title}, {runs} times", highlight=False)
    origin = f"python -m experiments {command} --{option} {runs} --seed {seed}"
    content: dict[str, Any] = {"environment": environment(), "command": origin}
    chosen = sections_to_measure.get()
    if unknown := (chosen or set()) - set(sections):
        raise ExperimentError(
            f"{command} has no section {', '.join(sorted(unknown))}; it has "
            f"{', '.join(filter(None, sections)) or 'one without a name'}"
        )

    def path(name: str, kind: str) -> Path:
        return out / f"{'_'.join(filter(None, (prefix or command, name)))}.{kind}"

    def save(path: Path, data: bytes) -> None:
        save_whole(path, data)
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)

    kept = {} if chosen is None else read_json(path("", "json"))
    is_measured = chosen is None or bool(chosen)
    waiting = [name for name in sections if not chosen or name in chosen]
    content |= {name: kept[name] for name in sections if chosen and name in kept}
    columns = SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn()
    is_seen = console.is_terminal
    with Progress(*columns, console=console, disable=not is_seen) as progress:
        # Ctrl-C ends the program at once, and would leave it hidden.
        console.show_cursor()
        for name in tuple(waiting):
            build = sections[name]
            label = name.replace("_", " ") or command
            watch = _watcher(progress, label)
            if not is_seen:
                console.print(f"{label} …", highlight=False)
            watch("preparing", 0.0)
            if is_measured:
                section = measure(build(), watch)
            else:
                section = show(build(), to_records(kept[name] if name else kept))
            watch("", 1.0)
            for table_name, table in section.tables.items():
                table.print()
                save(path(table_name or name, "md"), table.to_markdown().encode())
            for figure_name, figure in section.figures.items():
                image = io.BytesIO()
                figure.savefig(image, format="png", dpi=160)
                save(path(figure_name or name, "png"), image.getvalue())
            if section.note:
                console.print(section.note, highlight=False)
            content |= {name: section.shown} if name else section.shown
            waiting.remove(name)
            unfinished = {"unfinished": waiting} if waiting else {}
            if is_measured:
                names = "environment", "command", *sections
                in_order = {key: content[key] for key in names if key in content}
                save(path("", "json"), to_json(in_order | content | unfinished))


def command(
    name: str, title: str, count: str = "runs", prefix: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Makes a command of a function that returns a study, or studies by section.

    Args:
        name: Name on the command line.
        title: What is run `count` times.
        count: Option with the number of runs; another option is `seed`.
        prefix: Beginning of the names of files, the name of the command by default.

    Returns:
        A decorator. It adds the option `out`, and runs the studies.
    """

    def decorate(function: Any) -> Callable[..., None]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def execute(*arguments, out: Path = Path("results"), **options):
            given = signature.bind(*arguments, **options)
            given.apply_defaults()
            runs, seed = given.arguments[count], given.arguments["seed"]
            found = function(**given.arguments)
            sections = {"": lambda: found} if isinstance(found, Study) else found
            run(name, title, sections, runs, seed, out, prefix, count)

        added = inspect.signature(execute, follow_wrapped=False).parameters["out"]
        every = [*signature.parameters.values(), added]
        execute.__signature__ = signature.replace(parameters=every)
        execute.__annotations__ = {**function.__annotations__, "out": Path}
        execute.__doc__ = f"{inspect.getdoc(function)}\n{_COMMON_HELP}"
        return execute

    return decorate


_COMMON_HELP = """    seed: Seed of the random numbers.
    out: Folder for tables (Markdown), figures (PNG) and numbers (JSON)."""


def _watcher(progress: Progress, section: str) -> Watch:
    task = progress.add_task(section, total=1.0)
    return lambda cell, share: progress.update(
        task, completed=share, description=f"{section} {cell}"[:38].strip()
    )
