"""Rounds on a Ray that is simulated, whose clock goes on without anyone waiting."""

import dataclasses
import pickle
import types
from typing import Any

import jax
import numpy as np
import pytest

from jaxwgc.distributed import _ray_places, _ray_rounds
from jaxwgc.distributed._ray_places import Place
from jaxwgc.distributed._ray_rounds import Layout, Patience, Rounds
from jaxwgc.distributed._ray_worker import Answer, Started

ray = pytest.importorskip("ray")

NUM_WORKERS, NUM_STRAGGLERS = 5, 3
LAYOUT = Layout(
    held=[np.array([worker]) for worker in range(NUM_WORKERS)],
    num_parts=NUM_WORKERS,
    per_worker=1,
    length=2,
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
    """What `Rounds` asks of Ray and of the module `time`."""

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
    found = SimulatedRay()
    for module in (_ray_rounds, _ray_places):
        monkeypatch.setattr(module, "find_ray", lambda: found)
        monkeypatch.setattr(module, "time", found)
    monkeypatch.setattr(_ray_rounds, "check_connected", lambda: None)
    return found


def died():
    return ray.exceptions.ActorDiedError()


def start(simulated, compute, wait=None, starts=None, undecodable_after=8.0):
    """Rounds of workers that do `compute(worker, actor, step)`: seconds, and result.

    An actor, the nth of its worker, starts within a second, or as `starts` says.
    """

    def hire(worker, number):
        def begin(key_data):
            result = Started(1, "elsewhere", f"host{worker}", "alike")
            if starts is not None:
                result = starts(worker, number) or result
            return Task(simulated.now + 1.0, result)

        def answer(order):
            _, _, step = pickle.loads(order)
            seconds, result = compute(worker, number, step)
            if result is None:
                message = np.full((1, 2), worker + 1.0, np.float32)
                result = Answer(message, np.array([1.0]), None)
            return Task(simulated.now + seconds, result)

        return types.SimpleNamespace(
            start=types.SimpleNamespace(remote=begin),
            compute=types.SimpleNamespace(remote=answer),
        )

    def decodes(received):
        return received.sum() >= NUM_WORKERS - NUM_STRAGGLERS

    def until_decodable(times):
        answered = np.isfinite(times)
        return answered, 0.0 if decodes(answered) else np.inf

    rounds = Rounds(
        [Place(worker, hire) for worker in range(NUM_WORKERS)],
        LAYOUT,
        wait or until_decodable,
        decodes,
        NUM_STRAGGLERS,
        Patience(60.0, 300.0, undecodable_after),
        [],
    )
    rounds.start(np.zeros(2))
    return rounds


def run(rounds, step):
    return rounds.run(step, [], np.zeros(2))


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
    rounds = start(simulated, compute)
    caplog.clear()
    for step in range(200):
        assert run(rounds, step).received.sum() == 2
    host = "host{0} (node elsewher)"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "worker 0 is lost in round 1: ArithmeticError: as told; "
            "2 of 3 spare workers left",
        ),
        (
            "WARNING",
            "worker 1 is lost in round 1: its process died (ActorDiedError); "
            "1 of 3 spare workers left",
        ),
        (
            "INFO",
            f"worker 0 is back in round 2 on {host.format(0)}; it was lost: "
            "ArithmeticError: as told",
        ),
        (
            "INFO",
            f"worker 1 is back in round 2 on {host.format(1)}; it was lost: "
            "its process died (ActorDiedError)",
        ),
        (
            "WARNING",
            "worker 2 is lost in round 99: silent for 60.4 s; restart_after is 60; "
            "2 of 3 spare workers left",
        ),
        (
            "INFO",
            f"worker 2 is back in round 102 on {host.format(2)}; it was lost: "
            "silent for 60.4 s; restart_after is 60",
        ),
    ]


def test_last_spare_is_said(simulated, caplog):
    def compute(worker, actor, step):
        return 0.1, died() if worker < 4 and actor == 0 and step == 1 else None

    rounds = start(simulated, compute)
    run(rounds, 0)
    run(rounds, 1)
    spares = [record.getMessage().split("; ")[-1] for record in caplog.records]
    assert spares == [
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

    rounds = start(simulated, compute, undecodable_after=8.0)
    assert run(rounds, 0).received.sum() >= 2
    while rounds.places[4].is_computing:
        first = run(rounds, 1)
    # The answer comes after five seconds, and is alone.
    assert first.received.tolist() == [False] * 4 + [True]
    assert 8.0 <= first.elapsed <= 10.0
    for step in range(2, 6):
        assert run(rounds, step).elapsed <= 6.0


def test_death_at_the_start_is_made_up_for(simulated):
    def starts(worker, number):
        return died() if worker == 1 and number < 2 else None

    rounds = start(simulated, lambda *_: (0.1, None), starts=starts)
    assert run(rounds, 0).received.sum() == 2
    with pytest.raises(RuntimeError, match=r"worker 1 failed to start: its process"):
        start(
            simulated,
            lambda *_: (0.1, None),
            starts=lambda worker, _: died() if worker == 1 else None,
        )


def test_rule_that_names_who_has_not_answered(simulated):
    def wait(times):
        is_over = np.isfinite(times).sum() > 1
        return np.ones(NUM_WORKERS, bool), 0.0 if is_over else np.inf

    rounds = start(simulated, lambda worker, *_: (1.0 + worker, None), wait)
    found = run(rounds, 0)
    assert found.received.tolist() == [True, True, False, False, False]
    assert found.messages.tolist() == [[1, 1], [2, 2], [0, 0], [0, 0], [0, 0]]


def test_late_answers_are_not_copied(simulated, monkeypatch):
    copied = []

    def unpack(wire, message):
        copied.append(wire[0, 0])
        message[...] = wire

    monkeypatch.setattr(_ray_rounds, "unpack", unpack)
    rounds = start(simulated, lambda worker, *_: (1.0 + worker, None))
    for step in range(5):
        run(rounds, step)
    assert np.isfinite(np.array(rounds.times)[:, 2]).any()
    assert set(copied) == {1, 2}


def test_closed_round_ends(simulated):
    rounds = start(simulated, lambda *_: (NEVER, None))
    rounds.is_closed.set()
    with pytest.raises(RuntimeError, match="closed during a round"):
        run(rounds, 0)
