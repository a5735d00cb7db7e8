"""Connection to Ray, started here or running elsewhere."""

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from jaxwgc.distributed.ray._errors import line_of
from jaxwgc.distributed.ray._interrupts import is_main_thread

log = logging.getLogger("jaxwgc.distributed")

# Seconds for the health check. Starting its process takes most of them.
_SECONDS_TO_CONNECT = 10
_LOOPBACK = "127.0.0.1"
# Documented variable of Ray that allows clusters of several machines on Windows and
# macOS.
_CLUSTER_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Settings of a Ray of our own. An environment variable `RAY_<name>` takes precedence.
# By default, Ray lowers the priority of its workers by 15. They would then hardly run
# beside other busy processes.
_SYSTEM_CONFIG = {"worker_niceness": 0}
# Parent of the temporary folder. Paths of sockets must be short, so it is /tmp, as for
# Ray itself.
_PARENT = "/tmp" if os.path.isdir("/tmp") else None


# Ray is imported at its first use, so the type checker does not know its types.
RayModule: TypeAlias = Any
RayActor: TypeAlias = Any
RayReference: TypeAlias = Any


def find_ray() -> RayModule:
    """Imports Ray; raises ImportError with a remedy if it is not installed."""
    return find_extra("ray")


def find_extra(name: str) -> Any:
    """Imports a module of the extra `ray`, or raises ImportError with a remedy."""
    check_installed(name)
    return importlib.import_module(name)


def check_installed(name: str) -> None:
    """Raises ImportError if a module of the extra `ray` is not installed."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is missing: in a checkout, pip install '.[ray]'")


def check_connected() -> None:
    """Raises RuntimeError if Ray has ended."""
    if not find_ray().is_initialized():
        raise RuntimeError("Ray was shut down while the RayCluster was open")


class _Connection:
    """The connection of this process to Ray, and the number of its users."""

    def __init__(self):
        self._lock = threading.Lock()
        self._num_users = 0
        self._address: str | None = None
        self._folder: str | None = None
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def session(self, address: str | None) -> Iterator[str | None]:
        """Connects to Ray while a block runs.

        A process has one connection, so blocks that overlap share it, and the last to
        end ends it. One that is not ours is used, and left as it is.

        Yields:
          Folder of a Ray of our own, which only this user can read; None for another.
        """
        with self._lock:
            ray = _imported_for_loopback() if address is None else find_ray()
            if not (self._num_users and ray.is_initialized()):
                self._address = address
                # The user may have called `ray.shutdown` while clusters are open.
                self._stack.close()
                self._folder = None
                if not ray.is_initialized():
                    with contextlib.ExitStack() as stack:
                        self._folder = _connect(ray, address, stack)
                        self._stack = stack.pop_all()
            if address not in (None, "auto", self._address):
                raise ValueError(
                    "address must be that of the other open clusters, "
                    f"{self._address!r}; got {address!r}"
                )
            self._num_users += 1
        try:
            yield self._folder
        finally:
            with self._lock:
                self._num_users -= 1
                if not self._num_users:
                    self._stack.close()


session = _Connection().session


def _connect(
    ray: RayModule, address: str | None, stack: contextlib.ExitStack
) -> str | None:
    """Joins or starts Ray; returns the log folder of a Ray that is started."""
    folder = None
    thread = None
    # `log_to_driver` shows the output of workers in the coordinator's process.
    settings: dict[str, Any] = {"log_to_driver": True, "configure_logging": False}
    if address is None:
        log.info("starting Ray on this machine")
        # `ray.init()` of another program does not find a Ray in its own folder. The
        # folder of a killed process stays, because its owner is unknown.
        temporary = tempfile.TemporaryDirectory(
            prefix=f"jaxwgc-{os.getpid()}-", dir=_PARENT, ignore_cleanup_errors=True
        )
        folder = stack.enter_context(temporary)
        settings["address"] = "local"
        settings["_temp_dir"] = folder
        settings["include_dashboard"] = False
        settings["_node_ip_address"] = _LOOPBACK
        settings["_system_config"] = {
            name: value
            for name, value in _SYSTEM_CONFIG.items()
            if f"RAY_{name}" not in os.environ
        }
        if not is_main_thread():
            # On Linux, Ray's processes end with the thread that starts them. This
            # thread lasts until Ray is shut down.
            thread = stack.enter_context(ThreadPoolExecutor(1))
    else:
        if address == "auto":
            address = address_of_ray_start()
        log.info("connecting to Ray at %s", address)
        check_address(address)
        settings["address"] = address
    stack.callback(ray.shutdown)
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        # Forks here are safe, because an exec follows at once. The warning is therefore
        # suppressed.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        if thread is None:
            ray.init(**settings)
        else:
            thread.submit(ray.init, **settings).result()
    if signal.getsignal(signal.SIGTERM) != handler:
        signal.signal(signal.SIGTERM, handler)
    return folder


def _imported_for_loopback() -> RayModule:
    """Imports Ray so that it listens on this machine only.

    On Linux it listens on the address in the network instead, unless an environment
    variable says otherwise when it is imported.

    Raises:
      RuntimeError: If Ray was imported before without this variable.
    """
    os.environ.setdefault(_CLUSTER_VARIABLE, "0")
    ray = find_ray()
    if ray.is_initialized():
        return ray
    host = ray.util.get_node_ip_address()
    if host == _LOOPBACK:
        return ray
    raise RuntimeError(
        f"RayCluster starts Ray on {_LOOPBACK} only, but Ray was imported before and "
        f"would listen on {host}: create the first RayCluster before `import ray`, set "
        f"{_CLUSTER_VARIABLE}=0 in the environment, or call ray.init yourself"
    )


def address_of_ray_start() -> str:
    """Finds the address of a running Ray.

    With `"auto"`, Ray itself would also join the Ray of another program, which ends
    with that program and may not be reachable from here.

    Raises:
      ConnectionError: If there is no such address.
    """
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address not in ("", "auto"):
        return address
    folder = os.environ.get("RAY_TMPDIR")
    if folder is None and sys.platform == "linux":
        folder = os.environ.get("TMPDIR")
    # `ray start` writes this file, and `ray stop` removes it.
    file = Path(folder or "/tmp", "ray", "ray_current_cluster")
    if not file.exists():
        raise ConnectionError(
            "address='auto' needs RAY_ADDRESS, or a Ray that `ray start` has started "
            f"on this machine; got no RAY_ADDRESS and no file {file}. Run `ray start "
            "--head` before, or pass the address as 'host:port'"
        )
    return file.read_text().strip()


def check_address(address: str) -> None:
    """Raises ConnectionError if no Ray responds at an address."""
    if not re.fullmatch(r"[^/]+:\d+", address):
        raise ValueError(
            f"address must be host:port of Ray itself, or 'auto'; got {address!r}"
        )
    # Another process runs the check, because it can be ended. Ray itself would try to
    # connect for minutes.
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "health-check",
        "--address",
        address,
    ]
    try:
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS_TO_CONNECT,
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(
            f"no Ray cluster responds at address {address!r} within "
            f"{_SECONDS_TO_CONNECT} seconds"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConnectionError(
            f"Ray at address {address!r} must accept this program; got "
            f"{line_of(error.stderr)!r}. If Ray requires a token, copy "
            "~/.ray/auth_token from its head to this machine, and set "
            "RAY_AUTH_MODE=token in the environment before the program starts"
        ) from error


def actor_options_of(
    address: str | None, options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Adds defaults to the options of Ray's actors."""
    # A Ray of our own has no other users, so workers claim no CPU.
    claims: dict[str, Any] = {"num_cpus": 0}
    if address is not None:
        claims = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    # Ray's record of all tasks would grow without bounds, so task events are disabled.
    claims["enable_task_events"] = False
    if options is not None:
        claims |= options
    return claims


def claimed_resources(options: Mapping[str, Any]) -> dict[str, float]:
    """Returns the resources that actors claim."""
    claims = {
        "CPU": options["num_cpus"],
        "GPU": options.get("num_gpus"),
        "memory": options.get("memory"),
    }
    claims |= options.get("resources") or {}
    return {name: amount for name, amount in claims.items() if amount}


def check_resources(num_actors: int, options: Mapping[str, Any]) -> None:
    """Raises ValueError if Ray lacks the claimed resources."""
    claims = claimed_resources(options)
    if not claims:
        return
    room = 0
    for node in find_ray().nodes():
        if node["Alive"]:
            resources = node["Resources"]
            ratios = [resources.get(name, 0) / claims[name] for name in claims]
            # The addend allows for rounding, e.g. of three times a third.
            room += int(min(ratios) + 1e-6)
    if room < num_actors:
        raise ValueError(
            f"the cluster must have room for {num_actors} actors that claim {claims} "
            f"each; got room for {room}"
        )
