"""Ray itself: found, started on this machine or joined, and ended without traces."""

import contextlib
import importlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Ray would try for minutes.
_SECONDS_TO_CONNECT = 10


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

    Where this process is connected already, that connection is used and left as it is.
    """
    ray = find_ray()
    if ray.is_initialized():
        yield
        return
    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address is None:
            # Nobody who looks for a running Ray finds one in a folder of its own.
            # Paths of sockets must be short, so like Ray's it is in /tmp.
            parent = "/tmp" if os.path.isdir("/tmp") else None
            folder = stack.enter_context(_own_folder(parent))
            stack.enter_context(_loopback(ray))
            settings |= {
                "address": "local",
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        else:
            check_address(address)
            settings["address"] = address
        with _own_signals(), _quiet(), warnings.catch_warnings():
            # A fork that is followed by an exec at once, as all of these are, is safe.
            warnings.filterwarnings(
                "ignore", r"os\.fork\(\) was called", RuntimeWarning
            )
            stack.callback(ray.shutdown)
            ray.init(**settings)
        if address is None and ray.util.get_node_ip_address() != "127.0.0.1":
            raise RuntimeError(
                f"Ray {ray.__version__} listens on {ray.util.get_node_ip_address()}, "
                "although it was told to listen on 127.0.0.1 only"
            )
        yield


@contextlib.contextmanager
def _own_folder(parent: str | None) -> Iterator[str]:
    """A folder for logs and sockets, which goes when we go.

    That of a process that was killed goes when the next one comes.
    """
    folder = tempfile.mkdtemp(prefix=f"jaxwgc-{os.getpid()}-", dir=parent)
    try:
        with _locked(folder):
            for other in Path(folder).parent.glob("jaxwgc-*-*"):
                with contextlib.suppress(OSError), _locked(other):
                    shutil.rmtree(other, ignore_errors=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Holds the lock of a folder, or BlockingIOError: it goes with its process."""
    import fcntl  # Not on Windows.

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray from printing: of its tokens, and of workers that die.

    That a worker has died is seen in its place, with the reason. Ray has no option for
    either.
    """
    tokens = logging.getLogger("ray._private.authentication.authentication_token_setup")
    worker: Any = importlib.import_module("ray._private.worker")
    level, listen = tokens.level, worker.listen_error_messages
    tokens.setLevel(logging.ERROR)
    worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        tokens.setLevel(level)
        worker.listen_error_messages = listen


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


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C counts at the end of the block, which is to take no more than a moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[Callable[[], None]]:
    """A function that raises KeyboardInterrupt where one was lost.

    Python drops one that comes in a callback of the garbage collector, and JAX has such
    a callback.
    """
    came = []

    def interrupt(*_: Any) -> None:
        came.append(True)
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
