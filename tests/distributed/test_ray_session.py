"""Ray itself, found, joined and left, as far as no worker is needed for it."""

import concurrent.futures
import contextlib
import signal
import socket
import threading
import types

import psutil
import pytest

from jaxwgc.distributed.ray import _actors, _interrupts, _session
from tests.distributed import ray_processes
from tests.distributed.simulated import SimulatedLauncher

ray = pytest.importorskip("ray")
# In the process of the tests of workers, whose Ray changes handlers of signals too.


def test_ray_that_would_listen_elsewhere_is_not_started(monkeypatch):
    """Since it was imported before, without the variable."""
    util = types.SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")
    other = types.SimpleNamespace(util=util, is_initialized=lambda: False)
    monkeypatch.setattr(_session, "find_ray", lambda: other)
    with pytest.raises(RuntimeError, match=r"listen on 10\.0\.0\.1: set RAY_ENABLE"):
        with _session.session(None):
            pass


def test_interrupts_wait_for_the_end(interruptible):
    def block():
        seen = []
        with _interrupts.uninterrupted():
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
            seen.append("whole")
        return seen

    with pytest.raises(KeyboardInterrupt):
        block()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(block).result() == ["whole"]


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_lost_interrupts_are_noticed(interruptible, number, error):
    before = signal.getsignal(number)
    with pytest.raises(error), _interrupts.noticed_interrupts() as check:
        check()
        try:
            signal.raise_signal(number)
        except error:
            pass
        check()
    assert signal.getsignal(number) == before
    # Someone else's handler is left as it is.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _interrupts.noticed_interrupts() as check:
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        check()


def test_addresses_that_do_not_answer(monkeypatch):
    monkeypatch.setattr(_session, "_SECONDS_TO_CONNECT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no Ray cluster responds"):
            _session.check_address(address)


def test_auto_is_the_ray_of_the_user_only(monkeypatch, tmp_path):
    """Ray itself would join that of another program, and try for minutes to do so."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    match = r"(?s)got no RAY_ADDRESS and no file .*Run `ray start --head` before"
    with pytest.raises(ConnectionError, match=match), _session.session("auto"):
        pass
    # As `ray start` writes it.
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379\n")
    assert _session.address_of_ray_start() == "127.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert _session.address_of_ray_start() == "127.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "head:6380")
    assert _session.address_of_ray_start() == "head:6380"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "nowhere", "host:port"])
def test_bad_addresses(address):
    with pytest.raises(ValueError, match="address must be"):
        _session.check_address(address)


def test_ray_that_was_shut_down_is_not_started_anew():
    """Ray's own calls would start it with defaults that are open to the network."""
    with pytest.raises(RuntimeError, match="Ray was shut down while"):
        _session.check_connected()
    actors = _actors.Actors(SimulatedLauncher(None), 1, lambda: None)
    actors._actors = ["of a Ray that is gone"]
    actors.end(0)
    assert not ray.is_initialized()


def test_ray_outlives_the_thread_that_starts_it():
    """Linux would end Ray's processes with it, and Ray this process a minute later."""
    processes = []
    try:
        with contextlib.ExitStack() as stack:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                opened = pool.submit(stack.enter_context, _session.session(None))
                opened.result()
            processes = ray_processes.descendants()
            ended, _ = psutil.wait_procs(processes, timeout=1)
            assert processes and not ended
        assert not ray.is_initialized()
        assert not ray_processes.stay_alive(processes)
    finally:
        ray_processes.end_all(processes)
