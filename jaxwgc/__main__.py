"""The command line: `python -m jaxwgc report FILE` shows which workers are slow."""

import argparse
import json
from collections.abc import Sequence

import jax

import jaxwgc
from jaxwgc._trace_files import read_trace


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what the command line asks for; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser("python -m jaxwgc")
    commands = parser.add_subparsers(required=True)
    report = commands.add_parser("report", help="shows which workers are slow")
    add = report.add_argument
    add(
        "file",
        help="times: .csv or .jsonl with a row per round or with columns step, worker "
        "and seconds; .npy or .npz with an array (rounds, workers)",
    )
    add("--array", help="name of the array in an .npz file")
    add("--plot", metavar="PNG", help="draws the report, with matplotlib")
    add("--json", action="store_true", help="prints JSON")
    add("--plan", action="store_true", help="adds the answer of jaxwgc.plan")
    options = parser.parse_args(arguments)
    try:
        times, names = read_trace(options.file, options.array)
        found = jaxwgc.straggler_report(times, names=names)
        shown, texts = found.to_dict(), [str(found)]
        if options.plan:
            delay = jaxwgc.stragglers.empirical(times)
            plan = jaxwgc.plan(delay, len(found.names), jax.random.key(0)).answer
            shown["plan"] = plan
            texts.append(plan)
        if options.plot:
            found.plot().savefig(options.plot, dpi=160)
    except (EOFError, ImportError, OSError, TypeError, ValueError) as error:
        report.error(str(error))
    print(json.dumps(shown, indent=1) if options.json else "\n\n".join(texts))


if __name__ == "__main__":
    main()
