"""Rounds of one unit against their laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxwgc import stragglers
from tests.stragglers.laws import SIGNIFICANCE, binary, rounds_of


class TestUniform:
    @pytest.mark.parametrize("num_stragglers", [1, 3, 4])
    def test_every_subset_is_as_likely(self, num_stragglers, key_in_mode):
        """Exactly s of 6 workers; chi-square over all C(6, s) subsets."""
        number = 6000
        model = stragglers.uniform(num_stragglers)
        arrivals = rounds_of(model, np.ones(6), number, key_in_mode)
        assert np.all(arrivals.received.sum(1) == 6 - num_stragglers)
        _, counts = np.unique(binary(arrivals.received), return_counts=True)
        assert len(counts) == math.comb(6, num_stragglers)
        assert scipy.stats.chisquare(counts).pvalue > SIGNIFICANCE
        np.testing.assert_array_equal(
            arrivals.times, np.where(arrivals.received, 1.0, np.inf)
        )
        np.testing.assert_array_equal(arrivals.elapsed, 1.0)

    @pytest.mark.parametrize(
        ("num_workers", "lost"), [(1, 0), (5, 0), (7, 6), (130, 65)]
    )
    def test_number_at_the_ends(self, num_workers, lost):
        model = stragglers.uniform(lost)
        arrivals = rounds_of(model, np.ones(num_workers), 20)
        assert np.all(arrivals.received.sum(1) == num_workers - lost)

    def test_rounds_are_independent(self):
        """Which of 3 workers is lost, against the round before."""
        lost = rounds_of(stragglers.uniform(1), np.ones(3), 2000).received.argmin(1)
        table = np.zeros((3, 3))
        np.add.at(table, (lost[:-1], lost[1:]), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > SIGNIFICANCE


class TestBernoulli:
    @pytest.mark.parametrize("probability", [0.2, 0.7, (0.1, 0.5, 0.8, 0.6)])
    def test_stragglers_are_independent(self, probability, key_in_mode):
        """Chi-square over all 16 subsets of four workers."""
        number = 4000
        model = stragglers.bernoulli(probability)
        arrivals = rounds_of(model, np.ones(4), number, key_in_mode)
        subsets = (np.arange(16)[:, None] >> np.arange(4)) & 1
        lost = np.broadcast_to(probability, 4)
        expected = np.prod(np.where(subsets, 1 - lost, lost), 1)
        counts = np.bincount(binary(arrivals.received), minlength=16)
        assert scipy.stats.chisquare(counts, number * expected).pvalue > SIGNIFICANCE
        np.testing.assert_array_equal(
            arrivals.times, np.where(arrivals.received, 1.0, np.inf)
        )
        np.testing.assert_array_equal(arrivals.elapsed, 1.0)

    def test_probability_may_be_mapped_over(self):
        """At the ends, too, where the outcome is sure."""

        def answers(probability, key):
            model = stragglers.bernoulli(probability)
            return model.sample(key, model.init(2000), jnp.ones(2000))[0].received

        probabilities = np.array([0.0, 0.1, 0.5, 1.0], np.float32)
        received = jax.jit(jax.vmap(answers, (0, None)))(
            probabilities, jax.random.key(1)
        )
        share = np.asarray(received).mean(1)
        error = 4 * np.sqrt(probabilities * (1 - probabilities) / 2000)
        assert np.all(np.abs(share - (1 - probabilities)) <= error)

    def test_same_key_same_round_in_both_precisions(self):
        model = stragglers.bernoulli(0.4)
        rounds = []
        for mode in (False, True):
            with jax.enable_x64(mode):
                rounds.append(rounds_of(model, np.ones(300), 4))
        np.testing.assert_array_equal(rounds[0].received, rounds[1].received)


@pytest.mark.parametrize("model", [stragglers.uniform(2), stragglers.bernoulli(0.5)])
def test_finished_parts_are_all_or_none(model, x64):
    parts = np.array([3, 0, 1, 12])
    arrivals = rounds_of(model, parts / 4, 4)
    expected = np.where(arrivals.received, parts, 0)
    np.testing.assert_array_equal(arrivals.finished(parts), expected)
