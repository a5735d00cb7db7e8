"""Speed and accuracy: `python -m experiments benchmark`."""

import functools
from collections.abc import Callable
from typing import Any

from experiments.benchmark import (
    compilation,
    coordinator,
    decoding,
    first_calls,
    graphs,
    leverage_scores,
    projections,
    rank_k_scores,
    scale,
    sparse_least_squares,
    step,
    trials,
)
from experiments.runner.study import Study, command

# Studies by the names of their files, functions of repeats, seed and quick.
SECTIONS: dict[str, Callable[[int, int, bool], Study]] = {
    "accuracy": decoding.accuracy,
    "worst_patterns": decoding.worst_patterns,
    "decoding": decoding.exact,
    "least_squares": decoding.least_squares,
    "graphs": graphs.study,
    "leverage_scores": leverage_scores.exact,
    "approximate_scores": leverage_scores.approximate,
    "streaming_scores": leverage_scores.streaming,
    "rank_k_scores": rank_k_scores.study,
    "projections": projections.study,
    "sparse_least_squares": sparse_least_squares.study,
    "memory_map": sparse_least_squares.memory_map,
    "step": step.study,
    "mesh": step.mesh,
    "scale": scale.study,
    "trials": trials.study,
    "coordinator": coordinator.study,
    "coordinator_peers": coordinator.peers,
    "compilation": compilation.study,
    "first_calls": first_calls.study,
    "table2": trials.table2,
}


@command("benchmark", "Benchmark, each entry", count="repeats")
def benchmark(repeats: int = 7, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Measures speed and accuracy: decoding, leverage scores, training steps.

    Args:
        repeats: Timings of each entry, of which the median is shown.
        quick: Use small sizes, as a quick check.
    """
    return {
        name: functools.partial(study, repeats, seed, quick)
        for name, study in SECTIONS.items()
    }
