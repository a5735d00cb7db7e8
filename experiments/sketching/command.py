"""The command: runs the sections and writes what they give."""

from pathlib import Path
from typing import Any

import jax

from experiments import results, sections
from experiments.sections import Effort, Section
from experiments.sketching import (
    block_leverage,
    contraction,
    distortion,
    logistic,
    recommended,
    samplers,
    solvers,
)


def sketching(runs: int = 100, seed: int = 0, out: Path = Path("results")) -> None:
    """Embeddings, samplers and solvers: error against size, and against time.

    Args:
        runs: Random embeddings and samples for each mean; below 20, also smaller
            matrices, to see that everything runs.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown) and figures (PNG).
    """
    folder = results.Results("Sketching. Random embeddings", out, runs)
    effort = Effort(runs, is_full=runs >= 20)
    key = jax.random.key(seed)
    content: dict[str, Any] = {
        "command": f"python -m experiments sketching --runs {runs} --seed {seed}"
    }
    # Timings first, while nothing else has filled memory.
    every = {
        "solvers": solvers.section,
        "logistic": logistic.section,
        "contraction": contraction.section,
        "distortion": distortion.section,
        "recommended": recommended.section,
        "samplers": samplers.section,
        "block_leverage": block_leverage.section,
    }
    with results.progress_bar() as progress:
        task = progress.add_task("sketching", total=len(every))
        for index, (name, section) in enumerate(every.items()):
            progress.update(task, description=name.replace("_", " "))
            found: Section = section(effort, jax.random.fold_in(key, index))
            content[name] = found.numbers
            sections.add(folder, "sketching", found)
            progress.advance(task)
    folder.add_json("sketching.json", content)
    folder.save()
