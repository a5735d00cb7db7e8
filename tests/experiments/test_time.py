"""Training against the clock, and delay models judged by later rounds."""

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


class TestCommands:
    """With few runs."""

    def test_time(self, trace, tmp_path):
        against_the_clock.time(trace, quick=True, runs=2, out=tmp_path)
        numbers = json.loads((tmp_path / "time.json").read_text())["times_measured"]
        first, *others = numbers["choices"]
        assert first["waits_for"] == "all" and first["copies"] == 1
        # The slow worker is awaited, or it is not.
        assert first["step"]["mean"] > 4
        exact = [own for own in others if own["copies"] == 2]
        assert exact and exact[0]["step"]["mean"] < 3
        assert exact[0]["time"]["mean"] < first["time"]["mean"]
        assert (tmp_path / "time_times_measured.png").stat().st_size > 10_000

    def test_delays(self, trace, tmp_path):
        models.delays(trace, runs=4, out=tmp_path)
        numbers = json.loads((tmp_path / "delays.json").read_text())["times"]
        assert "speeds" in numbers["fits"][0]["name"]
        measured = np.array(numbers["measured"])
        said = np.array(numbers["said"]["best fit"])
        np.testing.assert_allclose(said, measured, rtol=0.3)

    @pytest.mark.parametrize(
        ("arrays", "rule"),
        [
            ({"times": np.ones((3, 4))}, "at least 8 rounds; got 3 rounds"),
            ({"times": np.zeros((9, 4))}, "must hold positive times.*got 0"),
            (
                {"times": np.ones((9, 20, 4)), "loads": np.ones(3)},
                r"for its loads \(3,\)",
            ),
            ({"times": np.array(["a"])}, "--trace must hold times"),
        ],
    )
    def test_bad_traces(self, arrays, rule, tmp_path):
        path = tmp_path / "trace.npz"
        np.savez(path, **arrays)
        with pytest.raises(ExperimentError, match=rule):
            models.delays(path, out=tmp_path)

    @pytest.mark.parametrize("command", [against_the_clock.time, models.delays])
    def test_bad_input(self, command, trace, tmp_path):
        with pytest.raises(ExperimentError, match="--num-workers must be at least 2"):
            command(trace, num_workers=1, out=tmp_path)
        with pytest.raises(ExperimentError, match="--runs must be at least 1; got 0"):
            command(trace, runs=0, out=tmp_path)
        with pytest.raises(ExperimentError, match="--trace must be a file of numpy"):
            command(tmp_path / "none.npy", out=tmp_path)
        (tmp_path / "empty.npy").touch()
        with pytest.raises(ExperimentError, match="empty.npy, which is none"):
            command(tmp_path / "empty.npy", out=tmp_path)
