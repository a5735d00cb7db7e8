"""Arguments that `RayCluster` rejects, and its pieces, without any worker."""

import contextlib
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster, Timeouts, Verification
from jaxwgc.distributed.ray import _coordinator, _part_worker, _worker
from jaxwgc.distributed.ray._messages import ArrayPool, Layout, pack, sent, unpack
from jaxwgc.distributed.ray._part_worker import PartWorker
from jaxwgc.distributed.ray._task import Assignment, Task
from jaxwgc.distributed.ray._worker import Worker
from jaxwgc.gradients._contributions import term_of

pytest.importorskip("ray")

CODE = codes.reed_solomon(4, num_parts=4, copies=3)
SEVERAL = codes.multi_message(codes.cyclic_mds(4, num_stragglers=2))
DROP = {"verification": Verification("drop")}
ARBITRATE = {"verification": Verification("arbitrate")}
AUDIT = {"verification": Verification(audit=0.5)}
PARTS = np.ones((4, 12, 5), np.float32)
PARAMS = {"w": jnp.arange(5.0)}
KEY = jax.random.key(5)
LIKE = jax.eval_shape(lambda: PARAMS)


def loss(params, part):
    return jnp.sum((part @ params["w"]) ** 2)


TERM = term_of(loss)


def simple_cluster(**others):
    arguments = {
        "loss": loss,
        "code": CODE,
        "parts": PARTS,
        "wait": stragglers.fastest(2),
    }
    return RayCluster(**arguments | others)


def test_loss_is_tried_before_ray_starts(monkeypatch):
    monkeypatch.setattr(_coordinator, "session", None)
    with simple_cluster(loss=lambda params, part: part @ params["w"]) as cluster:
        with pytest.raises(TypeError, match=r"a scalar; got an array of \(12,\)"):
            cluster.compute(PARAMS)


def test_interrupt_that_is_lost_in_the_start_of_ray_ends_it(monkeypatch, interruptible):
    """Python drops it if it comes in a callback of a fork; no worker is started."""

    @contextlib.contextmanager
    def session(address):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(_coordinator, "session", session)
    monkeypatch.setattr(_coordinator, "check_resources", None)
    with simple_cluster() as cluster, pytest.raises(KeyboardInterrupt):
        cluster.compute(PARAMS)


def test_part_that_cannot_be_loaded_is_named():
    def load(part):
        raise FileNotFoundError(f"no {part}.npz")

    task = Task(TERM, load=load, params=LIKE, key=sent(KEY))
    worker = Worker(Assignment(0, np.array([3]), np.ones((1, 1))), task)
    with pytest.raises(RuntimeError, match="part 3 failed: FileNotFoundError: no 3.np"):
        worker.start()


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"loss": 3}, TypeError, "loss must be a function; got 3"),
        ({"loss": None}, ValueError, "loss or contribution= must be given; got ne"),
        (
            {"contribution": len},
            ValueError,
            "loss or contribution= must be given; got both",
        ),
        (
            {"loss": None, "contribution": 3},
            TypeError,
            "contribution must be a function; got 3",
        ),
        (
            {"loss": None, "contribution": lambda params, part, key: params},
            ValueError,
            "batch=, and a contribution with an argument key, need key=",
        ),
        ({"key": KEY}, ValueError, "key= is used only by batch="),
        ({"has_aux": None}, TypeError, "has_aux must be True or False"),
        ({"code": 3}, TypeError, "code must be a GradientCode"),
        ({"code": codes.uncoded(3)}, ValueError, "parts must have a leading axis"),
        ({"code": SEVERAL, "wait": None}, ValueError, "be real with one segment for"),
        ({"parts": None}, ValueError, "parts or batches must be given; got neither"),
        ({"parts": {}}, ValueError, "parts must have at least one array"),
        ({"parts": np.full(4, 2**31)}, ValueError, "parts must fit int32, because JAX"),
        ({"batches": len}, ValueError, "batches= returns all data"),
        ({"parts": None, "batches": 3}, TypeError, "batches must be a function; got 3"),
        ({"batch": len}, ValueError, "batch=, and a contribution with"),
        ({"batch": 3}, TypeError, "batch must be a function; got 3"),
        ({"wait": stragglers.fastest(5)}, ValueError, "num_required"),
        ({"wait": 3}, TypeError, "a WaitingRule, such as fastest.6.; got 3"),
        ({"undecodable": "hope"}, ValueError, "undecodable must be one of"),
        ({"decoding": 3}, TypeError, "decoding must be a DecodingOptions; got 3"),
        ({"timeouts": 60.0}, TypeError, "timeouts must be a Timeouts"),
        ({"verification": "drop"}, TypeError, "verification must be a Verification"),
        ({"faults": len}, TypeError, "faults must be a Faults"),
        ({"code": codes.uncoded(4), **DROP}, ValueError, "got none for messages"),
        ({"code": codes.replicated(4), **DROP}, ValueError, "on_wrong must be None"),
        (ARBITRATE, ValueError, "on_wrong='arbitrate' needs a code"),
        (AUDIT, ValueError, "audit must be None for"),
    ],
)
def test_bad_arguments(others, error, message):
    with pytest.raises(error, match=message):
        simple_cluster(**others)


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        (DecodingOptions, {"tolerance": -1.0}, ValueError),
        (Verification, {"on_wrong": "hope"}, ValueError),
        (Verification, {"audit": 1.0}, ValueError),
        (Verification, {"audit": -0.1}, ValueError),
        (Verification, {"noise": -1.0}, ValueError),
        (Verification, {"digests": None}, TypeError),
        (Timeouts, {"response": 1.9}, ValueError),
        (Timeouts, {"start": None}, TypeError),
        (Timeouts, {"replacement": -1.0}, ValueError),
        (Faults, {"delay": 3}, TypeError),
        (Faults, {"corrupt": 3}, TypeError),
    ],
)
def test_bad_options(kind, options, error):
    [name] = options
    with pytest.raises(error, match=f"{name} must be"):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": -1}, ValueError, "num_steps must be .*at least 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be .*at least 1"),
        ({"memory": True}, ValueError, "memory must be False .* Verification"),
        ({"callbacks": print}, TypeError, "callbacks must be a Sequence"),
        ({"callbacks": [3]}, TypeError, "have log.*, write_sc.* or add_sc.*; got 3"),
    ],
)
def test_bad_training(options, error, message):
    with simple_cluster(**DROP) as cluster:
        with pytest.raises(error, match=message):
            cluster.train(optax.sgd(0.1), PARAMS, **{"num_steps": 1} | options)
        assert not cluster.workers


def test_memory_is_refused_where_undecodable_rounds_raise():
    with simple_cluster(undecodable="raise") as cluster:
        with pytest.raises(
            ValueError, match="memory must be False for a cluster with undecodable"
        ):
            cluster.train(optax.sgd(0.1), PARAMS, 1, memory=True)
        assert not cluster.workers


def test_memory_is_not_lent_again_while_a_part_is_in_use():
    memory = ArrayPool((3, 5), np.dtype(np.complex64))
    first = memory.borrow()
    assert (first.shape, first.dtype) == ((3, 5), np.complex64)
    assert first.ctypes.data % 64 == 0
    place = first.ctypes.data
    row = first[1]
    del first
    assert memory.borrow().ctypes.data != place
    del row
    assert memory.borrow().ctypes.data == place


@pytest.mark.parametrize("to_jax", [jnp.asarray, jax.device_put])
def test_memory_that_jax_uses_is_not_overwritten(to_jax):
    """JAX may use the memory of an array without a copy."""
    memory = ArrayPool((300, 5), np.dtype(np.float32))
    first = memory.borrow()
    first[:] = 1
    in_jax = to_jax(first)
    del first
    memory.borrow()[:] = 2
    np.testing.assert_array_equal(in_jax, 1)


def test_memory_is_lent_again_after_jax_has_read_it():
    """Without a second block, which large messages may have no room for."""
    memory = ArrayPool((3, 5), np.dtype(np.complex64))
    first = memory.borrow()
    place = first.ctypes.data
    in_jax = jnp.asarray(first)
    del first, in_jax
    assert memory.borrow().ctypes.data == place


@pytest.mark.parametrize("code", [CODE, codes.cyclic_mds(4, num_stragglers=1)])
@pytest.mark.parametrize(("dtype", "error"), [(None, 0), ("bfloat16", 2**-8)])
def test_packed_messages_are_unpacked_up_to_rounding(code, dtype, error):
    """No process is needed."""
    message = jaxwgc.encode(code, jax.random.normal(jax.random.key(1), (4, 50)))
    wire = np.asarray(pack(message, dtype))
    read = np.empty(message.shape, message.dtype)
    unpack(wire, read)
    assert wire.dtype.itemsize == (4 if dtype is None else 2)
    np.testing.assert_allclose(read, message, rtol=error)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("code", [CODE, codes.uncoded(4)])
def test_narrow_messages_are_read_in_single_precision(code, dtype, x64):
    """Those of parameters in double precision, too."""
    like = jax.ShapeDtypeStruct((5,), np.float64 if x64 else np.float32)
    layout = Layout.of(code, like, dtype)
    assert layout.dtype == (np.complex64 if code.is_complex else np.float32)
    assert layout.shape[0] == code.num_workers


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[ray\]'"):
        simple_cluster()


def test_parts_finished_between_rounds_are_reported(monkeypatch):
    """The next round reports them and their seconds; the clock is simulated."""
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds

    simulated = types.SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr(_part_worker, "time", simulated)
    task = Task(TERM, delay=lambda *_: 0.125, params=LIKE, key=sent(KEY))
    worker = PartWorker(Assignment(0, np.arange(2), np.eye(2)), task)
    worker.prepare([*PARTS[:2]])
    worker.start_thread()
    order = (jax.tree.leaves(PARAMS), sent(KEY), 0)
    taken = np.zeros(2, np.int8)
    worker.compute(order, 0, taken, 0, np.zeros(2))
    with worker._changed:
        reports = worker._step.reports
        assert worker._changed.wait_for(lambda: len(reports) == 2, 300)
    sleep(5)
    report = worker.compute(order, 1, taken, 1, np.zeros(2)).reports[0]
    assert (report.number, report.position, report.seconds) == (0, 1, 0.125)


@pytest.mark.parametrize("kind", [Worker, PartWorker])
def test_first_query_compiles_nothing(kind):
    """A worker that compiled in it would seem to be silent."""
    task = Task(TERM, params=LIKE, key=sent(KEY), has_queries=True)
    rows = np.eye(2)[: 1 + (kind is PartWorker)]
    worker = kind(Assignment(0, np.arange(2), rows), task)
    worker.prepare([*PARTS[:2]])
    number = _worker.project._cache_size()
    order = jax.tree.leaves(PARAMS), sent(KEY), 0
    others = [-1] if kind is PartWorker else []
    key = sent(jax.random.key(3))
    assert worker.project(order, np.array([1]), key, *others).shape == (64,)
    assert _worker.project._cache_size() == number
