"""Speed and accuracy: `python -m experiments benchmark`."""

import functools
from collections.abc import Callable

from experiments.benchmark import (
    cluster_start,
    comparison,
    compilation,
    coordinator,
    decoding,
    influence,
    large_messages,
    leverage_scores,
    lineax_solvers,
    many_workers,
    projections,
    races,
    recovery,
    sparse_least_squares,
    step,
)
from experiments.runner.study import Sections, Study, command

# Studies by the names of their files, functions of repeats, seed and quick.
SECTIONS: dict[str, Callable[[int, int, bool], Study]] = {
    "accuracy": decoding.accuracy,
    "worst_patterns": decoding.worst_patterns,
    "decoding": decoding.exact,
    "least_squares": decoding.least_squares,
    "graphs": many_workers.graphs,
    "leverage_scores": leverage_scores.exact,
    "approximate_scores": leverage_scores.approximate,
    "streaming_scores": leverage_scores.streaming,
    "rank_k_scores": leverage_scores.rank_k,
    "influence": influence.study,
    "projections": projections.study,
    "sparse_least_squares": sparse_least_squares.study,
    "lineax": lineax_solvers.study,
    "memory_map": sparse_least_squares.memory_map,
    "step": step.study,
    "mesh": step.mesh,
    "scale": many_workers.clusters,
    "trials": many_workers.trials,
    "comparison": comparison.study,
    "comparison_memory": comparison.memory,
    "races": races.study,
    "coordinator": coordinator.study,
    "coordinator_peers": coordinator.peers,
    "start": cluster_start.start,
    "large_messages": large_messages.study,
    "recovery": recovery.study,
    "compilation": compilation.largest,
    "first_calls": compilation.first_calls,
    "table2": many_workers.table2,
}


@command("benchmark", "Benchmark, each entry", count="repeats")
def benchmark(repeats: int = 7, seed: int = 0, quick: bool = False) -> Sections:
    """Measures speed and accuracy: decoding, leverage scores, training steps.

    Args:
        repeats: Timings of each entry, of which the median is shown.
        quick: Use small sizes, as a quick check.
    """
    return {
        name: functools.partial(study, repeats, seed, quick)
        for name, study in SECTIONS.items()
    }
