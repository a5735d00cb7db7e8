"""Workers that are processes: right gradients whatever happens, and nothing left.

One Ray serves all tests of this file but those that stop a coordinator.
"""

import gc
import itertools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest

import jaxwgc
from experiments import chaos
from experiments import cluster as cluster_experiment
from experiments.benchmark import coordinator as coordinator_benchmark
from experiments.results import ExperimentError
from jaxwgc import codes, stragglers
from jaxwgc.distributed import RayCluster, _ray_cluster, _ray_hiring, _ray_runtime
from tests.distributed import ray_coordinator, ray_processes

pytest.importorskip("ray")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("one_ray")]

NUM_WORKERS = 4
CODE = codes.reed_solomon(NUM_WORKERS, num_parts=NUM_WORKERS, replication=3)
PARTS = np.random.default_rng(0).normal(size=(NUM_WORKERS, 12, 5)).astype(np.float32)
KEY = jax.random.key(5)
PARAMS = {"w": jnp.arange(5.0), "b": jnp.ones(())}


def loss(params, part):
    return jnp.sum((part @ params["w"] + params["b"]) ** 2)


def draw(key, part):
    return jax.random.choice(key, part, (4,), replace=False)


@jax.jit
def true_gradient(params, step):
    """From the rows that all holders of a part are to draw."""

    def partial(index, part):
        key = jax.random.fold_in(jax.random.fold_in(KEY, step), index)
        return jax.grad(loss)(params, draw(key, part))

    every = jax.vmap(partial)(jnp.arange(NUM_WORKERS), PARTS)
    return jax.tree.map(lambda leaf: leaf.sum(0), every)


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """A folder; a file `worker` in it says what that one does instead of its work."""
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def cluster(orders, one_ray):
    """Any two of four workers give the gradient; parts are loaded, batches drawn."""

    class Saboteur(_ray_hiring.Worker):
        """Does as it is told, once a file."""

        def compute(self, order):
            answer = super().compute(order)
            file = orders / str(self.worker)
            if not file.exists():
                return answer
            order = file.read_text()
            file.unlink()
            match order:
                case "raise":
                    raise ArithmeticError("as told")
                case "nan":
                    return answer._replace(message=np.nan * answer.message)
                case "shape":
                    return answer._replace(message=answer.message[:, :-1])
                case "late":
                    time.sleep(1.0)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "freeze":
                    os.kill(os.getpid(), signal.SIGSTOP)
            return answer

    parts = PARTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ray_hiring, "Worker", Saboteur)
        with RayCluster(
            loss,
            CODE,
            load=lambda part: parts[part],
            wait=stragglers.fastest(2),
            key=KEY,
            batch=draw,
            undecodable="raise",
            restart_after=2.0,
        ) as cluster:
            cluster.compute(PARAMS)
            yield cluster


def give_order(orders, worker, what):
    hidden = orders / f".{worker}"
    hidden.write_text(what)
    hidden.rename(orders / str(worker))


def check_round(cluster, params=PARAMS):
    """One round, whose gradient is right."""
    step = cluster.step
    found = cluster.compute(params)
    assert found.received.sum() == 2
    assert np.isfinite(found.times[found.received]).all()
    decoded = jaxwgc.decode(CODE, found.messages, found.received, params)
    for own, true in zip(
        jax.tree.leaves(decoded), jax.tree.leaves(true_gradient(params, step))
    ):
        np.testing.assert_allclose(own, true, rtol=2e-4, atol=1e-3)
    return found


def test_gradient_of_minibatches_is_the_plain_one(cluster):
    for scale in (0.0, 1.0, -2.0):
        params = {name: scale * leaf for name, leaf in PARAMS.items()}
        found = check_round(cluster, params)
        assert np.isfinite(found.losses).sum() >= 3


def test_messages_are_those_of_encode(cluster):
    step = cluster.step
    found = cluster.compute(PARAMS)

    @jax.jit
    def encoded(params, step):
        key = jax.random.fold_in(KEY, step)
        keys = [jax.random.fold_in(key, index) for index in range(NUM_WORKERS)]
        batches = jax.vmap(draw)(jnp.stack(keys), PARTS)
        values, partials = jaxwgc.partial_value_and_grad(loss)(params, batches)
        return values, jaxwgc.encode(CODE, partials)

    values, expected = encoded(PARAMS, step)
    received = found.received
    np.testing.assert_allclose(
        found.messages[received], expected[received], rtol=1e-4, atol=1e-3
    )
    known = np.isfinite(found.losses)
    np.testing.assert_allclose(found.losses[known], values[known], rtol=1e-5)
    assert not found.messages[~received].any()


def test_one_that_sends_nan_is_a_straggler_and_stays(cluster, orders):
    place = cluster.places[1]
    before = place.pid
    end = time.monotonic() + 60
    while not place.trouble:
        # Again, since within one round it may send one that is not, and one that is.
        if not (orders / "1").exists():
            give_order(orders, 1, "nan")
        check_round(cluster)
        assert time.monotonic() < end
    assert place.trouble == "its message is not finite"
    while place.trouble or (orders / "1").exists():
        check_round(cluster)
        assert time.monotonic() < end
    assert place.pid == before


@pytest.mark.parametrize("what", ["raise", "shape", "kill", "freeze"])
def test_bad_worker_is_a_straggler_and_is_replaced(cluster, orders, what, caplog):
    caplog.set_level("INFO", "jaxwgc.distributed")
    worker = 1
    place = cluster.places[worker]
    before = place.pid
    give_order(orders, worker, what)
    # No gradient is lost or wrong, until another process answers in its place.
    troubles, end = set(), time.monotonic() + 60
    while place.pid in (before, None) or place.trouble:
        check_round(cluster)
        troubles.add(place.trouble)
        assert time.monotonic() < end
        time.sleep(0.05)
    [trouble] = troubles - {""}
    expected = {
        "raise": "ArithmeticError: as told",
        "shape": "shape",
        "kill": "died",
        "freeze": "silent",
    }
    assert expected[what] in trouble
    lost, back = (own for own in caplog.messages if own.startswith("worker 1 is "))
    assert lost.startswith("worker 1 is lost in round ")
    assert back.startswith("worker 1 is back in round ")
    assert trouble in lost
    assert trouble in back
    # A frozen process does not stay.
    assert ray_processes.wait_until(
        lambda: not pathlib.Path(f"/proc/{before}").exists(), 20
    )


def test_late_answer_is_dropped_and_its_time_kept(cluster, orders):
    worker = 2
    give_order(orders, worker, "late")
    first, end = cluster.step, time.monotonic() + 20

    def late_answers():
        times = cluster.trace()[first:, worker]
        return np.flatnonzero(np.isfinite(times) & (times > 1))

    while not len(late_answers()):
        assert check_round(cluster).elapsed < 1
        assert time.monotonic() < end
        time.sleep(0.05)
    late, times = late_answers(), cluster.trace()[first:, worker]
    assert len(late) == 1
    # It was busy in the next round, and has had none of it.
    assert times[late[0] + 1] == np.inf
    assert len(cluster.trace()) == cluster.step


def test_undecodable_round_names_the_missing():
    """In a warning, or an error where that is asked for."""

    def delay(worker, step):
        if worker == 1:
            raise ArithmeticError("as told")
        return 0.0

    with RayCluster(
        loss, codes.uncoded(2), PARTS[:2], undecodable_after=0.1, delay=delay
    ) as cluster:
        message = (
            r"workers \[0\] answered; missing: worker 1 \(ArithmeticError: as told\)"
        )
        with pytest.warns(UserWarning, match=message):
            cluster.compute(PARAMS)
        cluster.undecodable = "raise"
        with pytest.raises(RuntimeError, match="cannot be decoded"):
            cluster.compute(PARAMS)


def test_keys_are_parts_and_nobody_waits_for_what_is_not_finite():
    """The second worker overflows where params are large, the first does not."""
    parts = {"key": jax.random.split(KEY, 2), "x": np.float32([[0, 0], [3, 4]])}

    def noisy(params, part):
        noise = jax.random.normal(part["key"])
        return noise * (params["w"] @ part["x"]) ** 2 + params["w"].sum()

    params, code = {"w": jnp.ones(2)}, codes.uncoded(2)
    with RayCluster(noisy, code, parts, undecodable_after=1e6) as cluster:
        found = cluster.compute(params)
        values, partials = jaxwgc.partial_value_and_grad(noisy)(params, parts)
        np.testing.assert_allclose(found.losses, values, rtol=1e-5)
        expected = jaxwgc.encode(code, partials)
        np.testing.assert_allclose(found.messages, expected, rtol=1e-5)
        pid = cluster.places[1].pid
        with pytest.warns(UserWarning, match="missing: worker 1 .*not finite"):
            bad = cluster.compute({"w": jnp.full(2, 1e38)})
        assert bad.received.tolist() == [True, False]
        again = cluster.compute(params)
        np.testing.assert_array_equal(again.messages, found.messages)
        assert cluster.places[1].pid == pid


def test_masks_are_judged_as_by_the_code(cluster):
    masks = np.array(list(itertools.product([False, True], repeat=NUM_WORKERS)))
    expected = CODE.decodes(masks)
    for _ in range(2):
        assert [cluster.decodes(mask) for mask in masks] == expected.tolist()


def test_nothing_is_printed_of_workers_that_die(cluster):
    names = [thread.name for thread in threading.enumerate()]
    assert "ray_listen_error_messages" not in names


def test_params_keep_their_shapes(cluster):
    changed = r"params\['w'\] = float32\[6\], and float32\[5\] at first$"
    with pytest.raises(ValueError, match=changed):
        cluster.compute({"w": jnp.zeros(6), "b": jnp.ones(())})
    with pytest.raises(ValueError, match=r"params\['b'\] = nothing, and float32\[\]"):
        cluster.compute({"w": jnp.zeros(5)})
    with pytest.raises(ValueError, match="params = PyTreeDef.*at first"):
        _ray_cluster._check_unchanged((KEY,), [KEY])


def test_only_loopback_is_listened_on(cluster):
    addresses = ray_processes.listening_addresses(ray_processes.descendants())
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_handler_of_sigterm_is_ours(cluster):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_training_is_that_of_one_process(tmp_path):
    """Complex messages, parts that are sent, 50 steps; and then from a checkpoint."""
    code = codes.cyclic_mds(3, num_stragglers=1)
    # The first feature is dead, and any step from zero is seen.
    parts, seen = PARTS[:3] * np.float32([0, 1, 1, 1, 1]), []
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


def test_failing_loader_is_named():
    def load(part):
        raise FileNotFoundError(f"no {part}.npz")

    with RayCluster(
        loss, codes.uncoded(1), load=load, wait=stragglers.fastest(1)
    ) as cluster:
        with pytest.raises(RuntimeError, match=r"worker 0 .*load\(0\) failed.*0\.npz"):
            cluster.compute(PARAMS)


def test_death_at_the_start_is_made_up_for_and_prints_are_seen(tmp_path, capfd):
    """Of worker 1, which is killed while it loads for the first time."""

    def load(part):
        print(f"part {part} is read")
        if part == 1 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones((3, 5), np.float32)

    with RayCluster(loss, codes.uncoded(2), load=load) as cluster:
        assert cluster.compute(PARAMS).received.all()
    # Ray shows lines that differ in numbers alone together, after a while.
    assert ray_processes.wait_until(lambda: "is read" in capfd.readouterr().out, 20)


def test_parts_of_unequal_structure_are_refused():
    with RayCluster(
        loss,
        codes.uncoded(2),
        load=lambda part: np.zeros((3 + part, 5), np.float32),
        wait=stragglers.fastest(2),
    ) as cluster:
        message = r"^worker \d: parts must be alike; got array: float32\[[34], 5\]"
        with pytest.raises(ValueError, match=message) as found:
            cluster.compute(PARAMS)
        assert found.type is ValueError


def simple_cluster(**others):
    given = {"loss": loss, "code": CODE, "parts": PARTS, "wait": stragglers.fastest(2)}
    return RayCluster(**given | others)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda params, part: part @ params["w"], r"a scalar; got an array of \(12,\)"),
        (lambda params, part: (0.0, part), r"a scalar; got PyTreeDef\(\(\*, \*\)\)"),
    ],
)
def test_loss_is_tried_before_ray_starts(monkeypatch, wrong, message):
    monkeypatch.setattr(_ray_cluster, "session", None)
    with simple_cluster(loss=wrong) as cluster:
        with pytest.raises(TypeError, match=f"loss must return {message}"):
            cluster.compute(PARAMS)


def test_too_few_cpus_are_said_with_the_numbers():
    with pytest.raises(ValueError, match=r"claim \{'CPU': 1000\} each; got room for 0"):
        with simple_cluster(actor_options={"num_cpus": 1000}) as cluster:
            cluster.compute(PARAMS)


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"loss": None}, TypeError, "loss must be a function"),
        ({"code": 3}, TypeError, "code must be a GradientCode"),
        ({"code": codes.uncoded(3)}, ValueError, "parts must have a leading axis"),
        ({"parts": None}, ValueError, "parts or load must be given"),
        ({"load": len}, ValueError, "not both"),
        ({"batch": draw}, ValueError, "key and batch go together"),
        ({"wait": stragglers.fastest(5)}, ValueError, "num_required"),
        ({"wait": 3}, TypeError, "wait must be a waiting rule; got 3"),
        ({"wait": stragglers.uniform(1)}, TypeError, "rule.*got a StragglerModel"),
        ({"wait": lambda key, times: times}, TypeError, "wait must be a waiting rule"),
        ({"undecodable": "hope"}, ValueError, "undecodable"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"restart_after": 0}, ValueError, "restart_after must be positive"),
        ({"start_within": None}, TypeError, "start_within"),
        ({"message_dtype": "int8"}, ValueError, "message_dtype"),
        ({"message_dtype": "float3"}, TypeError, "message_dtype"),
    ],
)
def test_bad_arguments(others, error, message):
    with pytest.raises(error, match=message):
        simple_cluster(**others)


def test_block_is_needed():
    with pytest.raises(RuntimeError, match="`with`"):
        simple_cluster().compute(PARAMS)


def test_bad_steps(tmp_path):
    with simple_cluster() as cluster:
        for given in ({"num_steps": -1}, {"num_steps": 1, "checkpoint_every": 0}):
            with pytest.raises(ValueError, match="at least"):
                cluster.train(optax.sgd(0.1), PARAMS, **given)
        assert not cluster.places


def test_checkpoints_that_do_not_fit(tmp_path):
    """No worker is needed to see it."""
    (tmp_path / "file").write_text("")
    with simple_cluster() as cluster:

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


def test_addresses_that_do_not_answer(monkeypatch):
    monkeypatch.setattr(_ray_runtime, "_SECONDS_TO_CONNECT", 2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no Ray cluster answers"):
            _ray_runtime.check_address(address)
        listening.listen()
        with pytest.raises(ConnectionError, match="something listens"):
            _ray_runtime.check_address(address)
    for wrong in ("ray://127.0.0.1:1", "nowhere", "host:port"):
        with pytest.raises(ValueError, match="address must be"):
            _ray_runtime.check_address(wrong)


def test_memory_is_lent_again():
    """When nobody looks at it, be it at a part or in JAX; and it suits JAX."""
    from jaxwgc.distributed._ray_memory import Memory

    memory = Memory((3, 5), np.dtype(np.complex64))
    first = memory.borrow()
    assert (first.shape, first.dtype) == ((3, 5), np.complex64)
    assert first.ctypes.data % 64 == 0
    place, row, in_jax = first.ctypes.data, first[1], jnp.asarray(first)
    del first
    assert memory.borrow().ctypes.data != place
    del row
    assert memory.borrow().ctypes.data != place
    del in_jax
    gc.collect()  # JAX lets go of it then.
    assert memory.borrow().ctypes.data == place


@pytest.mark.parametrize("code", [CODE, codes.cyclic_mds(4, num_stragglers=1)])
@pytest.mark.parametrize(("dtype", "error"), [(None, 0), ("bfloat16", 2**-8)])
def test_messages_travel(code, dtype, error):
    """Without any process: what is packed is what is read, but for rounding."""
    from jaxwgc.distributed._ray_worker import pack, unpack

    message = jaxwgc.encode(code, jax.random.normal(jax.random.key(1), (4, 50)))
    wire = np.asarray(pack(message, dtype))
    read = np.empty(message.shape, message.dtype)
    unpack(wire, read)
    assert wire.dtype.itemsize == (4 if dtype is None else 2)
    np.testing.assert_allclose(read, message, rtol=error)


def test_without_ray_the_extra_is_named():
    program = """
import sys
sys.modules["ray"] = None
import jaxwgc
try:
    jaxwgc.distributed.RayCluster(len, jaxwgc.codes.uncoded(1), [0.0], wait=len)
except ImportError as error:
    assert "pip install '.[ray]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_chaos_in_short():
    """What `python -m experiments chaos` does, with four workers."""
    records = list(
        chaos.measure(
            steps=12,
            kill_every=5,
            freeze_every=8,
            work=0.3,
            seed=0,
            num_workers=4,
            restart_after=1.0,
        )
    )
    assert len(records) == 12
    assert sum(record["signals"] for record in records) == 3
    assert max(record["error"] for record in records) < 1e-5


def test_overhead_is_split(monkeypatch):
    monkeypatch.setattr(coordinator_benchmark, "NUM_WORKERS", 2)
    monkeypatch.setattr(coordinator_benchmark, "NUM_AWAITED", 1)
    own = coordinator_benchmark.measure(1_000, 3, "bfloat16")
    assert set(own) == {"all", *coordinator_benchmark.SHARES}
    assert min(own.values()) > 0


def test_coordinators_side_by_side():
    """In a process of its own, since that of multiprocessing stays with it."""
    program = """
from experiments.benchmark.coordinator import compare
print(*compare(1_000, num_blocks=2, num_steps=3), sep=", ")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert "RayCluster, plain Ray, shared memory" in done.stdout, done.stderr[-3000:]


def test_experiment_in_short(monkeypatch):
    """Two workers, one code, two steps; and what is shown of it."""
    names = list(cluster_experiment.entries())
    monkeypatch.setattr(cluster_experiment, "NUM_WORKERS", 2)
    monkeypatch.setattr(cluster_experiment, "SECONDS_A_PART", 0.01)
    entry = cluster_experiment.Entry(
        codes.fractional_repetition(2, num_stragglers=1), stragglers.fastest(1)
    )
    times = np.array([[0.01, 0.02], [0.03, 0.01]])
    own = cluster_experiment.measure(entry, 1, 4, 0, times)
    assert set(own) == set(cluster_experiment.SCENARIOS)
    for records in own.values():
        [seconds], [errors] = records["seconds"], records["errors"]
        assert (np.diff(seconds) > 0).all()
        assert errors[-1] < 45
    numbers = {"codes": dict.fromkeys(names, own)}
    numbers |= cluster_experiment.summarize(numbers)
    assert len(cluster_experiment.tabulate(numbers).rows) == len(numbers["codes"])
    assert "1.0 times the uncoded step" in cluster_experiment.note(numbers)
    assert len(cluster_experiment.draw(numbers).axes) == len(own)


def test_traces_of_the_experiment(tmp_path):
    file = tmp_path / "trace.npy"
    times = np.ones((8, 9))
    times[1, 2], times[0, 0] = np.inf, np.nan
    np.save(file, times)
    found = cluster_experiment.read_trace(file)
    never = cluster_experiment.NEVER
    assert found.shape == (8, 8)
    assert found[1, 2] == found[0, 0] == never
    assert found[0, 1] == cluster_experiment.SECONDS_A_PART
    for wrong in (np.ones(8), np.ones((8, 7)), np.full((8, 8), np.inf)):
        np.save(file, wrong)
        with pytest.raises(ExperimentError, match="--trace must"):
            cluster_experiment.read_trace(file)
    with pytest.raises(ExperimentError, match="--trace must be a file"):
        cluster_experiment.read_trace(tmp_path / "none.npy")
