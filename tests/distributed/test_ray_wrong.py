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
from jaxwgc.distributed.ray._events import Lost

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("one_ray")

PARTS = np.random.default_rng(0).normal(size=(4, 12, 50)).astype(np.float32)
PARAMS = jnp.linspace(-1, 1, 50)
# Counts of steps, and what happens from there on.
CLEAN, OFTEN, NOT_FINITE, AGREED, ALWAYS, ONCE = range(0, 6000, 1000)
COPIES = codes.fractional_repetition(4, num_stragglers=1)
SPARE = codes.reed_solomon(4, num_parts=4, replication=3)


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
        elif kind == AGREED and worker in (0, 1):
            message *= -(1 + worker)
        elif worker == 1 and (kind == ONCE or (kind == ALWAYS and is_first)):
            message *= -1
        return message

    return corrupt


def check_gradient(code, round):
    assert not round.refused
    assert not round.messages[~round.received].any()
    decoded = jaxwgc.decode(code, round.messages, round.received, PARAMS)
    np.testing.assert_allclose(decoded, GRADIENT, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(round.losses, VALUES, rtol=1e-5)


def make_cluster(folder, code, parts, **options):
    faults = Faults(corrupt=saboteur(folder))
    return RayCluster(loss, code, parts, faults=faults, **options)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory, one_ray):
    folder, verification = tmp_path_factory.mktemp("dropping"), Verification("drop")
    with make_cluster(folder, SPARE, PARTS, verification=verification) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def arbitrating(tmp_path_factory, one_ray):
    folder, verification = tmp_path_factory.mktemp("own"), Verification("arbitrate")
    load = lambda part: PARTS[part]  # noqa: E731
    with make_cluster(folder, COPIES, load, verification=verification) as cluster:
        yield cluster


@pytest.mark.parametrize("name", ["dropping", "arbitrating"])
def test_bits_in_one_of_ten_answers_are_found(name, request, caplog):
    """The worker is named each time, and replaced at the third; no gradient is off."""
    caplog.set_level("INFO", "jaxwgc.distributed")
    cluster = request.getfixturevalue(name)
    cluster.resume(CLEAN)
    round = cluster.compute(PARAMS)
    check_gradient(cluster.code, round)
    assert not round.wrong.any()
    assert round.timings["examination"] > 0
    pid = cluster.workers[1].pid
    cluster.resume(OFTEN)
    for number in range(24):
        if number == 23:
            with pytest.warns(
                UserWarning, match="worker 1 on .* corrupted in 3 r"
            ) as seen:
                round = cluster.compute(PARAMS)
            assert seen[0].filename == __file__
        else:
            round = cluster.compute(PARAMS)
        check_gradient(cluster.code, round)
        is_wrong = number % 10 == 3
        assert round.wrong.tolist() == [False, is_wrong, False, False]
        assert round.received.tolist() == [True, not is_wrong, True, True]
    end = time.monotonic() + 60
    while cluster.workers[1].pid in (None, pid) or cluster.workers[1].trouble:
        # With two copies it is waited for.
        check_gradient(cluster.code, cluster.compute(PARAMS))
        assert time.monotonic() < end
    named = [line for line in caplog.messages if " is wrong in step" in line]
    counts = [f"({times} rounds so far)" for times in (1, 2, 3)]
    assert [line[-17:] for line in named] == counts
    assert all(line.startswith("worker 1 on ") for line in named)
    assert "worker 1 is back in step" in caplog.text


def test_not_finite_is_missing_and_not_wrong(dropping):
    dropping.resume(NOT_FINITE)
    round = dropping.compute(PARAMS)
    assert not round.wrong.any()
    assert round.received.tolist() == [True, False, True, True]
    check_gradient(SPARE, round)


def test_what_cannot_be_told_is_refused(dropping, caplog):
    """Two of four are wrong, with two checks: nothing is used, training counts it."""
    dropping.resume(AGREED)
    with pytest.warns(UserWarning, match="its messages contradict each other"):
        round = dropping.compute(PARAMS)
    assert round.refused
    assert not round.received.any()
    assert not round.wrong.any()
    assert not round.messages.any()
    assert "messages of workers [0, 1, 2, 3] contradict each other" in caplog.text
    aggregate = jaxwgc.decode_aggregate(SPARE)
    updates, state = aggregate.update(
        round.messages, aggregate.init(PARAMS), PARAMS, received=round.received
    )
    assert not updates.any()
    assert state.num_undecodable == 1


def test_two_who_are_wrong_are_both_found_by_recomputing(arbitrating):
    """In different messages, so that another copy of each is there."""
    arbitrating.resume(AGREED)
    round = arbitrating.compute(PARAMS)
    assert round.wrong.tolist() == [True, True, False, False]
    check_gradient(COPIES, round)


def test_raise_names_the_worker(dropping, monkeypatch):
    """On the workers of another cluster: only the coordinator knows this option."""
    dropping.resume(CLEAN)
    check_gradient(SPARE, dropping.compute(PARAMS))
    on_wrong = Verification(on_wrong="raise").on_wrong
    monkeypatch.setattr(dropping._fleet.verifier, "_on_wrong", on_wrong)
    dropping.resume(ONCE)
    with pytest.raises(RuntimeError, match=r"wrong answers .*: worker 1 on \S+ \("):
        dropping.compute(PARAMS)
    dropping.resume(AGREED)
    with pytest.raises(RuntimeError, match="a wrong answer from one .*: worker 0"):
        dropping.compute(PARAMS)


@pytest.mark.parametrize(
    ("received", "checked"),
    [([1, 1, 1, 1], [1, 1, 1, 1]), ([1, 1, 1, 0], [1, 0, 1, 0]), ([0] * 4, [0] * 4)],
)
def test_who_has_no_copy_is_not_checked(received, checked):
    locator = coding.ErrorLocator.of(COPIES)
    found = locator.checked_by_others(np.array(received, bool))
    np.testing.assert_array_equal(found, np.array(checked, bool))


def test_worker_lost_in_a_dispute_leaves_it_open(one_ray):
    """And is an event of the next round."""

    @ray.remote(num_cpus=0)
    class Actor:
        def project(self, order, claim):
            if claim.any():
                raise ArithmeticError("as told")
            return claim

    actors = Actors(lambda worker: Actor.remote(), 2, lambda: None)
    actors._actors = [Actor.remote(), Actor.remote()]
    claim = actors.query(np.array([0, 1]), 5.0, np.zeros(8))
    np.testing.assert_array_equal(claim, np.zeros((2, 8)))
    with pytest.raises(NoResponse):
        actors.query(np.array([1]), 5.0, np.ones(8))
    event = actors.next_event(0.0)
    assert isinstance(event, Lost)
    assert (event.worker, event.trouble) == (1, "ArithmeticError: as told")
    for worker in range(2):
        actors.end(worker)
    with pytest.raises(NoResponse):
        actors.query(np.array([0]), 5.0, np.zeros(8))


def test_audits_find_who_is_wrong_on_request(tmp_path, caplog):
    """Worker 1 is, in every round; the others finish its parts once it is seen."""
    code = codes.replicated(4, num_parts=8, copies=2)

    def compute():
        round = cluster.compute(PARAMS)
        assert not round.wrong[[0, 2, 3]].any()
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
    parts = PARTS.reshape(8, 6, 50)
    with make_cluster(tmp_path, code, parts, **options) as cluster:
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
