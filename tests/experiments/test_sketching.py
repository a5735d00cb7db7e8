"""Embeddings and samplers measured: end to end on few runs, and against NumPy."""

import functools

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


@pytest.fixture(scope="module")
def every():
    return data.regressions(KEY, 300, 5)


def test_data_are_as_coherent_as_they_say(every):
    assert every["GA"].coherence < every["T3"].coherence < every["T1"].coherence
    for own in every.values():
        assert own.scores.sum() == pytest.approx(5)
        exact, squared, *_ = np.linalg.lstsq(own.matrix, own.target, rcond=None)
        assert own.squared_residual == pytest.approx(squared[0])
        np.testing.assert_allclose(
            own.basis @ own.coordinates, own.matrix @ exact, atol=1e-8
        )
    # Normal rows of variance 2 around ones, and y = Xβ + noise of deviation 3.
    large = data.regressions(KEY, 20_000, 5)["GA"]
    covariance = 2 * 0.5 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    np.testing.assert_allclose(large.matrix.mean(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(np.cov(large.matrix.T), covariance, atol=0.1)
    np.testing.assert_allclose(large.coefficients, [1, 0.1, 0.1, 0.1, 1])
    noise = large.target - large.matrix @ large.coefficients
    assert noise.std() == pytest.approx(3, rel=0.02)


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


@functools.partial(jax.jit, static_argnames=("method", "weighted"))
def drawn(keys, probabilities, method, weighted):
    """Sixty rows for each key."""
    draw = functools.partial(
        samplers.draw_rows, size=60, method=method, weighted=weighted
    )
    return jax.vmap(draw, (0, None))(keys, probabilities)


@pytest.mark.parametrize("name", ["LEVUNW", "LEV, blocks"])
def test_sampled_rows_stand_for_the_whole(name, with_x64, every):
    sampler = samplers.SAMPLERS[name]
    probabilities = sketching.row_probabilities(every["T3"].scores, sampler.rule)
    keys = jax.random.split(KEY, 500)
    indices, scale = drawn(keys, probabilities, sampler.method, sampler.weighted)
    squares = np.zeros(300)
    np.add.at(squares, indices, np.asarray(scale) ** 2 / len(keys))
    if name == "LEVUNW":
        # Rows count as often as they are drawn: 60 of them.
        assert squares.sum() == pytest.approx(60)
    else:
        # E[Σ scale²] of a row is 1; the sum of all has the smaller relative error.
        assert squares.sum() == pytest.approx(300, rel=0.05)


def test_bias_and_variance_add_up_to_the_mean_excess(every):
    draws = np.random.default_rng(0).normal(0.5, 1, (50, 3, 5))
    cell = samplers.compare(every["T3"].coordinates + draws, every["T3"])
    # The sample variance, less what was taken off the square of the mean.
    total = cell["squared_bias"] + cell["variance"]
    np.testing.assert_allclose(total, cell["excess"].mean(axis=1), rtol=1e-9)


def test_interval_of_a_median():
    median, low, high = samplers.median_interval(np.arange(1.0, 101.0))
    assert (median, low, high) == (50.5, 40, 61)
    assert samplers.median_interval(np.array([3.0, 1.0, 2.0])).tolist() == [2, 1, 3]


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
