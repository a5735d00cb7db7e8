"""Tables of results, and the format of their numbers."""

import itertools
import string
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import jaxwgc
from experiments.runner.timing import Timing

console = Console()
# Decoding errors below this are rounding, relative to the squared norm of the target.
ROUNDING = 1e-12
YES_NO = {None: "", True: "yes", False: "no"}


# Templates or functions of a record, by the heads of their columns.
Columns = Mapping[str, str | Callable[[Any], str]]


class _Cells(string.Formatter):
    """Formats the templates of cells, such as `{seconds[numpy]:1e6 .3g}`.

    A number in front of a space multiplies the value. Summaries are shown with their
    interval; their format is the number of digits, or "e" for a power of ten. Timings
    are shown with their range.
    """

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Timing):
            return value.cell()
        if value is None:
            return "never"
        factor, _, spec = format_spec.rpartition(" ")
        if isinstance(value, jaxwgc.Summary) and spec == "e":
            return interval_power_of_ten(value)
        if isinstance(value, jaxwgc.Summary):
            return interval(value, int(spec or 2), float(factor or 1))
        return format(value * float(factor) if factor else value, spec)


class ResultTable:
    """A table for the terminal and for the documentation."""

    def __init__(self, title: str, columns: Iterable[str], rows: Iterable = ()):
        self.title = title
        self.columns = list(columns)
        self.rows: list[list[str]] = [list(row) for row in rows]

    def print(self) -> None:
        """Prints the table to the terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            justify = "right" if index else "left"
            table.add_column(column, justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print()
        console.print(table)

    def to_markdown(self) -> str:
        """Returns caption and table; all columns but the first are right-aligned."""
        caption = self.title.replace("*", r"\*")
        rule = [":--"] + ["--:"] * (len(self.columns) - 1)
        lines = ["| " + " | ".join(row) + " |\n" for row in (self.columns, *self.rows)]
        table = "".join([lines[0], "|" + "|".join(rule) + "|\n", *lines[1:]])
        return f"*{caption}*\n\n{table}"


class Printed(ResultTable):
    """A report or a plan as the library prints it."""

    def __init__(self, text: str):
        self.text = text

    def print(self) -> None:
        console.print(self.text, highlight=False, soft_wrap=True)

    def to_markdown(self) -> str:
        return f"```text\n{self.text}\n```\n"


def table_of(
    title: str, columns: Columns, rows: str | Callable[[Any], Iterable[Any]] = ""
) -> Callable[[Any], ResultTable]:
    """Returns a function that makes a table of numbers, with a row per record.

    Args:
        title: Caption, a template of the numbers.
        columns: Templates or functions of a record by the heads of the columns.
        rows: Records: a function of the numbers, or their name among the numbers, which
            are the records by default. The columns of a dict of records find the key of
            a record as "name", and a record that is no dict as "value".
    """

    def table(numbers: Any) -> ResultTable:
        named = rows if callable(rows) else lambda numbers: numbers[rows]
        records = named(numbers) if rows else numbers
        if isinstance(records, Mapping):
            records = itertools.starmap(_named, records.items())
        caption = title.format_map(numbers) if "{" in title else title
        cells = [[_cell(each, row) for each in columns.values()] for row in records]
        return ResultTable(caption, columns, cells)

    return table


def _named(name: str, record: Any) -> Any:
    own: Any = record if isinstance(record, Mapping) else {}
    return ChainMap({"name": name, "value": record}, own)


def _cell(column: str | Callable[[Any], str], record: Any) -> str:
    return column(record) if callable(column) else _Cells().vformat(column, (), record)


def at(summary: jaxwgc.Summary, *index: Any) -> jaxwgc.Summary:
    """Returns the summary of one entry, or some, of a summary of arrays."""
    ends = (np.asarray(field)[index] for field in summary[:3])
    return jaxwgc.Summary(*ends, standard_error=np.nan)


def entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a record per index of a record of arrays and summaries of arrays."""
    return [
        {
            name: at(each, index) if isinstance(each, jaxwgc.Summary) else each[index]
            for name, each in record.items()
        }
        for index in range(len(next(iter(record.values()))))
    ]


def half_width(summary: jaxwgc.Summary) -> Any:
    """Returns the upper half of the 95% confidence interval; NaN from one run."""
    return np.asarray(summary.high) - np.asarray(summary.mean)


def interval(summary: jaxwgc.Summary, digits: int = 2, factor: float = 1) -> str:
    """Returns a mean with its 95% confidence interval if it has one."""
    half = float(half_width(summary))
    return with_half(factor * summary.mean, factor * half, digits)


def interval_power_of_ten(summary: jaxwgc.Summary) -> str:
    """Returns a small mean with its interval, such as (2.70 ± 0.10) × 10⁻⁶."""
    exponent = int(np.floor(np.log10(summary.mean)))
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"({interval(summary, 2, 1 / 10.0**exponent)}) × 10{power}"


def percent(mean: float, half: float = 0.0) -> str:
    """Returns a fraction in percent, with half of its interval if it has one.

    Digits end at the first of the interval, or at the second if the first is a one.
    """
    mean = 100 * float(mean)
    half = 100 * float(half)
    if 100 * ROUNDING < mean < 1e-3:
        return "< 0.001"
    if not np.isfinite(half) or half < 100 * ROUNDING:
        return "0" if abs(mean) < 100 * ROUNDING else f"{mean:.3g}"
    return with_half(mean, half)


def percents(summary: jaxwgc.Summary) -> list[str]:
    """Returns each entry in percent, with its interval."""
    pair = summary.mean, half_width(summary)
    return [*map(percent, *map(np.atleast_1d, pair))]


def with_half(mean: float, half: float, digits: int | None = None) -> str:
    """Returns a mean and half of its interval, which is NaN for a single run.

    By default digits end at the first of `half`, or at the second if that is a one.
    """
    if digits is None:
        digits = max(-int(np.floor(np.log10(half / 2))), 0)
    shown = f"{mean:z.{digits}f}"
    return f"{shown} ± {half:.{digits}f}" if np.isfinite(half) else shown


def ratio_of_means(above: np.ndarray, below: np.ndarray) -> jaxwgc.Summary:
    """Returns ratios of means of paired runs (runs, ...); delta-method intervals."""
    ratio = above.mean(axis=0) / below.mean(axis=0)
    spread = jaxwgc.summarize((above - ratio * below) / below.mean(axis=0))
    return jaxwgc.Summary(
        ratio, ratio + spread.low, ratio + spread.high, standard_error=np.nan
    )


def geometric_mean(values: np.ndarray) -> jaxwgc.Summary:
    """Returns geometric means of positive numbers (runs, ...), with intervals.

    If errors differ by orders of magnitude between runs, a few of the worst runs
    determine the arithmetic mean, but not the geometric mean.
    """
    ends = map(np.exp, jaxwgc.summarize(np.log(values))[:3])
    return jaxwgc.Summary(*ends, standard_error=np.nan)


def verdict(ratio: jaxwgc.Summary) -> str:
    """Returns a ratio of errors with its interval, and an arrow if it excludes 1."""
    low = float(ratio.low)
    high = float(ratio.high)
    if max(abs(low - 1), abs(high - 1)) < 5e-4:
        return "1"
    sign = " ↓" if high < 1 else " ↑" if low > 1 else ""
    half = (high - low) / 2
    if not ratio.mean < 1e4:
        # Some runs have diverged.
        return f"{ratio.mean:.0e}{sign}"
    digits = 2
    if np.isfinite(half) and half > 0:
        digits = int(np.clip(1 - np.floor(np.log10(half)), 0, 4))
    return with_half(float(ratio.mean), half, digits) + sign
