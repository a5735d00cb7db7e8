"""Batches that workers read in each step, from files and by index."""

import functools
import os
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwgc import GradientCode, codes, stragglers
from jaxwgc.distributed import RayCluster, Timeouts, Verification
from tests.conftest import weekly
from tests.distributed import batch_tasks
from tests.distributed.batch_tasks import Examples, RowsOfFile, loss

pytestmark = pytest.mark.usefixtures("one_ray")

NUM_PARTS = 4
# Two copies of four parts, in one message per worker and on request.
ONE_MESSAGE = codes.fractional_repetition(4, num_stragglers=1)
TWO_MESSAGES = GradientCode.from_matrix(np.ones((2, NUM_PARTS)))
ON_REQUEST = codes.replicated(2, num_parts=NUM_PARTS, copies=2)
PARAMS = jnp.arange(5.0)
OPTIMIZER = optax.sgd(1e-3, momentum=0.9)
# No verdict depends on how long a process takes to start or to respond.
PATIENT = Timeouts(response=60.0, replacement=300.0)
WRONG = f"step={batch_tasks.WRONG_STEP}, part={batch_tasks.WRONG_PART}"


@pytest.fixture(scope="module")
def rows_of_file(tmp_path_factory):
    """Rows of a file with six steps in an epoch, 2 rows for each part."""
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    rows = np.random.default_rng(0).normal(size=(6 * NUM_PARTS * 2, 5))
    np.save(path, rows.astype(np.float32))
    return RowsOfFile(path, NUM_PARTS, rows_per_part=2)


def losses_of_one_process(batches, num_steps):
    """Returns the loss of each step, and the last params."""

    @jax.jit
    def update(params, state, parts):
        def total(params):
            return sum(loss(params, part) for part in parts)

        value, gradient = jax.value_and_grad(total)(params)
        updates, state = OPTIMIZER.update(gradient, state, params)
        return value, optax.apply_updates(params, updates), state

    params = PARAMS
    state = OPTIMIZER.init(params)
    losses = []
    for step in range(num_steps):
        parts = [batches(step, part) for part in range(NUM_PARTS)]
        value, params, state = update(params, state, parts)
        losses.append(float(value))
    return losses, params


def assert_params_close(params, expected):
    """Checks parameters up to rounding errors relative to the norm (measured 1e-7)."""
    assert optax.tree.norm(params - expected) < 1e-5 * optax.tree.norm(expected)


def all_respond(code):
    """Returns a rule that waits for all parts, so that all losses are known."""
    return stragglers.fastest(code.num_workers)


def open_cluster(code, batches, **options):
    return RayCluster(loss, code, batches=batches, timeouts=PATIENT, **options)


@pytest.mark.weekly
@pytest.mark.parametrize(
    ("code", "verification"),
    [
        (ONE_MESSAGE, Verification(on_wrong="arbitrate")),
        (ON_REQUEST, Verification(audit=0.5)),
    ],
)
def test_training_from_a_memory_map_is_that_of_one_process(
    rows_of_file, code, verification
):
    """Training takes two epochs, in which a worker is killed."""
    seen = []

    def callback(progress):
        seen.append(progress.loss)
        if progress.state.step == 4:
            os.kill(cluster.workers[1].pid, signal.SIGKILL)

    with open_cluster(code, rows_of_file, verification=verification) as cluster:
        state = cluster.train(OPTIMIZER, PARAMS, 12, callbacks=[callback])
    losses, params = losses_of_one_process(rows_of_file, 12)
    known = np.isfinite(seen)
    assert known.sum() >= 6
    np.testing.assert_allclose(
        np.array(seen)[known], np.array(losses)[known], rtol=1e-5
    )
    assert_params_close(state.params, params)


def test_resumed_training_sees_the_same_batches(rows_of_file, tmp_path):
    """It stops in the middle of an epoch, and goes on with another code.

    Then, a worker is killed.
    """
    losses, params = losses_of_one_process(rows_of_file, 9)
    seen = []

    def callback(progress):
        seen.append(progress.loss)
        if progress.state.step == 6:
            os.kill(cluster.workers[1].pid, signal.SIGKILL)
        return "stop" if progress.state.step == 4 else None

    for code, verification in (
        (TWO_MESSAGES, Verification(on_wrong="arbitrate")),
        (ON_REQUEST, Verification(audit=0.5)),
    ):
        options = {"wait": all_respond(code), "verification": verification}
        with open_cluster(code, rows_of_file, **options) as cluster:
            state = cluster.train(
                OPTIMIZER, PARAMS, 9, callbacks=[callback], checkpoint=tmp_path
            )
    assert state.step == len(seen) == 9
    # The round after the kill need not have all losses.
    known = np.isfinite(seen)
    assert known[:6].all()
    np.testing.assert_allclose(
        np.array(seen)[known], np.array(losses)[known], rtol=1e-5
    )
    assert_params_close(state.params, params)


# Errors of a bad batch, by its change.
ERRORS = {
    # The round of this error has all workers.
    "changed": (RuntimeError, "workers . and . have different batches of part 1 in"),
    "raising": (RuntimeError, rf"batches\({WRONG}\) raised FileNotFoundError: no 2"),
    "shorter": (ValueError, rf"batches\({WRONG}\) must have .* float32.4, 5."),
    "half": (ValueError, rf"batches\({WRONG}\) must have .* now float16.8, 5."),
}


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (ON_REQUEST, ["changed", "raising"]),
        weekly(ONE_MESSAGE, [*ERRORS]),
        weekly(ON_REQUEST, [*ERRORS]),
    ],
)
def test_bad_batches_end_training_and_lose_nothing(code, changes, tmp_path):
    """One cluster sees one bad batch after the other, and then repaired data."""
    directions = tmp_path / "change"
    directions.write_text("nothing")
    folder = tmp_path / "checkpoints"
    batches = batch_tasks.DirectedBatches(directions)
    steps = []

    def train():
        return cluster.train(
            OPTIMIZER,
            PARAMS,
            6,
            callbacks=[lambda progress: steps.append(progress.state.step)],
            checkpoint=folder,
        )

    with open_cluster(code, batches, wait=all_respond(code)) as cluster:
        for change in changes:
            error, message = ERRORS[change]
            directions.write_text(change)
            with pytest.raises(error, match=message) as info:
                train()
            if change == "raising":
                # The traceback of the worker has the user's own line.
                assert "in raising" in str(info.value.__cause__)
            if change != "changed":
                assert "worker " in str(info.value)
            assert steps == [1, 2]
            # Other steps can still be computed.
            cluster.resume(10)
            assert cluster.compute(PARAMS).received.any()
        directions.write_text("nothing")
        state = train()
    assert steps == [1, 2, 3, 4, 5, 6]
    _, params = losses_of_one_process(batch_tasks.batches, 6)
    assert_params_close(state.params, params)


@pytest.mark.weekly
def test_array_that_is_sent_with_the_function_is_read_only():
    fill = functools.partial(batch_tasks.fill, np.zeros((2, 5), np.float32))
    why = "is read-only; arrays that a function captures are"
    match = (
        "worker . failed to start: BatchError: "
        rf"batches\(step=3, part=.\) raised ValueError: .* {why}"
    )
    with open_cluster(ONE_MESSAGE, fill) as cluster:
        cluster.resume(3)
        with pytest.raises(RuntimeError, match=match) as info:
            cluster.compute(PARAMS)
    assert "in fill" in str(info.value.__cause__)


@pytest.mark.weekly
def test_grain_datasets(rows_of_file):
    rows = np.load(rows_of_file.path)
    dataset = grain.MapDataset.source(rows).shuffle(seed=0).repeat()
    dataset = dataset.map(lambda row: {"x": row})
    batches = Examples(dataset, NUM_PARTS, rows_per_part=2)
    with open_cluster(ON_REQUEST, batches) as cluster:
        state = cluster.train(OPTIMIZER, PARAMS, 5)
    _, params = losses_of_one_process(batches, 5)
    assert_params_close(state.params, params)
