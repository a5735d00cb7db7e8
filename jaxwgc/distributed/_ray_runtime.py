"""Ray itself: found, started on this machine or joined, and ended without traces."""

import contextlib
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# Ray would try for minutes.
_SECONDS_TO_CONNECT = 10
# Paths of sockets must be short, so like Ray's folder ours is there.
_PARENT = "/tmp" if os.path.isdir("/tmp") else None


def find_ray() -> Any:
    """The module, which only those who have a cluster need."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            "RayCluster needs Ray, which is an extra: in a checkout of jaxwgc, "
            "pip install '.[ray]'"
        ) from error


@contextlib.contextmanager
def session(address: str | None) -> Iterator[None]:
    """A connection to Ray while the block runs: `address`, or a Ray of our own.

    A process has one connection, so blocks that overlap share it, and the last to end
    ends it. One that is not ours is used, and left as it is.
    """
    _connection.join(address)
    try:
        yield
    finally:
        _connection.leave()


class _Connection:
    """The one connection that Ray gives a process, and how many use it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._num_users = 0
        self._address: str | None = None
        self._stack = contextlib.ExitStack()

    def join(self, address: str | None) -> None:
        with self._lock:
            ray = find_ray()
            if self._num_users and ray.is_initialized():
                if address not in (None, "auto", self._address):
                    raise ValueError(
                        "address must be that of the other open clusters of this "
                        "process, since Ray connects a process to one; got "
                        f"{address!r} and {self._address!r}"
                    )
            else:
                self._address = address
                # Someone may have called `ray.shutdown` under those who are open.
                self._stack.close()
                if not ray.is_initialized():
                    with contextlib.ExitStack() as stack:
                        _connect(ray, address, stack)
                        self._stack = stack.pop_all()
            self._num_users += 1

    def leave(self) -> None:
        with self._lock:
            self._num_users -= 1
            if not self._num_users:
                self._stack.close()


_connection = _Connection()


def check_connected() -> None:
    """RuntimeError where Ray has ended: its calls would start one, open to others."""
    if not find_ray().is_initialized():
        raise RuntimeError("Ray was shut down while the RayCluster was open")


def _connect(ray: Any, address: str | None, stack: contextlib.ExitStack) -> None:
    # Workers print where the coordinator does.
    settings: dict[str, Any] = {"log_to_driver": True, "configure_logging": False}
    if address is None:
        # Nobody who looks for a running Ray finds one in a folder of its own. That of a
        # process that is killed stays: whose folder it is, no other can know for sure.
        folder = tempfile.TemporaryDirectory(
            prefix=f"jaxwgc-{os.getpid()}-", dir=_PARENT, ignore_cleanup_errors=True
        )
        settings |= {
            "address": "local",
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": stack.enter_context(folder),
        }
        stack.enter_context(_loopback(ray))
    else:
        check_address(address)
        settings["address"] = address
    with _own_signals(), _quiet(), warnings.catch_warnings():
        # A fork that is followed by an exec at once, as all of these are, is safe.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        stack.callback(ray.shutdown)
        ray.init(**settings)
    if address is None and ray.util.get_node_ip_address() != "127.0.0.1":
        raise RuntimeError(
            f"Ray {ray.__version__} listens on {ray.util.get_node_ip_address()}, "
            "although it was told to listen on 127.0.0.1 only"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray from printing: of its tokens, and of workers that die.

    That a worker has died is in our own log, with the reason. Ray has no option for it.
    """
    tokens = logging.getLogger("ray._private.authentication.authentication_token_setup")
    worker: Any = importlib.import_module("ray._private.worker")
    level = tokens.level
    listen, show = worker.listen_error_messages, worker.print_to_stdstream

    def show_prints(data: dict, *arguments: Any, **options: Any) -> None:
        if data.get("pid") != "raylet":
            show(data, *arguments, **options)

    tokens.setLevel(logging.ERROR)
    worker.listen_error_messages = lambda *_: None
    worker.print_to_stdstream = show_prints
    try:
        yield
    finally:
        tokens.setLevel(level)
        worker.listen_error_messages, worker.print_to_stdstream = listen, show


def check_address(address: str) -> None:
    """Raises ConnectionError, within seconds, where no Ray answers there."""
    if address.startswith("ray://"):
        raise ValueError(
            "address must be that of Ray itself (host:6379 or 'auto'), since the "
            f"coordinator shares memory with it; got Ray Client's {address!r}"
        )
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError(f"address must be host:port or 'auto'; got {address!r}")
    no_answer = f"no Ray cluster answers at address {address!r}"
    try:
        seconds = _SECONDS_TO_CONNECT / 2
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        raise ConnectionError(f"{no_answer}: {error}") from error
    # Something listens. Whether that is Ray, another process asks, which can be ended.
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address"]
    try:
        subprocess.run(
            [*ask, address],
            capture_output=True,
            check=True,
            timeout=_SECONDS_TO_CONNECT,
        )
    except subprocess.SubprocessError as error:
        raise ConnectionError(
            f"{no_answer}, although something listens there"
        ) from error


@contextlib.contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Lets Ray take 127.0.0.1 for an address of this machine.

    On Linux it would listen on the address in the network instead, except for this
    switch, which is meant for macOS and Windows and their firewalls.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


# What Ctrl-C and a scheduler send, and how Python handles it by itself.
_ENDING = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM count at the end of the block, which takes but a moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in _ENDING
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[Callable[[], None]]:
    """SIGTERM raises SystemExit; a function, what Ctrl-C or it raised and was lost.

    Python drops an error that comes in a callback of the garbage collector, and JAX has
    such a callback. Handlers of others are left as they are.
    """
    came = []

    def end(number: int, *_: Any) -> None:
        came.append(number)
        check()

    def check() -> None:
        if came:
            is_interrupt = came[0] == signal.SIGINT
            raise KeyboardInterrupt if is_interrupt else SystemExit(128 + came[0])

    changed = []
    if threading.current_thread() is threading.main_thread():
        changed = [own for own in _ENDING if signal.getsignal(own) == _ENDING[own]]
    for number in changed:
        signal.signal(number, end)
    try:
        yield check
    finally:
        for number in changed:
            signal.signal(number, _ENDING[number])


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Puts the handler of SIGTERM back, which `ray.init` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_process(pid: int) -> None:
    """Ends a process of this machine, if it is still there; a frozen one, too."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
