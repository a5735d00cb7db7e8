"""All codes compared: `python -m experiments codes`, a module a section."""

import functools
from pathlib import Path

import jax

from experiments.codes import (
    equal_load,
    learned,
    matrices,
    noise,
    partial_work,
    placement,
    recovery,
    unequal,
)
from experiments.runner.study import Effort, run

SECTIONS = {
    "equal_load": equal_load.study,
    "noise": noise.study,
    "matrices": matrices.study,
    "recovery": recovery.study,
    "learned": learned.study,
    "partial_work": partial_work.study,
    "unequal": unequal.study,
    "placement": placement.study,
}


def codes(runs: int = 2_000, seed: int = 0, out: Path = Path("results")) -> None:
    """Every code compared: error, noise, recovery, unequal workers, any placement.

    Args:
        runs: Random patterns of stragglers for each mean; below 100, also fewer
            workers, sizes and steps, to see that everything runs.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown) and figures (PNG).
    """
    effort = Effort(runs, is_full=runs >= 100)
    key = jax.random.key(seed)
    sections = {
        name: functools.partial(study, effort, key) for name, study in SECTIONS.items()
    }
    title = "Which code? Patterns of stragglers"
    run("codes", title, sections, runs, seed, out)
