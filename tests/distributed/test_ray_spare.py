"""The spare process: it takes the place of a lost worker, and may fail at any time."""

import os
import signal
import types

import numpy as np
import pytest

from jaxwgc import codes
from jaxwgc.distributed import RayCluster, Timeouts
from jaxwgc.distributed.ray import _actors, _launcher, _session
from jaxwgc.distributed.ray._events import Launch
from tests.conftest import weekly
from tests.distributed.ray_processes import repeat_until
from tests.distributed.ray_tasks import squares
from tests.distributed.simulated import SimulatedLauncher, SimulatedRay, message_layout

CODE = codes.fractional_repetition(2, num_stragglers=1)
PARAMS = np.zeros(3, np.float32)
PARTS = np.ones((CODE.num_parts, 3), np.float32)
# No verdict depends on how long a process takes to start or to respond.
PATIENT = Timeouts(response=60.0, replacement=300.0)
NEVER_READY = "a task that never ends"


class FakeActor:
    """An actor; its warm-up returns `response`, raises it, or never ends."""

    def __init__(self, assignment, response):
        self.assignment = assignment
        self.response = response
        self.start = types.SimpleNamespace(remote=self._start)
        self.warm_up = types.SimpleNamespace(remote=lambda: self)

    def _start(self, assignment=None):
        self.assignment = assignment or self.assignment
        return "start"


class FakeRay:
    """Ray whose processes are ready with their pid, unless `response` is changed."""

    def __init__(self):
        self.response = 4711
        self.killed = []
        self.actors = []

    def put(self, value):
        return value

    def remote(self, **options):
        return lambda kind: types.SimpleNamespace(options=lambda **options: self.kind)

    @property
    def kind(self):
        return types.SimpleNamespace(remote=self._make)

    def _make(self, assignment, task):
        self.actors.append(FakeActor(assignment, self.response))
        return self.actors[-1]

    def wait(self, tasks, timeout):
        return [task for task in tasks if task.response != NEVER_READY], []

    def get(self, task, timeout):
        if isinstance(task.response, Exception):
            raise task.response
        return task.response

    def kill(self, actor, no_restart):
        self.killed.append(actor)

    def is_initialized(self):
        return True


@pytest.fixture
def fake(monkeypatch):
    """Yields a Ray without processes, and the signals that would be sent."""
    ray = FakeRay()
    ray.signals = []
    monkeypatch.setattr(_launcher, "find_ray", lambda: ray)
    system = types.SimpleNamespace(
        kill=lambda *arguments: ray.signals.append(arguments), environ=os.environ
    )
    monkeypatch.setattr(_launcher, "os", system)
    return ray


def make_launcher(has_spare=True):
    code = codes.uncoded(2)
    options = {"num_cpus": 0}
    parts = np.ones((2, 3))
    layout = message_layout(2)._replace(held=[np.array([0]), np.array([1])])
    return _launcher.Launcher(code, layout, None, parts, options, has_spare=has_spare)


@pytest.mark.parametrize("response", [4711, NEVER_READY])
def test_spare_process_takes_the_place_of_a_worker(fake, response):
    """A spare process that is still starting is ahead of a new process."""
    launcher = make_launcher()
    fake.response = response
    launcher.prepare_spare()
    launcher.prepare_spare()
    [spare] = fake.actors
    assert spare.assignment is None
    actor, task = launcher.launch(1, step=3)
    assert (actor, task, spare.assignment.worker) == (spare, "start", 1)
    # Its first batches are those of the step in which it is started.
    assert spare.assignment.step == 3
    actor, _ = launcher.launch(0, step=4)
    assert actor is not spare
    assert actor.assignment.worker == 0


@pytest.mark.parametrize("error", [RuntimeError("it died"), TimeoutError("frozen")])
def test_spare_process_that_has_failed_is_not_used(fake, error):
    launcher = make_launcher()
    launcher.prepare_spare()
    [spare] = fake.actors
    spare.response = error
    actor, task = launcher.launch(1, step=3)
    assert fake.killed == [spare]
    assert (actor.assignment.worker, task) == (1, "start")
    launcher.prepare_spare()
    assert len(fake.actors) == 3


def test_spare_process_is_ended(fake):
    """A frozen one too, by its number."""
    launcher = make_launcher()
    launcher.end_spare()
    launcher.prepare_spare()
    launcher.end_spare()
    launcher.end_spare()
    assert fake.killed == fake.actors
    assert fake.signals == [(4711, signal.SIGKILL)]


def test_no_spare_process_is_started_unless_asked_for(fake):
    launcher = make_launcher(has_spare=False)
    launcher.prepare_spare()
    assert not fake.actors


def test_spare_process_starts_after_all_workers(monkeypatch):
    """It would slow their start."""
    ray = SimulatedRay()
    for module in (_actors, _session):
        monkeypatch.setattr(module, "find_ray", lambda: ray)
    monkeypatch.setattr(_actors, "time", ray)
    launcher = SimulatedLauncher(ray)
    actors = _actors.Actors(launcher, 2, lambda: None)
    actors.perform([Launch(0), Launch(1)])
    ray.due[1] = 10
    actors.next_event(0.0)
    assert not launcher.num_spares
    actors.next_event(20.0)
    assert launcher.num_spares == 1


@pytest.mark.parametrize(
    ("arguments", "has_spare"),
    [
        ({}, True),
        ({"spare": False}, False),
        ({"address": "auto"}, False),
        ({"address": "auto", "spare": True}, True),
        ({"actor_options": {"num_gpus": 1}}, False),
    ],
)
def test_the_spare_process_is_off_if_it_would_claim_more_resources(
    arguments, has_spare
):
    pytest.importorskip("ray")
    cluster = RayCluster(squares, CODE, PARTS, **arguments)
    assert cluster._coordinator._processes.has_spare is has_spare
    with pytest.raises(TypeError, match="spare must be"):
        RayCluster(squares, CODE, PARTS, spare=1)


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(
    "fault",
    [
        None,
        weekly(signal.SIGKILL),
        weekly(signal.SIGSTOP),
    ],
)
def test_worker_comes_back(caplog, monkeypatch, fault):
    """It comes back in the spare process, or in a new one if that was lost."""
    if fault is None:
        monkeypatch.setattr(_launcher, "_SECONDS_TO_RESPOND", 300.0)
    caplog.set_level("INFO", "jaxwgc.distributed")
    options = {"timeouts": PATIENT, "spare": True}
    with RayCluster(squares, CODE, PARTS, **options) as cluster:
        cluster.compute(PARAMS)
        # The step may end before the other worker responds.
        launcher = cluster._coordinator.driver.actors._launcher
        spare = _launcher.find_ray().get(launcher._warm_up)
        if fault is not None:
            os.kill(spare, fault)
        lost = cluster.workers[0].pid
        os.kill(lost, signal.SIGKILL)
        repeat_until(
            lambda: cluster.workers[0].pid not in (None, lost),
            lambda: cluster.compute(PARAMS),
        )
        assert (cluster.workers[0].pid == spare) is (fault is None)
        np.testing.assert_allclose(cluster.compute(PARAMS).losses, [3.0, 3.0])
    was_used = "a spare process takes the place of worker 0" in caplog.messages
    assert was_used is (fault is None)
