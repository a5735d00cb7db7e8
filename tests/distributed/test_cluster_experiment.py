"""Rounds between runs and kills of the experiment on real processes, without any."""

import os
import types

import numpy as np
import pytest

from experiments.ray import cluster as experiment


def slot(pid=4711, trouble=""):
    return types.SimpleNamespace(pid=pid, trouble=trouble)


class Workers:
    """Two workers, of which one comes back after some rounds."""

    def __init__(self, num_rounds):
        self.num_rounds = num_rounds
        self.num_computed = 0

    @property
    def workers(self):
        if self.num_computed < self.num_rounds:
            return [slot(), slot(None, "its process died")]
        return [slot(), slot()]

    def resume(self, step):
        pass

    def compute(self, params):
        self.num_computed += 1
        return self.num_computed


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleep moves, by a minute."""
    now = [0.0]

    def sleep(seconds):
        now[0] += 60.0

    simulated = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(experiment, "time", simulated)


def test_runs_begin_with_all_workers(clock):
    assert experiment.settle(Workers(4), None) == 4
    with pytest.raises(RuntimeError, match=r"within 600 s: \['', 'its process died'\]"):
        experiment.settle(Workers(99), None)


def test_signals_are_sent_in_the_step_that_they_are_for(monkeypatch):
    """Though the step is over sooner; and a process may have ended by itself."""
    killed = []

    def kill(pid, number):
        killed.append(pid)
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    random = np.random.default_rng(0)
    assert experiment.compute_with_a_kill(Workers(0), None, random) == 1
    assert killed == [4711]
