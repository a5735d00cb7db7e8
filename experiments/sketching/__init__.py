"""Sketching measured: `python -m experiments sketching`, a module a section."""

from pathlib import Path

from experiments.runner.study import Effort, run, sections_of
from experiments.sketching import (
    active,
    contraction,
    distortion,
    logistic,
    new_samples,
    promise,
    rank_k,
    recommended,
    samplers,
    solvers,
    stability,
)

# Timings first, while nothing else has filled memory.
SECTIONS = {
    "solvers": solvers.study,
    "logistic": logistic.study,
    "contraction": contraction.study,
    "distortion": distortion.study,
    "recommended": recommended.study,
    "samplers": samplers.study,
    "block_leverage": new_samples.study,
    "stability": stability.study,
    "rank_k": rank_k.passes,
    "cells": rank_k.cells,
    "active": active.study,
    "promise": promise.study,
}


def sketching(runs: int = 100, seed: int = 0, out: Path = Path("results")) -> None:
    """Embeddings, samplers and solvers: error against size, and against time.

    Args:
        runs: Random embeddings and samples for each mean; below 20, also smaller
            matrices, to see that everything runs.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown) and figures (PNG).
    """
    effort = Effort(runs, is_full=runs >= 20)
    sections = sections_of(SECTIONS, effort, seed)
    title = "Sketching. Random embeddings"
    run("sketching", title, sections, runs, seed, out)
