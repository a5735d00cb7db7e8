"""Ray for the tests of several files, which must leave nothing behind."""

import contextlib
import logging
import os
import signal

# Before a test imports Ray: it then takes 127.0.0.1 for an address of this machine.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# Processes that Ray starts in advance would have no task.
os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112
# Ray lowers the priority of its workers by 15. Beside two busy processes on two cores,
# a worker then takes 30 seconds to start, and 2 seconds with the priority of the tests.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import pytest

from jaxwgc.distributed.ray._session import session
from tests.distributed import ray_processes


def pytest_collection_modifyitems(items):
    """Tests of one Ray come last, since others open and close their own."""
    items.sort(key=lambda item: "one_ray" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", autouse=True)
def log_without_asyncio():
    """Orbax leaves reads that fail to asyncio, which logs them in any later test."""
    logger = logging.getLogger("asyncio")
    logger.disabled = True
    yield
    logger.disabled = False


@pytest.fixture(scope="module", autouse=True)
def handler_of_sigterm():
    """Put back, since `ray.init` by itself replaces it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def interruptible():
    """Ctrl-C as Python has it, which pytest-xdist switches off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def one_ray():
    """Clusters that open in the meantime use it; it ends with the last of its users."""
    ray = pytest.importorskip("ray")
    memory = ray_processes.shared_memory()
    processes = []
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.ExitStack() as last:
            with session(None):
                last.enter_context(session(None))
            assert ray.is_initialized()
            assert signal.getsignal(signal.SIGTERM) == handler
            yield
            processes = ray_processes.descendants()
        assert not ray.is_initialized()
        assert not ray_processes.stay_alive(processes)
    finally:
        ray_processes.end_all(processes or ray_processes.descendants())
    assert ray_processes.shared_memory() <= memory
    assert not ray_processes.folders(os.getpid())
