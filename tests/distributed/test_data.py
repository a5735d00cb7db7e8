"""Batches of a worker, and their digests, without any process."""

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import codes
from jaxwgc.distributed.ray import _actors
from jaxwgc.distributed.ray._data import HostBatches, load_parts
from jaxwgc.distributed.ray._digests import BatchDigests, digest
from jaxwgc.distributed.ray._errors import BatchError, BatchValueError, WorkerError
from jaxwgc.distributed.ray._events import Launch, Lost, Ready
from jaxwgc.distributed.ray._launcher import actor_class
from jaxwgc.distributed.ray._messages import sent, unpack
from jaxwgc.distributed.ray._part_worker import PartWorker
from jaxwgc.distributed.ray._rounds import StartUp
from jaxwgc.distributed.ray._task import Assignment, Task
from jaxwgc.distributed.ray._verification import PartCopies
from jaxwgc.distributed.ray._worker import Worker
from jaxwgc.gradients._contributions import term_of
from tests.distributed import batch_tasks
from tests.distributed.batch_tasks import batches, loss
from tests.distributed.ray_processes import repeat_until
from tests.distributed.simulated import (
    SimulatedLauncher,
    SimulatedRay,
    World,
    message_fleet,
)

PARAMS = jnp.arange(5.0)
KEY = jax.random.key(0)
# Seconds after which a wait for a thread fails.
LONGEST_WAIT = 300


def stacked(function, parts=(3, 1), step=0):
    return HostBatches(function, list(parts), step, is_stacked=True)


class Recorded:
    """Batches that note which are read, and wait for a test if it says so."""

    def __init__(self):
        self.calls = []
        self.may_read = threading.Event()
        self.may_read.set()
        self.has_read = threading.Condition()

    def __call__(self, step, part):
        assert self.may_read.wait(LONGEST_WAIT)
        with self.has_read:
            self.calls.append((step, part))
            self.has_read.notify_all()
        return np.full((2, 3), 10 * step + part, np.float32)

    def wait_for(self, *calls):
        with self.has_read:
            assert self.has_read.wait_for(
                lambda: {*calls} <= {*self.calls}, LONGEST_WAIT
            )


def test_groups_of_batches_are_stacked_or_single():
    group = stacked(batches).of_step(4, 0)["x"]
    np.testing.assert_array_equal(
        group, np.stack([batches(4, part)["x"] for part in (3, 1)])
    )
    single = HostBatches(batches, [3, 1], 0, is_stacked=False)
    np.testing.assert_array_equal(single.of_step(4, 1)["x"], batches(4, 1)["x"])


def test_expected_batches_are_read_ahead():
    function = Recorded()
    data = stacked(function)
    data.expect([(1, 0)])
    function.wait_for((1, 3), (1, 1))
    num_calls = len(function.calls)
    np.testing.assert_array_equal(data.of_step(1, 0)[:, 0, 0], [13, 11])
    assert len(function.calls) == num_calls


def test_batches_that_are_not_expected_any_more_are_not_read():
    """A worker that was late goes on with a later step."""
    function = Recorded()
    data = stacked(function)
    function.may_read.clear()
    data.expect([(1, 0), (2, 0)])
    data.expect([(1, 0), (7, 0)])
    function.may_read.set()
    np.testing.assert_array_equal(data.of_step(7, 0)[:, 0, 0], [73, 71])
    np.testing.assert_array_equal(data.of_step(5, 0)[:, 0, 0], [53, 51])
    assert {step for step, _ in function.calls} <= {0, 1, 5, 7}


def test_batches_that_are_still_expected_are_read_once():
    function = Recorded()
    data = stacked(function)
    function.may_read.clear()
    data.expect([(1, 0), (2, 0)])
    data.expect([(2, 0), (3, 0)])
    function.may_read.set()
    for step in (2, 3):
        np.testing.assert_array_equal(
            data.of_step(step, 0)[:, 0, 0], [10 * step + 3, 10 * step + 1]
        )
    function.wait_for((3, 1))
    assert function.calls.count((2, 3)) == function.calls.count((3, 3)) == 1


def test_batches_that_are_waited_for_are_read():
    """Though another thread, such as that of an audit, asks for another step."""
    function = Recorded()
    data = stacked(function)
    function.may_read.clear()
    data.expect([(1, 0), (2, 0)])
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(data.of_step, 2, 0)
        repeat_until(lambda: (2, 0) not in data._reads)
        other = pool.submit(data.of_step, 5, 0)
        repeat_until(lambda: not data._reads)
        function.may_read.set()
        np.testing.assert_array_equal(waiting.result()[:, 0, 0], [23, 21])
        np.testing.assert_array_equal(other.result()[:, 0, 0], [53, 51])


def test_arrays_that_are_changed_later_were_copied():
    """A function may fill the same array again and again."""
    block = np.zeros((2, 3), np.float32)

    def function(step, part):
        block[:] = 10 * step + part
        return block

    data = stacked(function)
    first = data.of_step(1, 0)
    data.of_step(2, 0)
    np.testing.assert_array_equal(first[:, 0, 0], [13, 11])


def test_memory_of_released_batches_is_reused():
    """Only batches in use hold memory."""
    data = stacked(lambda step, part: np.zeros(2**16, np.float32))
    batch = data.of_step(1, 0)
    place = batch.ctypes.data
    assert place % 64 == 0
    del batch
    assert data.of_step(2, 0).ctypes.data == place


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.int64, np.float16, jnp.bfloat16, np.complex64]
)
def test_batches_have_any_dtype(dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    data = stacked(lambda step, part: {"a": values, "b": values[0, 1]})
    group = data.of_step(0, 0)
    assert group["a"].dtype == dtype
    np.testing.assert_array_equal(group["a"], np.stack([values, values]))
    np.testing.assert_array_equal(group["b"], values[0, [1, 1]])


def test_integers_that_jax_would_cut_are_rejected_at_the_start():
    wide = {"ids": np.array([7, 2**40 + 3])}
    message = (
        r"batches\(step=0, part=3\) raised ValueError: its batch\['ids'\] must fit "
        "int32, .* unless x64 is enabled; got 1099511627779. .* enable x64"
    )
    with pytest.raises(BatchError, match=message):
        stacked(lambda step, part: wide)
    with jax.enable_x64(True):
        group = stacked(lambda step, part: wide).of_step(0, 0)
    np.testing.assert_array_equal(group["ids"], [wide["ids"]] * 2)
    with pytest.raises(
        RuntimeError, match=r"part 1 failed: .* part 1\['ids'\] must fit"
    ):
        load_parts(lambda index: wide, [1])


def test_batches_may_have_keys():
    key = jax.random.key(3)
    [words] = jax.tree.leaves(stacked(lambda step, part: key).of_step(0, 0))
    np.testing.assert_array_equal(words, [jax.random.key_data(key)] * 2)


def failing(later):
    """Batches that are right in step 0."""
    return lambda step, part: np.ones(3, np.float32) if step == 0 else later()


@pytest.mark.parametrize(
    ("later", "error", "message"),
    [
        (lambda: 1 / 0, BatchError, "raised ZeroDivisionError: division by zero"),
        (lambda: sys.exit(3), BatchError, "raised SystemExit: 3"),
        (lambda: "a.npz", BatchError, "raised TypeError: its batch must be numbers"),
        (lambda: {"a": np.array([7, -(2**40)])}, BatchError, r".'a'.* got -1099511"),
        (lambda: None, BatchValueError, "must return arrays; got None"),
        (lambda: np.ones(4, np.float32), BatchValueError, "got .*float32.4."),
        (lambda: np.ones(3, np.int32), BatchValueError, "got .*now int32.3."),
        (lambda: [np.ones(3, np.float32)], BatchValueError, "got .* nothing"),
    ],
)
def test_bad_batches_are_named(later, error, message):
    """The error names step and part, whether or not the batch was read ahead."""
    match = rf"batches\(step=5, part=3\) .*{message}"
    data = stacked(failing(later))
    with pytest.raises(error, match=match):
        data.of_step(5, 0)
    data.expect([(5, 0)])
    with pytest.raises(error, match=match):
        data.of_step(5, 0)


def test_nodes_of_another_type_are_named():
    data = stacked(lambda step, part: [np.ones(3)] if step == 0 else (np.ones(3),))
    with pytest.raises(BatchValueError, match=r"step=1, .* got PyTreeDef\(\[\*\]\)"):
        data.of_step(1, 0)


def test_error_of_a_step_that_is_never_computed_has_no_effect():
    """The last step is followed by none."""
    data = stacked(failing(lambda: 1 / 0))
    data.expect([(1, 0)])
    assert data.of_step(0, 0).shape == (2, 3)


LEAVES = {
    "float32": np.arange(100, dtype=np.float32),
    "bool": np.arange(10) % 3 == 0,
    "int8": np.arange(-50, 49, dtype=np.int8),
    "uint16": np.arange(99, dtype=np.uint16),
    "bfloat16": np.arange(33).astype(jnp.bfloat16),
    "complex64": (np.arange(9) + 1j * np.arange(9)).astype(np.complex64),
    "float8": np.arange(9).astype(jnp.float8_e4m3fn),
}


@pytest.mark.parametrize("name", LEAVES)
def test_digest_depends_on_every_bit(name):
    leaf = LEAVES[name]
    if name == "bool":
        others = [np.where(np.arange(10) == place, ~leaf, leaf) for place in range(10)]
    else:
        others = []
        for place in range(leaf.nbytes):
            for bit in (0, 7):
                other = leaf.copy()
                other.view(np.uint8)[place] ^= np.uint8(1 << bit)
                others.append(other)
    digests = [digest(array) for array in (leaf, *others)]
    assert len({*digests}) == len(digests)
    # One half of the digest is as good as 32 bits.
    for half in (slice(4), slice(4, 8)):
        assert len({each[half] for each in digests}) == len(digests)


def test_digest_depends_on_order_shape_dtype_and_name():
    leaf = LEAVES["float32"]
    others = [
        {"x": leaf},
        {"y": leaf},
        {"x": leaf[::-1]},
        {"x": leaf.reshape(10, 10)},
        {"x": leaf.view(np.int32)},
        {"x": leaf, "y": leaf},
        {"x": leaf, "y": leaf[::-1]},
        {"x": leaf[::-1], "y": leaf},
        {"x": np.zeros(0, np.float32)},
        {"x": np.zeros(64, np.float32)},
        {"x": np.zeros(65, np.float32)},
    ]
    assert len({digest(batch) for batch in others}) == len(others)
    assert digest({"x": leaf}) == digest({"x": leaf.copy()})


def test_digest_of_random_pairs_looks_random():
    """Each of its 64 bits is set in half of the cases: 10 standard deviations."""
    values = np.random.default_rng(0).normal(size=(4000, 20)).astype(np.float32)
    digests = np.frombuffer(b"".join(map(digest, values)), np.uint8)
    bits = np.unpackbits(digests.reshape(4000, -1), axis=1)
    assert bits.shape == (4000, 64)
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=10 * 0.5 / np.sqrt(4000))


def test_different_digests_are_named():
    digests = BatchDigests("in step 7")
    digests.check(0, np.array([4, 5]), [b"digest 4", b"digest 5"])
    digests.check(1, np.array([4]), [b"digest 4"])
    digests.check(2, np.array([5]), None)
    with pytest.raises(RuntimeError, match=r"workers 0 and 3 .* part 5 in step 7"):
        digests.check(3, np.array([5]), [b"other 5"])
    with pytest.raises(RuntimeError, match="worker 0 and its replacement have"):
        digests.check(0, np.array([5]), [b"other 5"])


def make_task(**fields):
    like = jax.eval_shape(lambda: PARAMS)
    term = term_of(loss)
    return Task(term, params=like, key=sent(KEY), has_digests=True, **fields)


def test_workers_send_gradients_and_digests_of_their_batches():
    """Both protocols use the batch of the step that is sent."""
    held = np.array([3, 1])
    order = jax.tree.leaves(PARAMS), sent(KEY), 6
    worker = Worker(Assignment(0, held, np.ones((1, 2))), make_task())
    worker.prepare_data(stacked(batches))
    sent_message = worker.compute(order)
    step_batches = [batches(6, part) for part in held]
    gradient = sum(jax.grad(loss)(PARAMS, batch) for batch in step_batches)
    np.testing.assert_allclose(sent_message.message[0], gradient, rtol=1e-5)
    expected = [digest(batch) for batch in step_batches]
    assert sent_message.digests == expected

    part_worker = PartWorker(Assignment(0, held, np.eye(2)), make_task())
    part_worker.prepare_data(HostBatches(batches, held.tolist(), 0, is_stacked=False))
    part_worker.start_thread()
    reports = []
    while len(reports) < 2:
        taken = np.zeros(2, np.int8)
        if not reports:
            progress = part_worker.compute(order, 0, taken, 0, np.zeros(2))
        else:
            progress = part_worker.report(0, len(reports), taken)
        reports += progress.reports
    assert [report.digest for report in reports] == expected
    sum_of_parts = part_worker.send_sum(0, np.ones(2, np.float32))
    np.testing.assert_allclose(sum_of_parts[0], gradient, rtol=1e-5)


@pytest.mark.parametrize("message_dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("weight", [2.0, 2j])
def test_corrupt_gets_numbers(message_dtype, weight):
    """Whatever the form in which they are sent."""
    seen = []

    def corrupt(worker, step, message):
        seen.append(message.copy())
        message[0] = -message[0]
        return message

    task = make_task()._replace(message_dtype=message_dtype, corrupt=corrupt)
    row = np.full((1, 1), weight)
    worker = Worker(Assignment(0, np.array([1]), row), task)
    worker.prepare_data(stacked(batches, [1]))
    sent_message = worker.compute((jax.tree.leaves(PARAMS), sent(KEY), 6))
    expected = np.asarray(jax.grad(loss)(PARAMS, batches(6, 1)))
    if weight == 2j:
        # A complex message has both halves of the gradient.
        expected = np.array([1, 1j], np.complex64) @ np.pad(expected, (0, 1)).reshape(
            2, 3
        )
    [message] = seen
    assert message.dtype == expected.dtype
    np.testing.assert_allclose(message, weight * expected, rtol=1e-2)
    received = np.empty((1, len(message)), message.dtype)
    unpack(sent_message.message, received)
    message[0] = -message[0]
    np.testing.assert_array_equal(received[0], message)


def test_batch_gets_the_step_if_it_asks():
    """The step is traced."""

    def batch(key, part, step):
        return {"x": part["x"] * step.astype(jnp.float32)}

    worker = Worker(Assignment(0, np.array([1]), np.ones((1, 1))), make_task())
    worker.task = worker.task._replace(batch=batch, has_keys=True)
    worker.prepare([batches(0, 1)])
    for step in (0, 3):
        sent_message = worker.compute((jax.tree.leaves(PARAMS), sent(KEY), step))
        expected = loss(PARAMS, {"x": batches(0, 1)["x"] * step})
        np.testing.assert_allclose(sent_message.losses, [expected], rtol=1e-5)


def test_thread_of_parts_survives_an_error_of_batches():
    """The next round is computed, since the error may have been repaired."""
    failing_steps = {1}

    def function(step, part):
        if step in failing_steps:
            raise FileNotFoundError("no disk")
        return batches(step, part)

    worker = actor_class(PartWorker)(
        Assignment(0, np.arange(1), np.eye(1)), make_task()
    )
    worker.prepare_data(HostBatches(function, [0], 0, is_stacked=False))
    worker.start_thread()
    taken = np.zeros(1, np.int8)
    for number_of_round in range(2):
        with pytest.raises(WorkerError, match="BatchError: .* no disk") as info:
            order = jax.tree.leaves(PARAMS), sent(KEY), 1
            worker.compute(order, number_of_round, taken, 0, np.zeros(1))
        assert pickle.loads(pickle.dumps(info.value)).ends_training
    failing_steps.clear()
    order = jax.tree.leaves(PARAMS), sent(KEY), 2
    assert len(worker.compute(order, 2, taken, 0, np.zeros(1)).reports) == 1


@pytest.mark.parametrize("kind", [Worker, PartWorker])
def test_first_batch_is_that_of_the_step_of_the_start(kind):
    """Such as that of a replacement, which starts in a later step."""
    task = make_task(batches=batch_tasks.missing_file)
    assignment = Assignment(0, np.array([3, 1]), np.eye(2), step=4)
    why = r"BatchError: batches\(step=4, part=3\) raised FileNotFoundError"
    with pytest.raises(WorkerError, match=why) as info:
        actor_class(kind)(assignment, task).start()
    assert "in missing_file" in str(info.value)


def test_first_batches_of_another_shape_are_named(monkeypatch):
    """Each worker has one shape, and they differ; it is an error of the user's data."""
    monkeypatch.setattr(_actors, "find_ray", SimulatedRay)
    actors = _actors.Actors(SimulatedLauncher(None), 2, lambda: None)
    events = []
    for part in (0, 1):
        data = stacked(batch_tasks.rows_by_part, [part])
        ready = Ready(part, None, "", "", data.signature, data.origin, has_batches=True)
        events.append(actors._started(ready))
    assert events[0] == Ready(
        0, None, "", "", "['x'] float32[2, 5]", "batches(step=0, part=0)", True
    )
    assert events[1].ends_training
    engine = StartUp(message_fleet(), 0.0)
    engine.poll(0.0)
    match = (
        r"worker 1 failed to start: all parts must have equal .*; "
        r"batches\(step=0, part=1\) has .*float32\[3, 5\], and "
        r"batches\(step=0, part=0\) has .*float32\[2, 5\]"
    )
    with pytest.raises(ValueError, match=match):
        engine.handle(events[1], 1.0)


class Workers:
    """Workers of a round as a verifier sees them, with one order."""

    def order(self):
        return jax.tree.leaves(PARAMS), sent(KEY), 6


def test_verifier_reads_the_batch_of_the_step():
    """The verifier recomputes what a worker with this part computes."""
    code = codes.fractional_repetition(2, num_stragglers=1)
    task = make_task(batches=batches)
    copies = PartCopies(code, task, None, Workers())
    key = sent(jax.random.key(9))
    row = np.ones((1, 1))
    for part in (1, 0):
        worker = Worker(Assignment(0, np.array([part]), row), task)
        worker.prepare_data(stacked(batches, [part]))
        expected = worker.project(Workers().order(), np.array([part]), key)
        result = copies.recompute(key, part, row)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [BatchError, BatchValueError])
def test_error_of_batches_ends_a_round(kind):
    """The worker is replaced in the next round, as after any error."""
    world = World(message_fleet())
    world.begin(step=4)
    arrived = WorkerError.of(kind("as told"))
    lost = Lost(2, arrived.reason, arrived, has_died=False, ends_training=True)
    built_in = ValueError if kind is BatchValueError else RuntimeError
    with pytest.raises(built_in, match=f"worker 2 failed in step 4: {kind.__name__}"):
        world.handle(lost)
    world.begin(step=4)
    world.handle(lost._replace(worker=1, number=0))
    world.poll()
    assert isinstance(world.calls[1], Launch)
    assert isinstance(world.calls[2], Launch)
    assert world.finish().received.any()
