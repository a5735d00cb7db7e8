"""Coordinators that are stopped: their processes end, and their training resumes.

Each starts and ends a Ray of its own.
"""

import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import psutil
import pytest

from tests.conftest import weekly
from tests.distributed import ray_coordinator, ray_processes

pytest.importorskip("ray")


def digests_of(lines):
    """Digests that a coordinator prints after each step."""
    for words in map(str.split, lines):
        if len(words) == 2 and words[0].isdigit():
            yield int(words[0]), words[1]


def start_coordinator(folder, num_workers, checkpoint_every, *options):
    program = [sys.executable, "-m", "tests.distributed.ray_coordinator"]
    return subprocess.Popen(
        [*program, folder, str(num_workers), str(checkpoint_every), *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
        start_new_session=True,
    )


def digests_until_stopped(folder, num_workers, checkpoint_every, stop, stay=()):
    """Digests of a coordinator that is stopped after five steps; and its process.

    It ends, and so do the processes below it but those with parts of names in `stay`.
    """
    coordinator = start_coordinator(folder, num_workers, checkpoint_every)
    digests = dict(itertools.islice(digests_of(coordinator.stdout), 5))
    processes = ray_processes.descendants(coordinator.pid)
    ending = [
        process
        for process in processes
        if not any(part in process.name() for part in stay)
    ]
    processes.append(psutil.Process(coordinator.pid))
    try:
        assert sum("ray::Worker" in process.name() for process in ending) >= num_workers
        stop(coordinator)
        ray_processes.repeat_until(lambda: coordinator.poll() is not None)
        digests |= dict(digests_of(coordinator.stdout))
        assert not ray_processes.stay_alive(ending)
    finally:
        ray_processes.end_all(processes)
    return digests, coordinator


def test_stopped_coordinators_resume_and_leave_no_process(tmp_path):
    """After Ctrl-C, with a frozen worker, and after SIGKILL, under another code."""
    folder = str(tmp_path / "checkpoints")
    # Ctrl-C in a terminal reaches the whole group. A checkpoint is asked for only then.
    said, interrupted = digests_until_stopped(
        folder,
        2,
        10**6,
        lambda process: os.killpg(process.pid, signal.SIGINT),
    )
    assert not ray_processes.folders(interrupted.pid)
    # Ray's own services in Python notice half a minute later that Ray has ended.
    services = "Agent", "python"
    more, killed = digests_until_stopped(
        folder, 1, 1, lambda process: process.kill(), services
    )
    # The folder of one that is killed cannot go by itself.
    for left in ray_processes.folders(killed.pid):
        shutil.rmtree(left, ignore_errors=True)
    # It has gone on with the step after that of its checkpoint, which one that was
    # interrupted right after a step has not said.
    assert min(more) - max(said) in (1, 2)

    with ray_coordinator.make_cluster(1) as cluster:
        state = cluster.train(
            ray_coordinator.OPTIMIZER, ray_coordinator.PARAMS, 0, checkpoint=folder
        )
    assert state.step >= max(more) - 1
    assert ray_coordinator.digest(state) == more[state.step]
    assert jax.random.key_data(state.key).tolist() == [0, 7]


@pytest.mark.parametrize(
    "line",
    [
        weekly("starting Ray on this machine"),
        "starting 2 workers",
    ],
)
def test_interrupt_ends_the_start(tmp_path, line):
    """Though Python drops some interrupts that come while Ray starts its processes.

    The workers do not become ready.
    """
    coordinator = start_coordinator(str(tmp_path / "checkpoints"), 2, 10**6, "held")
    said = []
    for text in coordinator.stdout:
        said.append(text.strip())
        if said[-1] == line:
            break
    processes = [psutil.Process(coordinator.pid)]
    try:
        processes += ray_processes.descendants(coordinator.pid)
        os.killpg(coordinator.pid, signal.SIGINT)
        ray_processes.repeat_until(lambda: coordinator.poll() is not None)
        said += map(str.strip, coordinator.stdout)
        assert not ray_processes.stay_alive(processes)
    finally:
        ray_processes.end_all(processes)
    assert line in said
    assert not [*digests_of(said)]
    assert not ray_processes.folders(coordinator.pid)
