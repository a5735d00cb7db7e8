"""LDGM and batch raptor codes: what they draw, and what they survive."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxwgc import decoders
from jaxwgc.codes import batch_raptor, ldgm
from jaxwgc.codes._peeling_codes import robust_soliton
from tests.conftest import own_decoder
from tests.zoo import KEY, patterns_within, worst_miss


class TestLdgm:
    def test_systematic_workers_and_parities(self):
        code = ldgm(KEY, 10, 6, 2)
        np.testing.assert_array_equal(code.encoding_matrix[:6], np.eye(6))
        np.testing.assert_array_equal(code.parts_per_worker, [1] * 6 + [2] * 4)
        assert code.decoders[0].is_a(decoders.Peeling)
        np.testing.assert_array_equal(code.decoders[0].assignment, code.assignment)
        assert own_decoder(code, decoders.OneStep) is None

    def test_parities_are_uniform(self):
        parities = ldgm(KEY, 20_005, 5, 3).assignment[5:]
        counts = np.unique(parities, axis=0, return_counts=True)[1]
        assert len(counts) == 10
        assert scipy.stats.chisquare(counts).pvalue > 1e-3

    @pytest.mark.parametrize(
        ("num_workers", "num_parts", "parity_degree", "survived"),
        [(5, 4, 4, 1), (7, 4, 4, 1), (4, 1, 1, 1), (5, 4, 3, 0), (7, 4, 1, 0)],
    )
    def test_the_stragglers_it_claims_to_survive(
        self, num_workers, num_parts, parity_degree, survived
    ):
        code = ldgm(KEY, num_workers, num_parts, parity_degree)
        assert code.num_stragglers == survived
        received = patterns_within(num_workers, survived)
        assert worst_miss(code, received).max() < 1e-12


def soliton_by_definition(num_batches, c, delta):
    """Luby's rho and tau, as he writes them, for a spike within the support."""
    ripple = c * math.log(num_batches / delta) * math.sqrt(num_batches)
    spike = round(num_batches / ripple)
    weights = []
    for degree in range(1, num_batches + 1):
        rho = 1 / num_batches if degree == 1 else 1 / (degree * (degree - 1))
        if degree < spike:
            tau = ripple / (degree * num_batches)
        elif degree == spike:
            tau = ripple * math.log(ripple / delta) / num_batches
        else:
            tau = 0
        weights.append(rho + tau)
    return np.array(weights) / sum(weights)


class TestRobustSoliton:
    @pytest.mark.parametrize(
        ("num_batches", "c", "delta"), [(100, 0.1, 0.5), (1000, 0.03, 0.5), (50, 1, 1)]
    )
    def test_is_the_published_one(self, num_batches, c, delta):
        found = robust_soliton(num_batches, c, delta, num_batches)
        expected = soliton_by_definition(num_batches, c, delta)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        # The spike stands out.
        ripple = c * math.log(num_batches / delta) * math.sqrt(num_batches)
        spike = round(num_batches / ripple)
        assert found[spike - 1] > 2 * found[spike]

    def test_is_the_ideal_one_without_robustness(self):
        found = robust_soliton(5, 0.0, 0.5, 5)
        np.testing.assert_allclose(found, [1 / 5, 1 / 2, 1 / 6, 1 / 12, 1 / 20])

    @given(
        num_batches=st.integers(1, 200),
        c=st.floats(0, 10),
        delta=st.floats(0, 1, exclude_min=True),
        data=st.data(),
    )
    def test_is_a_distribution_cut_off_at_the_maximal_degree(
        self, num_batches, c, delta, data
    ):
        max_degree = data.draw(st.integers(1, num_batches))
        found = robust_soliton(num_batches, c, delta, max_degree)
        assert found.shape == (max_degree,)
        assert np.all(found > 0)
        assert found.sum() == pytest.approx(1)
        whole = robust_soliton(num_batches, c, delta, num_batches)[:max_degree]
        np.testing.assert_allclose(found, whole / whole.sum(), rtol=1e-9)


class TestBatchRaptor:
    @pytest.mark.parametrize("max_degree", [None, 3])
    def test_degrees_are_of_the_distribution(self, max_degree):
        code = batch_raptor(KEY, 20_000, 10, max_degree=max_degree, c=0.2)
        highest = max_degree or 10
        counts = np.bincount(code.parts_per_worker, minlength=highest + 1)
        assert counts[0] == 0
        assert len(counts) == highest + 1
        expected = robust_soliton(10, 0.2, 0.5, highest) * 20_000
        assert scipy.stats.chisquare(counts[1:], expected).pvalue > 1e-3

    def test_batches_of_a_degree_are_uniform(self):
        code = batch_raptor(KEY, 20_000, 5)
        pairs = code.assignment[code.parts_per_worker == 2]
        counts = np.unique(pairs, axis=0, return_counts=True)[1]
        assert len(counts) == 10
        assert scipy.stats.chisquare(counts).pvalue > 1e-3

    def test_workers_hold_whole_batches(self):
        code = batch_raptor(KEY, 40, 12, batch_size=3)
        batches = code.assignment.reshape(40, 4, 3)
        np.testing.assert_array_equal(batches.all(axis=2), batches.any(axis=2))
        np.testing.assert_array_equal(code.decoders[0].assignment, batches.all(axis=2))
        assert code.decoders[0].is_a(decoders.Peeling)
        assert own_decoder(code, decoders.OneStep) is None
