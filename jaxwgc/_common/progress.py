"""Progress of long studies: a callback, or a bar in a terminal or notebook."""

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

from jaxwgc._common import validation

# Seconds before a progress bar appears, so that shorter studies show no bar.
_PATIENCE_SECONDS = 2.0


class Progress:
    """Context manager that reports the progress of a study by callback or bar.

    The bar needs rich and a terminal, or a notebook with ipywidgets. It appears after
    two seconds, and is removed when the context ends.

    Raises:
      TypeError: If `report` is neither None nor a function.
    """

    def __init__(self, report: Callable[[int, int], object] | None, total: int):
        if report is not None:
            validation.check_callable("progress", report)
        self._report = report
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        """Reports the number of finished units of work."""
        if self._report is not None:
            self._report(done, self._total)
            return
        if self._bar is None and done < self._total:
            self._start_bar_if_late()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def advance(self) -> None:
        """Reports one more finished unit of work."""
        self._done += 1
        self.update(self._done)

    def _start_bar_if_late(self) -> None:
        if time.monotonic() - self._start < _PATIENCE_SECONDS:
            return
        # rich needs ipywidgets to draw its bar in a notebook.
        is_notebook = "ipykernel" in sys.modules and _is_installed("ipywidgets")
        is_shown = sys.stderr.isatty() or is_notebook
        if not is_shown or not _is_installed("rich"):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
