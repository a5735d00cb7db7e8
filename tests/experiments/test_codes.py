"""The comparison of codes: end to end on few runs, and what it computes by itself."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

import jaxwgc
from experiments.codes import (
    SECTIONS,
    codes,
    equal_codes,
    learned,
    matrices,
    noise,
    orderings,
    partial_work,
    recovery,
)
from experiments.runner.study import Effort, Study, measure
from experiments.runner.tables import ResultTable
from jaxwgc import codes as constructors
from jaxwgc import stragglers
from tests.conftest import row_scales
from tests.zoo import best_mixtures, targets

KEY = jax.random.key(0)
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
    claims = [own for own in orderings.CLAIMS if {*own[2], *own[3]} <= {*few}]
    monkeypatch.setattr(equal_codes, "FEW_CODES", few)
    monkeypatch.setattr(orderings, "CLAIMS", claims)
    exact_codes = noise.exact_codes

    def two_codes(key):
        found = exact_codes(key)
        return {name: found[name] for name in ("binary", "cyclic_repetition")}

    monkeypatch.setattr(noise, "exact_codes", two_codes)
    # Measured below, with more runs.
    table = ResultTable("unfinished work", ["runs"])
    stub = Study({}, tables={"partial_work": lambda numbers: table})
    monkeypatch.setitem(SECTIONS, "partial_work", lambda *_: stub)
    codes(runs=4, out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
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
    # Elimination recovers what peeling does, and more workers no less.
    for own in written["recovery"]["recovered"].values():
        peeling, elimination = (
            own[name]["mean"] for name in ("peeling", "elimination")
        )
        assert np.all(np.array(elimination) >= peeling)
        assert np.all(np.diff(elimination) >= 0)
    assert not jax.config.jax_enable_x64


def test_loads_are_equal(monkeypatch):
    order = equal_codes.ORDER
    monkeypatch.setattr(jaxwgc.studies, "learn_entries", lambda code, *_: code)
    for entry in equal_codes.entries(Effort(100, is_full=True), KEY)[1:]:
        drawn = [entry.make(key) for key in jax.random.split(KEY, 5)]
        # Of five draws of about 30 times 30 parts at most. Copies, since parts may be
        # larger and fewer.
        copies = [code.assignment.sum(0).mean() for code in drawn]
        assert abs(np.mean(copies) - (order + 1)) < 0.6, entry.name


def test_orderings_say_yes_no_and_tie():
    assert orderings.compare(1.0, 2.0, 0.1, 0.1) == "yes"
    assert orderings.compare(2.0, 1.0, 0.1, 0.1) == "no"
    assert orderings.compare(1.0, 1.1, 0.1, 0.1) == "tie"
    assert orderings.compare(1e-30, 0.0, 0.0, 0.0) == "tie"


def test_noise_is_that_of_the_diagnosis(with_x64):
    code = constructors.communication_efficient(10, 1, 2)
    # All ten patterns of one straggler, as the diagnosis takes them.
    found = jaxwgc.studies.diagnose(code, KEY, [1])
    masks = ~np.eye(10, dtype=bool)
    # The weights of least norm, these times the norms of the rows, by NumPy.
    scales = row_scales(code.encoding_matrix)
    rows = masks[:, :, None] * (code.encoding_matrix / scales[:, None])
    weights = targets(code) @ np.linalg.pinv(rows) / scales
    root_mean_square = np.sqrt(np.mean(noise.noise_of(code, weights) ** 2))
    assert root_mean_square == pytest.approx(found.noise_amplification[0])
    assert noise.relative_misses(code, weights).max() < 1e-12
    assert noise.relative_misses(code, 0 * weights) == pytest.approx(1.0)


def test_every_constructor_has_its_picture(monkeypatch):
    monkeypatch.setattr(jaxwgc.studies, "learn_entries", lambda code, *_, **__: code)
    others = {"GradientCode", "proportional_placement", "worst_rounding"}
    # Of thousands of workers.
    others |= {"ramanujan_graph"}
    assert set(matrices.small_codes(KEY, num_steps=1)) == (
        set(constructors.__all__) - others | {"learn_entries"}
    )


def test_determined_parts_are_those_of_a_row_echelon_form(with_x64):
    matrix = np.array([[1.0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1]])
    # Three sums around a triangle determine its parts; two do not.
    everything = recovery.determined(matrix, np.array([True] * 4))
    np.testing.assert_array_equal(everything, [True] * 4)
    two = recovery.determined(matrix, np.array([True, True, False, True]))
    np.testing.assert_array_equal(two, [False] * 4)
    nothing = recovery.determined(matrix, np.zeros(4, bool))
    np.testing.assert_array_equal(nothing, [False] * 4)


def test_reduction_by_least_squares():
    better = learned.zeros_and_ones(KEY)["cyclic"]
    # Uncoded, and compiled together with the other.
    matrix = np.eye(20)
    code = dataclasses.replace(better, encoding_matrix=matrix, assignment=matrix == 1)
    masks = np.random.default_rng(0).random((400, 20)) > 0.3
    found = learned.compare(code, better, masks)
    before, after = (
        np.sum((reached - 1) ** 2, axis=(1, 2))
        for reached in (best_mixtures(own, masks) for own in (code, better))
    )
    expected = pytest.approx(1 - after.mean() / before.mean(), abs=1e-4)
    assert found["reduction"] == expected
    assert not found["unchanged"]


def test_finished_parts_never_hurt_and_work_is_in_shares_of_the_data():
    every = {entry.name.split("(")[0]: entry for entry in partial_work.entries()}
    # Two uncoded parts and two of twenty coded ones, of 60 parts.
    work = {"uncoded": 1, "fractional_repetition": 4, "partially_coded": 4 * 20 / 60}
    for name, load in work.items():
        assert every[name].single.loads.mean() == pytest.approx(load)
    study, trials = partial_work.study(Effort(400, is_full=True), KEY), []

    def keep(found):
        trials.append(found)
        return study.reduce(found)

    section = measure(dataclasses.replace(study, reduce=keep))
    (table,) = section.tables.values()
    assert len(table.rows) == 2 * len(every)
    errors = dict(zip(every, trials, strict=True))
    for own in errors.values():
        assert np.all(own["finished"] <= own["whole"] + 1e-4)
        assert own["finished"].sum() < own["whole"].sum()
    # Of an uncoded worker's whole time, E[share missed] = P(time > deadline).
    missed = math.exp(-(2.0 - partial_work.SHIFT) * partial_work.RATE)
    # Four standard errors of 400 times 20 workers.
    bound = 4 * math.sqrt(missed * (1 - missed) / 8000)
    at = partial_work.DEADLINES.index(2.0)
    assert abs(errors["uncoded"]["whole"][:, at].mean() - missed) < bound
