"""Audits of rounds on request: which parts are compared, and which worker is found.

Without any worker: the queries are answered by what stands for `Actors`.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.distributed.ray import _verification
from jaxwgc.distributed.ray._errors import NoResponse
from jaxwgc.distributed.ray._events import Unverified
from jaxwgc.distributed.ray._messages import read, sent
from jaxwgc.distributed.ray._task import Task
from jaxwgc.distributed.ray._worker import project
from jaxwgc.gradients._contributions import term_of

CODE = codes.replicated(3, num_parts=6, copies=2)
PARTS = np.random.default_rng(0).normal(size=(6, 8, 5)).astype(np.float32)
PARAMS = jnp.linspace(-1, 1, 5)
KEY = jax.random.key(0)
HELD = np.asarray(CODE.assignment)
# Of each worker, the parts in the order of its messages.
ORDER = np.asarray(CODE.encoding_matrix).reshape(3, -1, 6).argmax(2)


def loss(params, part):
    return jnp.sum((part @ params) ** 2)


PARTIALS = np.asarray(jaxwgc.partial_value_and_grad(loss)(PARAMS, PARTS)[1])
TASK = Task(
    term_of(loss),
    load=PARTS.__getitem__,
    params=jax.eval_shape(lambda: PARAMS),
    key=sent(KEY),
)


class Workers:
    """Each multiplies all gradients by a factor; records the queries."""

    def __init__(self, *factors, suspected=(), lost=()):
        self.factors = np.array(factors)
        self.can_respond = ~np.isin(np.arange(3), suspected)
        self.lost = lost
        self.queries = []

    def order(self):
        return pickle.dumps(([np.asarray(PARAMS)], sent(KEY), 0))

    def can_be_queried(self):
        return self.can_respond

    def name(self, worker):
        return f"worker {worker}"

    def query(self, workers, parts, key, number):
        if {*workers.tolist()} & {*self.lost}:
            raise NoResponse
        [part] = parts
        self.queries.append((*workers.tolist(), int(part), number))
        claims = self.factors[workers][:, None] * PARTIALS[part]
        return np.asarray(project(read(key), np.float32(claims), 64))


def check(workers, requests, num_rounds=1, audit=1.0, noise=0.0):
    """Returns the corrupted workers of each round, bool (num_rounds, 3)."""
    copies = _verification.PartCopies(CODE, TASK, None, workers)
    audits = _verification.Audits(copies, noise=noise, audit=audit, seed=0)
    messages = np.ones((3, 5), np.float32)
    verdicts = [
        audits.check(
            Unverified(number, "in step 7", messages, requests.any(1), requests)
        )
        for number in range(num_rounds)
    ]
    for verdict in verdicts:
        assert not verdict.rejected
        np.testing.assert_array_equal(verdict.right, ~verdict.wrong)
    return np.array([verdict.wrong for verdict in verdicts])


# Each worker sends the parts that it computes first.
FIRST_TWO = np.array([[1.0, 1, 0, 0]] * 3)
# Worker 0 sends all that it holds, and worker 2 the others.
OF_TWO = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize("requests", [FIRST_TWO, OF_TWO])
def test_every_part_is_audited_with_a_worker_that_has_sent_it(requests):
    """Of 300 rounds; and the other worker is another holder."""
    workers = Workers(1, 1, 1)
    assert not check(workers, requests, num_rounds=300).any()
    senders = {
        (worker, int(ORDER[worker, position]))
        for worker, position in np.argwhere(requests != 0).tolist()
    }
    assert {(owner, part) for owner, _, part, _ in workers.queries} == senders
    for owner, helper, part, _ in workers.queries:
        assert helper != owner
        assert HELD[helper, part]
    assert [number for *_, number in workers.queries] == list(range(300))


def test_every_other_holder_is_asked():
    """All three workers hold all parts."""
    code = codes.replicated(3, copies=3)
    workers = Workers(1, 1, 1)
    copies = _verification.PartCopies(code, TASK, None, workers)
    audits = _verification.Audits(copies, noise=0.0, audit=1.0, seed=0)
    requests = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    this_round = Unverified(0, "", np.ones((3, 5)), requests.any(1), requests)
    for _ in range(50):
        audits.check(this_round)
    assert {helper for _, helper, _, _ in workers.queries} == {1, 2}


@pytest.mark.parametrize("corrupted", [0, 1, 2])
def test_the_corrupted_one_of_two_holders_is_found(corrupted):
    """As the sender or as the helper, in about two thirds of the audits."""
    factors = np.where(np.arange(3) == corrupted, -1, 1)
    wrong = check(Workers(*factors), FIRST_TWO, num_rounds=30)
    assert 10 <= wrong[:, corrupted].sum() < 30
    wrong[:, corrupted] = False
    assert not wrong.any()


def test_differences_below_the_noise_are_accepted():
    workers = Workers(1, 1 + 1e-3, 1)
    assert check(workers, FIRST_TWO, num_rounds=30).any()
    assert not check(workers, FIRST_TWO, num_rounds=30, noise=0.1).any()


def test_rounds_are_audited_with_their_probability():
    """To four standard errors."""
    workers = Workers(1, 1, 1)
    check(workers, FIRST_TWO, num_rounds=400, audit=0.25)
    assert abs(len(workers.queries) - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_suspected_workers_are_not_asked():
    """Workers 1 and 2 hold two parts each of those that worker 0 has sent."""
    requests = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    for suspected, helpers in ([], {1, 2}), ([1], {2}):
        workers = Workers(1, 1, 1, suspected=suspected)
        check(workers, requests, num_rounds=30)
        assert {helper for _, helper, _, _ in workers.queries} == helpers


def test_audit_without_a_response_finds_nothing():
    workers = Workers(-1, 1, 1, lost=[1, 2])
    assert not check(workers, FIRST_TWO, num_rounds=10).any()


def test_part_of_batches_is_recomputed_in_the_step_of_the_round():
    """Twice by the same process, for two steps and parts."""

    def batches(step, part):
        return PARTS[part] + step

    workers = Workers(1, 1, 1)
    task = TASK._replace(load=None, batches=batches)
    copies = _verification.PartCopies(CODE, task, None, workers)
    key = sent(jax.random.key(3))
    for step, part in ((7, 4), (9, 1)):
        order = pickle.dumps(([np.asarray(PARAMS)], sent(KEY), step))
        workers.order = lambda order=order: order
        gradient = jax.grad(loss)(PARAMS, batches(step, part))
        expected = project(read(key), gradient[None], 64)[0]
        found = copies.recompute(key, part, np.ones((1, 1)))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_rounds_in_which_no_part_was_sent_are_not_audited():
    workers = Workers(1, 1, 1)
    check(workers, np.zeros((3, 4)))
    assert not workers.queries
