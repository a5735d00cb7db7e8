"""The command line: `python -m jaxwgc report FILE` and `python -m jaxwgc plan FILE`."""

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

import jaxwgc
from jaxwgc.traces._column_names import FileOptions
from jaxwgc.traces._files import read_traces
from jaxwgc.traces._frames import WorkerTimes
from jaxwgc.traces._several_files import read_workers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_KINDS_OF_FILES = (
    ".csv, .tsv, .txt, .log (Megatron), .jsonl, .ndjson, .json (a trace of PyTorch's "
    "profiler), .parquet, .npy or .npz"
)
# Seconds between checks whether files have grown (--live): short for a reader, long
# against the check.
_SECONDS_BETWEEN_LOOKS = 1.0


class _Result(NamedTuple):
    """Result of a command, as text, as data for JSON, and as a figure.

    Attributes:
      fields: Result as a dict for JSON.
      text: Result as text.
      draw: Returns a `matplotlib.figure.Figure` of the result; None for waits.
    """

    fields: dict[str, Any]
    text: str
    draw: Callable[[], "Figure"] | None


class _Parser(argparse.ArgumentParser):
    """Parser of arguments that prints errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints an error, and exits with status 2."""
        print(f"error: {message} (--help shows the arguments)", file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with status 2 if its arguments are invalid."""
    parser = _Parser("python -m jaxwgc")
    commands = parser.add_subparsers(required=True)
    report = commands.add_parser(
        "report",
        help="shows which workers are slow",
        description="Shows which workers are slow, from their times in each step.",
    )
    _add_arguments_of_report(report)
    report.set_defaults(run=_report)
    plan = commands.add_parser(
        "plan",
        help="shows which code and waiting rule train fastest",
        description=(
            "Shows which code, number of copies and waiting rule train fastest, from "
            "the times of uncoded workers in each step. A column 'load' says at which "
            "load a row was measured, e.g. 2 for twice the work."
        ),
    )
    _add_arguments_of_plan(plan)
    plan.set_defaults(run=_plan, live=False, own_steps=False)
    options = parser.parse_args(arguments)
    try:
        if options.live:
            _follow(options)
            return
        result: _Result = options.run(options)
        if options.json:
            print(json.dumps(result.fields, indent=1))
        else:
            print(result.text)
        if options.plot and result.draw:
            result.draw().savefig(options.plot, dpi=160)
    except (EOFError, ImportError, OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _add_arguments_of_report(report: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command `report` to its parser."""
    content = report.add_mutually_exclusive_group()
    content.add_argument(
        "--waits",
        action="store_true",
        help="the file has the times that workers wait for each other",
    )
    content.add_argument(
        "--before-collective",
        action="store_true",
        help="times end before workers wait for each other, also if all are equal",
    )
    report.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help=(f"times of all workers, or a file for each worker: {_KINDS_OF_FILES}"),
    )
    report.add_argument(
        "--own-steps",
        action="store_true",
        help="each worker counts its own steps: its times are numbered from 0",
    )
    report.add_argument(
        "--live",
        action="store_true",
        help="follows growing files until Ctrl-C (rich)",
    )
    _add_arguments_of_columns(report, drawn="the report")
    report.add_argument("--plan", action="store_true", help="adds jaxwgc.plan's advice")
    report.add_argument(
        "--memory",
        action="store_true",
        help="with --plan: also tries to store late messages",
    )


def _add_arguments_of_plan(plan: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command `plan` to its parser."""
    plan.add_argument("file", nargs="?", help=f"times: {_KINDS_OF_FILES}")
    _add_arguments_of_columns(plan, drawn="the plan")
    plan.add_argument(
        "--at",
        nargs=2,
        action="append",
        metavar=("LOAD", "FILE"),
        help=(
            "times at a load, e.g. --at 1 times.csv --at 2 twice.csv, where workers "
            "did twice the work; in place of one file with a column 'load', in the "
            "order of the loads"
        ),
    )
    plan.add_argument(
        "--before-collective",
        action="store_true",
        help="times end before workers wait for each other, also if all are equal",
    )
    plan.add_argument(
        "--exact", action="store_true", help="only exact gradients in every step"
    )
    plan.add_argument(
        "--memory", action="store_true", help="also tries to store late messages"
    )
    plan.add_argument(
        "--copies",
        type=int,
        nargs="+",
        metavar="D",
        help="numbers of copies of the data to try (by default up to 4)",
    )
    plan.add_argument(
        "--target",
        type=float,
        default=0.01,
        help="loss to reach, relative to the start (default: 0.01)",
    )


def _add_arguments_of_columns(parser: argparse.ArgumentParser, drawn: str) -> None:
    """Adds the arguments that both commands have: columns of files, and output."""
    columns = parser.add_argument_group(
        "columns", "If the names of columns do not tell what they hold."
    )
    columns.add_argument("--step", metavar="COLUMN", help="steps (a row per time)")
    columns.add_argument("--worker", metavar="COLUMN", help="workers (a row per time)")
    columns.add_argument("--seconds", metavar="COLUMN", help="times (a row per time)")
    columns.add_argument(
        "--workers", metavar="PATTERN", help="columns that each hold a worker: 'host*'"
    )
    columns.add_argument("--array", help="name of the array in an .npz file")
    columns.add_argument(
        "--decimal",
        choices=[".", ","],
        help="decimal mark of a text, in which the other mark separates thousands",
    )
    columns.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="skips rows that cannot be read, and tells how many",
    )
    parser.add_argument("--plot", metavar="PNG", help=f"draws {drawn} (matplotlib)")
    parser.add_argument("--json", action="store_true", help="prints JSON")


def _file_options(options: argparse.Namespace, *, waits: bool = False) -> FileOptions:
    """Converts parsed arguments to the options for reading a file of times."""
    return FileOptions(
        step=options.step,
        worker=options.worker,
        seconds=options.seconds,
        workers=options.workers,
        array=options.array,
        decimal=options.decimal,
        skip_bad_rows=options.skip_bad_rows,
        waits=waits,
        own_steps=options.own_steps,
    )


def _print_notes(source: str, trace: WorkerTimes) -> None:
    """Prints notes about skipped rows and columns to stderr."""
    for note in trace.notes:
        print(f"{source}: {note}", file=sys.stderr)


def _report(options: argparse.Namespace) -> _Result:
    """Runs the command `report`: reads files of times, and makes the report."""
    if options.memory and not options.plan:
        raise ValueError("--memory needs --plan; got --memory alone")
    if options.waits and options.plot:
        raise ValueError("--plot draws times, not waits; leave out --plot or --waits")
    trace = read_workers(options.files, _file_options(options, waits=options.waits))
    num_files = len(options.files)
    source = options.files[0] if num_files == 1 else f"{num_files} files"
    _print_notes(source, trace)
    draw = None
    if options.waits:
        report = jaxwgc.straggler_report(waits=trace.times, names=trace.workers)
    else:
        report = jaxwgc.straggler_report(
            trace.times,
            names=trace.workers,
            steps=trace.steps if trace.has_steps else None,
            before_collective=options.before_collective,
        )
        draw = report.plot
    fields = report.to_dict()
    text = str(report)
    if options.plan:
        advice = _advice(report, trace.times, memory=options.memory)
        fields["plan"] = advice
        text = f"{text}\n\n{advice}"
    return _Result(fields=fields, text=text, draw=draw)


def _follow(options: argparse.Namespace) -> None:
    """Shows the report of growing files until the user interrupts it."""
    if options.json or options.plot:
        raise ValueError("--live shows only text; leave out --json and --plot")
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError as error:
        raise ImportError(
            "rich is needed for --live: in a checkout, pip install '.[report]'"
        ) from error
    paths = [Path(file) for file in options.files]
    sizes = None
    with contextlib.suppress(KeyboardInterrupt), Live(Text("")) as live:
        while True:
            before = sizes
            sizes = [path.stat().st_size if path.exists() else None for path in paths]
            if sizes != before:
                live.update(Text(_text_so_far(options)), refresh=True)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _text_so_far(options: argparse.Namespace) -> str:
    """Returns the report of growing files, or why there is none yet."""
    try:
        # Notes are shown above the report: printed to stderr, they would disturb the
        # live display.
        with contextlib.redirect_stderr(io.StringIO()) as notes:
            text = _report(options).text
        return f"{notes.getvalue()}{text}"
    except (OSError, ValueError) as error:
        return f"no report yet: {error}"


def _advice(
    report: jaxwgc.StragglerReport | jaxwgc.reports.WaitReport,
    times: np.ndarray,
    *,
    memory: bool,
) -> str:
    """Returns the advice of `jaxwgc.plan`, or why there is no plan."""
    if isinstance(report, jaxwgc.reports.WaitReport) or report.after_barrier:
        return "No plan: a plan needs the time of each worker before it waits."
    import jax

    delay = jaxwgc.stragglers.empirical(times)
    plan = jaxwgc.plan(
        delay,
        len(report.names),
        jax.random.key(0),
        names=report.names.tolist(),
        candidates=jaxwgc.planning.Candidates(memory=memory),
    )
    return plan.advice


def _plan(options: argparse.Namespace) -> _Result:
    """Runs the command `plan`: reads files of times, and makes the plan."""
    import jax

    measured = _measured(options)
    workers = measured[0].trace.workers
    for _, source, trace in measured:
        _print_notes(source, trace)
        _check_is_before_barrier(source, trace, options.before_collective)
    if measured[0].load is None:
        delay = jaxwgc.stragglers.empirical(measured[0].trace.times)
    else:
        loads = np.array([load for load, _, _ in measured])
        delay = jaxwgc.stragglers.empirical(_stacked(measured), measured_at=loads)
    plan = jaxwgc.plan(
        delay,
        len(workers),
        jax.random.key(0),
        names=workers,
        candidates=jaxwgc.planning.Candidates(
            copies=options.copies,
            memory=options.memory,
            exact=options.exact,
        ),
        goal=jaxwgc.planning.Goal(target=options.target),
    )
    return _Result(fields=plan.to_dict(), text=str(plan), draw=plan.plot)


class _Measured(NamedTuple):
    """Times of workers at one load.

    Attributes:
      load: Load; None for times at a load that is not given.
      source: Name of the times in messages.
      trace: The times.
    """

    load: float | None
    source: str
    trace: WorkerTimes


def _measured(options: argparse.Namespace) -> list[_Measured]:
    """Reads the times at each load, from one file or from the files of `--at`."""
    if (options.file is None) == (options.at is None):
        raise ValueError(
            "give one file of times, or a file per load by --at LOAD FILE --at LOAD "
            "FILE; got both or neither"
        )
    file_options = _file_options(options)
    if options.at is None:
        measured = []
        for load, trace in read_traces(options.file, file_options).items():
            source = options.file
            if load is not None:
                source = f"{options.file} at load {load:g}"
            measured.append(_Measured(load=load, source=source, trace=trace))
        if measured[-1].load == 0:
            raise ValueError(f"{options.file} must have a load above 0; got only 0")
        return measured
    loads = np.array([_as_load(load) for load, _ in options.at])
    # `not` before the comparisons also rejects NaN, for which all of them are false.
    if not (loads[0] >= 0 and loads[-1] > 0 and np.all(np.diff(loads) > 0)):
        raise ValueError(
            "--at must have increasing loads of at least 0, the last above 0; got "
            f"{loads.tolist()}"
        )
    measured = []
    for load, (_, file) in zip(loads.tolist(), options.at, strict=True):
        traces = read_traces(file, file_options)
        if None not in traces:
            raise ValueError(
                f"--at gives the load of all rows of a file, and {file} has a column "
                "'load'; leave out --at, or rename the column if it holds no loads"
            )
        measured.append(_Measured(load=load, source=file, trace=traces[None]))
    return measured


def _check_is_before_barrier(
    source: str, trace: WorkerTimes, before_collective: bool
) -> None:
    """Raises ValueError if times include the wait for other workers."""
    report = jaxwgc.straggler_report(
        trace.times, names=trace.workers, before_collective=before_collective
    )
    if report.after_barrier:
        raise ValueError(
            "a plan needs the time of each worker before it waits for others; in "
            f"{source}, all workers have equal times in a step, as after a barrier. If "
            "the times end before the wait, add --before-collective"
        )


def _as_load(text: str) -> float:
    """Converts the argument LOAD of `--at` to a number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            "--at must have a load and a file, e.g. --at 2 twice.csv for twice the "
            f"work; got the load {text}"
        ) from None


def _stacked(measured: list[_Measured]) -> np.ndarray:
    """Stacks the times of all loads, cut to the smallest number of rounds."""
    first = measured[0]
    num_rounds = min(len(trace.times) for _, _, trace in measured)
    tables = []
    for _, source, trace in measured:
        if trace.times.ndim != 2:
            raise ValueError(
                f"{source} must have times of shape (steps, workers); got "
                f"{trace.times.shape}"
            )
        if sorted(trace.workers) != sorted(first.trace.workers):
            raise ValueError(
                f"{source} must have the workers of {first.source}, "
                f"{', '.join(first.trace.workers)}; got {', '.join(trace.workers)}"
            )
        order = [trace.workers.index(name) for name in first.trace.workers]
        tables.append(trace.times[:num_rounds, order])
        if len(trace.times) > num_rounds:
            print(f"{source}: uses the first {num_rounds} rounds", file=sys.stderr)
    return np.stack(tables)


def keep_programs() -> None:
    """Makes JAX store compiled programs in the user's cache folder.

    There is a folder per kind of processor, since home folders may be shared. Variables
    of JAX that the user has set stay.
    """
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(parent) / "jaxwgc" / _kind_of_processor()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _kind_of_processor() -> str:
    """Returns a hash that identifies the instruction set of the processor."""
    words = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


if __name__ == "__main__":
    keep_programs()
    main()
