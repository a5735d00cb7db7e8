"""The command line: `python -m jaxwgc report FILE` shows which workers are slow."""

import argparse
import json
import sys
from typing import Any

import jax
import numpy as np

import jaxwgc
from jaxwgc._column_names import ColumnOptions
from jaxwgc._table_files import FileOptions, read_trace


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with status 2 if its arguments are invalid."""
    parser = argparse.ArgumentParser("python -m jaxwgc")
    commands = parser.add_subparsers(required=True)
    report = commands.add_parser(
        "report",
        help="shows which workers are slow",
        description="Shows which workers are slow, from their times in each step.",
    )
    _add_arguments(report)
    options = parser.parse_args(arguments)
    try:
        shown, text = _report(options)
    except (EOFError, ImportError, OSError, TypeError, ValueError) as error:
        report.error(str(error))
    print(json.dumps(shown, indent=1) if options.json else text)


def _add_arguments(report: argparse.ArgumentParser) -> None:
    """Adds the arguments of `report`."""
    report.add_argument(
        "file", help="times: .csv, .tsv, .txt, .jsonl, .ndjson, .npy or .npz"
    )
    kind = report.add_mutually_exclusive_group()
    kind.add_argument(
        "--waits",
        action="store_true",
        help="the file has the times that workers wait for each other",
    )
    kind.add_argument(
        "--before-collective",
        action="store_true",
        help="times end before workers wait for each other, also if all are equal",
    )
    columns = report.add_argument_group(
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
        "--decimal", choices=[".", ","], help="decimal mark of the numbers in a text"
    )
    columns.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="skips rows that cannot be read, and tells how many",
    )
    report.add_argument("--plot", metavar="PNG", help="draws the report (matplotlib)")
    report.add_argument("--json", action="store_true", help="prints JSON")
    report.add_argument("--plan", action="store_true", help="adds jaxwgc.plan's advice")
    report.add_argument(
        "--memory",
        action="store_true",
        help="with --plan: also tries to store late messages",
    )


def _report(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Returns a report as JSON and as text; prints notes about what was skipped."""
    file_options = FileOptions(
        columns=ColumnOptions(
            step=options.step,
            worker=options.worker,
            seconds=options.seconds,
            workers=options.workers,
        ),
        array=options.array,
        decimal=options.decimal,
        skip_bad_rows=options.skip_bad_rows,
        waits=options.waits,
    )
    if options.memory and not options.plan:
        raise ValueError("--memory is an option of the plan: add --plan")
    trace = read_trace(options.file, file_options)
    for note in trace.notes:
        print(f"{options.file}: {note}", file=sys.stderr)
    if options.waits:
        report = jaxwgc.straggler_report(waits=trace.times, names=trace.workers)
    else:
        report = jaxwgc.straggler_report(
            trace.times,
            names=trace.workers,
            steps=trace.steps,
            before_collective=options.before_collective,
        )
    shown = report.to_dict()
    texts = [str(report)]
    if options.plan:
        shown["plan"] = _plan(report, trace.times, memory=options.memory)
        texts.append(shown["plan"])
    if options.plot:
        report.plot().savefig(options.plot, dpi=160)
    return shown, "\n\n".join(texts)


def _plan(
    report: jaxwgc.StragglerReport | jaxwgc.studies.WaitReport,
    times: np.ndarray,
    *,
    memory: bool,
) -> str:
    """Returns the text of `jaxwgc.plan`, or why there is no plan."""
    if isinstance(report, jaxwgc.studies.WaitReport) or report.after_barrier:
        return "No plan: a plan needs the time of each worker before it waits."
    delay = jaxwgc.stragglers.empirical(times)
    plan = jaxwgc.plan(
        delay,
        len(report.names),
        jax.random.key(0),
        names=report.names.tolist(),
        memory=memory,
    )
    return plan.answer


if __name__ == "__main__":
    main()
