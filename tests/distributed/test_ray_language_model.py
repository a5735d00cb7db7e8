"""The experiment with a language model, in short."""

import json
import signal
import subprocess
import types

import psutil
import pytest

from experiments.ray import language_model as experiment

# In place of a model that learns, one that is compiled in no time.
SMALL = {
    "NUM_WORKERS": 2,
    "NUM_PARTS": 2,
    "CONTEXT": 8,
    "WIDTH": 8,
    "NUM_LAYERS": 1,
    "NUM_HEADS": 1,
    "SECONDS_PER_PART": 0.01,
    # No verdict depends on how long a process takes to start or to respond.
    "RESPONSE_SECONDS": 60.0,
    "REPLACEMENT_SECONDS": 300.0,
    "EVALUATE_EVERY": 1,
}


@pytest.fixture
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(experiment, name, value)


@pytest.mark.weekly
@pytest.mark.usefixtures("one_ray", "small")
@pytest.mark.filterwarnings("ignore:the round of step")
def test_every_way_trains_through_a_kill(tmp_path):
    experiment.language_model(steps=8, fault_every=6, seed=0, out=tmp_path)
    numbers = json.loads((tmp_path / "language_model.json").read_text())
    calm, coded, restarted, ignoring = numbers["ways"]
    assert calm["fault_steps"] == []
    assert coded["fault_steps"] == restarted["fault_steps"] == [3]
    assert ignoring["fault_steps"] == [3]

    # Exact gradients: the loss of the run without faults, to rounding.
    assert coded["loss"] == pytest.approx(calm["loss"], rel=1e-5)
    assert coded["repeated"] == coded["incomplete"] == coded["restarts"] == 0

    # All steps are repeated, since the first checkpoint would be later.
    assert restarted["restarts"] == 1
    assert restarted["repeated"] >= 3
    assert restarted["incomplete"] == 0
    assert restarted["loss"] == pytest.approx(calm["loss"], rel=1e-5)

    # Updates without some gradients lead elsewhere.
    assert ignoring["incomplete"] > 0
    assert ignoring["repeated"] == ignoring["restarts"] == 0
    assert ignoring["distance"] > 10 * max(coded["distance"], restarted["distance"])

    assert (tmp_path / "language_model.png").exists()
    table = (tmp_path / "language_model.md").read_text()
    assert all(own["way"] in table for own in numbers["ways"])


def test_faults_come_in_turn():
    faults = experiment.planned_faults(steps=160, fault_every=20, seed=0)
    assert list(faults) == [10, 30, 50, 70, 90, 110, 130, 150]
    numbers = [fault.number for fault in faults.values()]
    assert numbers == 4 * [signal.SIGKILL, signal.SIGSTOP]
    assert faults == experiment.planned_faults(steps=160, fault_every=20, seed=0)


def test_a_frozen_process_continues_in_the_end(small):
    """The fault is sent once, also if its step is repeated."""
    process = subprocess.Popen(["sleep", "600"])
    observed = psutil.Process(process.pid)
    slot = types.SimpleNamespace(index=0, pid=process.pid)
    cluster = types.SimpleNamespace(workers=[slot])
    progress = types.SimpleNamespace(state=types.SimpleNamespace(step=3))
    fault = experiment.Fault(worker=1, number=signal.SIGSTOP, seconds=0.0)
    try:
        with experiment.FaultInjector({3: fault}) as faults:
            for _ in range(2):
                faults.inject(cluster, progress)
            [timer] = faults._timers
            timer.join()
            while observed.status() != psutil.STATUS_STOPPED:
                pass
        assert faults.steps == [3]
        while observed.status() == psutil.STATUS_STOPPED:
            pass
    finally:
        process.kill()
        process.wait()
