"""Delay models fitted to times: against SciPy, enumeration and what made the times."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from jaxwgc import stragglers
from jaxwgc.stragglers._fitting import _fit, _likelihood, _most_likely
from jaxwgc.stragglers._independent_delay import Sample
from tests.catalogue.delay_laws import FITTED
from tests.catalogue.row import by_name, every_row
from tests.stragglers.laws import (
    consecutive_times,
    exponential,
    numerical_weibull,
    simulated,
)

BY_NAME = by_name(FITTED)


def named(fits, name):
    (result,) = [fit for fit in fits if fit.name == name]
    return result


@every_row(FITTED)
class TestFamilies:
    def test_densities_and_survivals(self, row):
        law = row.law
        model = row.example
        times = np.linspace(0.1, 9, 50)
        for load in (1.0, 2.5):
            scaled = model.law(load)
            with np.errstate(divide="ignore"):
                expected = law.logpdf(times / load) - np.log(load)
            np.testing.assert_allclose(scaled.logpdf(times), expected, atol=1e-12)
            expected = law.sf(times / load)
            np.testing.assert_allclose(scaled.sf(times), expected, rtol=1e-12)
        levels = np.array([0.0, 1e-9, 0.3, 1.0])
        np.testing.assert_allclose(model.isf(levels), law.isf(levels), atol=1e-12)

    @pytest.mark.parametrize("spread", [0.0, 0.3])
    def test_parameters_within_their_standard_errors(self, row, spread):
        """Over 60 data sets, (estimate - truth) / error has mean 0 and deviation 1.

        With speeds of the workers, too: theirs are those of a worker of mean speed.
        """
        law = row.law
        truth = tuple(row.arguments.values())
        # Logarithms of estimated speeds have a bias that falls with the rounds.
        num_rounds = 24 if spread else 12
        logs = spread * np.linspace(-1, 1, 10)
        standard = []
        for seed in range(60):
            times = simulated(law, (num_rounds, 10), seed) / np.exp(logs)
            fit = one_kind(row.make, times, has_speeds=spread > 0)
            errors = np.array(list(fit.standard_errors.values()))
            values = np.array(list(fit.parameters.values()))
            standard.append((values - truth) / errors)
        standard = np.array(standard)
        if row.make.least_time and not spread:
            # The least time lies beyond the end by an exponential of mean one.
            assert scipy.stats.kstest(standard[:, 0] + 1, "expon").pvalue > 1e-3
        assert np.all(np.abs(standard.mean(0)) < 4 / np.sqrt(60))
        assert np.all(np.abs(standard.std(0) - 1) < 4 / np.sqrt(120))


@pytest.mark.parametrize("shape", [0.3, 2.0, 50.0])
def test_gamma_is_estimated_as_by_scipy(shape):
    times = np.random.default_rng(0).gamma(shape, 2.0, 100)
    sample = Sample(times, np.ones(100), np.ones(100, bool))
    expected_shape, _, expected_scale = scipy.stats.gamma.fit(times, floc=0)
    estimates = stragglers.gamma.estimate(sample)
    np.testing.assert_allclose(estimates, (expected_scale, expected_shape), rtol=1e-4)

    # Of a weighted time there are as many, and speeds take half of the freedom: the
    # information on the logarithm of the scale is the shape.
    weights = np.arange(100) % 4
    sample = Sample(times, weights.astype(float), np.ones(100, bool), kept=0.5)
    repeated = times.repeat(weights)

    def cost(log_shape):
        shape = np.exp(log_shape)
        law = scipy.stats.gamma(shape, scale=repeated.mean() / shape)
        return np.log(shape) / 4 - law.logpdf(repeated).mean()

    best = scipy.optimize.minimize_scalar(cost, bounds=(-3, 6), method="bounded")
    scale, shape = stragglers.gamma.estimate(sample)
    np.testing.assert_allclose(shape, np.exp(best.x), rtol=1e-3)
    np.testing.assert_allclose(scale * shape, repeated.mean())


def test_gamma_of_equal_times():
    scale, shape = stragglers.gamma.estimate(
        Sample(np.full(9, 3.0), np.ones(9), np.ones(9, bool))
    )
    assert shape > 1e10
    np.testing.assert_allclose(scale * shape, 3.0)


@dataclasses.dataclass(frozen=True)
class shifted_weibull(stragglers.IndependentDelay):
    """Weibull times above a shift."""

    scale: float
    shape: float
    shift: float
    rules = {
        "scale": {"positive": True},
        "shape": {"positive": True},
        "shift": {"minimum": 0},
    }
    least_time = "shift"

    @property
    def unshifted(self):
        return stragglers.weibull(self.scale, self.shape)

    def draw(self, key, shape):
        return self.shift + self.unshifted.draw(key, shape)

    def logpdf(self, x):
        return np.where(x < self.shift, -np.inf, self.unshifted.logpdf(x - self.shift))

    def logsf(self, x):
        return self.unshifted.logsf(np.maximum(x - self.shift, 0))

    def isf(self, q):
        return self.shift + self.unshifted.isf(q)


class TestOwnFamilies:
    def test_lower_end_in_the_last_field(self):
        """Over 60 data sets, (estimate - truth) / error has mean 0 and deviation 1."""
        law = scipy.stats.expon(3.0, 2.0)
        truth = np.array([2.0, 1.0, 3.0])
        standard = []
        for seed in range(60):
            fit = one_kind(shifted_weibull, simulated(law, (12, 10), seed))
            assert list(fit.parameters) == ["scale", "shape", "shift"]
            errors = np.array(list(fit.standard_errors.values()))
            values = np.array(list(fit.parameters.values()))
            standard.append((values - truth) / errors)
        standard = np.array(standard)
        assert np.all(np.abs(standard.mean(0)) < 4 / np.sqrt(60))
        assert np.all(np.abs(standard.std(0) - 1) < 4 / np.sqrt(120))

    def test_family_of_the_times_comes_first(self):
        times = 3.0 + simulated(scipy.stats.weibull_min(0.8, scale=2.0), (40, 10))
        families = [stragglers.log_normal, shifted_weibull]
        fits = stragglers.fit_delays(times, families=families)
        assert fits[0].name == "shifted_weibull, proportional to the load"

    @pytest.mark.parametrize(
        "logpdf",
        [
            lambda self, x: np.log(-x / self.scale),
            lambda self, x: -x / self.scale,
        ],
        ids=["NaN", "without its scale"],
    )
    def test_densities_that_do_not_fit_the_quantiles_are_named(self, logpdf):
        family = type("wrong", (exponential,), {"logpdf": logpdf})
        times = np.random.default_rng(0).exponential(size=(12, 4))
        with pytest.raises(ValueError, match="logpdf of wrong must be the log-density"):
            stragglers.fit_delays(times, families=[family])

    def test_least_time_that_is_no_field_is_named(self):
        family = dataclasses.dataclass(frozen=True)(
            type("wrong", (numerical_weibull,), {"least_time": "shfit"})
        )
        message = "least_time of wrong must be one of its fields, .* got 'shfit'"
        with pytest.raises(ValueError, match=message):
            stragglers.fit_delays(np.ones((4, 2)), families=[family])

    def test_all_laws_with_densities_are_fitted_by_default(self):
        times = simulated(BY_NAME["weibull"].law, (12, 4))
        fits = stragglers.fit_delays(times)
        assert {fit.name.split(",")[0] for fit in fits} == set(BY_NAME)

    @pytest.mark.parametrize(
        ("families", "error", "message"),
        [
            ([], ValueError, "families must have at least one delay law"),
            (stragglers.weibull, TypeError, "families must be a list of delay laws"),
            (["weibull"], TypeError, "families must be classes .* got 'weibull'"),
            ([stragglers.weibull(1.0, 1.0)], TypeError, "families must be classes"),
            ([stragglers.empirical], TypeError, "families must be classes"),
            (
                [stragglers.bernoulli_slowdown],
                ValueError,
                "families must define logpdf and logsf .* got bernoulli_slowdown",
            ),
        ],
    )
    def test_families_that_cannot_be_fitted_are_named(self, families, error, message):
        with pytest.raises(error, match=message):
            stragglers.fit_delays(np.full((4, 2), 1.0), families=families)


def one_kind(name, times, loads=1.0, **kind):
    """The fit of one kind alone."""
    measured = _fit._measured(times, loads)
    form = _likelihood.forms(measured)[kind.pop("form", 0)]
    family = BY_NAME[name].make if isinstance(name, str) else name
    kind = _most_likely.Kind(family, form, **kind)
    held_out = np.arange(len(times)) >= len(times) * 2 // 3
    return _fit._tried(measured, held_out, kind).fit


def within_errors(result, truth, times=4.0):
    for name, value in truth.items():
        error = result.standard_errors[name]
        assert abs(result.parameters[name] - value) < times * error, name
        assert error < 0.3 * abs(value), name


def test_affine_in_the_load():
    """Times 0.5 load + (0.3 + 0.7 load / mean) X."""
    generator = np.random.default_rng(0)
    loads = np.repeat([1.0, 2.0, 4.0], 20)[:, None]
    mean = loads.mean()
    noise = generator.lognormal(np.log(2.0), 0.3, (60, 30))
    times = 0.5 * loads + (0.3 + 0.7 * loads / mean) * noise
    fit = one_kind("log_normal", times, loads, form=1)
    truth = {
        "median": 2.0,
        "deviation": 0.3,
        "overhead": 0.3,
        "slope": 0.7 / mean,
        "time": 0.5,
    }
    within_errors(fit, truth)
    # The delay model is made of them.
    law = fit.delay.law(2.0)
    expected = 0.5 * 2 + (0.3 + 0.7 * 2 / mean) * 2.0
    np.testing.assert_allclose(law.isf(0.5), expected, rtol=0.02)
    # An overhead below zero would fit best.
    fit = one_kind("log_normal", (loads - 0.5) * noise, loads, form=1)
    assert abs(fit.parameters["overhead"]) < 1e-3


@functools.cache
def chain_times():
    generator = np.random.default_rng(1)
    is_slow = np.zeros((200, 20), bool)
    is_slow[0] = generator.random(20) < 0.2
    for before, now in itertools.pairwise(is_slow):
        now[:] = generator.random(20) < np.where(before, 0.8, 0.05)
    fast = generator.weibull(8.0, is_slow.shape)
    slow = 3.0 * generator.weibull(4.0, is_slow.shape)
    return np.where(is_slow, slow, fast)


CHAIN_TRUTH = {
    "fast scale": 1.0,
    "fast shape": 8.0,
    "slow scale": 3.0,
    "slow shape": 4.0,
    "become_slow": 0.05,
    "become_fast": 0.2,
}


def test_slow_spells_are_estimated():
    fit = one_kind("weibull", chain_times(), has_slow_state=True)
    within_errors(fit, CHAIN_TRUTH)


def test_worker_that_is_always_slow():
    """A chain that never moves has the share of slow workers that was seen."""
    times = np.ones((40, 8))
    times[:, 5] = 2.25
    times *= np.exp(0.05 * np.random.default_rng(1).standard_normal(times.shape))
    fit = one_kind("log_normal", times, has_slow_state=True)
    chain = fit.parameters["become_slow"], fit.parameters["become_fast"]
    become_slow, become_fast = chain
    assert become_slow + become_fast < 1e-3
    np.testing.assert_allclose(become_slow / (become_slow + become_fast), 1 / 8)
    assert np.isnan(fit.standard_errors["become_slow"])
    assert f"become_slow {become_slow:.3g}, become_fast" in str(fit)


def test_rounded_times():
    """No law of whole seconds only, nor a slow state of the one time that is long."""
    times = np.ceil(3 * simulated(BY_NAME["log_normal"].law, (40, 10)))
    times[20, 3] = 40
    for result in stragglers.fit_delays(times):
        assert result.held_out < 0
        smooth = ("deviation", "rate", "shape")
        numbers = result.parameters.items()
        assert all(
            1e-3 < number < 1e3 for name, number in numbers if name.endswith(smooth)
        )


def test_missing_times_are_censored():
    """The slowest of a round are lost: others are not taken for the slowest."""
    times = simulated(BY_NAME["weibull"].law, (100, 20))
    last = np.sort(times, axis=1)[:, -5:-4]
    lost = np.where(times > last, np.nan, times)
    fit = one_kind("weibull", lost)
    within_errors(fit, {"scale": 2.0, "shape": 1.7})
    infinite = one_kind("weibull", np.where(np.isnan(lost), np.inf, lost))
    assert infinite.parameters == fit.parameters


def test_speeds_of_workers_are_estimated():
    speeds = np.exp(np.random.default_rng(2).normal(0, 0.5, 8))
    times = simulated(BY_NAME["weibull"].law, (150, 8)) / speeds
    fit = one_kind("weibull", times, has_speeds=True)
    np.testing.assert_allclose(fit.parameters["shape"], 1.7, rtol=0.1)
    rounds = consecutive_times(fit.delay, np.ones(8), 400)
    relative = np.median(rounds, axis=0) * speeds / 2.0
    np.testing.assert_allclose(relative, np.log(2) ** (1 / 1.7), rtol=0.25)
    slow = f"{min(fit.delay.speeds):.3g} (worker {speeds.argmin()})"
    assert str(fit).endswith(f"speeds {slow} to {max(fit.delay.speeds):.3g}")


class TestRanking:
    """The kind that made the times comes first, or one that holds it."""

    @pytest.mark.parametrize("name", ["shifted_exponential", "pareto"])
    def test_the_family_of_the_times_is_ranked_first(self, name):
        fits = stragglers.fit_delays(simulated(BY_NAME[name].law, (40, 10)))
        assert fits[0].name == f"{name}, proportional to the load"
        # Behind it what was held out tells from the best, in that order.
        means = np.array([fit.held_out for fit in fits])
        close = means.max() - np.log(100) / (13 * 10)
        is_close = means >= close
        assert np.all(np.diff(is_close.astype(int)) <= 0)
        assert np.all(np.diff(means[~is_close]) <= 0)

    def test_a_model_with_spells_is_ranked_first(self):
        fits = stragglers.fit_delays(chain_times()[:100])
        assert fits[0].name.startswith("weibull") and "two states" in fits[0].name
        assert "two states" in str(fits[0]) and "±" in str(fits[0])

    def test_held_out_is_the_mean_log_likelihood_of_the_last_third(self):
        times = simulated(BY_NAME["weibull"].law, (60, 12))
        fits = stragglers.fit_delays(times)
        assert fits[0].name.startswith("weibull")
        shape, _, scale = scipy.stats.weibull_min.fit(times[:40].ravel(), floc=0)
        first = scipy.stats.weibull_min(shape, scale=scale)
        fit = named(fits, "weibull, proportional to the load")
        np.testing.assert_allclose(
            fit.held_out, first.logpdf(times[40:]).mean(), rtol=1e-4
        )


def test_times_and_loads_of_parts_are_summed():
    parts = simulated(BY_NAME["weibull"].law, (12, 3, 4))
    added = one_kind("weibull", parts.sum(-1), 4.0)
    loads = [4.0, 2.0, 3.0]
    assert one_kind("weibull", parts, loads).parameters == added.parameters


def test_held_out_rounds_are_the_last_of_each_load():
    loads = np.repeat([1.0, 2.0], 6)[:, None]
    times = 1 + np.arange(36.0).reshape(12, 3)
    measured = _fit._measured(times, loads)
    is_last = _fit._last_rounds(measured)
    np.testing.assert_array_equal(np.flatnonzero(is_last), [4, 5, 10, 11])


def test_zero_loads():
    """Answers take time without work: only times affine in the load can be."""
    loads = np.repeat([0.0, 1.0], 10)[:, None]
    times = simulated(BY_NAME["log_normal"].law, (20, 9)) + 3 * loads
    fits = stragglers.fit_delays(times, loads)
    assert all("affine in the load" in candidate.name for candidate in fits)
    fit = named(fits, "log_normal, affine in the load")
    np.testing.assert_allclose(fit.parameters["time"], 3.0, rtol=0.1)


# Six rounds of three workers.
ROUNDS = np.arange(1.0, 19).reshape(6, 3)
# Seven of fifteen times, and one of the five of the last worker.
FEW = np.where(np.arange(5)[:, None] < [3, 3, 1], ROUNDS[:5], np.nan)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (ROUNDS[0], "times must have (shape|a leading axis)"),
        (ROUNDS[:3], "times must have .* at least 4 rounds"),
        (ROUNDS[:, :0], r"times must .*not empty .* got \(6, 0\)"),
        (ROUNDS - 1, "times must be positive.*got 0"),
        (np.ones((6, 3)), "times must not all be equal"),
    ],
)
def test_times_that_are_no_rounds_are_rejected(times, message):
    with pytest.raises(ValueError, match=message):
        stragglers.fit_delays(times)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (ROUNDS * np.nan, "half of all rounds × .* got 0%, and"),
        (FEW, "got 47%, and 20% of worker 2. Leave out the"),
        (ROUNDS * [1, np.nan, 1], r"workers \[1\]. L"),
        (np.where(ROUNDS > 15, np.nan, ROUNDS), r"ds \[5\]. Lea"),
    ],
)
def test_missing_times_that_hide_the_delays_are_rejected(times, message):
    with pytest.raises(ValueError, match=message):
        stragglers.fit_delays(times)


def test_loads_of_no_work_are_rejected():
    with pytest.raises(ValueError, match="loads must be .* not all 0"):
        stragglers.fit_delays(ROUNDS, loads=0.0)
