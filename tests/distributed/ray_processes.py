"""Processes, listening ports and files in shared memory that Ray may leave behind."""

import contextlib
import pathlib
import time

import psutil

# Seconds after which a test fails that waits for an event: long on any machine.
LONGEST_WAIT = 300


def repeat_until(is_done, act=lambda: None):
    """Acts until something is so, for minutes if the machine is busy."""
    end = time.monotonic() + LONGEST_WAIT
    while not is_done():
        assert time.monotonic() < end
        act()
        time.sleep(0.05)


def descendants(pid=None):
    """All processes below one, but that of `multiprocessing`, which ends with us."""
    try:
        result = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in result if not is_resource_tracker(process)]


def is_resource_tracker(process):
    with contextlib.suppress(psutil.Error):
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


def end_all(processes):
    """Ends those that are still there, frozen ones too."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def stay_alive(processes):
    """Names of those that are still there after minutes."""
    _, alive = psutil.wait_procs(processes, timeout=LONGEST_WAIT)
    return [
        process.name()
        for process in alive
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def listening_addresses(processes):
    """IP addresses on which processes listen."""
    result = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            result |= {
                connection.laddr.ip
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    return result


def shared_memory():
    """Files of object stores in shared memory."""
    return {*pathlib.Path("/dev/shm").glob("plasma*")}


def folders(pid):
    """Logs and sockets of the Ray that a process has started."""
    return [*pathlib.Path("/tmp").glob(f"jaxwgc-{pid}-*")]
