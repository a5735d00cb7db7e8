"""The command line: `python -m jaxwgc report FILE` shows which workers are slow."""

import argparse
import json

import jax

import jaxwgc
from jaxwgc._trace_files import read_trace


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with status 2 if its arguments are invalid."""
    parser = argparse.ArgumentParser("python -m jaxwgc")
    commands = parser.add_subparsers(required=True)
    report = commands.add_parser("report", help="shows which workers are slow")
    report.add_argument("file", help="times: .csv, .jsonl, .npy or .npz")
    report.add_argument("--array", help="name of the array in an .npz file")
    report.add_argument("--plot", metavar="PNG", help="draws the report (matplotlib)")
    report.add_argument("--json", action="store_true", help="prints JSON")
    report.add_argument("--plan", action="store_true", help="adds jaxwgc.plan's advice")
    options = parser.parse_args(arguments)
    try:
        times, names = read_trace(options.file, options.array)
        found = jaxwgc.straggler_report(times, names=names)
        shown, texts = found.to_dict(), [str(found)]
        if options.plan:
            delay = jaxwgc.stragglers.empirical(times)
            plan = jaxwgc.plan(delay, len(found.names), jax.random.key(0))
            shown["plan"] = plan.answer
            texts.append(plan.answer)
        if options.plot:
            found.plot().savefig(options.plot, dpi=160)
    except (EOFError, ImportError, OSError, TypeError, ValueError) as error:
        report.error(str(error))
    print(json.dumps(shown, indent=1) if options.json else "\n\n".join(texts))


if __name__ == "__main__":
    main()
