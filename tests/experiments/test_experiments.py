"""The experiments end to end on few runs, and the protocols they follow."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.linear_model

import jaxwgc
from experiments.benchmark import (
    SECTIONS,
    _peers,
    _reed_solomon,
    benchmark,
    coordinator,
    decoding,
    leverage_scores,
    scale,
    trials,
)
from experiments.paper import descent, figure2, linear_regression, mnist
from experiments.runner.study import Study
from experiments.runner.tables import ResultTable


class TestDescent:
    def test_coded_descent_ends_where_plain_descent_ends(self, with_x64):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(20, 5, 3))
        responses = rng.normal(size=(20, 5))
        weights = rng.integers(1, 4, 20).astype(float)
        data, loss = (features, responses), linear_regression.squared_error
        found = jax.jit(
            lambda key: descent.descend(
                key, loss, jnp.zeros(3), data, weights, 1e-3, 1e-6, 1000
            )
        )(jax.random.key(0))
        params = np.zeros(3)
        for iterations in range(1000):  # noqa: B007
            residual = np.einsum("jrp,p->jr", features, params) - responses
            gradient = 2 * np.einsum("j,jr,jrp->p", weights, residual, features)
            if np.linalg.norm(gradient) < 1e-6:
                break
            params -= 1e-3 * gradient
        assert int(found.iterations) == iterations > 10
        np.testing.assert_allclose(found.params, params, atol=1e-9)
        assert float(found.gradient_norm) < 1e-6


class TestLinearRegression:
    def test_data_follow_the_paper(self, with_x64):
        features, responses = linear_regression.draw_data(jax.random.key(0))
        assert features.shape == (1000, 20)
        np.testing.assert_array_equal(features, np.round(features))
        assert np.abs(features).max() == 300
        largest = np.sort(np.abs(features).max(axis=1))
        # Fifty rows below 15, fifty below 30, ...
        assert np.all(largest[:50] <= 15)
        assert np.all(largest[:500] <= 150)
        residual = responses - features @ np.linalg.lstsq(features, responses)[0]
        assert 0.9 < np.std(residual) < 1.1

    def test_few_runs(self, tmp_path, monkeypatch, decoded_by_groups):
        monkeypatch.setattr(linear_regression, "COMPRESSIONS", (4,))
        linear_regression.linear_regression(runs=60, out=tmp_path)
        written = json.loads((tmp_path / "table2.json").read_text())
        cell = written["reproduced"]["rho=4"]["doubled"]
        for weighting, published in (("weighted", 75.3), ("unweighted", 84.4)):
            iterations = cell[weighting]["iterations"]
            assert iterations["low"] < iterations["mean"] < iterations["high"]
            assert abs(iterations["mean"] / published - 1) < 0.15
        literal = written["reproduced"]["rho=4"]["literal"]["weighted"]["iterations"]
        assert 1.9 < literal["mean"] / cell["weighted"]["iterations"]["mean"] < 2.3
        assert (tmp_path / "table2.png").read_bytes().startswith(b"\x89PNG")
        assert "75.3" in (tmp_path / "table2.md").read_text()
        assert not jax.config.jax_enable_x64


def test_figure2_few_runs(tmp_path, monkeypatch, decoded_by_groups):
    monkeypatch.setattr(figure2, "NUM_ITERATIONS", 60)
    figure2.figure2(runs=10, out=tmp_path)
    written = json.loads((tmp_path / "figure2.json").read_text())
    weighted = written["gradient_norm"]["weighted"]["norm"]["mean"]
    unweighted = written["gradient_norm"]["unweighted"]["norm"]["mean"]
    # "Even though the weights introduce a much higher gradient norm at first, it drops
    # much faster."
    assert weighted[0] > unweighted[0]
    assert weighted[50] < unweighted[50] < unweighted[0] / 100
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")


class TestMnist:
    def test_data_are_the_paper_s(self):
        training, test = mnist.load_digits()
        assert training.images.shape == (10_000, 784)
        assert test.images.shape == (1_791, 784)
        assert 0 <= float(training.images.min()) and float(training.images.max()) == 1
        nines = float(training.labels.sum() + test.labels.sum())
        assert nines == 5_949
        model = sklearn.linear_model.LogisticRegression(max_iter=30)
        model.fit(training.images[:2000], training.labels[:2000])
        assert model.score(test.images, test.labels) > 0.93

    def test_few_runs(self, tmp_path, monkeypatch, decoded_by_groups):
        monkeypatch.setattr(mnist, "COMPRESSIONS", (20,))
        monkeypatch.setattr(mnist, "FIT_STEPS", mnist.FIT_STEPS[::4])
        mnist.mnist(runs=4, out=tmp_path)
        written = json.loads((tmp_path / "table1.json").read_text())
        assert 1e-4 < written["rules"]["paper"]["step_size"] < 3e-3
        for protocol in ("paper", "unbiased"):
            for weighting in ("weighted", "unweighted"):
                cell = written["reproduced"]["rho=20"][protocol][weighting]
                assert 3 < cell["error"]["mean"] < 11
                assert 5 < cell["iterations"]["mean"] < 150
        assert (tmp_path / "table1.png").read_bytes().startswith(b"\x89PNG")


class TestBenchmark:
    def test_peers_compute_the_same(self):
        code = jaxwgc.codes.reed_solomon(10, 10, 4)
        mask = np.arange(10) % 4 != 0
        ours = np.asarray(jaxwgc.decoding_weights(code, mask))[mask]
        np.testing.assert_allclose(_peers.numpy_lagrange(code, mask), ours, atol=1e-5)
        np.testing.assert_allclose(_peers.numpy_lstsq(code, mask), ours, atol=1e-5)

    def test_quick(self, tmp_path, monkeypatch, decoded_by_groups):
        # One of each kind, of few workers.
        monkeypatch.setattr(_reed_solomon, "CODES", ((10, 5, 6),))
        monkeypatch.setattr(decoding, "BERNOULLI", decoding.BERNOULLI[:1])
        monkeypatch.setattr(leverage_scores, "EPSILONS", (0.5,))
        monkeypatch.setattr(leverage_scores, "RANKS", {"rank 3/5": 60})
        monkeypatch.setattr(scale, "QUICK", 10)
        monkeypatch.setitem(SECTIONS, "table2", lambda *_: benchmark_stub())
        # Their processes are started in tests/distributed.
        shares = dict.fromkeys(("all", *coordinator.SHARES), 1.0)
        monkeypatch.setattr(coordinator, "measure", lambda *_: shares)
        peers = dict.fromkeys(("RayCluster", "plain Ray", "shared memory"), 1.0)
        monkeypatch.setattr(coordinator, "compare", lambda *_: peers)
        # Run in this process in test_trials.py.
        monkeypatch.setattr(trials, "in_own_process", trials.run)
        benchmark(repeats=2, quick=True, out=tmp_path)
        written = json.loads((tmp_path / "benchmark.json").read_text())
        assert written["decoding"][0]["ratio"] > 0
        assert written["accuracy"][0]["weights_float64"]["worst"] < 1e-10
        files = {"benchmark.json", *(f"benchmark_{name}.md" for name in SECTIONS)}
        files.add("benchmark_graphs.png")
        assert {path.name for path in tmp_path.iterdir()} == files
        assert set(written["step"]) == {
            "plain",
            "collapsed",
            "corrected",
            "partials",
            "messages",
        }


def benchmark_stub():
    return Study({}, tables={"": lambda numbers: ResultTable("table 2", ["runs"])})
