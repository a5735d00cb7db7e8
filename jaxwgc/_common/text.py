"""Names of workers and parts, and tables, as text."""

from collections.abc import Sequence

import numpy as np


def workers_named(names: np.ndarray) -> str:
    """Returns the names of workers after a noun, e.g. "workers 3, 5"."""
    noun = "worker" if len(names) == 1 else "workers"
    return f"{noun} {', '.join(names)}"


def parts_named(parts: Sequence[int] | np.ndarray) -> str:
    """Returns the indices of parts after a noun, e.g. "parts 3, 5"."""
    noun = "part" if len(parts) == 1 else "parts"
    return f"{noun} {', '.join(map(str, parts))}"


def aligned(rows: Sequence[Sequence[str]], to_right: bool = False) -> str:
    """Returns the rows of a table as text, with aligned columns."""
    align = str.rjust if to_right else str.ljust
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = [
        "  ".join(align(cell, width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
