"""Rounds of workers that are processes, and whoever asks for them.

One Ray serves all tests of this file and of others.
"""

import concurrent.futures
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster, Timeouts
from tests.distributed import ray_processes

pytestmark = pytest.mark.usefixtures("one_ray")

CODE = codes.fractional_repetition(2, num_stragglers=1)
PARTS = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
TIMED, SLOW, RAISED = 10**6, 10**9, 10**8
# By step, of each worker.
DELAYS = {TIMED: (0.01, 0.05), SLOW: (2.0, 2.0)}


def loss(params, part):
    return 0.5 * jnp.sum((part - params) ** 2), {"mean": part.mean(0), "two": 2}


def batch(key, part):
    return jax.random.choice(key, part, (4,), replace=False)


def delay(worker, step):
    if step == RAISED and worker == 1:
        raise ArithmeticError("as told")
    return DELAYS.get(step, (0.0, 0.0))[worker]


def make_cluster(**others):
    given = {"code": CODE, "parts": PARTS, "key": jax.random.key(1), "batch": batch}
    given |= {"has_aux": True, "faults": Faults(delay=delay)}
    return RayCluster(others.pop("loss", loss), **given | others)


@pytest.fixture(scope="module")
def cluster(one_ray):
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


def test_params_keep_their_shapes(cluster):
    with pytest.raises(ValueError, match=r"float32\[5\], and now float32\[6\]$"):
        cluster.compute(jnp.zeros(6))
    with pytest.raises(ValueError, match=r"got w = nothing, and now float32"):
        cluster.compute({"w": jnp.zeros(5)})


def test_only_loopback_is_listened_on(cluster):
    addresses = ray_processes.listening_addresses(ray_processes.descendants())
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


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
    import ray

    for _ in range(20):
        cluster.compute(jnp.zeros(5))
    # Twice what Ray waits before it sends what it has.
    time.sleep(2)
    assert not [event for event in ray.timeline() if "compute" in event["name"]]


def test_checkpoint_of_another_code_and_end_in_a_round(cluster, tmp_path):
    """Here under another number of workers."""
    optimizer = optax.adam(0.1)
    two = cluster.train(optimizer, jnp.ones(5), 3, checkpoint=tmp_path)
    with make_cluster(code=codes.uncoded(1), parts=PARTS[:1]) as one:
        state = one.train(optimizer, jnp.ones(5), 3, checkpoint=tmp_path)
        np.testing.assert_array_equal(state.params, two.params)
        state = one.train(optimizer, jnp.ones(5), 5, checkpoint=tmp_path)
        assert state.optimizer_state[0].received.shape == (1,)
        assert state.step == 5
        one.resume(SLOW)

        def close_soon():
            while one.workers[0].state != "computing":
                pass
            one.close()

        error, _ = in_threads(lambda: one.compute(jnp.zeros(5)), close_soon)
        assert "closed during a round" in str(error)
        with pytest.raises(RuntimeError, match="`with`"):
            one.compute(jnp.zeros(5))


def test_another_address_than_that_of_open_clusters():
    with make_cluster(address="elsewhere:1") as other:
        with pytest.raises(ValueError, match="address must be that of the other open"):
            other.compute(jnp.zeros(5))


def test_keys_are_parts_and_undecodable_rounds_name_the_missing(monkeypatch):
    """The second worker overflows where params are large, and raises in one step.

    Nobody waits for what is not finite.
    """
    x = np.float32([[0, 0], [3, 4]])
    parts = {"key": jax.random.split(jax.random.key(5), 2), "x": x}

    def noisy(params, part):
        noise = jax.random.normal(part["key"])
        return noise * (params["w"] @ part["x"]) ** 2 + params["w"].sum()

    params, code = {"w": jnp.ones(2)}, codes.uncoded(2)
    options = {"has_aux": False, "decoding": DecodingOptions(undecodable="raise")}
    options |= {"timeouts": Timeouts(replacement=1e6), "key": None, "batch": None}
    given = {"loss": noisy, "code": code, "parts": parts}
    with make_cluster(**given, **options) as cluster:
        round = cluster.compute(params)
        values, partials = jaxwgc.partial_value_and_grad(noisy)(params, parts)
        np.testing.assert_allclose(round.losses, values, rtol=1e-5)
        expected = jaxwgc.encode(code, partials)
        np.testing.assert_allclose(round.messages, expected, rtol=1e-5)
        pid, missing = cluster.workers[1].pid, "only workers .0. responded; missing: w"
        with pytest.raises(RuntimeError, match=f"{missing}orker 1 .*not finite"):
            cluster.compute({"w": jnp.full(2, 1e38)})
        again = cluster.compute(params)
        np.testing.assert_array_equal(again.messages, round.messages)
        assert cluster.workers[1].pid == pid
        monkeypatch.setattr(cluster._fleet, "timeouts", Timeouts(replacement=0.1))
        cluster.resume(RAISED)
        why = rf"{missing}orker 1 \(ArithmeticError: as told\)"
        with pytest.raises(RuntimeError, match=f"cannot be decoded, since {why}"):
            cluster.compute(params)


def test_parts_of_two_workers_must_be_alike():
    def load(part):
        return np.zeros((3 + part, 5), np.float32)

    whole = {"key": None, "batch": None}
    with make_cluster(parts=load, code=codes.uncoded(2), **whole) as cluster:
        why = r"^worker \d .*: parts must be alike; got float32\[[34], 5\]"
        with pytest.raises(ValueError, match=why) as raised:
            cluster.compute(jnp.zeros(5))
        assert raised.type is ValueError
