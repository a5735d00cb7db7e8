"""When weights help, end to end on few runs."""

import json

import jax
import numpy as np
import pytest

from experiments.runner.study import Study
from experiments.runner.tables import ResultTable
from experiments.weights import (
    SECTIONS,
    convergence,
    fair,
    methods,
    sources,
    weights,
)
from tests.experiments.conftest import decode_by_groups

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All but the images, which take their time."""
    out = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        table = ResultTable("digits", ["runs"])
        stub = Study({}, tables={"digits": lambda numbers: table})
        patch.setitem(SECTIONS, "digits", lambda *_: stub)
        decode_by_groups(patch)
        weights(runs=4, out=out)
    return out


def test_few_runs_write_everything(written):
    assert {path.name for path in written.iterdir()} == {
        "weights.json",
        *(f"weights_{name}.md" for name in ("best_step", "digits", "distance")),
        *(f"weights_{name}.md" for name in ("fixed_step", "iterations", "sources")),
        *(f"weights_{name}.png" for name in ("distance", "iterations", "sources")),
        *(f"weights_{name}.png" for name in ("spread", "steps")),
    }


def test_coded_descent_ends_at_the_estimate_of_gauss_and_markov(written):
    own = json.loads((written / "weights.json").read_text())["sources"]
    np.testing.assert_allclose(own["over_oracle"]["known"]["mean"], 1, rtol=1e-4)
    # The first setting has equal variances.
    assert own["over_oracle"]["unweighted"]["mean"][0] == pytest.approx(1, rel=1e-4)
    # Fifty rows, a spread of ten: at least 3 times less, by four runs already.
    at = sources.SETTINGS.index((10, 50))
    assert own["unweighted_over_last"]["mean"][at] > 3
    assert own["over_oracle"]["estimated twice"]["mean"][at] < 1.3


def test_descent_and_sketches_are_within_their_bounds(written):
    own = json.loads((written / "weights.json").read_text())["convergence"]
    assert own["sketches"]["violations"] == [0] * len(convergence.DRAWS)
    distances = own["sketches"]["distance"]["mean"]
    assert distances[-1] < distances[0] / 4
    for found in own["descent"]["rho=2"].values():
        # A straight line in the logarithm, at the rate of the slowest direction.
        steps = np.diff(found["iterations"]["mean"])
        assert steps.max() < 1.2 * found["asymptotic"]["mean"]
        assert steps[-1] == pytest.approx(found["asymptotic"]["mean"], rel=0.05)
        # And where it ends is not the whole solution.
        assert found["distance"]["mean"][-1] > 0.9 * found["distance"]["mean"][-3]


def test_weighted_is_unbiased_at_a_longer_step(written):
    own = json.loads((written / "weights.json").read_text())["fair"]
    for kind in fair.SHOWN:
        found = own["compared"]["rho=2"][kind]
        assert found["draws_per_part"]["mean"] > 1
        # At the shortest step of all, which is far from the best.
        early = {
            name: found["by_step"][name]["mean"][0][0] for name in methods.ONE_SHOT
        }
        assert early["weighted"] < early["weighted, unbiased"]
        assert early["weighted"] < early["unweighted"]
    spreads = [own["compared"]["rho=2"][kind]["spread"]["mean"] for kind in fair.KINDS]
    assert spreads[1:] == sorted(spreads[1:])
