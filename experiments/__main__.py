"""The command line: `python -m experiments` lists commands, `... NAME` runs one.

`python -m experiments redraw NAME` makes tables and figures again from the numbers in
the folder `--out`, without measurements. `python -m experiments only SECTION,SECTION
NAME` measures some sections, and keeps the others.
"""

import logging
import signal
import sys

# Ctrl-C ends the program at once, also during imports and compiled code. It raises an
# exception if there are processes to end first.
if __name__ == "__main__" and {*sys.argv}.isdisjoint(
    ("cluster", "chaos", "language-model", "local-steps")
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib

import tyro

from experiments.runner.results import ExperimentError
from experiments.runner.study import COMMANDS, sections_to_measure
from experiments.runner.tables import console

for module in (
    *("sketching", "stability", "paper.mnist", "paper.linear_regression"),
    *("codes", "weights"),
    *("benchmark", "delays.straggler_reports", "delays.planning", "delays.models"),
    *("delays.against_the_clock", "delays.slow_workers", "delays.asynchronous"),
    "delays.step_times",
    "errors.wrong_answers",
    *("ray.cluster", "ray.chaos", "ray.wrong_workers"),
    *("ray.language_model", "ray.local_steps"),
):
    importlib.import_module(f"experiments.{module}")


def main() -> int:
    """Runs the command line, and returns the exit status."""
    arguments = sys.argv[1:]
    chosen = None
    if arguments[:1] == ["redraw"]:
        arguments = arguments[1:]
        chosen = frozenset()
    elif arguments[:1] == ["only"]:
        chosen = frozenset("".join(arguments[1:2]).split(","))
        arguments = arguments[2:]
    # Each lost worker would be a line between those of the progress.
    logging.getLogger("jaxwgc.distributed").setLevel(logging.ERROR)
    before = sections_to_measure.set(chosen)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments or ["--help"],
            prog="python -m experiments",
            description="The paper's tables and figures, comparisons and benchmarks.",
        )
    except (ExperimentError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        sections_to_measure.reset(before)
    return 0


if __name__ == "__main__":
    # Each lost worker would be a line between those of the progress. The level is not
    # set in `main`, which tests call: it would stay for the tests of this log.
    logging.getLogger("jaxwgc.distributed").setLevel(logging.ERROR)
    sys.exit(main())
