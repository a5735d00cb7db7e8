"""Ctrl-C ends the program at once, whatever it is doing."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

# Held while files are written, which takes milliseconds and is not interrupted.
writing = threading.Lock()
# What lies in the folder of results, whole.
written: list[Path] = []


def end_on_interrupt() -> None:
    """Ctrl-C says so and ends the program with status 130.

    Python's own `KeyboardInterrupt` waits until compiled code is done, prints a
    traceback while modules are imported, and is lost where it is raised in a callback
    of the garbage collector, of which JAX has one. So another thread reads the signal
    from a socket.
    """
    reading, writing_end = socket.socketpair()
    writing_end.setblocking(False)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(writing_end.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(reading,), daemon=True).start()


@contextlib.contextmanager
def as_exception() -> Iterator[None]:
    """In the block Ctrl-C is an exception, since there are processes to end first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    socket_before = signal.set_wakeup_fd(-1)
    try:
        yield
    except KeyboardInterrupt:
        _end()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(socket_before, warn_on_full_buffer=False)


def _wait(reading: socket.socket) -> None:
    while reading.recv(1) != bytes([signal.SIGINT]):
        pass
    _end()


def _end() -> None:
    with writing:
        show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
        files = "".join(f"\nWrote {path}" for path in written)
        left = f"What was finished stays.{files}" if files else "Nothing was written."
        print(f"\n{show_cursor}Interrupted. {left}", flush=True)
        os._exit(130)
