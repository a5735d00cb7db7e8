"""The experiment with local steps, in short."""

import json

import jax
import numpy as np
import pytest

from examples.diloco import RoundBatches, train_in_one_process
from experiments.ray import language_model
from experiments.ray import local_steps as experiment
from experiments.ray.language_model import Text
from tests.distributed.test_ray_language_model import SMALL

# In place of a model that learns, one that is compiled in no time.
OF_MODEL = {
    name: value
    for name, value in SMALL.items()
    if name not in ("NUM_WORKERS", "NUM_PARTS", "EVALUATE_EVERY")
}
OF_STEPS = {
    "SECONDS_PER_STEP": 0.001,
    "NUM_EXACT_ROUNDS": 4,
    "NUM_EXACT_FAULTS": 1,
    "NUM_SEEDS": 1,
    "LOCAL_STEPS": (1, 10),
}


@pytest.fixture
def small(monkeypatch):
    for module, settings in ((language_model, OF_MODEL), (experiment, OF_STEPS)):
        for name, value in settings.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.weekly
@pytest.mark.usefixtures("one_ray", "small")
@pytest.mark.filterwarnings("ignore:the round of step")
def test_every_way_trains_through_a_kill(tmp_path):
    experiment.local_steps(steps=20, fault_every=20, seed=0, out=tmp_path)
    numbers = json.loads((tmp_path / "local_steps.json").read_text())
    rows = {row["way"]: row for row in numbers["ways"]["rows"]}
    exact = [row for name, row in rows.items() if "ignoring" not in name]
    assert all(row["incomplete"] == 0 for row in exact)
    assert rows["10 steps, restart from checkpoint"]["restarts"] >= 1
    # Once per round, params go to each worker and messages come back.
    sent = [rows[f"{number} steps, finished parts"]["kilobytes"] for number in (1, 10)]
    assert 5 < sent[0] / sent[1] < 15
    assert len(numbers["exact"]["rows"]) == 12
    for row in numbers["exact"]["rows"]:
        assert row["faults"] == (row["way"] != "one process, other order of the sum")
        if row["x64"]:
            assert row["distance"] < 1e-6
    same, *_ = numbers["programs"]["rows"]
    assert same["after_10"] == 0
    assert (tmp_path / "local_steps_ways.png").exists()


@pytest.mark.usefixtures("small")
def test_replicas_that_start_anew_are_those_of_local_steps(tmp_path):
    """In float64, and those that keep their moments are not."""
    with jax.enable_x64(True):
        text = Text.write(tmp_path, seed=0)
        double = jax.tree.map(lambda leaf: leaf.astype(np.float64), text.params)
        text = text._replace(params=double)
        expected = train_in_one_process(
            experiment.contribution_of(text, 3),
            RoundBatches(text.training, 3),
            text.params,
            rounds=2,
            parts=range(experiment.NUM_PARTS),
        )
        anew, kept = (
            language_model.distance(
                experiment.train_replicas(text, 6, 3, keeps), expected
            )
            for keeps in (False, True)
        )
    assert anew < 1e-9
    assert kept > 1e-4


def test_batches_of_a_round_are_those_of_its_steps(tmp_path):
    text = Text.write(tmp_path, seed=0)
    rows = RoundBatches(text.training, 5)(2, 3)
    for step in range(5):
        np.testing.assert_array_equal(rows[step], text.training(10 + step, 3))
