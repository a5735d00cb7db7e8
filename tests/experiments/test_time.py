"""Training against the clock, and delay models judged by later rounds."""

import functools
import json

import jax
import numpy as np
import pytest

import jaxwgc
from experiments.delays import against_the_clock, known_laws, models
from experiments.delays.traces import simulated
from experiments.runner.results import ExperimentError
from jaxwgc import stragglers

NUM_PARTS, NUM_ROWS = 4, 96


@pytest.fixture(scope="module")
def problem():
    return against_the_clock.Problem.of_digits(NUM_ROWS, NUM_PARTS)


class TestDescent:
    def test_against_numpy(self, problem):
        """Weighted gradients of the parts, with the mean weight left to the step."""
        weights = np.random.default_rng(0).uniform(0, 2, (2, 3, NUM_PARTS))
        loss, error = against_the_clock.descend(problem, weights, 0.1)
        rows, signs = (np.asarray(own, np.float64) for own in problem[:2])
        scaled = weights / weights.mean()
        for run in range(2):
            params = np.zeros(rows.shape[1])
            for step in range(4):
                margins = signs * (rows @ params)
                value = np.logaddexp(0, -margins).mean()
                value += problem.ridge / 2 * params @ params
                relative = (value - problem.least) / (np.log(2) - problem.least)
                np.testing.assert_allclose(loss[run, step], relative, rtol=1e-3)
                wrong = (problem.test_rows @ params) * problem.test_signs <= 0
                np.testing.assert_allclose(error[run, step], 100 * wrong.mean(), 1e-2)
                if step < 3:
                    slopes = (-signs / (1 + np.exp(margins)))[:, None] * rows
                    parts = slopes.reshape(NUM_PARTS, -1, rows.shape[1]).sum(1)
                    gradient = scaled[run, step] @ parts / NUM_ROWS
                    params = params - 0.1 * (gradient + problem.ridge * params)

    def test_minimum_is_one(self, problem):
        """Many exact steps end there, and no lower."""
        weights = np.ones((1, 400, NUM_PARTS))
        loss, _ = against_the_clock.descend(problem, weights, 1 / problem.curvature)
        assert loss[0, 0] == pytest.approx(1) and 0 <= loss[0, -1] + 1e-6 < 1e-2
        assert np.all(np.diff(loss[0]) < 1e-6)

    def test_heterogeneity(self, problem):
        """By its definition, of gradients from another implementation."""
        best, _ = against_the_clock.minimum(
            np.asarray(problem.rows), np.asarray(problem.signs), problem.ridge
        )
        parts = [own.reshape(NUM_PARTS, -1, *own.shape[1:]) for own in problem[:2]]

        def mean_loss(params, rows, signs):
            margins = signs * (rows @ params)
            ridge = problem.ridge / 2 * params @ params
            return jax.nn.softplus(-margins).mean() + ridge

        slope = jax.grad(mean_loss)
        slopes = jax.jit(jax.vmap(slope, (None, 0, 0)))(best, *parts)
        start = jax.jit(slope)(0 * best, problem.rows, problem.signs)
        slopes, start = np.asarray(slopes), np.asarray(start)
        expected = np.sum(slopes**2, 1).mean() / np.sum(start**2)
        np.testing.assert_allclose(problem.heterogeneity, expected, rtol=1e-3)


def test_time_to_the_target():
    """Where it stays below, between two steps, and never where it does not."""
    clock = np.array([0.0, 1.0, 3.0, 6.0, 7.0])
    target = against_the_clock.TARGET
    loss = target * np.array([100.0, 0.5, 10.0, 0.1, 0.1])
    assert against_the_clock.time_to(clock, loss) == pytest.approx(4.5)
    assert against_the_clock.time_to(clock, loss[::-1]) == np.inf


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Six workers of which one is slow."""
    path = tmp_path_factory.mktemp("trace") / "times.npy"
    times = np.random.default_rng(0).lognormal(0, 0.1, (40, 6))
    times[:, 1] *= 5
    np.save(path, times)
    return path


class TestCommands:
    """With few runs."""

    def test_time(self, trace, tmp_path):
        against_the_clock.time(trace, quick=True, runs=2, out=tmp_path)
        numbers = json.loads((tmp_path / "time.json").read_text())["times_measured"]
        first, *others = numbers["choices"]
        assert first["waits_for"] == "all" and first["copies"] == 1
        # The slow worker is awaited, or it is not.
        assert first["step"]["mean"] > 4
        exact = [own for own in others if own["copies"] == 2]
        assert exact and exact[0]["step"]["mean"] < 3
        assert exact[0]["time"]["mean"] < first["time"]["mean"]
        assert (tmp_path / "time_times_measured.png").stat().st_size > 10_000

    def test_delays(self, trace, tmp_path):
        models.delays(trace, runs=4, out=tmp_path)
        numbers = json.loads((tmp_path / "delays.json").read_text())["times"]
        assert "speeds" in numbers["fits"][0]["name"]
        measured = np.array(numbers["measured"])
        said = np.array(numbers["said"]["best fit"])
        np.testing.assert_allclose(said, measured, rtol=0.3)

    def test_fits_to_times_of_a_known_law(self):
        rows = list(known_laws.fits("pareto", 1, 0))
        assert all(own["first"].startswith("pareto") for own in rows)
        assert all(np.isfinite(own["held_out"]) for own in rows)
        (row,) = known_laws.tabulate({"known": {"pareto": rows}}).rows
        assert row[:2] == ["`pareto(scale=1, shape=2)`", "100%"]

    @pytest.mark.parametrize(
        ("arrays", "rule"),
        [
            ({"times": np.ones((3, 4))}, "at least 8 rounds; got 3 rounds"),
            ({"times": np.zeros((9, 4))}, "must hold positive times.*got 0"),
            (
                {"times": np.ones((9, 20, 4)), "loads": np.ones(3)},
                r"for its loads \(3,\)",
            ),
            ({"times": np.array(["a"])}, "--trace must hold times"),
        ],
    )
    def test_bad_traces(self, arrays, rule, tmp_path):
        path = tmp_path / "trace.npz"
        np.savez(path, **arrays)
        with pytest.raises(ExperimentError, match=rule):
            models.delays(path, out=tmp_path)

    @pytest.mark.parametrize("command", [against_the_clock.time, models.delays])
    def test_bad_input(self, command, trace, tmp_path):
        with pytest.raises(ExperimentError, match="--num-workers must be at least 2"):
            command(trace, num_workers=1, out=tmp_path)
        with pytest.raises(ExperimentError, match="--runs must be at least 1; got 0"):
            command(trace, runs=0, out=tmp_path)
        with pytest.raises(ExperimentError, match="--trace must be a file of numpy"):
            command(tmp_path / "none.npy", out=tmp_path)
        (tmp_path / "empty.npy").touch()
        with pytest.raises(ExperimentError, match="empty.npy, which is none"):
            command(tmp_path / "empty.npy", out=tmp_path)


def test_weights_are_those_of_the_code():
    """What `train` decodes is what the clock waited for."""
    delay = stragglers.shifted_exponential(1.0, 2.0)
    waiting = [lambda code: stragglers.fastest(4 - code.num_stragglers)]
    plan = jaxwgc.plan(delay, 4, jax.random.key(0), waiting=waiting, exact=True)
    choices = [own for own in plan.choices if own.replication == 2]
    assert {own.name for own in choices} == {"fractional_repetition", "replicated"}
    keys = jax.random.split(jax.random.key(1), 3)
    for choice in choices:
        rounds = simulated(choice.model(delay), choice.code.loads, 5, keys)
        assert np.all(rounds.received.sum(-1) == 3) and np.all(rounds.elapsed >= 2.0)
        weights = jaxwgc.effective_weights(choice.code, rounds)
        np.testing.assert_allclose(weights, 1, atol=1e-5)


def test_who_is_remembered_is_trained_with():
    """Nobody is late where all are waited for; else it takes less time, no floor."""
    problem = against_the_clock.Problem.of_digits(NUM_ROWS, NUM_PARTS)
    delay = stragglers.unequal_speeds(
        stragglers.shifted_exponential(1.0, 9.0), np.linspace(0.5, 2, NUM_PARTS)
    )
    waiting = [stragglers.fastest(NUM_PARTS - 2)]
    plan = jaxwgc.plan(
        delay,
        NUM_PARTS,
        jax.random.key(0),
        waiting=waiting,
        replications=[1],
        memory=True,
    )
    all_awaited, remembering = (
        next(own for own in plan.choices if own.waits_for == waiting)
        for waiting in ("all", f"first {NUM_PARTS - 2} + late")
    )
    key = jax.random.key(1)
    train = functools.partial(against_the_clock.train, problem, delay, 40, key)
    decoded = train(all_awaited, 3)["curves"]
    same = train(all_awaited._replace(memory=True), 3)["curves"]
    np.testing.assert_allclose(same["loss"], decoded["loss"], rtol=1e-2, atol=1e-4)
    late = train(remembering, 3)["curves"]
    assert late["time"][:, -1].mean() < 0.9 * decoded["time"][:, -1].mean()
    assert late["loss"][:, -1].mean() < 2 * decoded["loss"][:, -1].mean()
