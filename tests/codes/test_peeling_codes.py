"""LDGM and batch raptor codes, and peeling against elimination."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from jaxwgc.codes import batch_raptor, ldgm
from jaxwgc.codes._batch_raptor import robust_soliton
from tests.conftest import every_pattern, own_decoder, random_patterns

effective_weights = jax.jit(jaxwgc.effective_weights, static_argnames="decoder")
KEY = jax.random.key(0)


def peeled(rows):
    """Elimination whose pivots are rows of weight one; which columns it solves."""
    rows = rows.astype(int)
    solved = np.zeros(rows.shape[1], bool)
    while True:
        pivots = np.flatnonzero(rows.sum(axis=1) == 1)
        if not len(pivots):
            return solved
        column = rows[pivots[0]].argmax()
        solved[column] = True
        rows[:, column] = 0


def solvable(rows):
    """Elimination over the rationals; which unit vectors are in the row space."""
    rows = [[fractions.Fraction(int(entry)) for entry in row] for row in rows]
    num_columns = len(rows[0])
    pivot_rows = 0
    for column in range(num_columns):
        for index in range(pivot_rows, len(rows)):
            if rows[index][column]:
                break
        else:
            continue
        rows[pivot_rows], rows[index] = rows[index], rows[pivot_rows]
        pivot = rows[pivot_rows] = [
            entry / rows[pivot_rows][column] for entry in rows[pivot_rows]
        ]
        for other, row in enumerate(rows):
            if other != pivot_rows and row[column]:
                factor = row[column]
                rows[other] = [
                    entry - factor * own for entry, own in zip(row, pivot, strict=True)
                ]
        pivot_rows += 1
    # In reduced form, exactly the rows of weight one are unit vectors of the row space.
    solved = np.zeros(num_columns, bool)
    for row in rows:
        nonzero = [column for column, entry in enumerate(row) if entry]
        if len(nonzero) == 1:
            solved[nonzero[0]] = True
    return solved


def expected_weights(code, received):
    """k / recovered at the parts that peeling recovers, by elimination."""
    expected = np.zeros((len(received), code.num_parts))
    for mask, own in zip(received, expected, strict=True):
        solved = peeled(code.assignment[mask][:, :: code.decoders[0].batch_size])
        solved = solved.repeat(code.decoders[0].batch_size)
        own[solved] = code.num_parts / max(1, solved.sum())
    return expected


SMALL = {
    "ldgm": lambda seed: ldgm(jax.random.key(seed), 9, 6, 3),
    "batch_raptor": lambda seed: batch_raptor(jax.random.key(seed), 9, 6, c=0.2),
    "batches": lambda seed: batch_raptor(jax.random.key(seed), 9, 12, batch_size=2),
}


@pytest.mark.parametrize("name", SMALL)
def test_peeling_recovers_what_elimination_recovers_for_every_pattern(name, x64):
    received = every_pattern(9, 9)
    for seed in range(3):
        code = SMALL[name](seed)
        found = effective_weights(code, received)
        np.testing.assert_allclose(
            found, expected_weights(code, received), atol=1e-10 if x64 else 1e-4
        )


LARGE = {
    "ldgm": lambda: ldgm(jax.random.key(1), 90, 60, 5),
    "batch_raptor": lambda: batch_raptor(jax.random.key(1), 90, 60),
}


@pytest.mark.parametrize("name", LARGE)
def test_peeling_recovers_what_elimination_recovers_in_large_codes(name):
    code = LARGE[name]()
    received = np.concatenate(
        [random_patterns(90, stragglers, 40) for stragglers in (0, 10, 25, 50, 80)]
    )
    found = np.asarray(effective_weights(code, received))
    expected = expected_weights(code, received)
    recovered = (expected > 0).mean(axis=1)
    assert np.any((recovered > 0) & (recovered < 1))
    # Exact, each of them: float32 leaves rounding alone.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_full_elimination_recovers_more():
    """Peeling is elimination with the cheap pivots only."""
    more = 0
    for name in SMALL:
        for seed in range(3):
            code = SMALL[name](seed)
            columns = code.assignment[:, :: code.decoders[0].batch_size]
            for mask in random_patterns(9, 2, 20, seed):
                some, all_ = peeled(columns[mask]), solvable(columns[mask])
                assert not np.any(some & ~all_)
                more += np.any(all_ & ~some)
    assert more
    # Three parts, pairwise sums: solvable, but nothing to begin with.
    pairs = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    assert solvable(pairs).all()
    assert not peeled(pairs).any()


def test_decoded_gradients_are_sums_of_the_recovered_parts():
    code = ldgm(KEY, 9, 6, 3)
    gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    messages = np.array(jaxwgc.encode(code, gradients))
    received = random_patterns(9, 4, 10)
    like = jax.ShapeDtypeStruct((5,), jnp.float32)
    for mask, weights in zip(received, expected_weights(code, received), strict=True):
        broken = np.where(mask[:, None], messages, np.nan)
        decoded = jaxwgc.decode(code, broken, mask, like)
        np.testing.assert_allclose(decoded, weights @ gradients, atol=1e-4)


class TestLdgm:
    def test_systematic_workers_and_parities(self):
        code = ldgm(KEY, 10, 6, 2)
        np.testing.assert_array_equal(code.encoding_matrix[:6], np.eye(6))
        np.testing.assert_array_equal(code.loads, [1] * 6 + [2] * 4)
        assert code.decoders[0].is_a(decoders.Peeling)
        assert code.decoders[0].batch_size == 1
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
        received = ~np.eye(num_workers, dtype=bool)
        weights = np.concatenate([np.ones((1, num_parts))] * num_workers)
        if survived:
            np.testing.assert_array_equal(expected_weights(code, received), weights)
            found = jaxwgc.effective_weights(code, received)
            np.testing.assert_allclose(found, weights, atol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ((4, 4, 2), "num_workers must be greater than num_parts; .* = 4 and"),
            ((3, 5, 2), "num_workers the nearest .* is 6, and for num_parts it is 2$"),
            ((1, 5, 2), "for num_workers the nearest that works is 6$"),
            ((6, 4, 0), "parity_degree must be from 1 to num_parts; .* = 0 and"),
            ((6, 4, 5), "parity_degree must be from 1 to num_parts; .* = 5 and"),
            ((6, 0, 1), "num_parts must be at least 1; got 0"),
        ],
    )
    def test_impossible_parameters(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            ldgm(KEY, *arguments)

    def test_wrong_types(self):
        with pytest.raises(TypeError, match="parity_degree must be"):
            ldgm(KEY, 6, 4, 2.0)
        with pytest.raises(TypeError, match="key must be a PRNG key"):
            ldgm(0, 6, 4, 2)


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
        counts = np.bincount(code.loads, minlength=highest + 1)
        assert counts[0] == 0
        assert len(counts) == highest + 1
        expected = robust_soliton(10, 0.2, 0.5, highest) * 20_000
        assert scipy.stats.chisquare(counts[1:], expected).pvalue > 1e-3

    def test_batches_of_a_degree_are_uniform(self):
        code = batch_raptor(KEY, 20_000, 5)
        pairs = code.assignment[code.loads == 2]
        counts = np.unique(pairs, axis=0, return_counts=True)[1]
        assert len(counts) == 10
        assert scipy.stats.chisquare(counts).pvalue > 1e-3

    def test_workers_hold_whole_batches(self):
        code = batch_raptor(KEY, 40, 12, batch_size=3)
        batches = code.assignment.reshape(40, 4, 3)
        np.testing.assert_array_equal(batches.all(axis=2), batches.any(axis=2))
        assert code.decoders[0].batch_size == 3
        assert code.decoders[0].is_a(decoders.Peeling)
        assert own_decoder(code, decoders.OneStep) is None

    def test_recovery_grows_with_the_answers(self):
        """Little from few answers, an avalanche, then everything."""
        answers = jnp.array([10, 20, 30, 40, 60, 80])

        def trial(key):
            code_key, mask_key = jax.random.split(key)
            code = batch_raptor(code_key, 80, 20, c=0.1)
            order = jax.random.permutation(mask_key, 80)
            weights = jaxwgc.effective_weights(code, order < answers[:, None])
            return (weights > 0.5).mean(axis=-1)

        keys = jax.random.split(KEY, 1000)
        recovered = np.asarray(jax.jit(jax.vmap(trial))(keys)).mean(axis=0)
        assert np.all(np.diff(recovered) > 0)
        assert recovered[0] < 0.4
        assert recovered[-2] > 0.95
        assert recovered[-1] > 0.98

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"batch_size": 5}, "got batch_size = 5 .*nearest that work are 4 and 6$"),
            ({"batch_size": 13}, "batch_size = 13 .*nearest that works is 12$"),
            ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
            (
                {"max_degree": 0},
                "max_degree must be .* = 0 and 12 batches; the nearest .* is 1$",
            ),
            (
                {"max_degree": 7, "batch_size": 2},
                "max_degree .* = 7 and 6 batches; the nearest that works is 6$",
            ),
            ({"c": -0.1}, "c must be at least 0; got -0.1"),
            ({"delta": 0}, "delta must be positive; got 0"),
            ({"delta": 1.5}, "delta must be at most 1; got 1.5"),
            ({"c": math.inf}, "c must be finite; got inf"),
            ({"num_workers": 0}, "num_workers must be at least 1; got 0"),
        ],
        ids=str,
    )
    def test_impossible_parameters(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            batch_raptor(KEY, **{"num_workers": 20, "num_parts": 12, **arguments})

    @pytest.mark.parametrize(
        "call",
        [
            lambda: batch_raptor(KEY, 20, 12, batch_size=2.0),
            lambda: batch_raptor(KEY, 20, 12, max_degree=2.0),
            lambda: batch_raptor(KEY, 20, 12, c="0.1"),
            lambda: batch_raptor(0, 20, 12),
            lambda: jax.jit(functools.partial(batch_raptor, KEY, 20, 12, 1, 2))(0.1),
        ],
    )
    def test_wrong_types(self, call):
        with pytest.raises(TypeError, match="must be"):
            call()
