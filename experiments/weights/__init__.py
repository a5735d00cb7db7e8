"""When weights help: `python -m experiments weights`, a module a section."""

from pathlib import Path

from experiments.runner.study import Effort, run, sections_of
from experiments.weights import convergence, digits, fair, sources

SECTIONS = {
    "sources": sources.study,
    "fair": fair.study,
    "digits": digits.study,
    "convergence": convergence.study,
}


def weights(runs: int = 200, seed: int = 0, out: Path = Path("results")) -> None:
    """When weights help: noisy sources, each method at its own best step, convergence.

    Args:
        runs: Data sets and samples for each mean, a fifth of them on MNIST; below 20,
            also fewer compression factors, to see that everything runs.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown) and figures (PNG).
    """
    effort = Effort(runs, is_full=runs >= 20)
    sections = sections_of(SECTIONS, effort, seed)
    title = "When weights help. Data sets and samples"
    run("weights", title, sections, runs, seed, out)
