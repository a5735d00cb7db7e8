"""Sketching measured: `python -m experiments sketching`, a module a section."""

import functools
from pathlib import Path

import jax

from experiments.runner.study import Effort, run
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
    key = jax.random.key(seed)
    sections = {
        name: functools.partial(study, effort, jax.random.fold_in(key, index))
        for index, (name, study) in enumerate(SECTIONS.items())
    }
    title = "Sketching. Random embeddings"
    run("sketching", title, sections, runs, seed, out)
