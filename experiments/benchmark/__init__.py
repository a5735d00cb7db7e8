"""Speed and accuracy: `python -m experiments benchmark`, a module a section."""

import functools
from collections.abc import Callable
from pathlib import Path

from experiments.benchmark import (
    accuracy,
    compilation,
    coordinator,
    decoding,
    first_calls,
    graphs,
    leverage_scores,
    mesh,
    projections,
    rank_k_scores,
    scale,
    sparse_least_squares,
    step,
    table2,
    trials,
    worst_patterns,
)
from experiments.runner.study import Study, run

# By the names of their files, of repeats, seed and quick.
SECTIONS: dict[str, Callable[[int, int, bool], Study]] = {
    "accuracy": accuracy.study,
    "worst_patterns": worst_patterns.study,
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
    "mesh": mesh.study,
    "scale": scale.study,
    "trials": trials.study,
    "coordinator": coordinator.study,
    "coordinator_peers": coordinator.peers,
    "compilation": compilation.study,
    "first_calls": first_calls.study,
    "table2": table2.study,
}


def benchmark(
    repeats: int = 7, seed: int = 0, out: Path = Path("results"), quick: bool = False
) -> None:
    """Speed and accuracy: decoding, leverage scores, training steps, table 2.

    Args:
        repeats: Timings of each entry; the median counts.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown).
        quick: Small sizes, to see that everything runs.
    """
    sections = {
        name: functools.partial(study, repeats, seed, quick)
        for name, study in SECTIONS.items()
    }
    title = "Benchmark, each entry"
    run("benchmark", title, sections, repeats, seed, out, option="repeats")
