"""Exceptions of workers as text, which can be sent to any process."""

import contextlib
import functools
import itertools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxwgc._common.text import parts_named

# Maximum number of characters of a reason, which is one line of the log.
_LONGEST_REASON = 500
# Maximum number of characters of a formatted traceback, which includes the message.
_LONGEST_TEXT = 10_000
# Messages of NumPy's errors for writing to a read-only array.
_READ_ONLY = ("assignment destination is read-only", "output array is read-only")
_READ_ONLY_ADVICE = (
    "; arrays that a function captures are read-only on workers, which share their "
    "memory: copy them in the function, e.g. by np.array"
)
_TRACEBACK_HEADER = "Traceback (most recent call last):"


class NoResponse(Exception):
    """Raised if a worker is lost before it responds to a query."""


class BatchError(RuntimeError):
    """Error in the user's `batches`, which a replacement of the worker would repeat."""


class BatchValueError(BatchError, ValueError):
    """Error for a batch from the user's `batches` with a wrong structure or shape."""


class WorkerError(Exception):
    """An exception that a worker raised, as text.

    The exception itself may have a class that cannot be pickled, or that the
    coordinator cannot import or construct.

    Attributes:
      reason: Class and reason of the exception, in one line.
      traceback_text: Formatted traceback; long ones lack their middle.
      ends_training: Whether training ends, because another process would fail, too.
    """

    def __init__(self, reason: str, traceback_text: str, ends_training: bool = False):
        super().__init__(reason, traceback_text, ends_training)
        self.reason = reason
        self.traceback_text = traceback_text
        self.ends_training = ends_training

    @classmethod
    def of(cls, error: BaseException) -> "WorkerError":
        """Converts an exception to a `WorkerError`, unless it is one already."""
        if isinstance(error, WorkerError):
            return error
        text_class = WorkerValueError if isinstance(error, ValueError) else cls
        reason = f"{type(error).__name__}: {line_of(_text_of(error))}"
        if any(text in reason for text in _READ_ONLY):
            reason += _READ_ONLY_ADVICE
        return text_class(
            reason=reason,
            traceback_text=_without_middle(_traceback_of(error)),
            ends_training=isinstance(error, BatchError),
        )

    def __str__(self) -> str:
        """Returns the reason and the traceback of the worker as text."""
        return f"{self.reason}\n\nOn the worker:\n\n{self.traceback_text}"


class WorkerValueError(WorkerError, ValueError):
    """A ValueError that a worker raised, as text."""


def error_of_user(why: str, cause: Exception | None) -> Exception:
    """Returns a ValueError if `cause` is a ValueError, otherwise a RuntimeError."""
    if isinstance(cause, ValueError):
        return ValueError(why)
    return RuntimeError(why)


def line_of(text: str) -> str:
    """Returns one line with the reason from an error message of several lines.

    The reason is the first line. If the first line ends in a colon, the last line
    follows. If the message contains tracebacks, such as those of callbacks in JAX, the
    reason is the text before them and the exception below the last traceback.
    """
    if _TRACEBACK_HEADER in text:
        preface = line_of(text.partition(_TRACEBACK_HEADER)[0])
        frames_and_exception = text.rpartition(_TRACEBACK_HEADER)[2].splitlines()
        exception = itertools.dropwhile(_is_frame, frames_and_exception)
        reason = line_of("\n".join(exception))
        return _shortened(f"{preface} {reason}".strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    if lines[0].endswith(":") and len(lines) > 1:
        return _shortened(f"{lines[0]} {lines[-1]}")
    return _shortened(lines[0])


def _is_frame(line: str) -> bool:
    """Returns whether a line of a traceback is blank or belongs to a frame."""
    return not line.strip() or line.startswith(" ")


def _shortened(line: str) -> str:
    """Returns at most `_LONGEST_REASON` characters of a line, and "..." if cut."""
    if len(line) <= _LONGEST_REASON:
        return line
    return f"{line[:_LONGEST_REASON]} ..."


def reporting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a worker's method: every exception becomes a `WorkerError`.

    This includes KeyboardInterrupt and SystemExit, which would end the process without
    a reason.
    """

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            # `from None`, because Ray would try to pickle the cause, which may fail.
            raise WorkerError.of(error) from None

    return call


@contextlib.contextmanager
def naming_parts(parts: np.ndarray) -> Iterator[None]:
    """Adds the names of the parts to errors that the user's functions raise.

    Args:
      parts: Indices of the parts that are computed, int (num_parts,).
    """
    try:
        yield
    except Exception as error:
        raised = WorkerError.of(error)
        reason = f"{raised.reason} (in {parts_named(parts)})"
        # `from None`, because `traceback_text` contains the traceback of the cause.
        raise type(raised)(
            reason, raised.traceback_text, raised.ends_training
        ) from None


def _text_of(error: BaseException) -> str:
    """Returns the text of an exception; of a group, also the texts of its members."""
    try:
        text = str(error)
    except Exception as failure:
        return f"(its text raises {type(failure).__name__})"
    if isinstance(error, BaseExceptionGroup):
        inner_texts = [
            f"{type(inner).__name__}: {line_of(_text_of(inner))}"
            for inner in error.exceptions
        ]
        text = f"{text}: {'; '.join(inner_texts)}"
    return text


def _traceback_of(error: BaseException) -> str:
    """Returns the formatted traceback; omits the message if formatting it fails."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__))


def _without_middle(text: str) -> str:
    """Returns a text; cuts the middle of texts longer than `_LONGEST_TEXT`."""
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    num_left_out = len(text) - 2 * half
    return f"{text[:half]}\n... {num_left_out} characters ...\n{text[-half:]}"
