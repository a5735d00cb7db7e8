"""Codes for the peeling decoder, and their distribution of degrees."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxwgc import codes, decoders
from jaxwgc.codes._peeling_codes import robust_soliton
from tests.conftest import own_decoder
from tests.oracles import check_counts, check_subsets
from tests.zoo import KEY


class TestRobustSoliton:
    @pytest.mark.parametrize("num_batches", [500, 1000, 5000])
    def test_matches_the_published_distribution(self, num_batches):
        """Luby's rho and tau, as he writes them, for a spike within the support."""
        ripple = 0.03 * math.log(num_batches / 0.5) * math.sqrt(num_batches)
        spike = round(num_batches / ripple)
        degrees = np.arange(1, num_batches + 1)
        rho = np.append(1 / num_batches, 1 / (degrees[1:] * degrees[:-1]))
        tau = np.where(degrees < spike, ripple / (degrees * num_batches), 0)
        tau[spike - 1] = ripple * math.log(ripple / 0.5) / num_batches
        expected = (rho + tau) / np.sum(rho + tau)
        distribution = robust_soliton(num_batches, num_batches)
        np.testing.assert_allclose(distribution, expected, rtol=1e-12)
        # The spike stands out.
        assert distribution[spike - 1] > 2 * distribution[spike]

    @given(num_batches=st.integers(1, 200), data=st.data())
    def test_is_a_distribution_cut_off_at_the_maximal_degree(self, num_batches, data):
        max_degree = data.draw(st.integers(1, num_batches))
        distribution = robust_soliton(num_batches, max_degree)
        assert distribution.shape == (max_degree,)
        assert np.all(distribution > 0)
        assert distribution.sum() == pytest.approx(1)
        whole = robust_soliton(num_batches, num_batches)[:max_degree]
        np.testing.assert_allclose(distribution, whole / whole.sum(), rtol=1e-9)


class TestBatchRaptor:
    @pytest.mark.parametrize("max_degree", [None, 3])
    def test_degrees_are_of_the_distribution(self, max_degree):
        code = codes.batch_raptor(KEY, 20_000, 10, max_degree=max_degree)
        highest = max_degree or 10
        counts = np.bincount(code.parts_per_worker, minlength=highest + 1)
        assert counts[0] == 0
        assert len(counts) == highest + 1
        expected = robust_soliton(10, highest) * 20_000
        check_counts(counts[1:], expected)

    def test_batches_of_a_degree_are_uniform(self):
        code = codes.batch_raptor(KEY, 20_000, 5)
        pairs = code.assignment[code.parts_per_worker == 2]
        check_subsets(pairs, 10)

    def test_workers_hold_whole_batches(self):
        code = codes.batch_raptor(KEY, 40, 12, batch_size=3)
        batches = code.assignment.reshape(40, 4, 3)
        np.testing.assert_array_equal(batches.all(axis=2), batches.any(axis=2))
        np.testing.assert_array_equal(code.decoders[0].assignment, batches.all(axis=2))
        assert code.decoders[0].is_a(decoders.Peeling)
        assert own_decoder(code, decoders.OneStep) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5}, "batch_size.*= 12; got 5"),
        ({"batch_size": 2, "max_degree": 7}, "max_degree.* = 7 and .* 6"),
    ],
)
def test_batch_raptor_rejects_impossible_distributions(arguments, message):
    with pytest.raises(ValueError, match=message):
        codes.batch_raptor(KEY, 20, 12, **arguments)
