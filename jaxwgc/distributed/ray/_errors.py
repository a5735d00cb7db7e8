"""Exceptions of workers as text, which every process can read."""

import functools
import traceback
from collections.abc import Callable
from typing import Any

# Longest reason in characters: one line of the log.
_LONGEST_REASON = 500
# Longest text, and longest traceback, of an exception in characters.
_LONGEST_TEXT = 10_000
_TRACEBACK_HEADER = "Traceback (most recent call last):"


class WorkerError(Exception):
    """An exception that a worker raised, as text.

    The exception itself may have a class that cannot be pickled, or that the
    coordinator cannot import or construct.

    Attributes:
      kind: Name of the exception's class.
      text: Text of the exception; long texts lack their middle.
      traceback_text: Formatted traceback; long ones lack their middle.
    """

    def __init__(self, kind: str, text: str, traceback_text: str):
        super().__init__(kind, text, traceback_text)
        self.kind = kind
        self.text = text
        self.traceback_text = traceback_text

    @classmethod
    def of(cls, error: BaseException) -> "WorkerError":
        """Converts an exception, unless it has been converted already."""
        if isinstance(error, WorkerError):
            return error
        text_class = WorkerValueError if isinstance(error, ValueError) else cls
        return text_class(
            kind=type(error).__name__,
            text=_without_middle(_text_of(error)),
            traceback_text=_without_middle(_traceback_of(error)),
        )

    @property
    def reason(self) -> str:
        """Class and reason of the exception, in one line."""
        return f"{self.kind}: {line_of(self.text)}"

    def __str__(self) -> str:
        """Shows the reason and the traceback of the worker."""
        return f"{self.reason}\n\nOn the worker:\n\n{self.traceback_text}"


class WorkerValueError(WorkerError, ValueError):
    """A ValueError that a worker raised."""


def line_of(text: str) -> str:
    """Returns the line of an error message that gives the reason.

    It is the first line. If this is the header of a traceback or a list, the last line
    is added.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[0].replace(_TRACEBACK_HEADER, "").strip()
    is_header = line != lines[0] or line.endswith(":")
    if is_header and len(lines) > 1:
        line = f"{line} {lines[-1]}".strip()
    if len(line) > _LONGEST_REASON:
        line = f"{line[:_LONGEST_REASON]} ..."
    return line


def reporting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a method of a worker raise every exception as a `WorkerError`.

    This includes KeyboardInterrupt and SystemExit, which would end the process without
    a reason.
    """

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            # Ray would try to pickle the cause.
            raise WorkerError.of(error) from None

    return call


def _text_of(error: BaseException) -> str:
    """Returns the text of an exception, with the exceptions of a group."""
    try:
        text = str(error)
    except Exception as failure:
        return f"(its text raises {type(failure).__name__})"
    if isinstance(error, BaseExceptionGroup):
        kinds = [
            f"{type(inner).__name__}: {line_of(_text_of(inner))}"
            for inner in error.exceptions
        ]
        text = f"{text}: {'; '.join(kinds)}"
    return text


def _traceback_of(error: BaseException) -> str:
    """Returns the formatted traceback, without the text if that cannot be formatted."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__))


def _without_middle(text: str) -> str:
    """Returns a text in which at most `_LONGEST_TEXT` characters are left."""
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    num_left_out = len(text) - 2 * half
    return f"{text[:half]}\n... {num_left_out} characters ...\n{text[-half:]}"
