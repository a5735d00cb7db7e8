"""Training on real workers: that of one process, and checkpoints of stopped ones."""

import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest

from jaxwgc import codes, stragglers
from jaxwgc.distributed import RayCluster
from tests.distributed import ray_coordinator, ray_processes

pytest.importorskip("ray")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("one_ray")]

PARTS = np.random.default_rng(0).normal(size=(3, 12, 5)).astype(np.float32)
PARAMS = {"w": jnp.arange(5.0), "b": jnp.ones(())}


def loss(params, part):
    return jnp.sum((part @ params["w"] + params["b"]) ** 2)


def test_training_is_that_of_one_process(tmp_path):
    """Complex messages, parts that are sent, 50 steps; and then from a checkpoint."""
    code = codes.cyclic_mds(3, num_stragglers=1)
    # The first feature is dead, and any step from zero is seen.
    parts, seen = PARTS * np.float32([0, 1, 1, 1, 1]), []
    optimizer = optax.sgd(1e-3, momentum=0.9)
    with RayCluster(loss, code, parts, wait=stragglers.fastest(2)) as cluster:
        final = cluster.train(
            optimizer,
            PARAMS,
            50,
            callback=seen.append,
            checkpoint=tmp_path,
            checkpoint_every=20,
            live=True,
        )
        trace = cluster.trace()
        # Another call begins anew.
        twice = cluster.train(optimizer, PARAMS, 2)
    assert twice.step == 2
    for own, before in zip(
        jax.tree.leaves(twice.params), jax.tree.leaves(seen[1].state.params)
    ):
        np.testing.assert_allclose(own, before, rtol=1e-4, atol=1e-6)
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda own: sum(loss(own, part) for part in parts))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(50):
        params, state = step(params, state)
    for own, true in zip(jax.tree.leaves(final.params), jax.tree.leaves(params)):
        error = jnp.linalg.norm(own - true) / jnp.linalg.norm(true)
        assert error < 1e-5
    assert final.params["w"][0] == 0
    assert [progress.state.step for progress in seen] == list(range(1, 51))
    assert seen[-1].loss < seen[0].loss
    assert trace.shape == (50, 3)
    assert (np.isfinite(trace).sum(1) >= 2).all()
    assert int(final.optimizer_state[0].num_undecodable) == 0

    # What was saved at the end is what was returned; no worker is needed to see it.
    with RayCluster(loss, code, parts, wait=stragglers.fastest(2)) as cluster:
        again = cluster.train(optimizer, PARAMS, 50, checkpoint=tmp_path)
    assert ray_coordinator.digest(again) == ray_coordinator.digest(final)


def start_coordinator(folder, freeze, checkpoint_every):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.distributed.ray_coordinator",
            folder,
            freeze,
            str(checkpoint_every),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
        start_new_session=True,
    )


def digests_of(lines):
    """What a coordinator says after each step."""
    for words in map(str.split, lines):
        if len(words) == 2 and words[0].isdigit():
            yield int(words[0]), words[1]


def digests_until(coordinator, num_steps):
    """Of the first steps."""
    return dict(itertools.islice(digests_of(coordinator.stdout), num_steps))


def test_stopped_coordinators_resume_and_leave_no_process(tmp_path):
    folder = str(tmp_path / "checkpoints")
    said = {}
    # Ctrl-C in a terminal reaches the whole group, and SIGTERM the coordinator. Both
    # are asked for a checkpoint only at the end.
    for freeze, stop in [
        ("freeze", lambda own: os.killpg(own.pid, signal.SIGINT)),
        ("", lambda own: own.terminate()),
    ]:
        coordinator = start_coordinator(folder, freeze, 10**6)
        more = digests_until(coordinator, 6)
        processes = [psutil.Process(coordinator.pid)]
        processes += ray_processes.descendants(coordinator.pid)
        try:
            start = time.monotonic()
            stop(coordinator)
            coordinator.wait(timeout=60)
            more |= dict(digests_of(coordinator.stdout))
            assert time.monotonic() - start < 15
            assert not ray_processes.alive_after(processes, 5)
        finally:
            ray_processes.end_all(processes)
        assert not ray_processes.folders(coordinator.pid)
        # It has gone on with the step after that of its checkpoint, which one that was
        # interrupted right after a step has not said.
        assert min(more) - max(said, default=0) in (1, 2)
        said |= more
    assert coordinator.returncode == 128 + signal.SIGTERM

    coordinator = start_coordinator(folder, "", 1)
    more = digests_until(coordinator, 4)
    processes = [psutil.Process(coordinator.pid)]
    processes += ray_processes.descendants(coordinator.pid)
    try:
        assert min(more) - max(said) in (1, 2)
        workers = [own for own in processes if "Agent" not in own.name()]
        coordinator.kill()
        coordinator.wait(timeout=60)
        said |= more | dict(digests_of(coordinator.stdout))
        assert not ray_processes.alive_after(workers, 20)
    finally:
        ray_processes.end_all(processes)
        # That of a killed one cannot go by itself.
        for left in ray_processes.folders(coordinator.pid):
            shutil.rmtree(left, ignore_errors=True)

    with ray_coordinator.make_cluster() as cluster:
        state = cluster.train(
            ray_coordinator.OPTIMIZER, ray_coordinator.PARAMS, 0, checkpoint=folder
        )
    assert state.step >= max(more) - 1
    assert ray_coordinator.digest(state) == said[state.step]
    assert jax.random.key_data(state.key).tolist() == [0, 7]


def test_checkpoints_that_do_not_fit(tmp_path):
    """No worker is needed to see it."""
    (tmp_path / "file").write_text("")
    with RayCluster(loss, codes.uncoded(3), PARTS) as cluster:

        def train(folder, optimizer, params):
            return cluster.train(optimizer, params, 0, checkpoint=tmp_path / folder)

        with pytest.raises(ValueError, match="checkpoint must be a folder; got the"):
            train("file", optax.sgd(0.1), PARAMS)
        train("good", optax.sgd(0.1), PARAMS)
        for optimizer, params in (
            (optax.adam(0.1), PARAMS),
            (optax.sgd(0.1), {"w": jnp.zeros(6), "b": jnp.ones(())}),
            (optax.sgd(0.1), {"w": jnp.zeros(5)}),
        ):
            with pytest.raises(ValueError, match="checkpoint must be of the same"):
                train("good", optimizer, params)
