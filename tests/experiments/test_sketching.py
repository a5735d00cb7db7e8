"""Embeddings and samplers measured: end to end on few runs, and against NumPy."""

import jax
import numpy as np
import pytest

from experiments.runner.study import Effort, measure
from experiments.sketching import (
    active,
    data,
    distortion,
    promise,
    rank_k,
    recommended,
    samplers,
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


def test_active_section_and_the_labels_that_it_asks_for(monkeypatch):
    monkeypatch.setattr(active, "FEW_FACTORS", (16,))
    found = measure(active.study(EFFORT._replace(runs=25), KEY))
    assert set(found.figures) == {"active"}
    assert len(found.tables["active"].rows) == 3
    every = found.numbers["data"]
    heavy = {choice: own["median"][0] for choice, own in every["T1"]["excess"].items()}
    assert heavy["uniform"] > 10 * heavy["leverage"] > 0
    # Of the digits, the least squares that the excess is over.
    own = active.digits(EFFORT)
    exact, squared, *_ = np.linalg.lstsq(own.matrix, own.target, rcond=None)
    np.testing.assert_allclose(own.coefficients, exact, atol=1e-8)
    assert own.squared_residual == pytest.approx(squared[0])
    assert set(own.target) == {-1, 1} and every["digits"]["num_labels"][0] < 1000


def test_samplers_section_and_its_least_squares(monkeypatch):
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
    # The rows of the largest scores of the same data, solved by NumPy.
    own = data.regressions(jax.random.split(KEY)[0], 512, 5)["T3"]
    for at, size in enumerate(found.numbers["sizes"]):
        top = np.argsort(-own.scores)[:size]
        solution, *_ = np.linalg.lstsq(own.matrix[top], own.target[top], rcond=None)
        squared = np.sum((own.matrix @ solution - own.target) ** 2)
        assert excess["LEV, top k"]["T3"]["median"][at] == pytest.approx(
            squared / own.squared_residual - 1, rel=1e-5
        )
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
