"""When weights help: end to end on few runs, and what it computes by itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runner.study import Study
from experiments.runner.tables import ResultTable
from experiments.weights import (
    SECTIONS,
    convergence,
    digits,
    fair,
    methods,
    sources,
    weights,
)
from experiments.weights.ratios import geometric_mean, ratio_of_means
from jaxwgc import sketching
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
    for path in written.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert not jax.config.jax_enable_x64


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


def test_one_shot_descent_is_that_of_numpy(with_x64, decoded_by_groups):
    """All ways to weigh one sample, after three steps."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 4, 3))
    targets = rng.normal(size=(30, 4))
    probabilities = jnp.asarray(rng.uniform(0.5, 2, 30) / 30)
    probabilities = probabilities / probabilities.sum()
    found = jax.jit(
        lambda key: methods.run_all(
            key,
            (jnp.asarray(rows), jnp.asarray(targets)),
            probabilities,
            jnp.asarray(200.0),
            lambda params, part: jnp.sum((part[0] @ params - part[1]) ** 2),
            jnp.zeros(3),
            lambda params: params[0],
            (1, 3),
        )
    )(KEY)
    # The sample of the first of both keys.
    sample_key = jax.random.split(jax.random.split(KEY, 3)[0])[0]
    sample = sketching.sample_partitions(sample_key, probabilities, num_distinct=20)
    counts, drawn = np.asarray(sample.counts), np.asarray(sample.probabilities)
    assert found["draws_per_part"] == pytest.approx(counts.sum() / 20)
    weights = {
        "weighted": counts / (20 * drawn),
        "weighted, unbiased": counts / (counts.sum() * drawn),
        "unweighted": 1 / (20 * drawn),
    }
    chosen = np.asarray(sample.indices)
    for name, own in weights.items():
        for lane, size in enumerate(methods.SIZES):
            params, path = np.zeros(3), []
            for _ in range(3):
                off = rows[chosen] @ params - targets[chosen]
                gradient = 2 * np.einsum("j,jmp,jm->p", own, rows[chosen], off)
                params = params - size / 200 * gradient
                path.append(params[0])
            expected = [path[0], path[2]]
            np.testing.assert_allclose(found["found"][name][lane], expected, rtol=1e-6)
    # New samples have decreasing steps besides.
    lanes = len(methods.DELAYS) * len(methods.SIZES)
    assert found["found"]["block leverage"].shape == (lanes, 2)


def made_up(rng, runs):
    """Errors (runs, lanes, checkpoints): the least in the middle, at the end of one."""
    lanes = np.arange(len(methods.SIZES))
    bowl = np.exp(0.1 * (lanes - 12.0) ** 2)[None, :, None]
    found = {}
    for place, name in enumerate(methods.METHODS):
        noise = np.exp(0.01 * rng.normal(size=(runs, len(lanes), 2)))
        found[name] = (1 + place) * bowl * noise
        if name in methods.ITERATIVE:
            found[name] = np.concatenate([10 * found[name], found[name]], axis=1)
    return found


def test_steps_are_chosen_on_other_runs():
    rng = np.random.default_rng(0)
    errors = made_up(rng, 40)
    # What the shown runs would choose does not count.
    errors["uniform"][10:, 3] = 1e-9
    errors["uniform"][0, 5] = np.nan
    chosen = methods.choose_all(errors)
    assert chosen.shown == slice(10, None)
    for name, lanes in chosen.best.items():
        is_iterative = name in methods.ITERATIVE
        expected = 12 + is_iterative * len(methods.SIZES)
        np.testing.assert_array_equal(lanes, expected)
    # An eighth of the step, six lanes of √2.
    np.testing.assert_array_equal(chosen.fixed, 6)
    ratio = 2 ** ((12 - 6) / 2)
    assert methods.SIZES[12] / methods.SIZES[6] == pytest.approx(ratio)
    found = methods.compare(errors, chosen)
    np.testing.assert_allclose(found["best_step"]["uniform"].mean, 4 / 3, rtol=0.01)
    np.testing.assert_allclose(found["fixed_step"]["weighted"].mean, 1 / 3, rtol=0.01)
    assert methods.step_of("weighted", 12) == f"{methods.SIZES[12]:.2g}"
    late = methods.step_of("block leverage", 12 + len(methods.SIZES))
    assert late == f"{methods.SIZES[12]:.2g}, halved after 10"


def test_table_of_the_images_says_what_is_better():
    rng = np.random.default_rng(0)
    losses = made_up(rng, 40)
    found = {
        name: {"loss": own, "error": 5 + np.log(own)} for name, own in losses.items()
    }
    cell = digits.reduce(
        {
            "found": found,
            "spread": rng.normal(size=40),
            "draws_per_part": rng.normal(size=40),
        }
    )
    table = digits.tabulate({"runs": 40, "compared": {"rho=4": cell}})
    rows = {row[1]: row for row in table.rows}
    assert rows["weighted"][-2].endswith("↓")
    assert rows["uniform"][-1].endswith("↑")
    assert rows["unweighted"][-1].endswith("%")
    assert "30 paired runs" in table.title


def test_ratios_and_their_intervals():
    rng = np.random.default_rng(0)
    below = rng.exponential(size=(2000, 2)) + 1
    above = below * [2.0, 1.0] + 0.1 * rng.normal(size=(2000, 2))
    found = ratio_of_means(above, below)
    np.testing.assert_allclose(found.mean, above.mean(0) / below.mean(0))
    draws = rng.integers(0, 2000, (2000, 2000))
    ratios = above[draws].mean(axis=1) / below[draws].mean(axis=1)
    np.testing.assert_allclose(
        found.high - found.low, 2 * 1.96 * ratios.std(axis=0), rtol=0.1
    )
    own = geometric_mean(above)
    np.testing.assert_allclose(own.mean, np.exp(np.log(above).mean(0)))
    assert np.all((own.low < own.mean) & (own.mean < own.high))
