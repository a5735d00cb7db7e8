"""Tables of results, and the format of their numbers."""

import string
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat

import numpy as np
from rich.console import Console
from rich.table import Table

import jaxwgc
from experiments.runner.timing import Timing

console = Console()
# Decoding errors below this are rounding, relative to the squared norm of the target.
ROUNDING = 1e-12
YES_NO = {None: "", True: "yes", False: "no"}


# Nested dicts and lists of numbers, or their records.
Numbers = Any
# Templates or functions of a record, by the heads of their columns.
Template = str | Callable[[Numbers], str]
Columns = Mapping[str, Template]


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
        if isinstance(value, jaxwgc.Summary):
            if spec == "e":
                return interval_power_of_ten(value)
            digits = int(spec) if spec else 2
            return interval(value, digits, float(factor or 1))
        if factor:
            value = value * float(factor)
        return format(value, spec)


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
        rule = "|:--" + "|--:" * (len(self.columns) - 1) + "|"
        lines = [f"*{caption}*", "", _markdown_row(self.columns), rule]
        for row in self.rows:
            lines.append(_markdown_row(row))
        return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    text = " | ".join(cells)
    return f"| {text} |"


class Printed(ResultTable):
    """A report or a plan as the library prints it."""

    def __init__(self, text: str):
        self.text = text

    def print(self) -> None:
        console.print(self.text, highlight=False, soft_wrap=True)

    def to_markdown(self) -> str:
        return f"```text\n{self.text}\n```\n"


def table_of(
    title: str,
    columns: Columns,
    rows: str | Callable[[Numbers], Iterable[Numbers]] = "",
) -> Callable[[Numbers], ResultTable]:
    """Returns a function that makes a table of numbers, with a row per record.

    Args:
        title: Caption, a template of the numbers.
        columns: Templates or functions of a record by the heads of the columns.
        rows: Records: a function of the numbers, or their name among the numbers, which
            are the records by default. The columns of a dict of records find the key of
            a record as "name", and a record that is no dict as "value".
    """

    def table(numbers: Numbers) -> ResultTable:
        if callable(rows):
            records = rows(numbers)
        elif rows:
            records = numbers[rows]
        else:
            records = numbers
        if isinstance(records, Mapping):
            records = [_named(name, record) for name, record in records.items()]
        caption = title.format_map(numbers) if "{" in title else title
        result = ResultTable(caption, columns)
        for record in records:
            result.rows.append([_cell(column, record) for column in columns.values()])
        return result

    return table


def _named(name: str, record: Numbers) -> Mapping[str, Numbers]:
    by_position = {"name": name, "value": record}
    if isinstance(record, dict):
        return ChainMap(by_position, record)
    return by_position


def _cell(column: Template, record: Numbers) -> str:
    if callable(column):
        return column(record)
    return _Cells().vformat(column, (), record)


def at(summary: jaxwgc.Summary, *index: int | slice | list[int]) -> jaxwgc.Summary:
    """Returns the summary of one entry, or some, of a summary of arrays."""
    return jaxwgc.Summary(
        mean=np.asarray(summary.mean)[index],
        low=np.asarray(summary.low)[index],
        high=np.asarray(summary.high)[index],
        standard_error=np.nan,
    )


def entries(record: Mapping[str, Numbers]) -> list[dict[str, Numbers]]:
    """Returns a record per index of a record of arrays and summaries of arrays."""

    def entry(values, index):
        if isinstance(values, jaxwgc.Summary):
            return at(values, index)
        return values[index]

    first = next(iter(record.values()))
    return [
        {name: entry(values, index) for name, values in record.items()}
        for index in range(len(first))
    ]


def half_width(summary: jaxwgc.Summary) -> np.ndarray:
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


def percent(mean: SupportsFloat, half: SupportsFloat = 0.0) -> str:
    """Returns a fraction in percent, with half of its interval if it has one.

    Digits end at the first of the interval, or at the second if the first is a one.
    """
    mean = 100 * float(mean)
    half = 100 * float(half)
    if 100 * ROUNDING < mean < 1e-3:
        return "< 0.001"
    if np.isfinite(half) and half >= 100 * ROUNDING:
        return with_half(mean, half)
    if abs(mean) < 100 * ROUNDING:
        return "0"
    return f"{mean:.3g}"


def percents(summary: jaxwgc.Summary) -> list[str]:
    """Returns each entry in percent, with its interval."""
    means = np.atleast_1d(summary.mean)
    halves = np.atleast_1d(half_width(summary))
    return [percent(mean, half) for mean, half in zip(means, halves, strict=True)]


def with_half(mean: float, half: float, digits: int | None = None) -> str:
    """Returns a mean and half of its interval, which is NaN for a single run.

    By default digits end at the first of `half`, or at the second if that is a one.
    """
    if digits is None:
        digits = max(-int(np.floor(np.log10(half / 2))), 0)
    shown = f"{mean:z.{digits}f}"
    if np.isfinite(half):
        return f"{shown} ± {half:.{digits}f}"
    return shown


def ratio_of_means(above: np.ndarray, below: np.ndarray) -> jaxwgc.Summary:
    """Returns ratios of means of paired runs (runs, ...); delta-method intervals."""
    mean_below = below.mean(axis=0)
    ratio = above.mean(axis=0) / mean_below
    spread = jaxwgc.summarize((above - ratio * below) / mean_below)
    return jaxwgc.Summary(
        mean=ratio,
        low=ratio + spread.low,
        high=ratio + spread.high,
        standard_error=np.nan,
    )


def geometric_mean(values: np.ndarray) -> jaxwgc.Summary:
    """Returns geometric means of positive numbers (runs, ...), with intervals.

    If errors differ by orders of magnitude between runs, a few of the worst runs
    determine the arithmetic mean, but not the geometric mean.
    """
    logarithms = jaxwgc.summarize(np.log(values))
    return jaxwgc.Summary(
        mean=np.exp(logarithms.mean),
        low=np.exp(logarithms.low),
        high=np.exp(logarithms.high),
        standard_error=np.nan,
    )


def arrow(low: float, high: float, level: float) -> str:
    """Returns an arrow if the interval from low to high is below or above a level."""
    if high < level:
        return " ↓"
    if low > level:
        return " ↑"
    return ""


def verdict(ratio: jaxwgc.Summary) -> str:
    """Returns a ratio of errors with its interval, and an arrow if it excludes 1."""
    low = float(ratio.low)
    high = float(ratio.high)
    if max(abs(low - 1), abs(high - 1)) < 5e-4:
        return "1"
    sign = arrow(low, high, level=1)
    half = (high - low) / 2
    if not ratio.mean < 1e4:
        # Some runs have diverged.
        return f"{ratio.mean:.0e}{sign}"
    digits = 2
    if np.isfinite(half) and half > 0:
        digits = int(np.clip(1 - np.floor(np.log10(half)), 0, 4))
    return with_half(float(ratio.mean), half, digits) + sign
