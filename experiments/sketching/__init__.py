"""Sketching: `python -m experiments sketching`, a module per section."""

from experiments.runner.study import Effort, Sections, command, sections_of
from experiments.sketching import (
    distortion,
    iterations,
    pivotal,
    rank_k,
    samplers,
    solvers,
)

# Timings first, while nothing else has filled memory.
SECTIONS = {
    "solvers": solvers.study,
    "logistic": solvers.logistic,
    "contraction": iterations.contraction,
    "distortion": distortion.study,
    "recommended": distortion.recommended,
    "samplers": samplers.study,
    "block_leverage": iterations.block_leverage,
    "active": samplers.active,
    "rank_k": rank_k.study,
    "promise": distortion.promise,
    "stacks": distortion.stacks,
    "pivotal": pivotal.study,
}


@command("sketching", "Sketching. Random embeddings")
def sketching(runs: int = 100, seed: int = 0) -> Sections:
    """Embeddings, samplers and solvers: error against size, and against time.

    Args:
        runs: Random embeddings and samples for each mean; below 20, also smaller
            matrices, to see that everything runs.
    """
    return sections_of(SECTIONS, Effort(runs, is_full=runs >= 20), seed)
