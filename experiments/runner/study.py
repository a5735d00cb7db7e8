"""Studies declare cells, tables and figures; the runner measures and shows them."""

import contextvars
import dataclasses
import functools
import inspect
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import matplotlib
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

import jaxwgc
from experiments.runner import results
from experiments.runner.figures import LOOK, Figure
from experiments.runner.tables import Columns, Numbers, ResultTable, console, table_of

Made = TypeVar("Made")
Watch = Callable[[str, float], Any]
Shown = Mapping[str, Callable[[Numbers], Made]]
# Functions of commands by name, in the order of their import.
COMMANDS: dict[str, Callable[..., None]] = {}
# Sections to measure: all by default. With none, stored numbers are shown.
sections_to_measure: contextvars.ContextVar[frozenset[str] | None] = (
    contextvars.ContextVar("sections_to_measure", default=None)
)


class Effort(NamedTuple):
    """Amount of computation: random patterns per mean, and full or small sizes."""

    runs: int
    is_full: bool


class Trial:
    """A cell of random trials: `function(key, *parameters)`."""

    def __init__(self, function: Callable[..., Any], *parameters: Any):
        self.run = lambda key: function(key, *parameters)


class Once:
    """A cell measured once: `function(*parameters)` returns numbers or yields rows."""

    def __init__(self, function: Callable[..., Any], *parameters: Any):
        self.run = lambda: function(*parameters)


@dataclasses.dataclass(frozen=True)
class Study:
    """Numbers to measure, and tables and figures that show them.

    Attributes:
        numbers: Nested dicts and lists, as in JSON: constants, and cells. A cell is a
            `Trial` or `Once`, which its numbers replace. The numbers of a cell with the
            key "" are added to its dict.
        key: Key of the trials, the same for all cells.
        runs: Trials per cell; added to the numbers of a study of trials.
        batch_size: Number of trials that are vectorized.
        x64: Whether cells compute in float64.
        reduce: Function of a cell's trials, by default means with intervals.
        derive: `derive(numbers)` returns further numbers.
        tables: Functions of the numbers by the ends of the names of files.
        figures: Functions of the numbers by the ends of the names of files.
    """

    numbers: Numbers
    key: jax.Array | None = None
    runs: int = 1
    batch_size: int | None = None
    x64: bool = False
    reduce: Callable[[Any], Numbers] = jaxwgc.summarize
    derive: Callable[[Numbers], dict[str, Any]] = lambda numbers: {}
    tables: Shown[ResultTable] = dataclasses.field(default_factory=dict)
    figures: Shown[Figure] = dataclasses.field(default_factory=dict)


def timed(cells: Any, title: str, columns: Columns, **options: Any) -> Study:
    """Returns a study of records with a table of them; options are those of `Study`."""
    return Study(cells, tables={"": table_of(title, columns)}, **options)


# Functions that build studies, by the names of their sections.
Sections = Mapping[str, Callable[[], Study]]


def sections_of(
    studies: Mapping[str, Callable[[Effort, jax.Array], Study]],
    effort: Effort,
    seed: int,
) -> Sections:
    """Returns functions that build the studies, each with a key of its own."""
    key = jax.random.key(seed)
    sections = {}
    for index, (name, study) in enumerate(studies.items()):
        study_key = jax.random.fold_in(key, index)
        sections[name] = functools.partial(study, effort, study_key)
    return sections


class Section(NamedTuple):
    """Results of a study: numbers, tables and figures by name."""

    numbers: Numbers
    tables: dict[str, ResultTable]
    figures: dict[str, Figure]


def measure(study: Study, watch: Watch = lambda cell, share: None) -> Section:
    """Runs the cells in turn; calls `watch` with the cell and the share done."""
    cells: list[Trial | Once] = []
    _filled(study.numbers, lambda cell, name: cells.append(cell))
    total = len(cells)
    done = 0

    def run(cell: Trial | Once, name: str) -> Any:
        nonlocal done
        watch(name, done / total)
        if isinstance(cell, Trial):
            if study.key is None:
                raise ValueError(f"a study of trials needs a key; cell {name} has none")

            def progress(num_done: int, num_runs: int) -> None:
                watch(name, (done + num_done / num_runs) / total)

            trials = jaxwgc.monte_carlo(
                cell.run, study.key, study.runs, study.batch_size, progress
            )
            measured = study.reduce(trials)
        else:
            measured = cell.run()
            if isinstance(measured, Iterator):
                rows = measured
                measured = []
                for row in rows:
                    measured.append(row)
                    watch(f"{name} {len(measured)}", done / total)
        done += 1
        return measured

    with jax.enable_x64(study.x64):
        numbers = _filled(study.numbers, run)
    if study.key is not None:
        numbers |= {"runs": study.runs}
    if derived := study.derive(numbers):
        numbers |= derived
    return show(study, results.to_builtin(numbers))


def show(study: Study, numbers: Numbers) -> Section:
    """Makes tables and figures from measured or stored numbers."""
    records = results.to_records(numbers)
    with matplotlib.rc_context(LOOK):
        tables = {name: table(records) for name, table in study.tables.items()}
        figures = {name: draw(records) for name, draw in study.figures.items()}
    return Section(numbers, tables, figures)


def _filled(node: Any, run: Callable[[Trial | Once, str], Any], name: str = "") -> Any:
    """Replaces each cell in nested dicts and lists by `run(cell, name)`."""
    if isinstance(node, dict):
        filled = {key: _filled(child, run, key or name) for key, child in node.items()}
        # The numbers of the cell "" stand behind those of the other keys.
        added = filled.pop("", None)
        if added:
            filled.update(added)
        return filled
    if isinstance(node, list):
        return [_filled(child, run, name) for child in node]
    if isinstance(node, Trial | Once):
        return run(node, name)
    return node


def run(
    command: str,
    title: str,
    sections: Sections,
    runs: int,
    seed: int,
    out: Path,
    prefix: str = "",
    option: str = "runs",
) -> None:
    """Runs the studies of a command, and writes the results of each when it is done.

    Names of files have those of the section and of the table or figure. A single
    section may have the name "". Sections that are not in `sections_to_measure` keep
    their stored numbers. If it is empty, tables and figures show stored numbers.
    """
    results.check_positive(**{option: runs})
    results.check_folder(out)
    console.print(f"{title}, {runs} times", highlight=False)
    origin = f"python -m experiments {command} --{option} {runs} --seed {seed}"
    chosen = sections_to_measure.get()
    if unknown := (chosen or set()) - set(sections):
        raise results.ExperimentError(
            f"{command} has no section {', '.join(sorted(unknown))}; it has "
            f"{', '.join(filter(None, sections)) or 'one without a name'}"
        )

    def path(name: str, kind: str) -> Path:
        return out / f"{'_'.join(filter(None, (prefix or command, name)))}.{kind}"

    def save(path: Path, data: bytes) -> None:
        results.save_whole(path, data)
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)

    kept = {} if chosen is None else json.loads(path("", "json").read_text())
    is_measured = chosen is None or bool(chosen)
    waiting = [name for name in sections if not chosen or name in chosen]
    content = {"environment": results.environment(), "command": origin}
    content |= {name: kept.get(name) for name in sections if name}
    default_columns = Progress.get_default_columns()
    is_seen = console.is_terminal
    with Progress(
        SpinnerColumn(),
        *default_columns,
        TimeElapsedColumn(),
        console=console,
        disable=not is_seen,
    ) as progress:
        # Ctrl-C ends the program at once, and would leave the cursor hidden.
        console.show_cursor()
        for name in tuple(waiting):
            build = sections[name]
            label = name.replace("_", " ") or command
            task = progress.add_task(label, total=1.0)

            def watch(cell, share, task=task, label=label):
                shown = f"{label} {cell}"[:38].strip()
                progress.update(task, completed=share, description=shown)

            if not is_seen:
                console.print(f"{label} …", highlight=False)
            watch("preparing", 0.0)
            if is_measured:
                section = measure(build(), watch)
            else:
                section = show(build(), kept[name] if name else kept)
            watch("", 1.0)
            for table_name, table in section.tables.items():
                table.print()
                save(path(table_name or name, "md"), table.to_markdown().encode())
            for figure_name, figure in section.figures.items():
                image = io.BytesIO()
                figure.savefig(image, format="png", dpi=160)
                save(path(figure_name or name, "png"), image.getvalue())
            content |= {name: section.numbers} if name else section.numbers
            waiting.remove(name)
            unfinished = {"unfinished": waiting} if waiting else {}
            if is_measured:
                done = {
                    key: value for key, value in content.items() if value is not None
                }
                save(path("", "json"), results.to_json(done | unfinished))


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
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            runs = bound.arguments[count]
            seed = bound.arguments["seed"]
            studies = function(**bound.arguments)
            is_one = isinstance(studies, Study)
            sections = {"": lambda: studies} if is_one else studies
            files = prefix or name.replace("-", "_")
            run(name, title, sections, runs, seed, out, files, count)

        added = inspect.signature(execute, follow_wrapped=False).parameters["out"]
        parameters = [*signature.parameters.values(), added]
        execute.__dict__["__signature__"] = signature.replace(parameters=parameters)
        execute.__annotations__ = {**function.__annotations__, "out": Path}
        execute.__doc__ = f"{inspect.getdoc(function)}\n{_COMMON_HELP}"
        COMMANDS[name] = execute
        return execute

    return decorate


_COMMON_HELP = """    seed: Seed of the random numbers.
    out: Folder for tables (Markdown), figures (PNG) and numbers (JSON)."""
