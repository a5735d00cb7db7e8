"""Connection to Ray, which is started on this machine or runs already."""

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

# Timeout of the health check, in seconds. Most of the time passes while the subprocess
# of the check starts.
_SECONDS_TO_CONNECT = 10
_LOOPBACK = "127.0.0.1"
# Environment variable of Ray that allows clusters of several machines on Windows and
# macOS. With the value 0, Ray listens on the loopback address only.
_CLUSTER_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# System settings of a Ray that is started here. An environment variable `RAY_<name>`
# takes precedence. By default, Ray runs its workers with niceness 15: beside other busy
# processes, they would hardly run.
_SYSTEM_CONFIG = {"worker_niceness": 0}
# Parent of Ray's temporary folder: /tmp if it exists, as in Ray itself, because paths
# of Unix sockets must be short.
_PARENT = "/tmp" if os.path.isdir("/tmp") else None


# Types of Ray. They are `Any` because Ray is imported at its first use only.
RayModule: TypeAlias = Any
RayActor: TypeAlias = Any
RayReference: TypeAlias = Any


def find_ray() -> RayModule:
    """Returns the module `ray`, or raises ImportError if it is not installed."""
    return find_extra("ray")


def find_extra(name: str) -> Any:
    """Returns a module of an optional dependency, or raises ImportError.

    The optional dependencies are those of the extra `jaxwgc[ray]`.
    """
    check_installed(name)
    return importlib.import_module(name)


def check_installed(name: str) -> None:
    """Raises ImportError if an optional dependency, e.g. `ray`, is not installed."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"{package} is not installed: run pip install '.[ray]' in a checkout of "
            "jaxwgc"
        )


def check_connected() -> None:
    """Raises RuntimeError if this process is no longer connected to Ray."""
    if not find_ray().is_initialized():
        raise RuntimeError(
            "Ray was shut down while the RayCluster was open: call ray.shutdown only "
            "after its `with` block"
        )


class _Connection:
    """Connection of this process to Ray, which all open clusters share."""

    def __init__(self):
        self._lock = threading.Lock()
        self._num_users = 0
        self._address: str | None = None
        self._folder: str | None = None
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def session(self, address: str | None) -> Iterator[str | None]:
        """Connects this process to Ray while a `with` block runs.

        A process has one connection to Ray. Blocks that overlap share the connection,
        and the last block closes it. A connection that the user has opened by
        `ray.init` is used, and stays open.

        Yields:
          Temporary folder of a Ray that was started here, which only this user can
          read; None for a Ray that was running before.
        """
        with self._lock:
            ray = _imported_for_loopback() if address is None else find_ray()
            if not (self._num_users and ray.is_initialized()):
                self._address = address
                # If the user has called `ray.shutdown` while clusters were open, the
                # rest of the old connection is closed here.
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
    """Joins a running Ray, or starts Ray and returns its temporary folder."""
    folder = None
    thread = None
    # `log_to_driver` shows the output of workers in the coordinator's process.
    settings: dict[str, Any] = {"log_to_driver": True, "configure_logging": False}
    if address is None:
        log.info("starting Ray on this machine")
        # In a folder of its own, this Ray is not found by `ray.init()` of other
        # programs. If this process is killed, the folder stays: later processes cannot
        # tell whether it is in use.
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
            # On Linux, Ray's processes end with the thread that starts them. The thread
            # of this executor therefore lasts until Ray is shut down.
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
        # JAX warns about every `os.fork`. The forks here are safe, because each is
        # followed by an exec at once.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        if thread is None:
            ray.init(**settings)
        else:
            thread.submit(ray.init, **settings).result()
    if signal.getsignal(signal.SIGTERM) != handler:
        signal.signal(signal.SIGTERM, handler)
    return folder


def _imported_for_loopback() -> RayModule:
    """Returns the module `ray`, imported so that Ray listens on this machine only.

    On Linux, Ray otherwise listens on the machine's address in the network. The
    environment variable that changes this is read when Ray is imported.

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
        f"would listen on {host}: set {_CLUSTER_VARIABLE}=0 in the environment before "
        "`import ray`, or call ray.init before the first round"
    )


def address_of_ray_start() -> str:
    """Returns the address of Ray from RAY_ADDRESS or from the last `ray start`.

    With `"auto"`, Ray itself would also join the Ray of another program, which ends
    with that program and may not be reachable from here.

    Raises:
      ConnectionError: If there is neither.
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
            "address='auto' needs the environment variable RAY_ADDRESS, or `ray start` "
            f"on this machine; got no RAY_ADDRESS and no file {file}. Run `ray start "
            "--head` before, or pass the address as 'host:port'"
        )
    return file.read_text().strip()


def check_address(address: str) -> None:
    """Raises an error if an address is malformed, or if no Ray responds at it.

    Raises:
      ValueError: If the address is not of the form host:port.
      ConnectionError: If the health check of Ray fails or takes too long.
    """
    if not re.fullmatch(r"[^/]+:\d+", address):
        raise ValueError(
            "address must be 'auto', or 'host:port' without a prefix such as ray://; "
            f"got {address!r}"
        )
    # The check runs in a subprocess, because a subprocess can be ended. In this
    # process, Ray would try to connect for minutes.
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
            f"{_SECONDS_TO_CONNECT} seconds: check the address, and that no firewall "
            "blocks it"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConnectionError(
            f"Ray's health check of address {address!r} failed: "
            f"{line_of(error.stderr)!r}. If Ray requires a token, copy "
            "~/.ray/auth_token from its head node to this machine, and set "
            "RAY_AUTH_MODE=token in the environment before the program starts"
        ) from error


def actor_options_of(
    address: str | None, options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns options of Ray's actors: defaults, and given options in their place."""
    # A Ray that is started here has no other users, so its workers claim no CPU.
    claims: dict[str, Any] = {"num_cpus": 0}
    if address is not None:
        claims = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    # Ray's record of all tasks would grow without bounds, so task events are disabled.
    claims["enable_task_events"] = False
    if options is not None:
        claims |= options
    return claims


def claimed_resources(options: Mapping[str, Any]) -> dict[str, float]:
    """Returns the amount of each resource that an actor claims, without zeros."""
    claims = {
        "CPU": options["num_cpus"],
        "GPU": options.get("num_gpus"),
        "memory": options.get("memory"),
    }
    claims |= options.get("resources") or {}
    return {name: amount for name, amount in claims.items() if amount}


def check_resources(num_actors: int, options: Mapping[str, Any]) -> None:
    """Raises ValueError if the cluster lacks the resources for all actors."""
    claims = claimed_resources(options)
    if not claims:
        return
    room = 0
    for node in find_ray().nodes():
        if node["Alive"]:
            resources = node["Resources"]
            ratios = [resources.get(name, 0) / claims[name] for name in claims]
            # The addend allows for rounding errors, e.g. in 0.3 / 0.1.
            room += int(min(ratios) + 1e-6)
    if room < num_actors:
        raise ValueError(
            f"Ray must have room for {num_actors} actors that claim {claims} each; got "
            f"room for {room}. Add machines, or claim less in actor_options"
        )
