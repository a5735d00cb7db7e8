"""Estimates of the parameters of distributions."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxwgc import stragglers
from jaxwgc.stragglers._fitting._maximum_likelihood import maximum_likelihood
from jaxwgc.stragglers._independent_delay import Sample
from tests.catalogue.delay_laws import FITTED
from tests.catalogue.row import by_name, every_row
from tests.stragglers.laws import exponential, numerical_weibull, simulated

BY_NAME = by_name(FITTED)


@every_row(FITTED)
def test_estimates_of_whole_times(row):
    """SciPy's maximum of the likelihood, or in closed form."""
    law = row.law
    times = simulated(law, 500)
    sample = Sample(times, np.ones(500), np.ones(500, bool))
    result = maximum_likelihood(row.make, sample, None)
    np.testing.assert_allclose(result, row.estimate(times), rtol=1e-3)


@every_row(FITTED)
def test_estimates_of_censored_and_weighted_times(row):
    """No change of the parameters has a larger likelihood."""
    law = row.law
    family = row.make
    times = simulated(law, 400)
    ends = law.ppf(np.linspace(0.3, 1, 400))
    is_whole = times < ends
    assert 0.5 < is_whole.mean() < 0.95
    sample = Sample(np.minimum(times, ends), np.linspace(0, 2, 400).round(), is_whole)

    def likelihood(parameters):
        law_of_family = family(*parameters)
        terms = np.where(
            is_whole,
            law_of_family.logpdf(sample.times),
            law_of_family.logsf(sample.times),
        )
        return np.sum(sample.weights * np.where(sample.weights > 0, terms, 0))

    best = maximum_likelihood(family, sample, None)
    for change in itertools.product((-1e-3, 0, 1e-3), repeat=len(best)):
        moved = tuple(np.array(best) * (1 + np.array(change)))
        assert likelihood(moved) <= likelihood(best) + 1e-4


@pytest.mark.parametrize("kept", [1.0, 0.8])
@pytest.mark.parametrize("start", [None, (3.0, 1.0)])
def test_numerical_estimates_are_those_of_the_closed_form(kept, start):
    times = simulated(BY_NAME["weibull"].law, 400)
    is_whole = times < 2.5
    assert 0.5 < is_whole.mean() < 0.95
    weights = np.linspace(0, 2, 400).round()
    sample = Sample(np.minimum(times, 2.5), weights, is_whole, kept)
    expected = stragglers.weibull.estimate(sample)
    estimated = maximum_likelihood(numerical_weibull, sample, start)
    np.testing.assert_allclose(estimated, expected, rtol=2e-3)


def test_number_with_an_upper_bound_alone():
    """The logarithm of the rate, which is below 5."""

    @dataclasses.dataclass(frozen=True)
    class by_logarithm(exponential):
        scale: float
        rules = {"scale": {"maximum": 5.0}}

        def logpdf(self, x):
            return self.scale - np.exp(self.scale) * x

        def logsf(self, x):
            return -np.exp(self.scale) * x

    times = np.random.default_rng(0).exponential(2.0, 300)
    sample = Sample(times, np.ones(300), np.ones(300, bool))
    (logarithm,) = maximum_likelihood(by_logarithm, sample, None)
    np.testing.assert_allclose(logarithm, -np.log(times.mean()), atol=2e-3)
