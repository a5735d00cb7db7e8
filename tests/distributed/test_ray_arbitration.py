"""Disputes of copies on real processes, whose parameters are in Ray's object store."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, coding
from jaxwgc.distributed import Faults, RayCluster, Timeouts, Verification
from jaxwgc.distributed.ray._driver import _LARGEST_IN_TASK
from tests.distributed.ray_tasks import squares

pytestmark = pytest.mark.usefixtures("one_ray")

LENGTH = 20_000
PARTS = np.random.default_rng(0).normal(size=(2, LENGTH)).astype(np.float32)
PARAMS = np.random.default_rng(1).normal(size=LENGTH).astype(np.float32)
# No worker is lost because the machine is busy.
PATIENT = Timeouts(response=60.0, replacement=300.0)


def gradient():
    return 2 * (2 * PARAMS - PARTS.sum(0))


def corrupt_part_1(worker, step, message):
    """Worker 1 computes part 1 wrongly, in all sums that contain it."""
    is_there = np.abs(message + 2 * PARTS[1] - 2 * PARAMS).max() < 1e-3
    is_there |= np.abs(message - gradient()).max() < 1e-3
    return message + 1 if worker == 1 and is_there else message


def corrupt_all(worker, step, message):
    return -message if worker == 1 else message


def corrupt_part_1_then_all(worker, step, message):
    corrupt = corrupt_part_1 if step == 0 else corrupt_all
    return corrupt(worker, step, message)


def test_parameters_are_too_large_for_a_task():
    assert PARAMS.nbytes > _LARGEST_IN_TASK


def test_arbitration_finds_the_corrupted_one_of_two_copies():
    """It halves the parts, and recomputes the last one."""
    code = codes.fractional_repetition(2, num_stragglers=1)
    options = {
        "verification": Verification(on_wrong="arbitrate"),
        "timeouts": PATIENT,
        "faults": Faults(corrupt=corrupt_part_1_then_all),
    }
    with RayCluster(squares, code, PARTS, **options) as cluster:
        rounds = [cluster.compute(PARAMS) for _ in range(2)]
    for this_round in rounds:
        assert this_round.wrong.tolist() == [False, True]
        assert this_round.received.tolist() == [True, False]
        assert not this_round.rejected
        decoded = jaxwgc.decode(
            code, this_round.messages, this_round.received, jnp.zeros(LENGTH)
        )
        np.testing.assert_allclose(decoded, gradient(), rtol=1e-5, atol=1e-4)


@pytest.mark.weekly
def test_audit_recomputes_a_part_of_large_parameters():
    """Worker 1 is corrupted, and worker 0 finishes its parts."""
    code = codes.replicated(2, copies=2)
    options = {
        "verification": Verification(audit=0.99),
        "timeouts": PATIENT,
        "faults": Faults(corrupt=corrupt_all),
    }
    with RayCluster(squares, code, PARTS, **options) as cluster:
        rounds = [cluster.compute(PARAMS) for _ in range(2)]
    # A round is not audited with a probability of 1%.
    assert any(this_round.wrong[1] for this_round in rounds)
    for this_round in rounds:
        assert not this_round.wrong[0]
        if this_round.wrong[1]:
            decoded = coding.decode_sums(this_round.messages, jnp.zeros(LENGTH))
            np.testing.assert_allclose(decoded, gradient(), rtol=1e-5, atol=1e-4)
