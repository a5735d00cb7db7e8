"""Parity checks of messages: workers are named, and disputes are settled by queries.

Without any worker: the queries are answered by what stands for `Actors`.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import coding
from jaxwgc.distributed.ray import _task, _verification, _worker
from jaxwgc.distributed.ray._errors import NoResponse
from jaxwgc.distributed.ray._events import Unverified
from jaxwgc.distributed.ray._messages import read, sent
from jaxwgc.gradients._contributions import term_of

PARTS = np.random.default_rng(0).normal(size=(4, 12, 50)).astype(np.float32)
PARAMS = jnp.linspace(-1, 1, 50)
KEY = jax.random.key(0)
# Three copies of one message, whose majority is right, and two of another.
CODE = jaxwgc.GradientCode.from_matrix(np.eye(2).repeat([3, 2], 0).repeat(2, 1))


def loss(params, part):
    return jnp.sum((part @ params) ** 2)


PARTIALS = np.asarray(jaxwgc.partial_value_and_grad(loss)(PARAMS, PARTS)[1])


class Workers:
    """Each multiplies all that it sends by a factor; one that is lost is silent."""

    def __init__(self, *factors, lost=()):
        self.factors = np.array(factors)
        self.lost = lost

    def messages(self, parts=range(4)):
        rows = self.factors[:, None] * CODE.encoding_matrix[:, [*parts]]
        return np.float32(rows @ PARTIALS[[*parts]])

    def order(self):
        return pickle.dumps(([np.asarray(PARAMS)], sent(KEY), 0))

    def name(self, worker):
        return f"worker {worker} on its machine"

    def query(self, workers, parts, key):
        if {*workers.tolist()} & {*self.lost}:
            raise NoResponse
        messages = self.messages(parts)[workers]
        return np.asarray(_worker.project(read(key), messages, 64))


@pytest.fixture(scope="module")
def check():
    """Whose messages are right, whose wrong, and if the round is rejected."""
    task = _task.Task(
        term_of(loss),
        load=PARTS.__getitem__,
        params=jax.eval_shape(lambda: PARAMS),
        key=sent(KEY),
    )
    copies = _verification.PartCopies(CODE, task, None, Workers(1, 1, 1, 1, 1))
    checks = _verification.ParityChecks(
        copies,
        noise=0.0,
        locator=coding.ErrorLocator.of(CODE),
        on_wrong="drop",
    )

    def check(workers, on_wrong="arbitrate"):
        checks._workers = copies.workers = workers
        checks._on_wrong = on_wrong
        messages = workers.messages()
        verdict = checks.check(
            Unverified(0, "in step 7", messages, received=np.ones(5, bool))
        )
        right, wrong = map(np.flatnonzero, verdict[:2])
        return right.tolist(), wrong.tolist(), verdict.rejected

    return check


def test_corrupted_workers_are_outvoted_or_found_by_recomputing(check):
    assert check(Workers(1, 1, 1, 1, 1)) == ([0, 1, 2, 3, 4], [], False)
    assert check(Workers(1, -1, 1, 1, 1), "drop") == ([0, 2, 3, 4], [1], False)
    assert check(Workers(1, -1, 1, 1, -2)) == ([0, 2, 3], [1, 4], False)
    # Three different copies, and two.
    assert check(Workers(3, -1, 1, 1, -2)) == ([2, 3], [0, 1, 4], False)


def test_a_corrupted_message_does_not_hide_a_smaller_one(check):
    """Rounding of the message of worker 0 exceeds all that the others sent."""
    assert check(Workers(1e9, -1, 1, 1, 1)) == ([2, 3, 4], [0, 1], False)


def test_contradictory_messages_reject_the_round(check, caplog):
    """Nothing of two copies that differ is used, nor if one of them is lost."""
    assert check(Workers(1, 1, 1, 1, -2), "drop") == ([], [], True)
    line = "messages of workers [3, 4] contradict each other in step 7: round rejected"
    assert caplog.messages == [line]
    assert check(Workers(3, -1, 1, 1, -2, lost=[3])) == ([], [0, 1], True)


def test_the_error_names_the_corrupted_worker(check):
    assert check(Workers(1, 1, 1, 1, 1), "raise") == ([0, 1, 2, 3, 4], [], False)
    with pytest.raises(RuntimeError, match="corrupted messages in step 7: worker 1"):
        check(Workers(1, -1, 1, 1, 1), "raise")
    why = "contradict each other in step 7, and .* wrong: worker 3 on .*; worker 4 on"
    with pytest.raises(RuntimeError, match=why):
        check(Workers(1, 1, 1, 1, -2), "raise")


def test_workers_without_a_copy_are_not_checked():
    locator = coding.ErrorLocator.of(CODE)
    for received, checked in (([1, 1, 0, 1, 0], [1, 1, 0, 0, 0]), ([0] * 5, [0] * 5)):
        result = locator.checked_by_others(np.array(received, bool))
        assert result.tolist() == checked
