"""Handling of Ctrl-C and SIGTERM: delayed in short blocks, and never dropped."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

# Signals that end a run, with Python's default handlers: SIGINT is sent by Ctrl-C, and
# SIGTERM by schedulers.
_ENDING = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def is_main_thread() -> bool:
    """Returns whether this thread is the main thread, which handles signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _handled_by(
    handler: Callable[[int, object], None], numbers: Iterable[int]
) -> Iterator[None]:
    """Sets a handler of signals for a block; restores the previous ones after it."""
    handlers_before = {}
    if is_main_thread():
        for number in numbers:
            handlers_before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in handlers_before.items():
            signal.signal(number, handler_before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM until the end of a short block."""
    came: list[int] = []
    try:
        with _handled_by(lambda number, _: came.append(number), _ENDING):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)


class _Noticed:
    """Signals that have arrived in the open blocks of `noticed_interrupts`.

    Attributes:
      came: Numbers of the signals.
      num_blocks: Number of nested blocks that are open.
    """

    def __init__(self):
        self.came: list[int] = []
        self.num_blocks = 0


_noticed = _Noticed()


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[Callable[[], None]]:
    """Makes SIGTERM raise SystemExit in a block, and yields `check_interrupt`.

    `check_interrupt` raises interrupts again that Python has dropped. Signal handlers
    that other code has set stay. Outside of the main thread, the block has no effect,
    because only the main thread handles signals.
    """

    def end(number: int, _: object) -> None:
        _noticed.came.append(number)
        check_interrupt()

    if not is_main_thread():
        yield check_interrupt
        return
    with_default_handler = [
        number
        for number, default in _ENDING.items()
        if signal.getsignal(number) == default
    ]
    with _handled_by(end, with_default_handler):
        _noticed.num_blocks += 1
        try:
            yield check_interrupt
        finally:
            _noticed.num_blocks -= 1
            if not _noticed.num_blocks:
                _noticed.came.clear()


def check_interrupt() -> None:
    """Raises KeyboardInterrupt or SystemExit again if Python has dropped it.

    Python drops an exception in a callback of the garbage collector or of a fork. JAX
    and Ray have such callbacks. Only signals that arrived in a block of
    `noticed_interrupts` are known.
    """
    if _noticed.came and is_main_thread():
        number = _noticed.came[0]
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
