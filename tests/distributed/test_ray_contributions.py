"""Local steps on real workers, some of which are killed and frozen, and faulty ones."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest

from jaxwgc import codes
from jaxwgc.distributed import RayCluster, Timeouts
from tests.distributed import contribution_tasks as tasks
from tests.distributed import ray_processes

pytestmark = pytest.mark.usefixtures("one_ray")

KEY = jax.random.key(7)
ROWS = np.random.default_rng(0).normal(size=(4, 20, 3)).astype(np.float32)
PARAMS = {"w": jnp.array([0.5, -1.0])}
OUTER = optax.sgd(0.2, momentum=0.9, nesterov=True)
# Two copies of each of four parts, on two workers.
MESSAGES = codes.GradientCode.from_matrix(np.ones((2, 4)))
REQUESTS = codes.replicated(2, num_parts=4, copies=2)
NUMBERED = {"rows": ROWS[..., :2], "index": np.arange(4, dtype=np.int32)}


def trained_by_one_process(num_rounds):
    """Params after rounds of all parts, and the losses of the last round."""

    @jax.jit
    def step(params, state, number):
        key = jax.random.fold_in(KEY, number)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        changes, losses = jax.vmap(tasks.drawn_steps, (None, 0, 0))(params, ROWS, keys)
        total = jax.tree.map(lambda leaf: leaf.sum(0), changes)
        updates, state = OUTER.update(total, state, params)
        return optax.apply_updates(params, updates), state, losses

    params = PARAMS
    state = OUTER.init(params)
    for number in range(num_rounds):
        params, state, losses = step(params, state, number)
    return params, losses


@pytest.mark.parametrize("code", [MESSAGES, REQUESTS], ids=["messages", "requests"])
def test_training_is_that_of_one_process(code, tmp_path):
    """A worker is killed and one frozen; the run is cut in two by a checkpoint."""
    hit = []
    seen = []

    def callback(progress):
        seen.append(progress.round)
        is_due = progress.state.step in (4, 12)
        worker = len(hit) % 2
        if is_due and (pid := cluster.workers[worker].pid):
            hit.append(psutil.Process(pid))
            hit[-1].send_signal((signal.SIGKILL, signal.SIGSTOP)[worker])

    with RayCluster(
        contribution=tasks.drawn_steps,
        code=code,
        parts=ROWS,
        key=KEY,
        has_aux=True,
        undecodable="raise",
        timeouts=Timeouts(response=3.0, replacement=300.0),
    ) as cluster:
        for num_rounds in (8, 20):
            final = cluster.train(
                OUTER, PARAMS, num_rounds, callbacks=[callback], checkpoint=tmp_path
            )
    assert len(hit) == 2 and not ray_processes.stay_alive(hit)
    expected, losses = trained_by_one_process(20)
    difference = optax.tree.norm(optax.tree.sub(final.params, expected))
    assert difference < 1e-5 * optax.tree.norm(expected)
    last = seen[-1]
    assert last.known.all() and np.isnan(last.losses).all()
    np.testing.assert_allclose(last.aux, losses, rtol=1e-4)


def test_faults_of_a_contribution_are_named():
    """With step, worker and parts; later rounds lose nothing."""
    with RayCluster(
        contribution=tasks.faulty,
        code=codes.uncoded(2, 4),
        parts=NUMBERED,
        timeouts=Timeouts(response=60.0, replacement=0.1),
    ) as cluster:

        def compute(first):
            return cluster.compute({"w": jnp.array([first, 0.0])})

        total = ROWS[..., :2].sum((0, 1))
        np.testing.assert_allclose(compute(1.0).messages.sum(0), total, rtol=1e-5)
        why = "step 1 cannot .* worker 1 .its message is not finite in part 2"
        with pytest.warns(UserWarning, match=why):
            this_round = compute(tasks.NOT_FINITE)
        assert this_round.known.tolist() == [True, True, False, False]
        np.testing.assert_allclose(compute(1.0).messages.sum(0), total, rtol=1e-5)
        cluster._coordinator._has_warned = False
        why = r"step 3 cannot .* worker 1 .*ArithmeticError: as told \(in parts 2, 3\)"
        with pytest.warns(UserWarning, match=why):
            compute(tasks.RAISES)
        ray_processes.repeat_until(lambda: compute(1.0).received.all())
        np.testing.assert_allclose(compute(1.0).messages.sum(0), total, rtol=1e-5)
