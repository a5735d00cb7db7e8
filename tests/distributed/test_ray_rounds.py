"""Rounds on a Ray that is simulated, whose clock goes on without anyone waiting."""

import dataclasses
import itertools
import pickle
import re
import types
from typing import Any

import jax
import numpy as np
import pytest

from jaxwgc.distributed import Progress, Round
from jaxwgc.distributed.ray import _coordinator, _slots, _training
from jaxwgc.distributed.ray._coordinator import Coordinator
from jaxwgc.distributed.ray._messages import Answer, Layout
from jaxwgc.distributed.ray._slots import Timeouts, WorkerSlot
from jaxwgc.distributed.ray._trace import filled, mark_lost
from jaxwgc.distributed.ray._worker import Started
from jaxwgc.studies import straggler_report

ray = pytest.importorskip("ray")

NUM_WORKERS, NUM_STRAGGLERS = 5, 3
LAYOUT = Layout(
    held=[np.array([worker]) for worker in range(NUM_WORKERS)],
    num_parts=NUM_WORKERS,
    shape=(NUM_WORKERS, 2),
    dtype=np.dtype(np.float32),
    wire=jax.ShapeDtypeStruct((1, 2), np.float32),
)
NEVER = 1e9


@dataclasses.dataclass(eq=False)
class Task:
    """Is done at some time, with a result, or an error that is raised."""

    done_at: float
    result: Any


class SimulatedRay:
    """What a coordinator asks of Ray and of the module `time`."""

    exceptions = ray.exceptions

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def is_initialized(self):
        return True

    def put(self, value):
        return value

    def get(self, task, timeout):
        if isinstance(task.result, Exception):
            raise task.result
        return task.result

    def wait(self, tasks, timeout):
        first = min(tasks, key=lambda task: task.done_at)
        self.now = max(self.now, min(first.done_at, self.now + timeout))
        return ([first] if first.done_at <= self.now else []), []

    def kill(self, actor, no_restart):
        pass

    def get_runtime_context(self):
        return types.SimpleNamespace(get_node_id=lambda: "coordinator's")

    def available_resources(self):
        return {}


@pytest.fixture
def simulated(monkeypatch):
    simulation = SimulatedRay()
    for module in (_coordinator, _slots):
        monkeypatch.setattr(module, "find_ray", lambda: simulation)
        monkeypatch.setattr(module, "time", simulation)
    monkeypatch.setattr(_coordinator, "check_connected", lambda: None)
    return simulation


def died():
    return ray.exceptions.ActorDiedError()


def start(simulated, compute, ends=None, starts=None):
    """The coordinator of workers that do `compute(worker, actor, step)`.

    That gives seconds, and a result, None for a message. An actor, the nth of its
    worker, starts within a second, or as `starts` says.
    """
    numbers = [itertools.count() for _ in range(NUM_WORKERS)]

    def launch(worker):
        number = next(numbers[worker])

        def begin():
            result = Started(1, "elsewhere", f"host{worker}", "alike")
            if starts is not None:
                result = starts(worker, number) or result
            return Task(simulated.now + 1.0, result)

        def answer(order):
            _, _, step = pickle.loads(order)
            seconds, result = compute(worker, number, step)
            if result is None:
                message = np.full((1, 2), worker + 1.0, np.float32)
                result = Answer(message, np.array([1.0]), None, seconds)
            return Task(simulated.now + seconds, result)

        return types.SimpleNamespace(
            start=types.SimpleNamespace(remote=begin),
            compute=types.SimpleNamespace(remote=answer),
        )

    def decodes(received):
        return received.sum() >= NUM_WORKERS - NUM_STRAGGLERS

    coordinator = Coordinator(
        [WorkerSlot(worker, launch) for worker in range(NUM_WORKERS)],
        LAYOUT,
        ends or (lambda times: 0.0 if decodes(np.isfinite(times)) else np.inf),
        decodes,
        NUM_STRAGGLERS,
        Timeouts(answer=60.0, start=300.0, replacement=8.0),
        [],
    )
    coordinator.start()
    return coordinator


def run(coordinator, step):
    return coordinator.run(step, [], np.zeros(2))


def test_losses_and_returns_are_a_line_each(simulated, caplog):
    """One worker raises, one is killed, one is frozen; and each comes back."""

    def compute(worker, actor, step):
        if actor == 0 and step == 1:
            if worker == 0:
                return 0.1, ray.exceptions.RayTaskError(
                    "compute", "Traceback", ArithmeticError("as told")
                )
            if worker == 1:
                return 0.2, died()
            if worker == 2:
                return NEVER, None
        return 0.5 + 0.1 * worker, None

    caplog.set_level("INFO", "jaxwgc.distributed")
    coordinator = start(simulated, compute)
    assert caplog.messages[0] == "starting 5 workers"
    assert caplog.messages[1:6] == [f"{n} of 5 workers are ready" for n in range(1, 6)]
    shown = "WorkerSlot(index=0, pid=None, node='elsewher', state='idle')"
    assert repr(coordinator.slots[0]) == shown
    caplog.clear()
    for step in range(200):
        assert run(coordinator, step).received.sum() == 2
    raised = "ArithmeticError: as told"
    killed = "its process died (ActorDiedError)"
    frozen = r"silent for 60\.\d s; timeouts.answer is 60"
    expected = [
        f"worker 0 is lost in step 1: {raised}; 2 of 3 spare workers left",
        f"worker 1 is lost in step 1: {killed}; 1 of 3 spare workers left",
        f"worker 0 is back in step 2 on host0 (node elsewher); it was lost: {raised}",
        f"worker 1 is back in step 2 on host1 (node elsewher); it was lost: {killed}",
    ]
    assert caplog.messages[:4] == expected
    lost, back = caplog.messages[4:]
    assert re.fullmatch(
        rf"worker 2 is lost in step \d+: {frozen}; 2 of 3 spare workers left", lost
    )
    assert re.fullmatch(
        rf"worker 2 is back in step \d+ on host2 .*; it was lost: {frozen}", back
    )
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "INFO", "INFO", "WARNING", "INFO"]


def test_live_shows_who_is_ready_and_who_is_slow(capsys):
    """Without a table of steps first, and then with the report of the trace."""
    slots = [WorkerSlot(worker, lambda worker: None) for worker in range(2)]
    slots[1].node = "elsewhere"
    times = np.array([[1.0, 3.0], [1.1, 3.0]] * 8)
    cluster = types.SimpleNamespace(
        code=types.SimpleNamespace(num_workers=2),
        workers=slots,
        report=lambda: straggler_report(times),
    )
    with _training.live_table(16, cluster):
        pass
    assert "1 of 2 workers are ready" in capsys.readouterr().out
    received = np.ones(2, bool)
    round = Round(times, received, times[0], 3.0, np.ones(2), None, {})
    state = _training.TrainingState(None, None, jax.random.key(0), 1)
    progress = Progress(state, round, 1.0, False)
    with _training.live_table(16, cluster) as [show]:
        for _ in range(8):
            show(progress)
    text = capsys.readouterr().out
    assert "chronic" in text and "2.86" in text
    assert "Check or replace worker 1: " in " ".join(text.split())


def test_last_spare_is_said(simulated, caplog):
    def compute(worker, actor, step):
        return 0.1, died() if worker < 4 and actor == 0 and step == 1 else None

    coordinator = start(simulated, compute)
    run(coordinator, 0)
    run(coordinator, 1)
    assert [message.split("; ")[-1] for message in caplog.messages] == [
        "2 of 3 spare workers left",
        "1 of 3 spare workers left",
        "no spare worker is left",
        "the others do not decode",
    ]


def test_who_never_comes_back_is_waited_for_once(simulated):
    """And from its loss on, whoever answers in the meantime."""

    def compute(worker, actor, step):
        if step and worker < 4:
            return 0.0, died()
        return 5.0, None

    coordinator = start(simulated, compute)
    assert run(coordinator, 0).received.sum() >= 2
    while coordinator.slots[4].is_computing:
        first = run(coordinator, 1)
    # The answer comes after five seconds, and is alone.
    assert first.received.tolist() == [False] * 4 + [True]
    assert 8.0 <= first.elapsed <= 10.0
    for step in range(2, 6):
        assert run(coordinator, step).elapsed <= 6.0


def test_deaths_at_the_start_are_made_up_for(simulated):
    def dead(worker, number):
        return died() if worker == 1 and number < 2 else None

    coordinator = start(simulated, lambda *_: (0.1, None), starts=dead)
    assert run(coordinator, 0).received.sum() == 2

    def always_dead(worker, _):
        return died() if worker == 1 else None

    with pytest.raises(RuntimeError, match=r"worker 1 failed to start: its process"):
        start(simulated, lambda *_: (0.1, None), starts=always_dead)


def test_rule_of_the_clock_ends_a_round_in_time(simulated):
    """After 2.5 seconds, of which no answer tells; two come before."""
    coordinator = start(
        simulated, lambda worker, *_: (1.0 + worker, None), ends=lambda times: 2.5
    )
    round = run(coordinator, 0)
    assert 2.5 <= round.elapsed < 2.502
    assert round.received.tolist() == [True, True, False, False, False]
    assert round.messages.tolist() == [[1, 1], [2, 2], [0, 0], [0, 0], [0, 0]]


def test_late_answers_are_timed_and_not_copied(simulated, monkeypatch):
    """By what workers took, although the coordinator looks 100 seconds later."""
    copied = []

    def unpack(wire, message):
        copied.append(wire[0, 0])
        message[...] = wire

    monkeypatch.setattr(_coordinator, "unpack", unpack)
    coordinator = start(simulated, lambda worker, *_: (1.0 + worker, None))
    for step in range(5):
        run(coordinator, step)
        simulated.now += 100.0
    assert np.array(coordinator.times[:4]).tolist() == 4 * [[1, 2, 3, 4, 5]]
    assert set(copied) == {1, 2}


def test_trace_of_busy_workers_is_unbiased(simulated):
    """One task in five takes 10 seconds, and two responses of five are enough."""

    def compute(worker, _, step):
        return np.random.default_rng((worker, step)).choice([1, 10], p=[0.8, 0.2]), None

    coordinator = start(simulated, compute)
    for step in range(500):
        run(coordinator, step)
    assert np.isnan(coordinator.times).mean() > 0.1
    assert abs(filled(coordinator.times).mean() - 2.8) < 0.4


def test_trace_of_a_coordinator_that_is_busy(simulated):
    """With the compilation of its waiting rule, in the first round."""

    def ends(times):
        simulated.now = max(simulated.now, begin + 30)
        return times.max()

    coordinator = start(simulated, lambda worker, *_: (worker + 1, None), ends)
    begin = simulated.now
    run(coordinator, 0)
    np.testing.assert_allclose(coordinator.times, [np.arange(NUM_WORKERS) + 1])


def test_rows_of_the_trace():
    nan, inf = np.nan, np.inf
    rows = [[1, nan], [nan, 2], [nan, inf], [3, nan], [nan, 4]]
    expected = [[1, 2], [3, 2], [1, inf], [3, 4], [1, 4]]
    assert filled(np.array(rows)).tolist() == expected
    # The worker finished a part in the second of three rounds.
    rows = [np.array([parts]) for parts in ([nan, nan], [1.0, nan], [nan, nan])]
    mark_lost(rows, 0)
    np.testing.assert_array_equal(rows, [[[nan, nan]], [[1, nan]], [[inf, inf]]])
