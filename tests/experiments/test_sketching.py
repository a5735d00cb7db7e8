"""Sections of the comparison of sketches on few runs."""

import jax
import numpy as np
import pytest

from experiments.runner.study import Effort, measure
from experiments.sketching import (
    active,
    contraction,
    distortion,
    logistic,
    new_samples,
    promise,
    rank_k,
    recommended,
    samplers,
    solvers,
    stability,
)
from jaxwgc import sketching

KEY = jax.random.key(0)
EFFORT = Effort(4, is_full=False)


def test_distortion_section_writes_all_embeddings():
    found = measure(distortion.study(EFFORT, KEY))
    (table,) = found.tables.values()
    assert len(table.rows) == len(distortion.EMBEDDINGS) == 7
    assert set(found.figures) == {"distortion"}
    means = found.numbers["distortion"]
    assert found.numbers["sketch_sizes"] == [20, 80]
    # Larger sketches distort less; uniform rows miss what matters in coherent data.
    for name, row in means.items():
        if "uniform" not in name:
            assert row[1]["GA"]["mean"] < row[0]["GA"]["mean"]
            assert row[1]["T1"]["mean"] < row[0]["T1"]["mean"]
    uniform, leverage = (
        means[f"row_sampling, {kind}"][1]["T1"]["mean"]
        for kind in ("uniform", "leverage")
    )
    assert uniform > 1 > leverage


def test_recommended_section_counts_what_is_within_epsilon():
    found = measure(recommended.study(EFFORT, KEY))
    table = found.tables["recommended"]
    assert len(table.rows) == len(recommended.SETTINGS)
    numbers = found.numbers["embeddings"]
    # (√p + √(2 log(2 / δ)))² / (√(1 + ε) - 1)².
    size = (5**0.5 + (2 * np.log(40)) ** 0.5) ** 2 / (1.5**0.5 - 1) ** 2
    assert numbers["gaussian"]["GA"]["size"] == np.ceil(size)
    assert numbers["gaussian"]["GA"]["successes"] == 4
    # All rows of the Hadamard matrix keep everything.
    assert numbers["srht"]["T1"]["size"] == 2048
    assert numbers["srht"]["T1"]["distortion"]["mean"] < 1e-5
    # More draws than rows.
    assert "successes" not in numbers["row_sampling, uniform"]["T1"]


def test_promise_section_counts_what_is_beyond_epsilon(monkeypatch):
    monkeypatch.setattr(promise, "NAMES", ("count_sketch",))
    monkeypatch.setattr(promise, "SMALL_SHAPES", {"one column": (256, 1)})
    # Of so small a sketch half are beyond.
    monkeypatch.setattr(
        sketching, "recommended_sketch_size", lambda *args, **options: 2
    )
    found = measure(promise.study(EFFORT, KEY))
    own = found.numbers["families"]["count_sketch"]["one column"]
    assert found.numbers["runs"] == 40
    assert 0 < own["GA"]["failures"] < 40 and own["GA"]["largest"] > 0.5
    assert found.tables["promise"].rows[0][1].startswith("2: ")


def test_active_section(monkeypatch):
    monkeypatch.setattr(active, "FEW_FACTORS", (16,))
    found = measure(active.study(EFFORT._replace(runs=25), KEY))
    assert set(found.figures) == {"active"}
    assert len(found.tables["active"].rows) == 3
    every = found.numbers["data"]
    heavy = {choice: own["median"][0] for choice, own in every["T1"]["excess"].items()}
    assert heavy["uniform"] > 10 * heavy["leverage"] > 0
    assert every["digits"]["num_labels"][0] < 1000


def test_samplers_section(monkeypatch):
    few = ("LEV", "UNIF", "LEVUNW", "LEV, top k", "LEV, blocks")
    some = {name: samplers.SAMPLERS[name] for name in few}
    monkeypatch.setattr(samplers, "SAMPLERS", some)
    monkeypatch.setattr(samplers, "FEW_FACTORS", (16,))
    found = measure(samplers.study(EFFORT._replace(runs=50), KEY))
    assert set(found.tables) == {"data", "samplers", "samplers_bias"}
    assert set(found.figures) == {"samplers"}
    excess = found.numbers["excess"]
    assert set(excess) == set(few)
    assert excess["UNIF"]["T1"]["median"][-1] > 10 * excess["LEV"]["T1"]["median"][-1]
    assert not jax.config.jax_enable_x64


def test_leading_directions_by_passes():
    found = measure(rank_k.passes(EFFORT, KEY))
    assert len(found.tables["rank_k"].rows) == 3 * len(rank_k.MATRICES)
    for own in found.numbers["matrices"].values():
        krylov, power = own[rank_k.KRYLOV], own[rank_k.POWER]
        # After three passes, both have gone over one random block twice.
        np.testing.assert_allclose(krylov[0], power[0], rtol=0.5)
        assert krylov[-1] < 1e-6 and krylov[-1] < power[-1] / 10


def test_rare_cells_are_kept():
    found = measure(rank_k.cells(EFFORT, KEY))
    kept = found.numbers["kept"]
    assert set(found.figures) == {"cells"} and len(found.tables["cells"].rows) == 3
    assert kept["rank-k scores"]["mean"] > 2 * kept["uniform"]["mean"]
    assert kept["rank-k scores"]["mean"] <= found.numbers["num_rare"]


def check_shown(section, tables, figure):
    assert set(section.tables) == set(tables) and set(section.figures) == {figure}
    for table in section.tables.values():
        assert table.rows
    assert not jax.config.jax_enable_x64


def test_solvers():
    section = measure(solvers.study(EFFORT, KEY))
    check_shown(section, ["solvers_ill", "solvers_well"], "solvers")
    for rows in section.numbers["measured"].values():
        assert all(row["time"]["runs"] == 1 for row in rows)
        excess = {(row["family"], row["setting"]): row["excess"] for row in rows}
        for method in ('"gram"', '"sketch"'):
            assert abs(excess["`preconditioned`", method]) < 1e-10
            (own,) = (row for row in rows if row["setting"] == method)
            assert own["converged"] and own["iterations"] < 50
        assert abs(excess["scipy `lstsq`, gelsy", ""]) < 1e-10
        # Of a Gaussian sketch of 4p rows p / (m - p - 1) in the square on average.
        assert 0.03 < excess["`sketch_and_solve`, gaussian", "4p"] < 0.6


def test_logistic(monkeypatch):
    # Either size, and with refinements and without.
    monkeypatch.setattr(logistic, "SETTINGS", ((2, 0), (4, 2)))
    section = measure(logistic.study(EFFORT, KEY))
    check_shown(section, ["logistic"], "logistic")
    for row in section.numbers["measured"][2:]:
        assert row["converged"] and row["largest_difference"] < 1e-6
        # All logits are zero at the start.
        assert 0 < row["gaps"][0] < np.log(2) and abs(row["gaps"][-1]) < 1e-14


def test_stability(monkeypatch):
    monkeypatch.setattr(stability, "NUM_DIFFICULTIES", 3)
    section = measure(stability.study(EFFORT, KEY))
    check_shown(section, ["stability"], "stability")
    for precision, rows in section.numbers["measured"].items():
        unit = np.finfo(precision).eps
        for row in rows:
            if row["method"] != stability.PLAIN and row["difficulty"] < 1 / unit:
                assert row["backward"] < 10 * unit
            if row["method"] == stability.SKETCH and row["difficulty"] == 1:
                assert row["converged"] and row["forward"] < 20 * unit


def test_contraction():
    section = measure(contraction.study(EFFORT, KEY))
    check_shown(section, ["contraction"], "contraction")
    measured = section.numbers["measured"]
    for name, expected in section.numbers["theory"].items():
        # Twelve dependent steps of four runs.
        assert measured[name]["factor"]["mean"] == pytest.approx(expected, rel=0.5)
    for name, row in measured.items():
        assert row["last"]["mean"] < (1e-4 if "4p" in name else 1e-7)


def test_block_leverage():
    section = measure(new_samples.study(EFFORT, KEY))
    check_shown(section, ["block_leverage"], "block_leverage")
    numbers = section.numbers
    for row in numbers["errors"].values():
        assert row["mean"][0] == pytest.approx(1)
    last = {name: row["mean"][-1] for name, row in numbers["errors"].items()}
    # One sample stays where its own solution is; new samples go past that.
    limit = numbers["limits"]["one-shot, leverage"]["mean"]
    assert last["one-shot, leverage"] == pytest.approx(limit, rel=1e-3)
    assert last["iterative, leverage"] < limit / 2
