"""The paper's experiments and the benchmark, end to end on few runs."""

import json

from experiments.benchmark import (
    SECTIONS,
    benchmark,
    coordinator,
    decoding,
    first_calls,
    leverage_scores,
    scale,
    sparse_least_squares,
    trials,
)
from experiments.paper import linear_regression, mnist
from experiments.runner.study import Study
from experiments.runner.tables import ResultTable


def test_linear_regression(tmp_path, monkeypatch, decoded_by_groups):
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
    assert "75.3" in (tmp_path / "table2.md").read_text()


def test_figure2(tmp_path, monkeypatch, decoded_by_groups):
    monkeypatch.setattr(linear_regression, "NUM_ITERATIONS", 60)
    linear_regression.figure2(runs=10, out=tmp_path)
    written = json.loads((tmp_path / "figure2.json").read_text())
    weighted = written["gradient_norm"]["weighted"]["norm"]["mean"]
    unweighted = written["gradient_norm"]["unweighted"]["norm"]["mean"]
    # "Even though the weights introduce a much higher gradient norm at first, it drops
    # much faster."
    assert weighted[0] > unweighted[0]
    assert weighted[50] < unweighted[50] < unweighted[0] / 100


def test_mnist(tmp_path, monkeypatch, decoded_by_groups):
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


def test_benchmark(tmp_path, monkeypatch, decoded_by_groups):
    # One of each kind, of few workers.
    monkeypatch.setattr(decoding, "CODES", ((10, 5, 6),))
    monkeypatch.setattr(decoding, "BERNOULLI", decoding.BERNOULLI[:1])
    monkeypatch.setattr(leverage_scores, "EPSILONS", (0.5,))
    monkeypatch.setattr(leverage_scores, "RANKS", {"rank 3/5": 60})
    monkeypatch.setattr(scale, "QUICK", 10)
    matrices = {"banded": sparse_least_squares.banded}
    monkeypatch.setattr(sparse_least_squares, "MATRICES", matrices)
    # Run by test_linear_regression.
    stub = Study({}, tables={"": lambda numbers: ResultTable("table 2", ["runs"])})
    monkeypatch.setitem(SECTIONS, "table2", lambda *_: stub)
    # Their processes are started in tests/distributed.
    shares = dict.fromkeys(("all", *coordinator.SHARES), 1.0)
    monkeypatch.setattr(coordinator, "measure", lambda *_: shares)
    peers = dict.fromkeys(("RayCluster", "plain Ray", "shared memory"), 1.0)
    monkeypatch.setattr(coordinator, "compare", lambda *_: peers)
    # Run in this process.
    for section in (trials, first_calls):
        monkeypatch.setattr(
            section, "in_own_process", lambda run, *arguments: run(*arguments)
        )
    benchmark(repeats=2, quick=True, out=tmp_path)
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["decoding"][0]["ratio"] > 0
    assert written["accuracy"][0]["weights_float64"]["worst"] < 1e-10
    files = {"benchmark.json", *(f"benchmark_{name}.md" for name in SECTIONS)}
    files.add("benchmark_graphs.png")
    assert {path.name for path in tmp_path.iterdir()} == files
