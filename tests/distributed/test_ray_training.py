"""Training on real workers is that of one process.

One cluster, which works on request, serves the first tests.
"""

import functools
import re
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest

from jaxwgc import codes, coding, stragglers
from jaxwgc.distributed import RayCluster, Timeouts, Verification
from jaxwgc.distributed.ray._response_limit import ResponseLimit
from tests.distributed import ray_coordinator, ray_processes, ray_tasks

pytestmark = pytest.mark.usefixtures("one_ray")

CODE = codes.replicated(2, num_parts=4, copies=2)
NUM_STEPS = 50
# The first feature is dead, and any step from zero is seen.
PARTS = np.random.default_rng(0).normal(size=(4, 12, 5)).astype(np.float32)
PARTS[..., 0] = 0
PARAMS = {"w": jnp.arange(5.0), "b": jnp.ones(())}
KEY = jax.random.key(5)
OPTIMIZER = optax.sgd(1e-3, momentum=0.9)
# What is logged of a worker that was killed and of one that was frozen.
RETURNS = (
    "worker 0 is back in step .* was lost: its process died",
    "worker 1 is back in step .* was lost: .*timeouts.response is 3",
)


@pytest.fixture(scope="module")
def cluster(one_ray, tmp_path_factory):
    options = {
        "has_aux": True,
        "key": KEY,
        "batch": ray_tasks.draw,
        "wait": stragglers.until_decodable(CODE),
        "undecodable": "raise",
        "verification": Verification(audit=0.9),
        "timeouts": Timeouts(response=3.0, replacement=300.0),
        "faults": ray_tasks.faults(tmp_path_factory.mktemp("faults"), seconds=0.005),
    }
    load = PARTS.__getitem__
    with RayCluster(ray_tasks.residuals, CODE, load, **options) as cluster:
        yield cluster


@jax.jit
def step_of_one_process(params, state, step):
    """Returns params and state after a step, its gradient, and losses and aux."""

    def value(params):
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = fold(jax.random.fold_in(KEY, step), jnp.arange(4))
        drawn = jax.vmap(ray_tasks.draw)(keys, PARTS)
        values, aux = jax.vmap(ray_tasks.residuals, (None, 0))(params, drawn)
        return values.sum(), (values, aux)

    gradient, told = jax.grad(value, has_aux=True)(params)
    updates, state = OPTIMIZER.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, gradient, told


def test_training_is_that_of_one_process(cluster, tmp_path, caplog, monkeypatch):
    """Minibatches, parts that are loaded, a worker killed and one frozen on the way."""
    caplog.set_level("INFO", "jaxwgc.distributed")
    seen = []
    hit = []
    signals = (signal.SIGKILL, signal.SIGSTOP)

    def callback(progress):
        """Ends worker 0 in step 10, and worker 1 in step 20 or once it is there."""
        seen.append(progress)
        worker = len(hit)
        is_due = worker < 2 and progress.state.step >= 10 * (worker + 1)
        # None stands for this process.
        if is_due and (pid := cluster.workers[worker].pid):
            hit.append(psutil.Process(pid))
            hit[-1].send_signal(signals[worker])

    train = functools.partial(cluster.train, OPTIMIZER, PARAMS)
    saved = {"checkpoint": tmp_path, "checkpoint_every": 20, "live": True}
    begin = len(cluster.trace())
    number = cluster.step
    first = cluster.compute(PARAMS)
    # An audit would notice the frozen worker before the time limit does.
    monkeypatch.setattr(cluster._coordinator.driver, "verifier", None)
    final = train(NUM_STEPS, callbacks=[callback], **saved)
    trace = cluster.trace()
    report = cluster.report()
    # What was saved at the end is what was returned.
    again = train(NUM_STEPS, **saved)
    # Without a checkpoint, another call begins anew.
    twice = train(2)
    # A frozen worker is lost after its time limit, and then comes back.
    ray_processes.repeat_until(
        lambda: all(re.search(line, caplog.text) for line in RETURNS),
        lambda: cluster.compute(PARAMS),
    )
    # A frozen process does not stay.
    assert len(hit) == 2 and not ray_processes.stay_alive(hit)

    params = PARAMS
    state = OPTIMIZER.init(PARAMS)
    _, _, _, (values, aux) = step_of_one_process(params, state, number)
    np.testing.assert_allclose(first.losses, values, rtol=1e-5)
    np.testing.assert_allclose(first.aux["most"], aux["most"], rtol=1e-5)
    for step in range(NUM_STEPS):
        params, state, _, _ = step_of_one_process(params, state, step)
    difference = optax.tree.norm(optax.tree.sub(final.params, params))
    assert difference < 1e-5 * optax.tree.norm(params)
    assert final.params["w"][0] == 0
    assert int(final.optimizer_state[0].num_undecodable) == 0
    assert [progress.state.step for progress in seen] == list(range(1, NUM_STEPS + 1))
    assert seen[-1].loss < seen[0].loss
    chex.assert_trees_all_close(
        twice.params, seen[1].state.params, rtol=1e-4, atol=1e-6
    )
    rounds = trace[begin:]
    assert rounds.shape == (NUM_STEPS + 1, 2, 4)
    assert np.isfinite(rounds).any((1, 2)).all()
    # Worker 0 was killed, and worker 1 frozen: no times stand in for theirs.
    silent = ~np.isfinite(trace).any(axis=2)
    np.testing.assert_array_equal(report.missing, silent.sum(axis=0))
    assert silent.any(axis=0).all()
    assert ray_coordinator.digest(again) == ray_coordinator.digest(final)


def test_audits_find_a_corrupted_worker(cluster, caplog, monkeypatch):
    """Worker 1 is, in every round; the other finishes its parts once it is seen."""
    # It is not replaced before, because the machine is busy.
    monkeypatch.setattr(cluster._fleet, "limit", ResponseLimit(60.0, 2))

    def compute():
        step = cluster.step
        round = cluster.compute(PARAMS)
        assert not round.wrong[0]
        assert not (round.wrong & round.received).any()
        if round.wrong[1] or is_replaced:
            _, _, gradient, _ = step_of_one_process(
                PARAMS, OPTIMIZER.init(PARAMS), step
            )
            decoded = coding.decode_sums(round.messages, PARAMS)
            chex.assert_trees_all_close(decoded, gradient, rtol=1e-4, atol=1e-3)
        return round

    assert cluster.compute(PARAMS).timings["examination"] > 0
    pid = cluster.workers[1].pid
    is_replaced = False
    cluster.resume(ray_tasks.WRONG)
    with pytest.warns(UserWarning, match="worker 1 on .* corrupted in 3 r") as seen:
        ray_processes.repeat_until(
            lambda: cluster.workers[1].pid not in (None, pid), compute
        )
    assert seen[0].filename == __file__
    assert caplog.text.count("worker 1 on ") == 3
    is_replaced = True
    for _ in range(5):
        assert not compute().wrong.any()


def test_checkpoints_that_do_not_fit(tmp_path):
    """No worker is needed to see it."""
    code = codes.uncoded(1)
    with RayCluster(ray_tasks.residuals, code, PARTS[:1], has_aux=True) as cluster:

        def train(folder, optimizer, params):
            return cluster.train(optimizer, params, 0, checkpoint=tmp_path / folder)

        train("good", optax.sgd(0.1), PARAMS)
        for optimizer, params, differs in (
            (optax.adam(0.1), PARAMS, "count = nothing, and now int32"),
            (optax.sgd(0.1), {**PARAMS, "w": jnp.zeros(6)}, "now float32.6."),
            (
                optax.sgd(0.1),
                {"w": jnp.zeros(5)},
                r"params\['b'\] = .*, and now nothing",
            ),
        ):
            with pytest.raises(ValueError, match=f"checkpoint must fit .*{differs}"):
                train("good", optimizer, params)
