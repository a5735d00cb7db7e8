"""The command line: `python -m experiments` lists, `... NAME` runs one.

`python -m experiments redraw NAME` measures nothing: it makes the tables and figures of
the numbers that lie in its `--out`. `python -m experiments only SECTION,SECTION NAME`
measures some sections, and leaves the others there as they are.
"""

import signal
import sys

# Ctrl-C ends the program at once, though it imports or runs what is compiled. Where
# there are processes to end first it is an exception.
if __name__ == "__main__" and not {"cluster", "chaos"} & {*sys.argv}:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Callable

import tyro

from experiments.benchmark import benchmark
from experiments.codes import codes
from experiments.delays.against_the_clock import time
from experiments.delays.models import delays
from experiments.delays.planning import plan
from experiments.delays.slow_workers import slow_workers
from experiments.delays.straggler_reports import report
from experiments.errors.wrong_answers import wrong_answers
from experiments.paper.linear_regression import figure2, linear_regression
from experiments.paper.mnist import mnist
from experiments.ray.chaos import chaos
from experiments.ray.cluster import cluster
from experiments.ray.wrong_workers import wrong_workers
from experiments.runner.results import ExperimentError
from experiments.runner.study import sections_to_measure
from experiments.runner.tables import console
from experiments.sketching import sketching
from experiments.weights import weights

EXPERIMENTS: dict[str, Callable[..., None]] = {
    "mnist": mnist,
    "linear-regression": linear_regression,
    "figure2": figure2,
    "codes": codes,
    "sketching": sketching,
    "report": report,
    "plan": plan,
    "delays": delays,
    "time": time,
    "slow-workers": slow_workers,
    "wrong-answers": wrong_answers,
    "weights": weights,
    "cluster": cluster,
    "chaos": chaos,
    "wrong-workers": wrong_workers,
    "benchmark": benchmark,
}


def main() -> int:
    """Runs what the command line asks for; gives the exit status."""
    arguments, chosen = sys.argv[1:], None
    if arguments[:1] == ["redraw"]:
        arguments, chosen = arguments[1:], frozenset()
    elif arguments[:1] == ["only"]:
        arguments, chosen = arguments[2:], frozenset("".join(arguments[1:2]).split(","))
    before = sections_to_measure.set(chosen)
    try:
        tyro.extras.subcommand_cli_from_dict(
            EXPERIMENTS,
            args=arguments or ["--help"],
            prog="python -m experiments",
            description="The paper's tables and figures, comparisons and benchmarks.",
        )
    except ExperimentError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        sections_to_measure.reset(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
