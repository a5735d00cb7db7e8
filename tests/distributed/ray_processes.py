"""What Ray may leave behind: processes, listening ports, files in shared memory."""

import pathlib
import time

import psutil


def descendants(pid=None):
    """All processes below one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end_all(processes):
    """Ends those that are still there, frozen ones too."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(processes, timeout=10)


def alive_after(processes, seconds):
    """Names of those that are still there after some seconds."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [
        process.name()
        for process in alive
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def listening_addresses(processes):
    """Where they listen, IP addresses alone."""
    found = set()
    for process in processes:
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        found |= {
            connection.laddr.ip
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
        }
    return found


def shared_memory():
    """Files of object stores in shared memory."""
    return {*pathlib.Path("/dev/shm").glob("plasma*")}


def wait_until(condition, seconds):
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def folders(pid):
    """Logs and sockets of the Ray that a process has started."""
    return [*pathlib.Path("/tmp").glob(f"jaxwgc-{pid}-*")]
