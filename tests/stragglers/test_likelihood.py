"""Likelihoods of fitted delay models."""

import itertools

import numpy as np
import scipy.integrate
import scipy.stats

from jaxwgc.stragglers._fitting import _likelihood
from tests.catalogue.delay_laws import FITTED
from tests.catalogue.row import every_row


def test_predictions_match_an_enumeration_of_all_paths():
    """Predictions and responsibilities by enumeration of the paths of states."""
    generator = np.random.default_rng(0)
    logs = np.log(generator.random((2, 6, 1)))
    become_slow = 0.3
    become_fast = 0.4
    step = np.array([[0.7, 0.3], [0.4, 0.6]])
    start = np.array([4, 3]) / 7
    slow = np.zeros(6)
    joint_moves = np.zeros((2, 2))
    likelihoods = np.zeros(6)
    for length in range(1, 7):
        for path in itertools.product((0, 1), repeat=length):
            moves = list(itertools.pairwise(path))
            chance = start[path[0]] * np.prod([step[move] for move in moves])
            chance *= np.exp(logs[path, np.arange(length), 0].sum())
            likelihoods[length - 1] += chance
            if length == 6:
                slow += chance * np.array(path)
                for move in moves:
                    joint_moves[move] += chance
    _, result = _likelihood.predictions(logs, become_slow, become_fast)
    np.testing.assert_allclose(np.cumsum(result[:, 0]), np.log(likelihoods))
    known, first, second = _likelihood.responsibilities(logs, become_slow, become_fast)
    np.testing.assert_allclose(known[:, 0], slow / likelihoods[-1])
    expected = joint_moves / joint_moves.sum(1, keepdims=True)
    np.testing.assert_allclose([first, second], [expected[0, 1], expected[1, 0]])


@every_row(FITTED)
def test_survival_is_the_integral_of_the_density_for_an_uncertain_end(row):
    """A tenth of the times comes before it, and so do the density and the rest."""
    law = row.law
    component = _likelihood.Component(
        row.make, (0.0, 2.0, 1.0), tuple(row.arguments.values()), (0.1, 0.05)
    )
    times = np.linspace(-3, 60, 200_001)[None]
    ones = np.ones_like(times)
    measured = _likelihood.Measured(times, ones, ones > 0, ones)
    density = np.exp(component.log_likelihoods(measured))
    survival = np.exp(component.log_survivals(measured))
    end = 1 + 2 * law.ppf(0)
    np.testing.assert_allclose(survival[times < end].min(), 0.9, rtol=1e-3)
    left = 1 - scipy.integrate.cumulative_simpson(density, x=times, initial=0)
    np.testing.assert_allclose(survival, left, atol=1e-3)
