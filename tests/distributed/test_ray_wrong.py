"""Workers that send something wrong: named, left out and replaced.

What is sent depends on the step, and steps are counted from where a test likes.
"""

import os
import time

import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, coding, stragglers
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster, Verification
from jaxwgc.distributed.ray._actors import Actors, NoResponse

pytestmark = pytest.mark.usefixtures("one_ray")

PARTS = np.random.default_rng(0).normal(size=(4, 12, 50)).astype(np.float32)
PARAMS = jnp.linspace(-1, 1, 50)
# Counts of steps, and what happens from there on.
CLEAN, OFTEN, NOT_FINITE, DISPUTED, BOTH, ALWAYS, ONCE = range(0, 7000, 1000)
# Three copies of one message, whose majority is right, and two of another.
CODE = jaxwgc.GradientCode.from_matrix(np.eye(2).repeat([3, 2], 0).repeat(2, 1))


def loss(params, part):
    return jnp.sum((part @ params) ** 2)


VALUES, PARTIALS = jaxwgc.partial_value_and_grad(loss)(PARAMS, PARTS)
GRADIENT = PARTIALS.sum(0)


def saboteur(folder):
    """One of ten answers of the first process of worker 1, or what a step says."""

    def corrupt(worker, step, message):
        kind, number = step // 1000 * 1000, step % 1000
        first = folder / f"{worker}"
        if not first.exists():
            first.write_text(str(os.getpid()))
        is_first = first.read_text() == str(os.getpid())
        if kind == OFTEN and worker == 1 and number % 10 == 3 and is_first:
            bits = message.view(np.uint32)
            bits[number] ^= np.uint32(1) << 27
        elif kind == NOT_FINITE and worker == 1:
            message[3] = np.nan
        elif worker == 1 and (kind in (BOTH, ONCE) or (kind == ALWAYS and is_first)):
            message *= -1
        elif worker == 4 and kind in (BOTH, DISPUTED):
            message *= -2
        return message

    return corrupt


def check_gradient(round):
    assert not round.refused
    assert not round.messages[~round.received].any()
    decoded = jaxwgc.decode(CODE, round.messages, round.received, PARAMS)
    np.testing.assert_allclose(decoded, GRADIENT, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(round.losses, VALUES, rtol=1e-5)


def make_cluster(folder, code, parts, **options):
    faults = Faults(corrupt=saboteur(folder))
    return RayCluster(loss, code, parts, faults=faults, **options)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, one_ray):
    folder, verification = tmp_path_factory.mktemp("own"), Verification("arbitrate")
    load = lambda part: PARTS[part]  # noqa: E731
    with make_cluster(folder, CODE, load, verification=verification) as cluster:
        yield cluster


def test_bits_in_one_of_ten_answers_are_found(cluster, caplog):
    """The worker is named each time, and replaced at the third; no gradient is off."""
    caplog.set_level("INFO", "jaxwgc.distributed")
    round = cluster.compute(PARAMS)
    check_gradient(round)
    assert not round.wrong.any()
    assert round.timings["examination"] > 0
    pid = cluster.workers[1].pid
    cluster.resume(OFTEN)
    for number in range(23):
        round = cluster.compute(PARAMS)
        check_gradient(round)
        is_wrong = number % 10 == 3
        assert round.wrong.tolist() == [False, is_wrong, False, False, False]
        assert round.received.tolist() == [True, not is_wrong, True, True, True]
    with pytest.warns(UserWarning, match="worker 1 on .* corrupted in 3 r") as seen:
        check_gradient(cluster.compute(PARAMS))
    assert seen[0].filename == __file__
    end = time.monotonic() + 60
    while cluster.workers[1].pid in (None, pid) or cluster.workers[1].trouble:
        check_gradient(cluster.compute(PARAMS))
        assert time.monotonic() < end
    named = [line for line in caplog.messages if " is wrong in step" in line]
    counts = [f"({times} rounds so far)" for times in (1, 2, 3)]
    assert [line[-17:] for line in named] == counts
    assert all(line.startswith("worker 1 on ") for line in named)
    assert "worker 1 is back in step" in caplog.text


def test_not_finite_is_missing_and_not_wrong(cluster):
    cluster.resume(NOT_FINITE)
    round = cluster.compute(PARAMS)
    assert not round.wrong.any()
    assert round.received.tolist() == [True, False, True, True, True]
    check_gradient(round)


def test_one_is_outvoted_and_one_is_found_by_recomputing(cluster):
    cluster.resume(BOTH)
    round = cluster.compute(PARAMS)
    assert round.wrong.tolist() == [False, True, False, False, True]
    check_gradient(round)


def test_what_cannot_be_told_is_refused(cluster, monkeypatch, caplog):
    """On the workers of another option, which only the coordinator knows.

    Nothing of two copies that differ is used, and training counts it.
    """
    monkeypatch.setattr(cluster._fleet.verifier, "_on_wrong", "drop")
    cluster.resume(DISPUTED)
    with pytest.warns(UserWarning, match="its messages contradict each other") as seen:
        round = cluster.compute(PARAMS)
    assert seen[0].filename == __file__
    assert round.refused
    assert not round.received.any()
    assert not round.wrong.any()
    assert not round.messages.any()
    assert "messages of workers [3, 4] contradict each other" in caplog.text
    aggregate = jaxwgc.decode_aggregate(CODE)
    updates, state = aggregate.update(
        round.messages, aggregate.init(PARAMS), PARAMS, received=round.received
    )
    assert not updates.any()
    assert state.num_undecodable == 1


def test_raise_names_the_worker(cluster, monkeypatch):
    monkeypatch.setattr(cluster._fleet.verifier, "_on_wrong", "raise")
    cluster.resume(CLEAN)
    check_gradient(cluster.compute(PARAMS))
    cluster.resume(ONCE)
    with pytest.raises(RuntimeError, match=r"wrong answers .*: worker 1 on \S+ \("):
        cluster.compute(PARAMS)
    cluster.resume(DISPUTED)
    with pytest.raises(RuntimeError, match="a wrong answer from one .*: worker 3"):
        cluster.compute(PARAMS)


def test_who_has_no_copy_is_not_checked():
    locator = coding.ErrorLocator.of(CODE)
    for received, checked in (([1, 1, 0, 1, 0], [1, 1, 0, 0, 0]), ([0] * 5, [0] * 5)):
        found = locator.checked_by_others(np.array(received, bool))
        assert found.tolist() == checked


def test_worker_lost_in_a_dispute_leaves_it_open():
    """And is an event of the next round."""
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def project(self, order, claim):
            if claim.any():
                raise ArithmeticError("as told")
            return claim

    actors = Actors(lambda worker: Actor.remote(), 1, lambda: None)
    actors._actors = [Actor.remote()]
    claim = actors.query(np.array([0]), 5.0, np.zeros(8))
    np.testing.assert_array_equal(claim, np.zeros((1, 8)))
    with pytest.raises(NoResponse):
        actors.query(np.array([0]), 5.0, np.ones(8))
    event = actors.next_event(0.0)
    assert (event.worker, event.trouble) == (0, "ArithmeticError: as told")
    actors.end(0)
    with pytest.raises(NoResponse):
        actors.query(np.array([0]), 5.0, np.zeros(8))


def test_audits_find_who_is_wrong_on_request(tmp_path, caplog):
    """Worker 1 is, in every round; the other finishes its parts once it is seen."""
    code = codes.replicated(2, num_parts=4, copies=2)

    def compute():
        round = cluster.compute(PARAMS)
        assert not round.wrong[0]
        assert not (round.wrong & round.received).any()
        if round.wrong[1] or is_replaced:
            decoded = jaxwgc.coding.decode_answers(round.messages, PARAMS)
            np.testing.assert_allclose(decoded, GRADIENT, rtol=1e-4, atol=1e-3)
        return round

    options = {
        "verification": Verification(audit=0.9),
        "wait": stragglers.until_decodable(code),
        "decoding": DecodingOptions(undecodable="raise"),
    }
    with make_cluster(tmp_path, code, PARTS, **options) as cluster:
        cluster.resume(ALWAYS)
        cluster.compute(PARAMS)
        pid, is_replaced, end = cluster.workers[1].pid, False, time.monotonic() + 90
        with pytest.warns(UserWarning, match="worker 1 on .* corrupted in 3 rounds"):
            while cluster.workers[1].pid in (None, pid):
                compute()
                assert time.monotonic() < end
        assert caplog.text.count("worker 1 on ") == 3
        is_replaced = True
        for _ in range(20):
            assert not compute().wrong.any()
