"""Callbacks of training and metric writers, on rounds that no worker computes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.distributed import JsonLines, Progress, Round
from jaxwgc.distributed.ray import _training
from jaxwgc.distributed.ray._callbacks import TrainingState
from jaxwgc.distributed.ray._fleet import WorkerSlot
from jaxwgc.distributed.ray._live_table import live_table
from jaxwgc.distributed.ray._messages import LateTime
from jaxwgc.distributed.ray._response_limit import ResponseLimit
from jaxwgc.reports import straggler_report
from jaxwgc.traces._column_names import FileOptions
from jaxwgc.traces._files import read_trace
from tests.distributed.simulated import round_of_messages

CODE = codes.uncoded(2)
PARAMS = jnp.zeros(2)
CHAIN = optax.chain(jaxwgc.decode_aggregate(CODE), optax.sgd(0.1))


def compute(params, step, key):
    """Worker 1 responds in odd steps, and its message is rejected in step 3."""
    messages = np.ones((2, 2), np.float32)
    received = np.array([True, step == 1])
    seconds = np.array([0.25, 0.5 if step % 2 else np.nan])
    losses = np.array([1.0, 2.0 if step == 1 else np.nan])
    return Round(
        messages=messages,
        received=received,
        times=np.where(np.isnan(seconds), np.inf, seconds),
        seconds=seconds,
        elapsed=0.75,
        known=np.isfinite(losses),
        losses=losses,
        aux=None,
        timings={},
        wrong=np.array([False, step == 3]),
        replaced=step,
    )


def train(
    num_steps,
    *callbacks,
    params=PARAMS,
    chain=CHAIN,
    checkpoint=None,
    checkpoint_every=100,
    limit=None,
):
    start = TrainingState(params, chain.init(params), jax.random.key(0), 0)
    return _training.train(
        compute,
        CODE,
        chain,
        start,
        num_steps,
        callbacks,
        checkpoint,
        checkpoint_every,
        limit=limit or ResponseLimit(None, 2),
    )


class Writer:
    """Notes what its method is given, which has the name of that of a library."""

    def __init__(self, method):
        self.calls = []
        setattr(
            self,
            method,
            lambda *arguments, **named: self.calls.append((arguments, named)),
        )


def test_writers_get_metrics_as_their_method_takes_them():
    wandb, clu, board = map(Writer, ("log", "write_scalars", "add_scalar"))
    seen = []
    train(4, wandb, clu, board, seen.append)
    expected = {
        "loss": 3.0,
        "step_seconds": 0.75,
        "responded": 2.0,
        "corrupted": 0.0,
        "undecodable": 0.0,
        "replaced": 1.0,
        "worker/0/seconds": 0.25,
        "worker/1/seconds": 0.5,
    }
    metrics = [progress.metrics() for progress in seen]
    assert metrics[1] == expected
    assert {type(value) for record in metrics for value in record.values()} == {float}
    names = "responded", "corrupted", "undecodable", "worker/1/seconds"
    # A worker whose message was rejected has responded.
    assert [metrics[3][name] for name in names] == [2, 1, 1, 0.5]
    assert [str(metrics[2][name]) for name in names] == ["1.0", "0.0", "1.0", "nan"]
    assert wandb.calls[1] == ((expected,), {"step": 2})
    assert clu.calls[1] == ((2, expected), {})
    second = [arguments for arguments, _ in board.calls if arguments[2] == 2]
    assert second == [(name, value, 2) for name, value in expected.items()]
    assert (len(wandb.calls), len(clu.calls), len(board.calls)) == (4, 4, 27)


def test_callbacks_that_write_into_their_state_change_no_training():
    """Into dicts, whose arrays are then of NumPy, and may be written into, too."""

    def overwrite(progress):
        _, (momentum, _) = progress.state.optimizer_state
        for tree in (progress.state.params, momentum.trace):
            tree["w"] = np.array(tree["w"])
            tree["w"][:] = 7.0

    momentum = optax.sgd(0.1, momentum=0.9)
    chain = optax.chain(jaxwgc.decode_aggregate(CODE), momentum)
    options = {"params": {"w": PARAMS}, "chain": chain}
    expected = train(3, **options)
    state = train(3, overwrite, **options)
    np.testing.assert_array_equal(state.params["w"], expected.params["w"])


def test_errors_end_training_with_a_checkpoint(tmp_path):
    """The error shows the traceback of the callback."""

    def fail_in_function(progress):
        if progress.state.step == 2:
            raise ArithmeticError("as told")

    class Failing:
        def log(self, metrics, step):
            if step >= 2:
                raise ArithmeticError("as told")

    metrics = tmp_path / "metrics.jsonl"
    for callback, name in ((fail_in_function, "fail_in_function"), (Failing(), "log")):
        with pytest.raises(ArithmeticError, match="as told") as raised:
            train(
                2000, callback, JsonLines(metrics), checkpoint=tmp_path / "checkpoints"
            )
        assert raised.traceback[-1].name == name
        state = train(0, checkpoint=tmp_path / "checkpoints")
        last = json.loads(metrics.read_text().splitlines()[-1])
        assert last["step"] == state.step == {"fail_in_function": 2, "log": 3}[name]


def test_all_callbacks_see_the_last_step():
    """Also those that come after the one that stops."""
    steps = []

    def stop(progress):
        return "stop" if progress.state.step == 3 else None

    state = train(6, stop, lambda progress: steps.append(progress.state.step))
    assert state.step == 3
    assert steps == [1, 2, 3]


def test_checkpoints_of_a_resumed_run_are_those_of_a_whole_one(tmp_path):
    """Every two steps from the start; the run is resumed after step 3."""
    train(3, checkpoint=tmp_path, checkpoint_every=2)
    train(7, checkpoint=tmp_path, checkpoint_every=2)
    names = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
    assert names == {"6", "7"}


def test_json_lines_after_the_checkpoint_are_dropped(tmp_path):
    """The run stops at step 3, and is killed in the middle of the line of step 5."""
    path = tmp_path / "metrics.jsonl"
    folder = tmp_path / "checkpoints"

    def stop(progress):
        return "stop" if progress.state.step == 3 else np.zeros(2)

    assert train(6, stop, JsonLines(path), checkpoint=folder).step == 3
    first = path.read_text()
    later = first.splitlines()[-1].replace('"step": 3', '"step": 4')
    path.write_text(f"{first}{later}\n{later[:30]}")
    train(6, JsonLines(path), checkpoint=folder)
    assert path.read_text().startswith(first)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # JSON has no NaN.
    assert (lines[3]["loss"], lines[3]["replaced"]) == (None, 3.0)


def test_json_lines_of_another_run_are_kept(tmp_path):
    """Before any round."""
    path = tmp_path / "metrics.jsonl"
    rounds = []
    train(1, JsonLines(path), checkpoint=tmp_path / "first")
    for text in (path.read_text(), '{"loss": 1.0}\n', "of something else"):
        path.write_text(text)
        with pytest.raises(
            ValueError, match="file of this run; line 1 of .*jsonl is of another"
        ):
            train(1, JsonLines(path), rounds.append, checkpoint=tmp_path / "second")
        assert path.read_text() == text
    assert not rounds


def test_json_lines_have_times_of_late_responses(tmp_path):
    """Worker 1 responds to step 2 in step 4: the report reads it in its row."""
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.begin("run", 0)
    for step in range(1, 5):
        late = (LateTime(worker=1, rounds_ago=2, seconds=0.5),) if step == 4 else ()
        state = TrainingState(PARAMS, None, jax.random.key(0), step)
        this_round = compute(PARAMS, 0, None)._replace(late_times=late)
        lines(Progress(state, this_round, 1.0, False))
    assert [json.loads(line).get("late") for line in path.open()] == [
        None,
        None,
        None,
        [[1, 2, 0.5]],
    ]
    times = read_trace(path, FileOptions()).times
    np.testing.assert_array_equal(times[:, 1], [np.nan, 0.5, np.nan, np.nan])


def test_live_shows_the_workers_that_are_ready_and_slow(capsys):
    """First without a table of steps, then with the report of the trace."""
    slots = [WorkerSlot(0), WorkerSlot(1, node="elsewhere")]
    times = np.array([[1.0, 3.0], [1.1, 3.0]] * 8)
    shown = live_table(16, 2, lambda: slots, lambda: straggler_report(times))
    with shown:
        pass
    assert "1 of 2 workers are ready" in capsys.readouterr().out
    state = TrainingState(None, None, jax.random.key(0), 1)
    num_shown = []
    reported_at = []

    def make_report():
        reported_at.append(len(num_shown))
        return straggler_report(times)

    with live_table(16, 2, lambda: slots, make_report) as [show]:
        for _ in range(8):
            num_shown.append(1)
            show(Progress(state, compute(None, 1, None), 1.0, False))
    assert reported_at == [8]
    text = capsys.readouterr().out
    assert "chronic" in text and "2.86" in text
    assert "Check or replace worker 1: " in " ".join(text.split())


def test_timeouts_are_part_of_the_checkpoint(tmp_path):
    first = ResponseLimit(None, 2)
    second = ResponseLimit(None, 2)
    first.note(1, 0.25)
    train(0, checkpoint=tmp_path, limit=first)
    assert second.seconds == 60.0
    train(0, checkpoint=tmp_path, limit=second)
    assert second.seconds == 2.5


def test_memory_is_checkpointed(tmp_path):
    """The third worker responds in the first step, and late in the third."""

    def messages(step):
        return np.random.default_rng(step).normal(size=(3, 2)).astype(np.float32)

    def compute(params, step, key):
        received = np.array([True, True, step == 0])
        late = np.array([False, False, step == 2])
        losses = np.zeros(3)
        return round_of_messages(messages(step), received, losses, late=late)

    def train(code, *arguments):
        aggregate = jaxwgc.decode_aggregate(code, memory=True)
        chain = optax.chain(aggregate, optax.sgd(0.1))
        start = TrainingState(PARAMS, chain.init(PARAMS), jax.random.key(0), 0)
        limit = ResponseLimit(None, 3)
        state = _training.train(compute, code, chain, start, *arguments, limit=limit)
        return state.params, state.optimizer_state[0].memory

    code = codes.uncoded(3)
    whole, memory = train(code, 6, (), tmp_path, 3)
    np.testing.assert_array_equal(memory.messages[2], messages(2)[2])
    shutil.rmtree(tmp_path / "6")
    resumed, again = train(code, 6, (), tmp_path)
    np.testing.assert_array_equal(resumed, whole)
    np.testing.assert_array_equal(again.messages, memory.messages)
    assert again.known.all()
    # What is remembered of another code is forgotten, also of other workers.
    for other in (jaxwgc.GradientCode.from_matrix(2 * np.eye(3)), codes.uncoded(2)):
        params, memory = train(other, 6, (), tmp_path)
        np.testing.assert_array_equal(params, whole)
        assert memory.known.tolist() == [False] * other.num_workers


def test_first_step_is_announced_and_logged(caplog):
    """The optimizer is compiled in it, which takes seconds."""
    caplog.set_level("INFO", "jaxwgc.distributed")
    seen = []
    train(3, lambda progress: seen.append([*caplog.messages]))
    lines = ["compiling the optimizer step", "step 0 is done: loss nan"]
    assert seen == [lines] * 3
