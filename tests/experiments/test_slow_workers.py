"""How long rounds take on request, and when descent gets to a target."""

import numpy as np
import pytest

from experiments.delays import late_answers, slow_workers
from experiments.runner.results import ExperimentError


def test_rounds_against_the_times_of_parts():
    """Every part when the first of its holders has it."""
    times = np.random.default_rng(0).uniform(1, 4, (30, 4))
    found = slow_workers.rounds_of(times, parts=2)
    owners, place = np.divmod(np.arange(8), 2)
    own = times[:, owners] * (place + 1) / 2
    by_helper = times[:, (owners - 1) % 4] * (1 + (2 - place) / 2)
    ready = np.minimum(own, by_helper)
    seconds = found["seconds"]
    assert seconds["request_2"].mean == pytest.approx(ready.max(1).mean())
    nine_tenths = np.sort(ready, axis=1)[:, -1].mean()
    assert seconds["covered_0.9"].mean == pytest.approx(nine_tenths)
    assert found["wait_for_all"].mean == pytest.approx(times.max(1).mean())
    assert found["ratio"]["request_2"].mean == pytest.approx(
        ready.max(1).mean() / times.max(1).mean()
    )
    assert seconds["bound"].mean < seconds["request_3"].mean


def test_time_of_the_best_step_size():
    """For good, so not where the loss is below the target for a while."""
    clock = np.array([[[1.0, 2, 3, 4]], [[1.0, 2, 3, 4]]])
    loss = np.array([[[0.5, 0.05, 0.5, 0.05]], [[0.5, 0.2, 0.05, 0.01]]])
    assert late_answers.best_time(clock, loss, 0.1).mean == 3
    assert late_answers.best_time(clock, loss, 0.001) is None


def test_no_runs(tmp_path):
    with pytest.raises(ExperimentError, match="--runs must be at least 1; got 0"):
        slow_workers.slow_workers(runs=0, out=tmp_path)
