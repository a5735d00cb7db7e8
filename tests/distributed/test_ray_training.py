"""Training on real workers: that of one process, and checkpoints of stopped ones."""

import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest

from jaxwgc import codes, stragglers, studies
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster, Timeouts
from tests.distributed import ray_coordinator, ray_processes

pytestmark = pytest.mark.usefixtures("one_ray")

NUM_STEPS = 50
# The first feature is dead, and any step from zero is seen.
PARTS = np.random.default_rng(0).normal(size=(6, 12, 5)).astype(np.float32)
PARTS[..., 0] = 0
PARAMS = {"w": jnp.arange(5.0), "b": jnp.ones(())}
KEY = jax.random.key(5)
OPTIMIZER = optax.sgd(1e-3, momentum=0.9)
# What is logged of a worker that was killed and of one that was frozen.
RETURNS = (
    "worker 0 is back in step .* was lost: its process died",
    "worker 1 is back in step .* was lost: .*timeouts.answer is 3",
)
CODES = {
    "complex": codes.cyclic_mds(3, num_stragglers=1),
    "on request": codes.replicated(3, num_parts=6, copies=2),
}


def loss(params, part):
    residuals = part @ params["w"] + params["b"]
    return jnp.sum(residuals**2), {"most": jnp.abs(residuals).max()}


def draw(key, part):
    return jax.random.choice(key, part, (4,), replace=False)


def trained_in_one_process(num_parts):
    """Returns losses and aux of the parts in the first step, and trained params."""

    def value(params, step):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(KEY, step), jnp.arange(num_parts)
        )
        drawn = jax.vmap(draw)(keys, PARTS[:num_parts])
        values, aux = jax.vmap(loss, (None, 0))(params, drawn)
        return values.sum(), (values, aux)

    def step(carry, number):
        params, state = carry
        gradient, found = jax.grad(value, has_aux=True)(params, number)
        updates, state = OPTIMIZER.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), found

    start = PARAMS, OPTIMIZER.init(PARAMS)
    (params, _), found = jax.lax.scan(step, start, jnp.arange(NUM_STEPS))
    return jax.tree.map(lambda leaf: leaf[0], found), params


@pytest.mark.parametrize("name", CODES)
def test_training_is_that_of_one_process(name, tmp_path, caplog):
    """Minibatches, parts that are loaded, a worker killed and one frozen on the way."""
    caplog.set_level("INFO", "jaxwgc.distributed")
    code, parts, seen, ended = CODES[name], PARTS, [], []
    signals = {10: (0, signal.SIGKILL), 25: (1, signal.SIGSTOP)}

    def callback(progress):
        seen.append(progress)
        if progress.state.step in signals:
            worker, number = signals[progress.state.step]
            # None stands for this process.
            assert (pid := cluster.workers[worker].pid)
            ended.append(psutil.Process(pid))
            ended[-1].send_signal(number)

    options = {
        "has_aux": True,
        "key": KEY,
        "batch": draw,
        "wait": stragglers.until_decodable(code),
        "decoding": DecodingOptions(undecodable="raise"),
        "timeouts": Timeouts(answer=3.0),
        "faults": Faults(delay=lambda worker, step: 0.005),
    }
    saved = {"checkpoint": tmp_path, "checkpoint_every": 20, "live": True}
    with RayCluster(loss, code, parts.__getitem__, **options) as cluster:
        first = cluster.compute(PARAMS)
        given = OPTIMIZER, PARAMS, NUM_STEPS
        final = cluster.train(*given, callbacks=[callback], **saved)
        trace, report = cluster.trace(), cluster.report()
        # What was saved at the end is what was returned.
        again = cluster.train(*given, **saved)
        # Without a checkpoint, another call begins anew.
        twice = cluster.train(OPTIMIZER, PARAMS, 2)
        # A frozen worker is lost after its time limit, and then comes back.
        end = time.monotonic() + 60
        while not all(re.search(line, caplog.text) for line in RETURNS):
            cluster.compute(PARAMS)
            assert time.monotonic() < end, caplog.text
            time.sleep(0.05)
    # A frozen process does not stay.
    assert not ray_processes.alive_after(ended, 20)
    (values, aux), params = jax.jit(trained_in_one_process, static_argnums=0)(
        code.num_parts
    )
    np.testing.assert_allclose(first.losses, values, rtol=1e-5)
    np.testing.assert_allclose(first.aux["most"], aux["most"], rtol=1e-5)
    difference = optax.tree.norm(optax.tree.sub(final.params, params))
    assert difference < 1e-5 * optax.tree.norm(params)
    assert final.params["w"][0] == 0
    assert int(final.optimizer_state[0].num_undecodable) == 0
    assert [progress.state.step for progress in seen] == list(range(1, NUM_STEPS + 1))
    assert seen[-1].loss < seen[0].loss
    chex.assert_trees_all_close(
        twice.params, seen[1].state.params, rtol=1e-4, atol=1e-6
    )
    shape = (3, 4) if name == "on request" else (3,)
    assert trace.shape == (NUM_STEPS + 1, *shape)
    assert np.isfinite(trace).reshape(NUM_STEPS + 1, -1).any(1).all()
    assert str(report) == str(studies.straggler_report(trace))
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
    with RayCluster(loss, codes.uncoded(1), PARTS[:1], has_aux=True) as cluster:

        def train(folder, optimizer, params):
            return cluster.train(optimizer, params, 0, checkpoint=tmp_path / folder)

        train("good", optax.sgd(0.1), PARAMS)
        for optimizer, params, differs in (
            (optax.adam(0.1), PARAMS, "count = nothing, and now int32"),
            (optax.sgd(0.1), {**PARAMS, "w": jnp.zeros(6)}, "now float32.6."),
            (optax.sgd(0.1), {"w": jnp.zeros(5)}, "params.b = .*, and now nothing"),
        ):
            with pytest.raises(ValueError, match=f"must be of the same .*{differs}"):
                train("good", optimizer, params)
