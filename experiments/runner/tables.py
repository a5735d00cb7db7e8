"""Tables to read side by side, and how numbers look in them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
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
        self.title, self.columns = title, list(columns)
        self.rows: list[list[str]] = [list(row) for row in rows]

    @classmethod
    def of_records(
        cls, title: str, show: Callable[[Any], dict[str, str]], records: Iterable[Any]
    ) -> "ResultTable":
        """A row a record; `show` gives its cells by their columns."""
        rows = [show(record) for record in records]
        return cls(title, rows[0], [row.values() for row in rows])

    def print(self) -> None:
        """To the terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            justify = "right" if index else "left"
            table.add_column(column, justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print()
        console.print(table)

    def to_markdown(self) -> str:
        """Caption, and pipe table whose columns but the first go to the right."""
        caption = self.title.replace("*", r"\*")
        rule = [":--"] + ["--:"] * (len(self.columns) - 1)
        lines = ["| " + " | ".join(row) + " |\n" for row in (self.columns, *self.rows)]
        table = "".join([lines[0], "|" + "|".join(rule) + "|\n", *lines[1:]])
        return f"*{caption}*\n\n{table}"


def at(summary: jaxwgc.Summary, *index: Any) -> jaxwgc.Summary:
    """Returns the summary of one entry, or some, of a summary of arrays."""
    ends = (np.asarray(field)[index] for field in summary[:3])
    return jaxwgc.Summary(*ends, standard_error=np.nan)


def half_width(summary: jaxwgc.Summary) -> Any:
    """Returns the upper half of the 95% confidence interval; NaN from one run."""
    return np.asarray(summary.high) - np.asarray(summary.mean)


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
    """Returns each entry in percent, with its interval."""
    return [
        *map(percent, np.atleast_1d(summary.mean), np.atleast_1d(half_width(summary)))
    ]


def with_half(mean: float, half: float, digits: int) -> str:
    """With half of the interval, where there is one: NaN from a single run."""
    shown = f"{mean:z.{digits}f}"
    return f"{shown} ± {half:.{digits}f}" if np.isfinite(half) else shown
