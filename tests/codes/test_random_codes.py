"""Random codes: what they draw, the laws of their errors, and what they survive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxwgc
from jaxwgc import codes, decoders
from jaxwgc.codes import _random_codes
from tests.conftest import every_pattern, own_decoder
from tests.oracles import check_counts, check_mean, check_subsets, worst_miss
from tests.zoo import KEY, patterns_within

CODES = {
    "bernoulli": lambda key: codes.bernoulli(key, 12, 8, 3),
    "regularized_bernoulli": lambda key: codes.regularized_bernoulli(key, 12, 8, 1),
    # Both draw one graph.
    "regular_graph": lambda key: codes.regular_graph(key, 8, 3),
    "edge_graph": lambda key: codes.edge_graph(key, 8, 3),
    "stochastic_block": lambda key: codes.stochastic_block(key, 12, 8, 4, 0.8, 0.1),
    "stochastic": lambda key: codes.stochastic(key, 12, 8, 3, 0.2),
    "ldgm": lambda key: codes.ldgm(key, 12, 8, 3),
    "batch_raptor": lambda key: codes.batch_raptor(key, 12, 8, batch_size=2),
    "cyclic_repetition": lambda key: codes.cyclic_repetition(key, 7, 2),
}


def keys(num_keys, seed=0):
    return jax.random.split(jax.random.key(seed), num_keys)


@pytest.mark.parametrize("name", CODES)
def test_one_key_draws_one_code(name):
    """Precision, kind of key, tracing and lanes do not change the code."""
    make_code = CODES[name]
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
    many = jax.jit(jax.vmap(make_code))(keys(4))
    assert many.encoding_matrix.dtype == jnp.float32
    assert np.any(many.encoding_matrix[0] != many.encoding_matrix[1])
    # Its entries solve equations.
    tolerance = 2e-2 if name == "cyclic_repetition" else 1e-6
    for index, key in enumerate(keys(4)[:3]):
        alone = make_code(key)
        assert np.ravel(many.num_stragglers)[0] == alone.num_stragglers
        np.testing.assert_array_equal(many.assignment[index], alone.assignment)
        matrix = many.encoding_matrix[index]
        np.testing.assert_allclose(matrix, alone.encoding_matrix, rtol=tolerance)


def test_traced_codes_are_in_the_working_precision(with_x64):
    matrix = jax.jit(CODES["stochastic"])(KEY).encoding_matrix
    assert matrix.dtype == jnp.float64
    alone = CODES["stochastic"](KEY).encoding_matrix
    np.testing.assert_allclose(matrix, alone, rtol=1e-15)


def test_random_subsets_have_their_size_if_all_draws_are_equal(monkeypatch):
    monkeypatch.setattr(
        jax.random, "bits", lambda key, shape, dtype: jnp.zeros(shape, dtype)
    )
    subsets = _random_codes.random_subsets.__wrapped__(KEY, 2, (2, 4))
    np.testing.assert_array_equal(subsets, [[True, True, False, False]] * 2)


class TestBernoulli:
    def test_law_of_one_step_decoding(self):
        """E = k n / (r d) (1 - d / n), and the gradient is right on average."""

        def trial(key):
            code_key, mask_key = jax.random.split(key)
            code = codes.bernoulli(code_key, 20, 12, 4)
            received = jax.random.permutation(mask_key, 20) < 8
            decoding = jaxwgc.decoding(code, received, decoders.OneStep)
            return decoding.error, decoding.effective_weights

        errors, mixing = jax.jit(jax.vmap(trial))(keys(4000))
        check_mean(mixing, 1)
        check_mean(errors, 12 / (8 * 0.2) * (1 - 0.2))

    def test_entries_are_independent(self):
        """Column weights are binomial."""
        code = codes.bernoulli(jax.random.key(1), 10, 20_000, 3)
        counts = np.bincount(code.assignment.sum(axis=0), minlength=11)
        probabilities = scipy.stats.binom.pmf(np.arange(11), 10, 0.3)
        check_counts(counts, 20_000 * probabilities)


class TestRegularizedBernoulli:
    def test_heavy_columns_are_thinned_and_the_others_stay(self):
        key = jax.random.key(2)
        code = codes.regularized_bernoulli(key, 8, 20_000, 1)
        # What it thins: the same draws, from the first half of the key.
        drawn = codes.bernoulli(jax.random.split(key)[0], 8, 20_000, 1).assignment
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
        check_counts(np.bincount(place)[1:])
        check_counts(thinned[:, heavy].sum(axis=1))

    def test_no_column_is_heavier_than_twice_the_copies(self):
        sample = jax.vmap(lambda key: codes.regularized_bernoulli(key, 12, 8, 2))
        weights = jax.jit(sample)(keys(1000)).assignment.sum(axis=1)
        assert weights.max() == 4
        assert weights.min() == 0


class TestStochasticBlock:
    def test_degrees_match_the_probabilities(self):
        """Each entry has its own probability, and entries are independent."""
        sample = jax.vmap(lambda key: codes.stochastic_block(key, 6, 9, 3, 0.7, 0.2))
        matrices = jax.jit(sample)(keys(4000)).encoding_matrix
        matrices = np.asarray(matrices, np.float64)
        expected = np.where(np.kron(np.eye(3), np.ones((2, 3))), 0.7, 0.2)
        error = np.sqrt(expected * (1 - expected) / 4000)
        score = (matrices.mean(axis=0) - expected) / error
        assert scipy.stats.chi2.sf(np.sum(score**2), 54) > 1e-3
        variance = np.var(matrices.sum(axis=2), axis=0)
        np.testing.assert_allclose(variance, 3 * 0.21 + 6 * 0.16, rtol=0.1)

    def test_traced_probabilities(self):
        make = functools.partial(codes.stochastic_block, KEY, 4, 6, 2)
        probabilities = jnp.array([0.0, 0.3, 1.0])
        traced = jax.jit(jax.vmap(lambda inside: make(inside, 0.25)))(probabilities)
        assert own_decoder(traced, decoders.OneStep) is None
        for assignment, inside in zip(traced.assignment, probabilities, strict=True):
            alone = make(inside, 0.25)
            np.testing.assert_array_equal(assignment, alone.assignment)
            expected = pytest.approx(2 / (float(inside) + 0.25), rel=1e-6)
            assert own_decoder(alone, decoders.OneStep).scale == expected

    def test_extreme_probabilities_give_fractional_repetition_and_bernoulli(self):
        repetition = codes.stochastic_block(KEY, 6, 6, 2, 1, 0)
        expected = np.kron(np.eye(2), np.ones((3, 3)))
        np.testing.assert_array_equal(repetition.encoding_matrix, expected)
        even = codes.stochastic_block(KEY, 6, 4, 2, 0.5, 0.5)
        expected = codes.bernoulli(KEY, 6, 4, 3).assignment
        np.testing.assert_array_equal(even.assignment, expected)
        for code in (repetition, even):
            assert own_decoder(code, decoders.OneStep).scale == 2
        nothing = codes.stochastic_block(KEY, 6, 6, 2, 0, 0)
        assert own_decoder(nothing, decoders.OneStep) is None
        assert nothing.assignment.sum() == 0


class TestStochastic:
    @pytest.mark.parametrize("probability", [0.3, np.linspace(0, 0.9, 8)])
    def test_laws_over_all_patterns(self, probability):
        """Mean 1 and variance Σ p / ((1 - p) d_j²), by enumeration."""
        copies = np.array([1, 2, 3, 8, 5])
        code = codes.stochastic(jax.random.key(0), 8, 5, copies, probability)
        np.testing.assert_array_equal(code.assignment.sum(axis=0), copies)
        assert code.decoders[0].is_a(decoders.OneStep)
        received = every_pattern(8, 8)
        lost = np.broadcast_to(probability, 8)
        chance = np.prod(np.where(received, 1 - lost, lost), axis=1)
        mixing = received.astype(float) @ code.encoding_matrix
        np.testing.assert_allclose(chance @ mixing, 1, rtol=1e-5)
        expected = lost / (1 - lost) @ code.assignment / copies**2
        np.testing.assert_allclose(chance @ (mixing - 1) ** 2, expected, rtol=1e-5)

    def test_parts_share_as_many_workers_as_pairwise_balance_asks_on_average(self):
        copies = np.array([1, 3, 4, 6])

        def shared(key):
            code = codes.stochastic(key, 8, 4, copies, 0.1)
            holds = code.assignment.astype(float)
            return holds.T @ holds

        counts = np.asarray(jax.jit(jax.vmap(shared))(keys(4000)))
        pairs = np.triu_indices(4, 1)
        expected = np.outer(copies, copies) / 8
        check_mean(counts[:, *pairs], expected[pairs])

    def test_traced_probability(self):
        key = jax.random.key(1)
        make = functools.partial(codes.stochastic, key, 6, 4, (1, 2, 3, 4))
        for probability in (0.4, np.full(6, 0.4)):
            traced = jax.jit(make)(probability)
            alone = make(probability)
            np.testing.assert_allclose(
                traced.encoding_matrix, alone.encoding_matrix, rtol=1e-6
            )
            assert alone.encoding_matrix.max() == pytest.approx(1 / 0.6)

    def test_columns_sum_to_one_if_no_stragglers_are_expected(self):
        code = codes.stochastic(jax.random.key(1), 6, 4, 2, 0)
        np.testing.assert_allclose(code.encoding_matrix.sum(axis=0), 1)


class TestLdgm:
    def test_systematic_workers_and_parities(self):
        code = codes.ldgm(KEY, 10, 6, 2)
        np.testing.assert_array_equal(code.encoding_matrix[:6], np.eye(6))
        np.testing.assert_array_equal(code.parts_per_worker, [1] * 6 + [2] * 4)
        assert code.decoders[0].is_a(decoders.Peeling)
        np.testing.assert_array_equal(code.decoders[0].assignment, code.assignment)
        assert own_decoder(code, decoders.OneStep) is None

    def test_parities_are_uniform(self):
        check_subsets(codes.ldgm(KEY, 20_005, 5, 3).assignment[5:], 10)

    @pytest.mark.parametrize(
        ("num_workers", "num_parts", "parity_degree", "survived"),
        [(5, 4, 4, 1), (7, 4, 4, 1), (4, 1, 1, 1), (5, 4, 3, 0), (7, 4, 1, 0)],
    )
    def test_tolerates_every_pattern_of_num_stragglers(
        self, num_workers, num_parts, parity_degree, survived
    ):
        code = codes.ldgm(KEY, num_workers, num_parts, parity_degree)
        assert code.num_stragglers == survived
        received = patterns_within(num_workers, survived)
        assert worst_miss(code, received).max() < 1e-12


@pytest.mark.parametrize("constructor", [codes.bernoulli, codes.regularized_bernoulli])
def test_more_copies_than_workers_are_rejected(constructor):
    message = "copies must be at most num_workers; .* = 11"
    with pytest.raises(ValueError, match=message):
        constructor(KEY, num_workers=10, num_parts=80, copies=11)


@pytest.mark.parametrize(
    ("sizes", "num_clusters", "probability_inside", "message"),
    [
        ((12, 18), 4, 0.5, "clusters.*18; got 4"),
        ((4, 4), 2, 1.5, "probability_inside.*1.5"),
    ],
)
def test_stochastic_block_rejects_wrong_clusters_and_probabilities(
    sizes, num_clusters, probability_inside, message
):
    num_workers, num_parts = sizes
    with pytest.raises(ValueError, match=message):
        codes.stochastic_block(
            KEY, num_workers, num_parts, num_clusters, probability_inside, 0.5
        )


@pytest.mark.parametrize(
    ("num_workers", "copies", "straggler_probability", "message"),
    [
        (10, (1, 2, 11, 3), 0.1, "got.*= 11"),
        (10, (1, 2, 3), 0.1, "copies must have (shape|a leading axis)"),
        (2, 2, [0, 1.0], "less.*= 1.0"),
        (2, 2, [0, 0.1, 0.2], "straggler_probability"),
    ],
)
def test_stochastic_rejects_wrong_copies_and_probabilities(
    num_workers, copies, straggler_probability, message
):
    with pytest.raises(ValueError, match=message):
        codes.stochastic(KEY, num_workers, 4, copies, straggler_probability)


def test_stochastic_rejects_traced_copies():
    with pytest.raises(TypeError, match="copies"):
        jax.eval_shape(lambda d: codes.stochastic(KEY, 4, 2, d, 0.5), 2)


@pytest.mark.parametrize(
    ("num_workers", "num_parts", "parity_degree", "message"),
    [
        (4, 4, 2, "num_workers.*= 4; got 4"),
        (6, 4, 5, "parity_degree.* = 5 and"),
    ],
)
def test_ldgm_rejects_sizes_without_parities(
    num_workers, num_parts, parity_degree, message
):
    with pytest.raises(ValueError, match=message):
        codes.ldgm(KEY, num_workers, num_parts, parity_degree)
