"""The comparison of codes, end to end on few runs."""

import functools
import json

import numpy as np
import pytest

from experiments.codes import (
    codes,
    equal_load,
    learned,
    noise,
)
from jaxwgc import stragglers

FILES = (
    "codes.json",
    "codes_equal_load.png",
    "codes_equal_load_adversarial.md",
    "codes_equal_load_codes.md",
    "codes_equal_load_random.md",
    "codes_learned.md",
    "codes_matrices.png",
    "codes_noise.md",
    "codes_noise.png",
    "codes_orderings.md",
    "codes_partial_work.md",
    "codes_placement.md",
    "codes_recovery.md",
    "codes_recovery.png",
    "codes_unequal.md",
)


def test_few_runs_write_everything(tmp_path, monkeypatch):
    # What is learned for the table and for the picture shares a program.
    monkeypatch.setattr(learned, "NUM_WORKERS", 12)
    monkeypatch.setattr(learned, "PROBABILITY", 0.2)
    monkeypatch.setattr(stragglers, "bernoulli", functools.cache(stragglers.bernoulli))
    # One of each kind, and what is claimed of these.
    few = ["uncoded", "fractional_repetition", "projective_plane", "bernoulli"]
    claims = [own for own in equal_load.CLAIMS if {*own[2], *own[3]} <= {*few}]
    monkeypatch.setattr(equal_load, "FEW_CODES", few)
    monkeypatch.setattr(equal_load, "CLAIMS", claims)
    exact_codes = noise.exact_codes

    def two_codes(key):
        found = exact_codes(key)
        return {name: found[name] for name in ("binary", "cyclic_repetition")}

    monkeypatch.setattr(noise, "exact_codes", two_codes)
    codes(runs=4, out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    written = json.loads((tmp_path / "codes.json").read_text())
    assert written["command"] == "python -m experiments codes --runs 4 --seed 0"
    errors = written["equal_load"]["errors"]
    # 13 workers, of whom 1, 3 and 5 straggle.
    assert errors["uncoded(13)"]["random"]["mean"] == pytest.approx(
        [1 / 13, 3 / 13, 5 / 13], rel=1e-5
    )
    # Every pattern of a block design has the error of the formula, the worst one too.
    answers = 13 - np.array([1, 3, 5])
    expected = (13 - 16 * answers / (3 + answers)) / 13
    plane = errors["projective_plane(3)"]
    np.testing.assert_allclose(plane["random"]["mean"], expected, 1e-5, 1e-12)
    np.testing.assert_allclose(plane["adversarial"], expected, 1e-5, 1e-12)
    # Four of five stragglers are the copies of a block of 4 of 12 parts.
    repetition = errors["fractional_repetition(12, 3)"]["adversarial"]
    np.testing.assert_allclose(repetition, [0, 0, 1 / 3], 1e-5, 1e-12)
    for own in written["partial_work"]["errors"].values():
        assert np.all(np.array(own["finished"]["mean"]) <= own["whole"]["mean"])
    # Elimination recovers what peeling does, and more workers no less.
    for own in written["recovery"]["recovered"].values():
        peeling, elimination = (
            own[name]["mean"] for name in ("peeling", "elimination")
        )
        assert np.all(np.array(elimination) >= peeling)
        assert np.all(np.diff(elimination) >= 0)
