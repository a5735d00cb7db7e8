"""Planning by measured times, end to end on few rounds."""

import json

import numpy as np

from experiments.delays import planning, unseen_rounds
from experiments.delays.traces import read_traces
from jaxwgc import codes


def test_plan_is_robust_to_stalls_in_the_other_trace(monkeypatch):
    """Among codes of one message; with parts on request, stalls cost little."""
    repetition = codes.fractional_repetition(unseen_rounds.NUM_WORKERS, 1)
    options = {"codes": {"repetition": repetition}, "num_rounds": 600}
    monkeypatch.setattr(unseen_rounds, "OPTIONS", options)
    pairs = [
        pair
        for seed in (0, 6, 8)
        for pair in unseen_rounds.simulated_pairs("one in 500 stalls", 1, seed=seed)
    ]
    worst = [
        max(each[what]["regret"] for pair in pairs for each in pair.values())
        for what in unseen_rounds.CHOICES
    ]
    # The fastest choice in a trace may never end if a worker stalls.
    assert worst[0] > 20 and worst[1] < 2


def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(unseen_rounds, "GOALS", {"default goal": {}})
    monkeypatch.setattr(planning, "TARGETS", (0.01,))
    monkeypatch.setattr(planning, "HETEROGENEITIES", (1.0,))
    path = tmp_path / "one_slow.npy"
    np.save(path, read_traces()["one_slow_seconds"])
    planning.plan(path, rounds=40, out=tmp_path)
    found = json.loads((tmp_path / "plan.json").read_text())["measured"]["traces"]
    assert {own["replication"] for own in found["one_slow"]["choices"]} == {1, 2}
    table = (tmp_path / "plan_one_slow.md").read_text()
    assert "| `uncoded` | 1 | all |" in table and "+ late |" in table
    # No exact way is faster than perfect division.
    ways, bound = (
        found["one_slow"]["halves"]["ways"],
        found["one_slow"]["halves"]["bound"],
    )
    assert bound < ways["on request × 2"] < ways["waiting for all"]
    assert "| regret, %: default goal |" in (tmp_path / "plan_ways.md").read_text()
