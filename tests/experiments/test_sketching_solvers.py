"""The solvers' half of the comparison of sketches, end to end on small problems."""

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from experiments.runner.study import Effort, measure
from experiments.sketching import contraction, logistic, new_samples, solvers, stability

KEY = jax.random.key(0)
EFFORT = Effort(4, is_full=False)


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
    features, labels = logistic.load(EFFORT)
    found = scipy.optimize.minimize(
        lambda params: logistic.objective(features, labels, params),
        np.zeros(features.shape[1]),
        jac=lambda params: (
            features.T @ (scipy.special.expit(features @ params) - labels) / len(labels)
            + logistic.RIDGE * params
        ),
    )
    for row in section.numbers["measured"][2:]:
        assert row["converged"] and row["largest_difference"] < 1e-6
        # All logits are zero at the start.
        assert row["gaps"][0] == pytest.approx(np.log(2) - found.fun, abs=1e-6)
        assert abs(row["gaps"][-1]) < 1e-14


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
