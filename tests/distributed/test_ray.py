"""Rounds of two workers that are processes, and their callers.

One Ray serves all tests of this file and of others, and one cluster those of this file.
"""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc.distributed import RayCluster, Timeouts
from jaxwgc.distributed.ray._errors import NoResponse
from jaxwgc.distributed.ray._events import Lost, Ready
from jaxwgc.distributed.ray._messages import sent
from tests.distributed import ray_processes, ray_tasks
from tests.distributed.ray_tasks import DELAYS, HELD, NOT_FINITE, TIMED

pytestmark = pytest.mark.usefixtures("one_ray")

# Complex messages; that of worker 1 is enough, and that of worker 0 is not.
CODE = jaxwgc.GradientCode.from_matrix([[1, 0], [1j, 1j]])
X = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
PARTS = {"key": jax.random.split(jax.random.key(5), 2), "x": X}
PARAMS = jnp.zeros(5)
KEY = jax.random.key(1)
make_cluster = functools.partial(RayCluster, ray_tasks.distances, CODE, PARTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files by which tests direct the workers."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def cluster(one_ray, folder):
    options = {
        "has_aux": True,
        "batch": ray_tasks.draw_rows,
        "key": KEY,
        "undecodable": "raise",
        # No worker is lost because the machine is busy.
        "timeouts": Timeouts(response=60.0, replacement=300.0),
        "faults": ray_tasks.faults(folder),
    }
    with make_cluster(**options) as cluster:
        cluster.compute(PARAMS)
        yield cluster


def in_threads(*functions):
    """Returns what each gives or raises, all at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        futures = [*map(pool.submit, functions)]
    return [future.exception() or future.result() for future in futures]


def test_messages_losses_and_aux_are_those_of_the_batches(cluster):
    """Parts are keys and rows; keys of batches are folded in as documented."""
    step = cluster.step
    round = cluster.compute(PARAMS)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    drawn = jax.vmap(ray_tasks.draw_rows)(
        fold(jax.random.fold_in(KEY, step), np.arange(2)), PARTS
    )
    value_and_grad = jaxwgc.partial_value_and_grad(ray_tasks.distances, has_aux=True)
    told, partials = value_and_grad(PARAMS, drawn)
    expected = jaxwgc.encode(CODE, partials)
    received = round.received
    assert received[1]
    np.testing.assert_allclose(round.messages[received], expected[received], rtol=1e-5)
    is_close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(is_close, (round.losses, round.aux), told)


def test_two_threads_get_gradients_of_their_own_params(cluster):
    """Gradients of the quadratic differ by as much as params do, times the rows."""

    def gradients_at(value):
        rounds = (cluster.compute(jnp.full(5, value)) for _ in range(50))
        return np.array([round.messages[1].imag for round in rounds])

    low, high = in_threads(lambda: gradients_at(0.0), lambda: gradients_at(100.0))
    # Eight rows are drawn, none of which has entries of a hundredth of that.
    np.testing.assert_allclose(low / 8, 0.0, atol=5)
    np.testing.assert_allclose(high / 8, 100.0, atol=5)


def test_callbacks_may_compute_and_train(cluster):
    """Steps, their batches and their key are those of training alone."""
    optimizer = optax.sgd(0.02, momentum=0.9)
    start = jnp.ones(5)
    steps = []
    alone = cluster.train(optimizer, start, 6, callbacks=[steps.append])
    # Descent on the rows that were drawn, four of each part.
    params = np.ones(5)
    velocity = 0.0
    for progress in steps:
        gradient = 4 * (2 * params - progress.round.aux["mean"].sum(0))
        velocity = 0.9 * velocity + gradient
        params -= 0.02 * velocity
    np.testing.assert_allclose(alone.params, params, rtol=1e-4)

    def callback(progress):
        cluster.compute(10 * progress.state.params)
        if progress.state.step == 3:
            cluster.train(optimizer, 2 * start, 2)

    among = cluster.train(optimizer, start, 6, callbacks=[callback])
    np.testing.assert_allclose(among.params, alone.params, rtol=1e-4)
    assert among.step == 6


def test_params_must_be_finite_and_rounds_need_a_response(
    cluster, folder, monkeypatch, tmp_path
):
    with pytest.raises(ValueError, match="must be finite; got NaN or infinity in par"):
        cluster.compute(jnp.full(5, jnp.nan))
    with pytest.raises(ValueError, match="params must be finite"):
        cluster.train(optax.sgd(1.0), jnp.full(5, jnp.nan), 2)
    fleet = cluster._fleet
    rules = fleet.rules._replace(ends=lambda times: 0.0)
    monkeypatch.setattr(fleet, "rules", rules)
    cluster.resume(HELD)
    with pytest.raises(RuntimeError, match="step .*since no worker responded; missing"):
        cluster.compute(PARAMS)
    monkeypatch.undo()
    (folder / "go").touch()
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
    with pytest.raises(
        ValueError, match=r"got params\['w'\] = nothing, and now float32"
    ):
        cluster.compute({"w": PARAMS})


def test_only_loopback_is_listened_on(cluster):
    addresses = ray_processes.listening_addresses(ray_processes.descendants())
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_trace_has_the_seconds_of_the_workers(cluster):
    """The first worker is late; none took less than it slept."""
    begin = len(cluster.trace())

    def seconds():
        # Without what stands for rounds in which a worker was still busy.
        return np.reshape(cluster._fleet.rows[begin:], (-1, len(DELAYS)))

    def compute():
        cluster.resume(TIMED)
        cluster.compute(PARAMS)

    ray_processes.repeat_until(
        lambda: np.isfinite(seconds()).any(0).all(),
        compute,
    )
    is_known = np.isfinite(seconds())
    assert (seconds() >= DELAYS)[is_known].all()


def test_tasks_leave_no_record(cluster):
    """Records in Ray's global control store would grow with every step.

    One task leaves a record, which shows when records have arrived.
    """
    import ray

    for _ in range(20):
        cluster.compute(PARAMS)
    actors = cluster._coordinator.driver.actors
    compute = actors._actors[1].compute.options(enable_task_events=True)
    ray.get(compute.remote(actors.order))

    def recorded():
        return [event for event in ray.timeline() if "compute" in event["name"]]

    ray_processes.repeat_until(recorded)
    assert len(recorded()) == 1


def test_another_address_than_that_of_open_clusters():
    with make_cluster(has_aux=True, address="elsewhere:1") as other:
        with pytest.raises(ValueError, match="address must be that of the other open"):
            other.compute(PARAMS)


def test_parts_of_two_workers_must_be_alike(cluster):
    actors = cluster._coordinator.driver.actors
    assert (
        actors._first_ready.signature == "['key'].words uint32[2], ['x'] float32[8, 5]"
    )
    event = actors._started(Ready(1, None, "", "", "float32[3, 5]"))
    assert isinstance(event, Lost) and not event.has_died
    rule, _, shapes = event.trouble.partition("; ")
    assert rule == "all parts must have equal structure, shapes and dtypes"
    assert "has float32[3, 5], and" in shapes and "['key'].words uint32[2]" in shapes


def test_undecodable_rounds_name_the_missing(cluster, monkeypatch):
    """One warns, and one raises. No round waits for messages that are not finite."""
    pid = cluster.workers[1].pid
    why = "only workers .0. responded; missing: worker 1 .its message is not finite"
    monkeypatch.setattr(cluster._coordinator, "_raises", False)
    cluster.resume(NOT_FINITE)
    with pytest.warns(UserWarning, match=why) as seen:
        round = cluster.compute(PARAMS)
    assert seen[0].filename == __file__
    assert np.isnan(round.losses).tolist() == [False, True]
    assert round.aux["2"].tolist() == [2, 0]
    monkeypatch.undo()
    cluster.resume(NOT_FINITE)
    with pytest.raises(RuntimeError, match=f"cannot be decoded, since {why}"):
        cluster.compute(PARAMS)
    cluster.resume(0)
    assert cluster.compute(PARAMS).received[1]
    assert cluster.workers[1].pid == pid


def test_worker_lost_in_a_query_is_an_event_of_the_next_round(
    cluster, folder, monkeypatch
):
    cluster.compute(PARAMS)
    actors = cluster._coordinator.driver.actors
    why = "ArithmeticError: as told"

    def query():
        return actors.query(np.array([1]), 60.0, np.array([0]), sent(jax.random.key(3)))

    assert query().shape == (1, 64)
    (folder / "raise").touch()
    with pytest.raises(NoResponse):
        query()
    assert actors.pending[-1][:2] == (1, why)
    monkeypatch.setattr(cluster._fleet, "timeouts", Timeouts(replacement=0.1))
    with pytest.raises(RuntimeError, match=f"missing: worker 1 .{why}"):
        cluster.compute(PARAMS)
    (folder / "raise").unlink()


@pytest.mark.parametrize("name", ray_tasks.RAISED)
def test_every_exception_of_a_worker_is_named(cluster, folder, name):
    """Some cannot be pickled, or would end the process."""
    cluster.compute(PARAMS)
    actors = cluster._coordinator.driver.actors
    pid = cluster.workers[1].pid
    (folder / "raise").write_text(name)
    with pytest.raises(NoResponse):
        actors.query(np.array([1]), 60.0, np.array([0]), sent(jax.random.key(3)))
    (folder / "raise").unlink()
    lost = actors.pending.pop()
    kind, _ = ray_tasks.RAISED[name]
    assert lost.trouble == f"{kind.__name__}: as told"
    assert "in corrupt" in str(lost.error)
    assert not lost.has_died
    assert cluster.compute(PARAMS).received[1]
    assert cluster.workers[1].pid == pid


# A batch that cannot be read on the workers.
UNREADABLE = functools.partial(ray_tasks.draw, ray_tasks.OfTwoArguments("as", "told"))


def test_error_of_the_start_is_that_of_the_worker(one_ray):
    why = "required positional argument: 'second'"

    def load(part):
        return {"key": jax.random.PRNGKey(0), "x": X[part]}

    with (
        RayCluster(
            ray_tasks.distances,
            CODE,
            load,
            has_aux=True,
            key=jax.random.PRNGKey(0),
            batch=UNREADABLE,
        ) as other,
        pytest.raises(RuntimeError, match=f"failed to start: .*{why}") as info,
    ):
        other.compute(PARAMS)
    assert why in str(info.value.__cause__)


def test_round_that_is_closed_in_another_thread(cluster, folder):
    """The last test of this cluster."""
    (folder / "go").unlink(missing_ok=True)
    cluster.resume(HELD)
    actors = cluster._coordinator.driver.actors

    def close():
        ray_processes.repeat_until(lambda: cluster._fleet.when == f"in step {HELD}")
        cluster.close()

    error, _ = in_threads(lambda: cluster.compute(PARAMS), close)
    assert "closed during a round" in str(error)
    with pytest.raises(RuntimeError, match="`with`"):
        cluster.compute(PARAMS)
    with pytest.raises(NoResponse):
        actors.query(np.array([0]), 60.0)
