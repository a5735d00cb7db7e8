"""Tables to read side by side, and how numbers look in them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

import jaxwgc

console = Console()
# Of the squared norm of the target: errors below are rounding.
ROUNDING = 1e-12
YES_NO = {None: "", True: "yes", False: "no"}


class ResultTable:
    """A table for the terminal and for the documentation."""

    def __init__(self, title: str, columns: Iterable[str], rows: Iterable = ()):
        self.title = title
        self.columns = list(columns)
        self.rows: list[list[str]] = []
        for row in rows:
            self.add_row(*row)

    @classmethod
    def of_records(
        cls, title: str, show: Callable[[Any], dict[str, str]], records: Iterable[Any]
    ) -> "ResultTable":
        """A row a record; `show` gives its cells by their columns."""
        rows = [show(record) for record in records]
        return cls(title, rows[0], [own.values() for own in rows])

    def add_row(self, *cells: str) -> None:
        """One cell a column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(self.columns)} cells expected; got {cells}")
        self.rows.append(list(cells))

    def print(self) -> None:
        """To the terminal; what is wider in pieces, each with what tells the rows."""
        for number, piece in enumerate(self._pieces(console.width)):
            table = Table(title_justify="left", title_style="bold")
            table.title = self.title if number == 0 else "(further columns)"
            for index in piece:
                justify = "left" if index == 0 else "right"
                table.add_column(self.columns[index], justify=justify, overflow="fold")
            for row in self.rows:
                table.add_row(*(row[index] for index in piece))
            console.print()
            console.print(table)

    def _pieces(self, width: int) -> list[list[int]]:
        """Columns that fit side by side. Cells stay on a line; headings may break."""
        widths = [
            3
            + max(map(cell_len, [*heading.split(), *(row[index] for row in self.rows)]))
            for index, heading in enumerate(self.columns)
        ]
        names = self._names()
        if 1 + sum(widths[index] for index in names) > width / 2:
            names = [0]
        pieces = [names]
        for index in range(len(names), len(widths)):
            if 1 + sum(widths[own] for own in [*pieces[-1], index]) > width:
                pieces.append(names)
            pieces[-1] = [*pieces[-1], index]
        return [own for own in pieces if own != names] or [names]

    def _names(self) -> list[int]:
        """The first columns that no two rows share, or the first where all do."""
        for number in range(1, len(self.columns)):
            if len({tuple(row[:number]) for row in self.rows}) == len(self.rows):
                return list(range(number))
        return [0]

    def to_markdown(self) -> str:
        """Caption, and pipe table whose columns but the first go to the right."""
        caption = self.title.replace("*", r"\*")
        rule = [":--"] + ["--:"] * (len(self.columns) - 1)
        lines = ["| " + " | ".join(row) + " |\n" for row in (self.columns, *self.rows)]
        table = "".join([lines[0], "|" + "|".join(rule) + "|\n", *lines[1:]])
        return f"*{caption}*\n\n{table}"


def half_width(summary: jaxwgc.Summary) -> Any:
    """Half of the 95% confidence interval; NaN from one run."""
    return (np.asarray(summary.high) - np.asarray(summary.low)) / 2


def interval(summary: jaxwgc.Summary, digits: int = 2) -> str:
    """A mean with its 95% confidence interval, where there is one."""
    return with_half(summary.mean, float(half_width(summary)), digits)


def interval_power_of_ten(summary: jaxwgc.Summary) -> str:
    """The same for small numbers: 2.70 ± 0.10 × 10⁻⁶."""
    exponent = int(np.floor(np.log10(summary.mean)))
    scale = 10.0**exponent
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    half = float(half_width(summary))
    return f"({with_half(summary.mean / scale, half / scale, 2)}) × 10{power}"


def percent(mean: float, half: float = 0.0) -> str:
    """A share in percent, with half of its interval where there is one.

    To the first digit of the interval, or the second where the first is a one.
    """
    mean, half = 100 * float(mean), 100 * float(half)
    if 100 * ROUNDING < mean < 1e-3:
        return "< 0.001"
    if not np.isfinite(half) or half < 100 * ROUNDING:
        return "0" if abs(mean) < 100 * ROUNDING else f"{mean:.3g}"
    return with_half(mean, half, max(-int(np.floor(np.log10(half / 2))), 0))


def percents(summary: jaxwgc.Summary) -> list[str]:
    """Of each entry."""
    return [
        *map(percent, np.atleast_1d(summary.mean), np.atleast_1d(half_width(summary)))
    ]


def with_half(mean: float, half: float, digits: int) -> str:
    """With half of the interval, where there is one: NaN from a single run."""
    shown = f"{mean:z.{digits}f}"
    return f"{shown} ± {half:.{digits}f}" if np.isfinite(half) else shown
