"""Slow workers that still count: rounds on request, end to end on few rounds."""

import jax
import numpy as np
import pytest

from experiments.delays import slow_workers
from experiments.runner.study import measure


def test_rounds_on_request(monkeypatch):
    law = "1 + Exp(1)"
    monkeypatch.setattr(slow_workers, "LAWS", {law: slow_workers.LAWS[law]})
    monkeypatch.setattr(slow_workers, "NUM_WORKERS", 4)
    monkeypatch.setattr(slow_workers, "NUM_PARTS", 2)
    times = np.random.default_rng(0).uniform(1, 4, (100, 4))
    key = jax.random.key(0)
    section = measure(slow_workers.on_request({"trace": times}, 100, key))
    assert set(section.tables) == {""} and set(section.figures) == {"meeting"}
    # Every part is ready when the first of its holders has it.
    owners, place = np.divmod(np.arange(8), 2)
    own = times[:, owners] * (place + 1) / 2
    by_helper = times[:, (owners - 1) % 4] * (1 + (2 - place) / 2)
    ready = np.minimum(own, by_helper).max(axis=1)
    measured, _ = section.numbers
    assert measured["seconds"]["request_2"]["mean"] == pytest.approx(ready.mean())
    for found in section.numbers:
        seconds = found["seconds"]
        assert seconds["bound"]["mean"] < seconds["request_3"]["mean"]
        assert seconds["request_2"]["mean"] < seconds["all"]["mean"]
