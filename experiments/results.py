"""What the experiments write: whole files or none, and tables to read side by side."""

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import jaxwgc
from experiments.interrupts import writing

console = Console()


class ExperimentError(Exception):
    """Something that the person at the command line can mend."""


class Results:
    """The folder of results: checked before the work, filled after it.

    Everything is kept in memory until `save`, and each file appears whole.
    """

    def __init__(self, title: str, out: Path, runs: int):
        if runs < 1:
            raise ExperimentError(
                f"--runs and --repeats must be at least 1; got {runs}"
            )
        self.out = out
        self._files: dict[str, bytes] = {}
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            raise ExperimentError(
                f"--out must be a folder that can be written to; got {out} "
                f"({error.strerror})"
            ) from error
        console.print(f"{title}, {runs} times", highlight=False)

    def add_json(self, name: str, content: dict[str, Any]) -> None:
        """Numbers, with where they come from."""
        whole = {"environment": environment(), **content}
        text = json.dumps(whole, indent=2, default=_to_builtin) + "\n"
        self._files[name] = text.encode()

    def add_table(self, name: str, table: "ResultTable") -> None:
        """A table in Markdown, for the documentation."""
        self._files[name] = table.to_markdown().encode()

    def add_figure(self, name: str, figure: Figure) -> None:
        """A figure as PNG."""
        with tempfile.SpooledTemporaryFile() as stream:
            figure.savefig(stream, format="png", dpi=160)
            stream.seek(0)
            self._files[name] = stream.read()

    def save(self) -> None:
        """Writes every file under another name first, so none is ever half there."""
        with writing:
            self._write()
        console.print()
        for name in self._files:
            console.print(f"Wrote {self.out / name}", highlight=False, soft_wrap=True)

    def _write(self) -> None:
        try:
            for name, content in self._files.items():
                temporary = tempfile.NamedTemporaryFile(dir=self.out, delete=False)
                try:
                    with temporary:
                        temporary.write(content)
                    os.chmod(temporary.name, 0o644)
                    os.replace(temporary.name, self.out / name)
                except BaseException:
                    os.unlink(temporary.name)
                    raise
        except OSError as error:
            raise ExperimentError(
                f"cannot write to {self.out} ({error.strerror})"
            ) from error


class ResultTable:
    """A table for the terminal and for the documentation."""

    def __init__(self, title: str, columns: Sequence[str]):
        self.title = title
        self.columns = list(columns)
        self.rows: list[list[str]] = []

    def add_row(self, *cells: str) -> None:
        """One cell a column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(self.columns)} cells expected; got {cells}")
        self.rows.append(list(cells))

    def print(self) -> None:
        """To the terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print()
        console.print(table)

    def to_markdown(self) -> str:
        """Pipe table; the first column to the left, the others to the right."""
        lines = [
            "| " + " | ".join(self.columns) + " |",
            "|" + "|".join([":--"] + ["--:"] * (len(self.columns) - 1)) + "|",
            *("| " + " | ".join(row) + " |" for row in self.rows),
        ]
        return "\n".join(lines) + "\n"


def interval(summary: jaxwgc.Summary, digits: int = 2) -> str:
    """A mean with its 95% confidence interval."""
    half = (summary.high - summary.low) / 2
    return f"{summary.mean:z.{digits}f} ± {half:.{digits}f}"


def interval_power_of_ten(summary: jaxwgc.Summary) -> str:
    """The same for small numbers: 2.70 ± 0.10 × 10⁻⁶."""
    exponent = int(np.floor(np.log10(summary.mean)))
    scale = 10.0**exponent
    half = (summary.high - summary.low) / 2
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"({summary.mean / scale:.2f} ± {half / scale:.2f}) × 10{power}"


def summary_numbers(tree: Any) -> Any:
    """A pytree of summaries, for JSON."""

    def of_summary(summary):
        return {name: np.asarray(v).tolist() for name, v in summary._asdict().items()}

    return jax.tree.map(
        of_summary, tree, is_leaf=lambda node: isinstance(node, jaxwgc.Summary)
    )


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar a row of the experiment, while it runs."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        yield progress


def run_trials(progress: Progress, title: str, trial, key, runs: int, batch_size: int):
    """`jaxwgc.monte_carlo` with a bar of its own."""
    task = progress.add_task(title, total=runs)
    return jaxwgc.monte_carlo(
        trial,
        key,
        runs,
        batch_size=batch_size,
        progress=lambda done, total: progress.update(task, completed=done),
    )


def new_figure(**kwargs) -> tuple[Figure, Any]:
    """Axes that need no display, with quiet grid lines behind what is drawn."""
    figure = Figure(layout="constrained", **kwargs)
    axes = figure.subplots()
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def environment() -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "jaxwgc": jaxwgc.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }


def _to_builtin(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {value!r} as JSON")
