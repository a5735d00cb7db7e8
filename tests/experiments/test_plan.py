"""Planning by measured times, end to end on few rounds."""

import json

import numpy as np

from experiments.delays import planning, unseen_rounds
from experiments.delays.traces import read_traces
from jaxwgc import codes


def test_choice_by_a_calm_half_bears_a_stall_in_the_other(monkeypatch):
    """Among codes of one message; where parts are sent on request, a stall is borne."""
    repetition = codes.fractional_repetition(unseen_rounds.NUM_WORKERS, 1)
    options = {"codes": {"repetition": repetition}, "num_rounds": 600}
    monkeypatch.setattr(unseen_rounds, "OPTIONS", options)
    pairs = [
        pair
        for seed in (0, 6, 8)
        for pair in unseen_rounds.simulated_pairs("one in 500 stalls", 1, seed=seed)
    ]
    found = {
        what: max(each[what]["regret"] for pair in pairs for each in pair.values())
        for what in unseen_rounds.CHOICES
    }
    # A choice by times alone may never end where somebody stalls.
    assert found["of least regret"] < 2
    assert found["by times alone"] > 20


def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(unseen_rounds, "GOALS", {"as by default": {}})
    monkeypatch.setattr(planning, "TARGETS", (0.01,))
    monkeypatch.setattr(planning, "HETEROGENEITIES", (1.0,))
    path = tmp_path / "one_slow.npy"
    np.save(path, read_traces()["one_slow_seconds"][:, :3])
    planning.plan(path, num_workers=4, replications=(1, 4, 5), rounds=40, out=tmp_path)
    written = json.loads((tmp_path / "plan.json").read_text())
    found = written["measured"]["traces"]["one_slow"]
    assert found["num_workers"] == 4
    assert "several have the same history" in found["answer"]
    # Copies on more workers than there are, are left out.
    shown = [own for own in found["choices"] if "step_time" in own]
    assert {own["replication"] for own in shown} == {1, 4}
    table = (tmp_path / "plan_one_slow.md").read_text()
    assert "| `uncoded` | 1 | all |" in table and "+ late |" in table
    # No exact way is faster than perfect division.
    ways, bound = found["halves"]["ways"], found["halves"]["bound"]
    assert bound < ways["on request × 2"] < ways["waiting for all"]
    assert "| regret, %: as by default |" in (tmp_path / "plan_ways.md").read_text()
    assert (tmp_path / "plan_ways.png").read_bytes().startswith(b"\x89PNG")
