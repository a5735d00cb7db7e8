"""Whoever asks a cluster: several threads, callbacks, several clusters, who closes."""

import concurrent.futures
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.distributed import Faults, RayCluster
from jaxwgc.distributed.ray import _actors, _session
from tests.distributed import ray_processes

ray = pytest.importorskip("ray")

CODE = codes.fractional_repetition(2, num_stragglers=1)
PARTS = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
TIMED, SLOW = 10**6, 10**9
# By step, of each worker.
DELAYS = {TIMED: (0.01, 0.05), SLOW: (2.0, 2.0)}


def loss(params, part):
    return 0.5 * jnp.sum((part - params) ** 2), {"mean": part.mean(0), "two": 2}


def batch(key, part):
    return jax.random.choice(key, part, (4,), replace=False)


def make_cluster(**others):
    faults = Faults(delay=lambda worker, step: DELAYS.get(step, (0.0, 0.0))[worker])
    given = {"code": CODE, "parts": PARTS, "key": jax.random.key(1), "batch": batch}
    return RayCluster(loss, has_aux=True, faults=faults, **given | others)


@pytest.fixture(scope="module")
def cluster():
    """Opened before another, and closed before it."""
    with make_cluster() as cluster:
        cluster.compute(jnp.zeros(5))
        yield cluster


def in_threads(*functions):
    """Returns what each gives or raises, all at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        futures = [*map(pool.submit, functions)]
    return [future.exception() or future.result() for future in futures]


def test_two_threads_get_gradients_of_their_own_params(cluster):
    """Gradients of the quadratic differ by as much as params do, times the rows."""

    def rounds_at(value):
        params = jnp.full(5, value)
        gradients = []
        for _ in range(100):
            round = cluster.compute(params)
            weights = jaxwgc.decoding_weights(CODE, round.received)
            gradients.append(np.asarray(weights) @ round.messages)
        return np.array(gradients)

    low, high = in_threads(lambda: rounds_at(0.0), lambda: rounds_at(100.0))
    # Eight rows are drawn, none of which has entries of a hundredth of that.
    np.testing.assert_allclose(low / 8, 0.0, atol=5)
    np.testing.assert_allclose(high / 8, 100.0, atol=5)


def test_aux_is_that_of_every_part(cluster):
    round = cluster.compute(jnp.zeros(5))
    known = np.isfinite(round.losses)
    assert round.aux["mean"].shape == (2, 5)
    assert np.abs(round.aux["mean"][known]).min() > 0
    np.testing.assert_array_equal(round.aux["two"], 2 * known)


def test_callbacks_may_compute_and_train(cluster):
    """Steps, their batches and their key are those of training alone."""
    optimizer, start = optax.sgd(0.02, momentum=0.9), jnp.ones(5)
    alone = cluster.train(optimizer, start, 6)

    def callback(progress):
        cluster.compute(10 * progress.state.params)
        if progress.state.step == 3:
            cluster.train(optimizer, 2 * start, 2)

    among = cluster.train(optimizer, start, 6, callbacks=[callback])
    np.testing.assert_allclose(among.params, alone.params, rtol=1e-4)
    assert among.step == 6


def test_nobody_and_nothing_finite(cluster, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="must be finite; got NaN or infinity in par"):
        cluster.compute(jnp.full(5, jnp.nan))
    with pytest.raises(ValueError, match="params must be finite"):
        cluster.train(optax.sgd(1.0), jnp.full(5, jnp.nan), 2)
    fleet = cluster._fleet
    rules = fleet.rules._replace(ends=lambda times: 0.0)
    monkeypatch.setattr(fleet, "rules", rules)
    with pytest.raises(RuntimeError, match="step .*since no worker responded; missing"):
        cluster.compute(jnp.zeros(5))
    monkeypatch.undo()
    optimizer = optax.scale_by_schedule(lambda n: jnp.where(n < 3, -0.1, jnp.inf))
    with pytest.raises(FloatingPointError, match="step 3 gives params that are not"):
        cluster.train(optimizer, jnp.ones(5), 9, checkpoint=tmp_path)
    # The last good one is what is left.
    state = cluster.train(optimizer, jnp.ones(5), 0, checkpoint=tmp_path)
    assert state.step == 3
    assert np.isfinite(state.params).all()


def test_checkpoint_of_another_code(cluster, tmp_path):
    """Here under another number of workers."""
    optimizer = optax.adam(0.1)
    two = cluster.train(optimizer, jnp.ones(5), 3, checkpoint=tmp_path)
    with make_cluster(code=codes.uncoded(1), parts=PARTS[:1]) as one:
        state = one.train(optimizer, jnp.ones(5), 3, checkpoint=tmp_path)
        np.testing.assert_array_equal(state.params, two.params)
        state = one.train(optimizer, jnp.ones(5), 5, checkpoint=tmp_path)
    assert state.optimizer_state[0].received.shape == (1,)
    assert state.step == 5


def test_trace_has_none_of_the_callers_time(cluster):
    """The second worker is late, and done while the coordinator does something else."""
    begin = len(cluster.trace())
    for _ in range(4):
        cluster.resume(TIMED)
        cluster.compute(jnp.zeros(5))
        time.sleep(0.5)
    medians = np.median(cluster.trace()[begin:], 0)
    assert (medians >= DELAYS[TIMED]).all()
    assert (medians < 0.125).all()


def test_tasks_leave_no_record(cluster):
    """In Ray's global control store, which would grow with every step."""
    for _ in range(20):
        cluster.compute(jnp.zeros(5))
    # Twice what Ray waits before it sends what it has.
    time.sleep(2)
    assert not [event for event in ray.timeline() if "compute" in event["name"]]


def test_clusters_closed_out_of_order_and_in_a_round(cluster):
    """The second goes on with the Ray of the first; then Ray ends."""
    with make_cluster(code=codes.uncoded(1), parts=PARTS[:1]) as second:
        second.compute(jnp.zeros(5))
        cluster.close()
        second.compute(jnp.zeros(5))
        processes = ray_processes.descendants()
        with pytest.raises(ValueError, match="address must be that of the other open"):
            with make_cluster(address="elsewhere:1") as other:
                other.compute(jnp.zeros(5))

        second.resume(SLOW)

        def close_soon():
            while second.workers[0].state != "computing":
                pass
            second.close()

        error, _ = in_threads(lambda: second.compute(jnp.zeros(5)), close_soon)
        assert "closed during a round" in str(error)
        with pytest.raises(RuntimeError, match="`with`"):
            second.compute(jnp.zeros(5))
    assert not ray.is_initialized()
    assert not ray_processes.alive_after(processes, 20)


def test_ray_that_was_shut_down_is_not_started_anew():
    """As its calls would do, with its defaults, open to the network."""
    with pytest.raises(RuntimeError, match="Ray was shut down while"):
        _session.check_connected()
    actors = _actors.Actors(lambda worker: None, 1, lambda: None)
    actors._actors = ["of a Ray that is gone"]
    actors.end(0)
    assert not ray.is_initialized()
