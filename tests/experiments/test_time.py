"""Training against the clock, and delay models, end to end on few runs."""

import json

import numpy as np
import pytest

from experiments.delays import against_the_clock, models
from experiments.runner.results import ExperimentError


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Six workers of which one is slow."""
    path = tmp_path_factory.mktemp("trace") / "times.npy"
    times = np.random.default_rng(0).lognormal(0, 0.1, (40, 6))
    times[:, 1] *= 5
    np.save(path, times)
    return path


def test_time(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(against_the_clock, "SHOWN", 4)
    against_the_clock.time(trace, quick=True, runs=2, out=tmp_path)
    numbers = json.loads((tmp_path / "time.json").read_text())["times"]
    # Work by speed is waited for, too, and comes first.
    first = max(numbers["choices"], key=lambda choice: choice["step"]["mean"])
    others = [each for each in numbers["choices"] if each is not first]
    assert first["waits_for"] == "all" and first["replication"] == 1
    # The slow worker is awaited, or it is not.
    assert first["step"]["mean"] > 4
    exact = [own for own in others if own["replication"] == 2]
    assert exact and exact[0]["step"]["mean"] < 3
    assert exact[0]["time"]["mean"] < first["time"]["mean"]
    assert (tmp_path / "time_times.png").stat().st_size > 10_000


def test_delays(trace, tmp_path):
    models.delays(trace, runs=4, out=tmp_path)
    numbers = json.loads((tmp_path / "delays.json").read_text())["times"]
    assert "speeds" in numbers["fits"][0]["name"]
    measured = np.array(numbers["measured"])
    said = np.array(numbers["said"]["best fit"])
    np.testing.assert_allclose(said, measured, rtol=0.3)


@pytest.mark.parametrize(
    ("times", "rule"),
    [
        (np.ones((3, 4)), r"at least 8 rounds; got \(3, 4\)"),
        (np.zeros((9, 4)), "must be positive.*got 0"),
    ],
)
def test_bad_traces(times, rule, tmp_path):
    np.save(tmp_path / "trace.npy", times)
    with pytest.raises(ExperimentError, match=rule):
        models.delays(tmp_path / "trace.npy", out=tmp_path)
