"""The command: runs the sections, with the peers timed in the same run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import results
from experiments.benchmark import (
    accuracy,
    approximate_scores,
    decoding,
    least_squares,
    leverage_scores,
    projections,
    step,
    streaming_scores,
    table2,
    worst_patterns,
)

# By the names of their files. A section takes repeats, seed and quick, and gives a
# table and numbers for JSON.
SECTIONS: dict[str, Callable[[int, int, bool], tuple[results.ResultTable, Any]]] = {
    "accuracy": accuracy.section,
    "worst_patterns": worst_patterns.section,
    "decoding": decoding.section,
    "least_squares": least_squares.section,
    "leverage_scores": leverage_scores.section,
    "approximate_scores": approximate_scores.section,
    "streaming_scores": streaming_scores.section,
    "projections": projections.section,
    "step": step.section,
    "table2": table2.section,
}


def benchmark(
    repeats: int = 7, seed: int = 0, out: Path = Path("results"), quick: bool = False
) -> None:
    """Speed and accuracy: decoding, leverage scores, a training step, table 2.

    Args:
        repeats: Timings of each entry; the median counts.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown).
        quick: Small sizes, to see that everything runs.
    """
    folder = results.Results("Benchmark, each entry", out, repeats)
    content: dict[str, Any] = {
        "command": f"python -m experiments benchmark --repeats {repeats} --seed {seed}"
    }
    with results.progress_bar() as progress:
        task = progress.add_task("sections", total=len(SECTIONS))
        for name, section in SECTIONS.items():
            progress.update(task, description=name)
            table, numbers = section(repeats, seed, quick)
            content[name] = numbers
            folder.add_table(f"benchmark_{name}.md", table)
            progress.advance(task)
            table.print()
    folder.add_json("benchmark.json", content)
    folder.save()
