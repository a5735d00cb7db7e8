"""Random codes: what they draw, and the laws of their decoding errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxwgc
from jaxwgc import decoders
from jaxwgc.codes import (
    _random_matrices,
    batch_raptor,
    bernoulli,
    ldgm,
    regular_graph,
    regularized_bernoulli,
    stochastic,
    stochastic_block,
)
from tests.conftest import every_pattern, own_decoder

KEY = jax.random.key(0)

# All of one size, so that the decoders have one shape.
CODES = {
    "bernoulli": lambda key: bernoulli(key, 12, 8, 3),
    "regularized_bernoulli": lambda key: regularized_bernoulli(key, 12, 8, 1),
    "regular_graph": lambda key: regular_graph(key, 12, 4),
    "stochastic_block": lambda key: stochastic_block(key, 12, 8, 4, 0.8, 0.1),
    "stochastic": lambda key: stochastic(key, 12, 8, 3, 0.2),
    "ldgm": lambda key: ldgm(key, 12, 8, 3),
    "batch_raptor": lambda key: batch_raptor(key, 12, 8, batch_size=2),
}


decoding_error = jax.jit(jaxwgc.decoding_error, static_argnames="decoder")


def keys(num_keys, seed=0):
    return jax.random.split(jax.random.key(seed), num_keys)


def random_mask(key, num_workers, num_answers):
    """That many random responders."""
    return jax.random.permutation(key, num_workers) < num_answers


def assert_mean(samples, expected):
    """Within four standard errors, along the first axis."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    miss = np.abs(samples.mean(axis=0) - expected)
    assert np.all(miss <= 4 * error), (samples.mean(axis=0), expected, error)


def errors_and_mixing(make_code, num_answers, num_trials, decoder):
    """Random codes and random responders, in one vmapped call."""

    def trial(key):
        code_key, mask_key = jax.random.split(key)
        code = make_code(code_key)
        received = random_mask(mask_key, code.num_workers, num_answers)
        received = jaxwgc.decoding(code, received, decoder)
        return (
            jaxwgc.decoding_error(code, received),
            jaxwgc.effective_weights(code, received),
        )

    return jax.jit(jax.vmap(trial))(keys(num_trials))


@pytest.mark.parametrize("make_code", CODES.values(), ids=CODES)
class TestEveryRandomCode:
    def test_is_the_same_whatever_the_precision_and_the_kind_of_key(self, make_code):
        here = make_code(jax.random.key(5))
        with jax.enable_x64(True):
            there = make_code(jax.random.PRNGKey(5))
        for code in (here, there):
            assert isinstance(code.encoding_matrix, np.ndarray)
            assert code.encoding_matrix.dtype == np.float64
            assert isinstance(code.assignment, np.ndarray)
            assert code.assignment.dtype == np.bool_
        np.testing.assert_array_equal(here.encoding_matrix, there.encoding_matrix)
        np.testing.assert_array_equal(here.assignment, here.encoding_matrix != 0)
        np.testing.assert_array_equal(here.target, 1)

    def test_mean_error_of_a_thousand_codes_is_one_call(self, make_code):
        """By each code's own decoder, beside one-step decoding where there is one."""

        def trial(key):
            code_key, mask_key = jax.random.split(key)
            code = make_code(code_key)
            received = jax.vmap(lambda count: random_mask(mask_key, 12, count))(
                jnp.array([3, 6, 12])
            )
            own = one_step = jaxwgc.decoding_error(code, received)
            if code.decoders[0].is_a(decoders.LeastSquares):
                one_step = jaxwgc.decoding_error(
                    code, received, decoder=decoders.OneStep
                )
            return code, own, one_step

        codes, own, one_step = jax.jit(jax.vmap(trial))(keys(1000))
        assert own.shape == (1000, 3)
        assert np.all(own <= one_step + 1e-4)
        few, half, all_ = np.mean(own, axis=0)
        assert few > half > all_ >= 0
        if np.any(own != one_step):
            # Optimal decoding is much better, and never worse than to do nothing.
            assert half < 0.8 * np.mean(one_step, axis=0)[1]
            assert np.max(own) <= codes.target.shape[-1] + 1e-4
        # Traced codes are those that the same keys give outside.
        assert codes.encoding_matrix.dtype == jnp.float32
        assert np.any(codes.assignment[0] != codes.assignment[1])
        for index, key in enumerate(keys(3)):
            alone = make_code(jax.random.split(key)[0])
            assert codes.num_stragglers == alone.num_stragglers
            np.testing.assert_array_equal(codes.assignment[index], alone.assignment)
            np.testing.assert_allclose(
                codes.encoding_matrix[index], alone.encoding_matrix, rtol=1e-6
            )


def test_traced_codes_are_in_the_working_precision(with_x64):
    matrix = jax.jit(CODES["stochastic"])(KEY).encoding_matrix
    assert matrix.dtype == jnp.float64
    alone = CODES["stochastic"](KEY).encoding_matrix
    np.testing.assert_allclose(matrix, alone, rtol=1e-15)


class TestRandomSubsets:
    def sample(self, *arguments, **others):
        return np.asarray(
            _random_matrices.random_subsets(jax.random.key(3), *arguments, **others)
        )

    def test_all_subsets_are_equally_likely(self):
        subsets = self.sample(2, (20_000, 5))
        assert np.all(subsets.sum(axis=1) == 2)
        counts = np.unique(subsets, axis=0, return_counts=True)[1]
        assert len(counts) == 10
        assert scipy.stats.chisquare(counts).pvalue > 1e-3

    def test_subsets_of_eligible_items(self):
        eligible = np.random.default_rng(0).random((20_000, 6)) < 0.7
        sizes = eligible.sum(axis=1) // 2
        subsets = self.sample(sizes, eligible.shape, eligible=eligible)
        np.testing.assert_array_equal(subsets.sum(axis=1), sizes)
        assert not np.any(subsets & ~eligible)
        counts = subsets[eligible.all(axis=1)].sum(axis=0)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3

    def test_no_items_and_all_items(self):
        subsets = self.sample(np.array([0, 1, 4]), (3, 4))
        np.testing.assert_array_equal(subsets.sum(axis=1), [0, 1, 4])

    def test_equal_draws_give_as_many_items(self, monkeypatch):
        monkeypatch.setattr(
            jax.random, "bits", lambda key, shape, dtype: jnp.zeros(shape, dtype)
        )
        subsets = _random_matrices.random_subsets.__wrapped__(KEY, 2, (2, 4))
        np.testing.assert_array_equal(subsets, [[True, True, False, False]] * 2)


class TestBernoulli:
    @pytest.mark.parametrize(
        ("num_workers", "num_parts", "replication", "num_answers"),
        [(20, 12, 4, 8), (10, 10, 3, 10)],
    )
    def test_law_of_one_step_decoding(
        self, num_workers, num_parts, replication, num_answers
    ):
        """E = k n / (r d) (1 - d / n), and the gradient is right on average."""
        errors, mixing = errors_and_mixing(
            lambda key: bernoulli(key, num_workers, num_parts, replication),
            num_answers,
            4000,
            decoders.OneStep,
        )
        density = replication / num_workers
        expected = num_parts / (num_answers * density) * (1 - density)
        assert_mean(mixing, 1)
        assert_mean(errors, expected)

    def test_full_replication_is_exact(self):
        code = bernoulli(KEY, 6, 9, 6)
        received = np.array([False, True, False, False, True, False])
        error = jaxwgc.decoding_error(code, received, decoder=decoders.OneStep)
        np.testing.assert_allclose(error, 0, atol=1e-10)

    def test_entries_are_independent(self):
        """Column weights are binomial."""
        code = bernoulli(jax.random.key(1), 10, 20_000, 3)
        counts = np.bincount(code.assignment.sum(axis=0), minlength=11)
        probabilities = scipy.stats.binom.pmf(np.arange(11), 10, 0.3)
        # The rare ones together, for the approximation.
        observed = np.append(counts[:7], counts[7:].sum())
        expected = np.append(probabilities[:7], probabilities[7:].sum()) * 20_000
        assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3

    def test_fields(self):
        code = bernoulli(jax.random.key(0), 10, 4, 3)
        assert own_decoder(code, decoders.OneStep).scale == pytest.approx(10 / 3)
        assert own_decoder(code, decoders.OneStep).shared
        assert code.decoders[0].is_a(decoders.LeastSquares)
        assert own_decoder(code, decoders.Peeling).batch_size == 1
        assert code.num_stragglers == 0


class TestRegularizedBernoulli:
    def test_heavy_columns_are_thinned_and_the_others_stay(self):
        key = jax.random.key(2)
        code = regularized_bernoulli(key, 8, 20_000, 1)
        # What it thins: the same draws, from the first half of the key.
        drawn = bernoulli(jax.random.split(key)[0], 8, 20_000, 1).assignment
        weights = drawn.sum(axis=0)
        heavy = weights > 2
        assert heavy.any()
        thinned = code.assignment
        np.testing.assert_array_equal(thinned[:, ~heavy], drawn[:, ~heavy])
        assert np.all(thinned[:, heavy].sum(axis=0) == 1)
        assert not np.any(thinned & ~drawn)
        # Which of the ones stays is chance: by its place among them, and by worker.
        three = weights == 3
        place = (drawn.cumsum(axis=0) * thinned)[:, three].sum(axis=0)
        assert scipy.stats.chisquare(np.bincount(place)[1:]).pvalue > 1e-3
        assert scipy.stats.chisquare(thinned[:, heavy].sum(axis=1)).pvalue > 1e-3

    def test_no_column_is_heavier_than_twice_the_replication(self):
        sample = jax.vmap(lambda key: regularized_bernoulli(key, 12, 8, 2).assignment)
        weights = jax.jit(sample)(keys(1000)).sum(axis=1)
        assert weights.max() == 4
        assert weights.min() == 0


class TestStochasticBlock:
    def test_degrees_match_the_probabilities(self):
        """Each entry has its own probability, and entries are independent."""
        sample = jax.jit(
            jax.vmap(
                lambda key: stochastic_block(key, 6, 9, 3, 0.7, 0.2).encoding_matrix
            )
        )
        matrices = np.asarray(sample(keys(4000)), np.float64)
        inside = np.kron(np.eye(3), np.ones((2, 3)))
        expected = np.where(inside, 0.7, 0.2)
        score = (matrices.mean(axis=0) - expected) / np.sqrt(
            expected * (1 - expected) / 4000
        )
        assert scipy.stats.chi2.sf(np.sum(score**2), 54) > 1e-3
        assert_mean((matrices * inside).sum(axis=(1, 2)), 0.7 * 18)
        assert_mean((matrices * (1 - inside)).sum(axis=(1, 2)), 0.2 * 36)
        assert_mean(matrices.sum(axis=2), 0.7 * 3 + 0.2 * 6)
        assert_mean(matrices.sum(axis=1), 0.7 * 2 + 0.2 * 4)
        variance = np.var(matrices.sum(axis=2), axis=0)
        np.testing.assert_allclose(variance, 3 * 0.21 + 6 * 0.16, rtol=0.1)

    def test_one_step_decoding_is_right_on_average(self):
        _, mixing = errors_and_mixing(
            lambda key: stochastic_block(key, 8, 12, 4, 0.9, 0.1),
            5,
            4000,
            decoders.OneStep,
        )
        assert_mean(mixing, 1)

    def test_traced_probabilities(self):
        key = jax.random.key(3)
        probabilities = jnp.array([0.0, 0.3, 1.0])
        codes = jax.jit(
            jax.vmap(lambda inside: stochastic_block(key, 4, 6, 2, inside, 0.25))
        )(probabilities)
        assert own_decoder(codes, decoders.OneStep) is None
        for index, inside in enumerate(probabilities):
            alone = stochastic_block(key, 4, 6, 2, inside, 0.25)
            np.testing.assert_array_equal(codes.assignment[index], alone.assignment)
            expected = 2 / (float(inside) + 0.25)
            assert own_decoder(alone, decoders.OneStep).scale == pytest.approx(
                expected, rel=1e-6
            )

    def test_between_fractional_repetition_and_bernoulli(self):
        key = jax.random.key(0)
        repetition = stochastic_block(key, 6, 6, 2, 1, 0)
        np.testing.assert_array_equal(
            repetition.encoding_matrix, np.kron(np.eye(2), np.ones((3, 3)))
        )
        assert own_decoder(repetition, decoders.OneStep).scale == 2
        even = stochastic_block(key, 6, 4, 2, 0.5, 0.5)
        np.testing.assert_array_equal(
            even.assignment, bernoulli(key, 6, 4, 3).assignment
        )
        assert own_decoder(even, decoders.OneStep).scale == 2
        assert (
            own_decoder(stochastic_block(key, 6, 6, 2, 0, 0), decoders.OneStep) is None
        )
        assert stochastic_block(key, 6, 6, 2, 0, 0).assignment.sum() == 0


class TestStochastic:
    def test_laws_over_all_patterns(self):
        """Mean 1 and variance p / ((1 - p) d_j), by enumeration on one assignment."""
        replication = (1, 2, 3, 8, 5)
        code = stochastic(jax.random.key(0), 8, 5, replication, 0.3)
        np.testing.assert_array_equal(code.assignment.sum(axis=0), replication)
        assert code.decoders[0].is_a(decoders.OneStep)
        received = every_pattern(8, 8)
        answers = received.sum(axis=1)
        chance = 0.7**answers * 0.3 ** (8 - answers)
        mixing = np.asarray(jaxwgc.effective_weights(code, received), np.float64)
        reference = received.astype(float) @ code.encoding_matrix
        np.testing.assert_allclose(mixing, reference, rtol=1e-5)
        np.testing.assert_allclose(chance @ mixing, 1, rtol=1e-5)
        expected = 0.3 / (0.7 * np.array(replication))
        np.testing.assert_allclose(chance @ (mixing - 1) ** 2, expected, rtol=1e-5)

    def test_laws_over_codes_and_stragglers(self):
        def trial(key):
            code_key, mask_key = jax.random.split(key)
            code = stochastic(code_key, 20, 6, 4, 0.25)
            received = jax.random.bernoulli(mask_key, 0.75, (20,))
            return jaxwgc.effective_weights(code, received)

        mixing = np.asarray(jax.jit(jax.vmap(trial))(keys(4000)))
        assert_mean(mixing, 1)
        assert_mean((mixing - 1) ** 2, 0.25 / (0.75 * 4))

    def test_parts_share_as_many_workers_as_pairwise_balance_asks_on_average(self):
        replication = np.array([1, 3, 4, 6])

        def shared(key):
            holds = stochastic(key, 8, 4, replication, 0.1).assignment.astype(float)
            return holds.T @ holds

        counts = np.asarray(jax.jit(jax.vmap(shared))(keys(4000)))
        pairs = np.triu_indices(4, 1)
        expected = np.outer(replication, replication) / 8
        assert_mean(counts[:, *pairs], expected[pairs])

    def test_traced_probability(self):
        key = jax.random.key(1)
        make = functools.partial(stochastic, key, 6, 4, (1, 2, 3, 4))
        traced = jax.jit(make)(0.4)
        alone = make(0.4)
        np.testing.assert_allclose(
            traced.encoding_matrix, alone.encoding_matrix, rtol=1e-6
        )
        assert alone.encoding_matrix.max() == pytest.approx(1 / 0.6)

    def test_no_stragglers_are_expected(self):
        code = stochastic(jax.random.key(1), 6, 4, 2, 0)
        np.testing.assert_allclose(code.encoding_matrix.sum(axis=0), 1)


class TestPastTheTolerance:
    """Exact codes with more stragglers than they survive."""

    def expected(self, num_answers):
        """k C(n - d, r) / C(n, r)."""
        return 12 * math.comb(9, num_answers) / math.comb(12, num_answers)

    @pytest.mark.parametrize("num_answers", [2, 4, 7])
    def test_law_of_fractional_repetition(self, num_answers):
        code = jaxwgc.codes.fractional_repetition(12, 2)
        masks = jax.vmap(lambda key: random_mask(key, 12, num_answers))(keys(2**12))
        samples = decoding_error(code, masks, decoder=decoders.LeastSquares)
        assert_mean(samples, self.expected(num_answers))

    def test_law_of_fractional_repetition_over_all_patterns(self):
        code = jaxwgc.codes.fractional_repetition(12, 2)
        received = every_pattern(12, 12)
        errors = np.asarray(
            decoding_error(code, received, decoder=decoders.LeastSquares)
        )
        for num_answers in range(13):
            own = errors[received.sum(axis=1) == num_answers]
            np.testing.assert_allclose(
                own.mean(), self.expected(num_answers), atol=1e-4
            )

    def test_law_of_uncoded_workers_when_stragglers_are_ignored(self):
        """n (n - r) / r for every pattern with the weights a = n / r."""
        code = jaxwgc.codes.uncoded(8)
        received = every_pattern(8, 8)
        received = received[received.any(axis=1)]
        answers = received.sum(axis=1)
        errors = jaxwgc.decoding_error(code, received, decoder=decoders.OneStep)
        np.testing.assert_allclose(errors, 8 * (8 - answers) / answers, atol=1e-4)


@pytest.mark.parametrize("constructor", [bernoulli, regularized_bernoulli])
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((10, 8, 0), "replication must be from 1 to num_workers; got replication = 0"),
        ((10, 80, 11), "replication must be from 1 to num_workers; .* = 11"),
        ((0, 8, 1), "num_workers must be at least 1; got 0"),
        ((10, 0, 1), "num_parts must be at least 1; got 0"),
    ],
)
def test_impossible_parameters_of_bernoulli_codes(constructor, arguments, match):
    with pytest.raises(ValueError, match=match):
        constructor(KEY, *arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((12, 18, 4, 0.5, 0.5), "num_clusters = 4, .*nearest that work are 3 and 6$"),
        ((12, 18, 7, 0.5, 0.5), "num_clusters = 7, .*nearest that works is 6$"),
        ((12, 18, 0, 0.5, 0.5), "num_clusters must be at least 1; got 0"),
        ((4, 4, 2, 1.5, 0.5), "probability_inside must be at most 1; got 1.5"),
        ((4, 4, 2, 0.5, -0.5), "probability_across must be at least 0; got -0.5"),
        ((4, 4, 2, 0.5, math.nan), "probability_across must be a number; got nan"),
    ],
)
def test_impossible_parameters_of_stochastic_block(arguments, match):
    with pytest.raises(ValueError, match=match):
        stochastic_block(KEY, *arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((10, 4, 0, 0.1), "replication must be from 1 to num_workers; .* = 0"),
        ((10, 4, (1, 2, 11, 3), 0.1), r"replication\[2\] must be from 1 to .* = 11"),
        ((10, 4, (1, 2, 3), 0.1), "have num_parts entries; got 3 .* num_parts = 4"),
        ((10, 4, 2, 1.0), "straggler_probability must be less than 1; got 1"),
        ((10, 4, 2, 1.1), "straggler_probability must be at most 1; got 1.1"),
        ((10, 4, 2, -0.1), "straggler_probability must be at least 0; got -0.1"),
    ],
)
def test_impossible_parameters_of_stochastic(arguments, match):
    with pytest.raises(ValueError, match=match):
        stochastic(KEY, *arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bernoulli(KEY, 10, 10, 2.5),
        lambda: bernoulli(KEY, 10.0, 10, 2),
        lambda: regularized_bernoulli(KEY, 10, "10", 2),
        lambda: stochastic_block(KEY, 4, 4, True, 0.5, 0.5),
        lambda: stochastic_block(KEY, 4, 4, 2, "p", 0.5),
        lambda: stochastic_block(KEY, 4, 4, 2, 0.5, np.array([0.5])),
        lambda: stochastic(KEY, 4, 2, (1, 2.0), 0.5),
        lambda: stochastic(KEY, 4, 2, "12", 0.5),
        lambda: stochastic(KEY, 4, 2, None, 0.5),
        lambda: jax.jit(lambda d: stochastic(KEY, 4, 2, d, 0.5))(2),
        *(functools.partial(make_code, 0) for make_code in CODES.values()),
    ],
)
def test_wrong_types(call):
    with pytest.raises(TypeError, match="must be"):
        call()


def test_every_mask_of_a_small_code_by_numpy(with_x64):
    """Least squares on codes with empty columns and repeated rows."""
    received = every_pattern(6, 6)
    for key in keys(2):
        code = bernoulli(key, 6, 5, 2)
        errors = np.asarray(jaxwgc.decoding_error(code, received))
        for mask, error in zip(received, errors, strict=True):
            rows = code.encoding_matrix[mask]
            weights = np.linalg.lstsq(rows.T, np.ones(5), rcond=None)[0]
            expected = np.sum((weights @ rows - 1) ** 2)
            np.testing.assert_allclose(error, expected, atol=1e-9)
