"""The command: runs the sections and writes what they give."""

from pathlib import Path
from typing import Any

import jax

from experiments import results, sections
from experiments.codes import (
    equal_load,
    learned,
    matrices,
    noise,
    orderings,
    partial_work,
    recovery,
)
from experiments.sections import Effort, Section


def codes(runs: int = 2_000, seed: int = 0, out: Path = Path("results")) -> None:
    """Every code compared: error, noise, recovery, learned entries, unfinished work.

    Args:
        runs: Random patterns of stragglers for each mean; below 100, also fewer
            workers, sizes and steps, to see that everything runs.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown) and figures (PNG).
    """
    folder = results.Results("Which code? Patterns of stragglers", out, runs)
    effort = Effort(runs, is_full=runs >= 100)
    key = jax.random.key(seed)
    content: dict[str, Any] = {
        "command": f"python -m experiments codes --runs {runs} --seed {seed}"
    }

    def add(name: str, section: Section) -> None:
        content[name] = section.numbers
        sections.add(folder, "codes", section)

    others = {
        "noise": noise.section,
        "matrices": matrices.section,
        "recovery": recovery.section,
        "learned": learned.section,
        "partial_work": partial_work.section,
    }
    with results.progress_bar() as progress:
        task = progress.add_task("equal load", total=2 + len(others))
        errors = equal_load.measure(effort, key)
        add("equal_load", equal_load.section(errors))
        progress.advance(task)
        add("orderings", orderings.section(errors))
        progress.advance(task)
        for name, section in others.items():
            progress.update(task, description=name.replace("_", " "))
            add(name, section(effort, key))
            progress.advance(task)
    folder.add_json("codes.json", content)
    folder.save()
