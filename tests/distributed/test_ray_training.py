"""Training on real workers: that of one process, and checkpoints of stopped ones."""

import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest

from jaxwgc import codes, stragglers, studies
from jaxwgc.distributed import RayCluster
from tests.distributed import ray_coordinator, ray_processes

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("one_ray")

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
            callbacks=[seen.append],
            checkpoint=tmp_path,
            checkpoint_every=20,
            live=True,
        )
        trace, report = cluster.trace(), cluster.report()
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
    assert str(report) == str(studies.straggler_report(trace))
    assert (np.isfinite(trace).sum(1) >= 2).all()
    assert int(final.optimizer_state[0].num_undecodable) == 0

    # What was saved at the end is what was returned; no worker is needed to see it.
    with RayCluster(loss, code, parts, wait=stragglers.fastest(2)) as cluster:
        again = cluster.train(optimizer, PARAMS, 50, checkpoint=tmp_path)
    assert ray_coordinator.digest(again) == ray_coordinator.digest(final)


def digests_of(lines):
    """What a coordinator says after each step."""
    for words in map(str.split, lines):
        if len(words) == 2 and words[0].isdigit():
            yield int(words[0]), words[1]


def digests_until_stopped(folder, freeze, checkpoint_every, stop, stays):
    """Of a coordinator that is stopped after five steps; and its process.

    It ends soon, and so do the processes below it but those with a name that stays.
    """
    program = [sys.executable, "-m", "tests.distributed.ray_coordinator"]
    coordinator = subprocess.Popen(
        [*program, folder, freeze, str(checkpoint_every)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
        start_new_session=True,
    )
    digests = dict(itertools.islice(digests_of(coordinator.stdout), 5))
    processes = [psutil.Process(coordinator.pid)]
    processes += ray_processes.descendants(coordinator.pid)
    try:
        ending = [own for own in processes if stays not in own.name()]
        stop(coordinator)
        coordinator.wait(timeout=15)
        digests |= dict(digests_of(coordinator.stdout))
        assert not ray_processes.alive_after(ending, 20)
    finally:
        ray_processes.end_all(processes)
    return digests, coordinator


def test_stopped_coordinators_resume_and_leave_no_process(tmp_path):
    """After Ctrl-C, with a frozen worker, and after SIGKILL."""
    folder = str(tmp_path / "checkpoints")
    # Ctrl-C in a terminal reaches the whole group. A checkpoint is asked for only then.
    said, interrupted = digests_until_stopped(
        folder, "freeze", 10**6, lambda own: os.killpg(own.pid, signal.SIGINT), "None"
    )
    assert not ray_processes.folders(interrupted.pid)
    more, killed = digests_until_stopped(
        folder, "", 1, lambda own: own.kill(), stays="Agent"
    )
    # The folder of one that is killed cannot go by itself.
    for left in ray_processes.folders(killed.pid):
        shutil.rmtree(left, ignore_errors=True)
    # It has gone on with the step after that of its checkpoint, which one that was
    # interrupted right after a step has not said.
    assert min(more) - max(said) in (1, 2)

    with ray_coordinator.make_cluster() as cluster:
        state = cluster.train(
            ray_coordinator.OPTIMIZER, ray_coordinator.PARAMS, 0, checkpoint=folder
        )
    assert state.step >= max(more) - 1
    assert ray_coordinator.digest(state) == (said | more)[state.step]
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
        for optimizer, params, differs in (
            (optax.adam(0.1), PARAMS, "count = nothing, and now int32"),
            (optax.sgd(0.1), {**PARAMS, "w": jnp.zeros(6)}, "now float32.6."),
            (optax.sgd(0.1), {"w": jnp.zeros(5)}, "params.b = .*, and now nothing"),
        ):
            with pytest.raises(ValueError, match=f"must be of the same .*{differs}"):
                train("good", optimizer, params)
