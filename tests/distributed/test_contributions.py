"""Workers compute contributions in place of gradients; without Ray."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import codes
from jaxwgc.distributed import RayCluster
from jaxwgc.distributed.ray import _coordinator, _verification
from jaxwgc.distributed.ray._errors import WorkerError, WorkerValueError
from jaxwgc.distributed.ray._events import Unverified
from jaxwgc.distributed.ray._launcher import actor_class
from jaxwgc.distributed.ray._messages import Layout, read, sent
from jaxwgc.distributed.ray._part_worker import PartWorker
from jaxwgc.distributed.ray._task import Assignment, Task
from jaxwgc.distributed.ray._worker import Worker, project
from jaxwgc.gradients._contributions import term_of
from tests.distributed import contribution_tasks as tasks

KEY = jax.random.key(7)
ROWS = np.random.default_rng(0).normal(size=(4, 20, 3)).astype(np.float32)
PARAMS = {"w": jnp.array([0.5, -1.0])}
LIKE = jax.eval_shape(lambda: PARAMS)
LEAVES = [np.array([0.5, -1.0], np.float32)]
HELD = np.array([3, 1])
WEIGHTS = np.array([2.0, -1.0])
ORDER = (LEAVES, sent(KEY), 6)
NUMBERED = [{"rows": ROWS[part, :, :2], "index": np.int32(part)} for part in range(4)]


def make_worker(kind, contribution, has_aux=False, **fields):
    task = Task(
        term_of(contribution=contribution, has_aux=has_aux),
        params=LIKE,
        key=sent(KEY),
    )
    rows = np.diag(WEIGHTS) if kind is PartWorker else WEIGHTS[None]
    return actor_class(kind)(Assignment(0, HELD, rows), task._replace(**fields))


def key_of(step, part):
    """As the page says: fold_in(fold_in(fold_in(key, step), part), 1)."""
    key_of_batch = jax.random.fold_in(jax.random.fold_in(KEY, step), part)
    return jax.random.fold_in(key_of_batch, 1)


def test_both_kinds_of_workers_send_sums_of_contributions():
    """Keys are those of step and part, so that all holders of a part agree."""
    changes, losses = zip(
        *(tasks.drawn_steps(PARAMS, ROWS[part], key_of(6, part)) for part in HELD)
    )
    expected = sum(weight * of["w"] for weight, of in zip(WEIGHTS, changes))
    worker = make_worker(Worker, tasks.drawn_steps, has_aux=True, has_keys=True)
    worker.prepare([*ROWS[HELD]])
    sent_message = worker.compute(ORDER)
    np.testing.assert_allclose(sent_message.message[0], expected, rtol=1e-5)
    np.testing.assert_allclose(sent_message.aux, losses, rtol=1e-5)
    assert np.isnan(sent_message.losses).tolist() == [True, True]

    worker = make_worker(PartWorker, tasks.drawn_steps, has_aux=True, has_keys=True)
    worker.prepare([*ROWS[HELD]])
    worker.start_thread()
    taken = np.zeros(2, np.int8)
    progress = worker.compute(ORDER, 0, taken, 0, np.ones(2))
    reports = [*progress.reports]
    while len(reports) < 2:
        assert progress.expected_sum is None
        progress = worker.report(0, len(reports), taken)
        reports += progress.reports
    aux = np.concatenate([report.aux for report in reports])
    np.testing.assert_allclose(aux, losses, rtol=1e-5)
    np.testing.assert_allclose(progress.expected_sum, [expected], rtol=1e-5)
    # It is sent once.
    worker.stop(0)
    assert worker.report(0, 0, taken).expected_sum is None
    [total] = worker.send_sum(0, np.ones(2))
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_batch_and_contribution_have_keys_of_their_own():
    """`batch` draws with the key before the last fold."""

    def contribution(params, part, key):
        return {"w": part[:2] + jax.random.normal(key, (2,))}

    def batch(key, part):
        return jax.random.permutation(key, part)

    worker = make_worker(Worker, contribution, has_keys=True, batch=batch)
    worker.prepare([*ROWS[HELD, 0]])
    expected = 0
    for weight, part in zip(WEIGHTS, HELD):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 6), part)
        drawn = jax.random.permutation(key, ROWS[part, 0])
        noise = jax.random.normal(key_of(6, part), (2,))
        expected = expected + weight * (drawn[:2] + noise)
    np.testing.assert_allclose(worker.compute(ORDER).message[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda params: params["w"], r"params = float32\[2\] in place of noth"),
        (
            lambda params: {"w": params["w"], "b": 0.0},
            r"params\['b'\] = float32\[\] in",
        ),
        (
            lambda params: {"w": params["w"][:1]},
            r"\['w'\] = .*1\] in place of float32\[2\]",
        ),
        (
            lambda params: {"w": params["w"].astype(int)},
            r"\['w'\] = int32.* in place of ",
        ),
        (lambda params: {}, r"\['w'\] = nothing in place of float32\[2\]"),
    ],
)
def test_a_result_that_is_not_like_params_is_named(result, message, monkeypatch):
    """Before Ray starts, and by a worker with its parts."""

    def contribution(params, part):
        return result(params)

    monkeypatch.setattr(_coordinator, "session", None)
    with RayCluster(
        contribution=contribution, code=codes.uncoded(4), parts=ROWS
    ) as cluster:
        with pytest.raises(ValueError, match=message):
            cluster.compute(PARAMS)
    worker = make_worker(Worker, contribution, load=ROWS.__getitem__)
    with pytest.raises(WorkerValueError, match=message) as info:
        worker.start()
    assert info.value.reason.endswith("(in parts 3, 1)")


def test_aux_that_is_missing_is_named():
    worker = make_worker(Worker, lambda params, part: params, has_aux=True)
    with pytest.raises(WorkerError, match="must return .pytree like params, aux. if"):
        worker.prepare([*ROWS[HELD]])


def test_shapes_on_two_workers_are_those_of_params(monkeypatch):
    """A process in which the result has another shape says so itself."""
    make_worker(Worker, tasks.shape_of_process).prepare([*ROWS[HELD]])
    monkeypatch.setenv("JAXWGC_TEST_SHAPE", "1")
    with pytest.raises(WorkerError, match=r"(?s)float32\[3\].*\(in parts 3, 1\)"):
        make_worker(Worker, tasks.shape_of_process).prepare([*ROWS[HELD]])
    with pytest.raises(WorkerError, match=r"float32\[3\] .*\(in part 3\)"):
        make_worker(PartWorker, tasks.shape_of_process).prepare([*ROWS[HELD]])


@pytest.mark.parametrize("kind", [Worker, PartWorker])
def test_parts_that_are_not_finite_or_raise_are_named(kind):
    """Of three parts, it is part 2."""
    worker = make_worker(kind, tasks.faulty)
    worker.held = np.array([3, 2, 0])
    worker.rows = np.eye(3) if kind is PartWorker else np.ones((1, 3))
    worker.prepare([NUMBERED[part] for part in worker.held])
    layout = Layout.of(codes.uncoded(4), LIKE, None)

    def order(first):
        return [np.array([first, 0], np.float32)], sent(KEY), 0

    if kind is Worker:
        sent_message = worker.compute(order(tasks.NOT_FINITE))
        assert sent_message.not_finite == [2]
        text = layout.not_finite("message", sent_message.not_finite)
        assert text == "its message is not finite in part 2"
        named = r"ArithmeticError: as told \(in parts 3, 2, 0\)"
        with pytest.raises(WorkerError, match=named):
            worker.compute(order(tasks.RAISES))
        return
    worker.start_thread()
    taken = np.zeros(3, np.int8)
    expected = np.zeros(3)
    progress = worker.compute(order(tasks.NOT_FINITE), 0, taken, 0, expected)
    reports = [*progress.reports]
    while len(reports) < 3:
        reports += worker.report(0, len(reports), taken).reports
    assert [report.is_finite for report in reports] == [True, False, True]
    with pytest.raises(WorkerError, match=r"as told \(in part 2\)"):
        seen = [*worker.compute(order(tasks.RAISES), 1, taken, 3, expected).reports]
        while True:
            seen += worker.report(1, len(seen), taken).reports


class Workers:
    """Two workers whose copies of a part differ from each other by a factor."""

    def __init__(self, *factors):
        self.factors = np.array(factors, np.float32)

    def can_be_queried(self):
        return np.ones(len(self.factors), bool)

    def order(self):
        return ORDER

    def query(self, workers, parts, key, *others):
        total = np.stack([NUMBERED[part]["rows"] for part in parts]).sum((0, 1))
        return np.asarray(project(read(key), self.factors[workers, None] * total, 64))


def audited(factors, caplog):
    """What is logged of an audit of part 0, 1 or 2 of two workers with all parts."""
    code = codes.replicated(2, copies=2)
    task = Task(
        term_of(contribution=tasks.faulty),
        load=NUMBERED.__getitem__,
        params=LIKE,
        key=sent(KEY),
    )
    copies = _verification.PartCopies(code, task, None, Workers(*factors))
    audits = _verification.Audits(copies, noise=0.0, audit=0.999, seed=0)
    requests = np.eye(2)
    this_round = Unverified(0, "in step 7", np.ones((2, 2)), np.ones(2, bool), requests)
    caplog.clear()
    verdict = audits.check(this_round)
    return verdict.wrong.tolist(), caplog.messages


def test_copies_that_all_differ_are_named(caplog):
    """One that differs is corrupted; if no two copies agree, the cause is said."""
    assert audited([1, 1], caplog) == ([False, False], [])
    assert audited([1, 2], caplog) == ([False, True], [])
    wrong, [line] = audited([3, 2], caplog)
    assert wrong == [True, True]
    assert "on workers [0, 1] and in this process all differ in step 7" in line
    assert "must depend only on params, part and key" in line
