"""The worst stragglers and ridge errors, against NumPy's least squares in float64."""

import functools
import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import codes, decoders
from jaxwgc.simulation import adversarial, worst_pattern
from jaxwgc.simulation._worst_pattern import RidgeErrors, all_swaps, swapped
from tests.oracles import targets


def code_of(matrix, **fields):
    """A code that promises nothing, of one message a worker unless told."""
    return codes.GradientCode(
        encoding_matrix=matrix,
        assignment=fields.pop("assignment", matrix != 0),
        target=fields.pop("target", np.ones(matrix.shape[1])),
        num_stragglers=0,
        **fields,
    )


def random_binary_code(num_workers, load, seed):
    draws = np.random.default_rng(seed).random((num_workers, num_workers))
    return code_of((draws < load / num_workers).astype(float))


def least_squares_error(code, lost, ridge=0.0):
    """Error of all messages but those of the lost workers; mean over the segments.

    The regularised problem is a larger one without: rows of the ridge below. Singular
    values of rounding, which NumPy's own cutoff may let through, do not count.
    """
    kept = ~np.isin(np.arange(code.num_workers), lost)
    rows = np.asarray(code.encoding_matrix)[np.repeat(kept, code.messages_per_worker)]
    system = np.concatenate([rows.T, np.sqrt(ridge) * np.eye(len(rows))])
    goals = np.zeros((code.num_segments, len(system)), rows.dtype)
    goals[:, : rows.shape[1]] = targets(code)
    weights = np.linalg.lstsq(system, goals.T, rcond=1e-10)[0]
    return np.sum(np.abs(system @ weights - goals.T) ** 2) / code.num_segments


def all_errors(code, num_stragglers):
    sets = itertools.combinations(range(code.num_workers), num_stragglers)
    return {lost: least_squares_error(code, lost) for lost in sets}


def lost_in(received):
    assert received.dtype == np.bool_
    return tuple(np.flatnonzero(~received).tolist())


SMALL_CODES = {
    "reed_solomon": lambda: codes.reed_solomon(8, 8, 3),
    "fractional": lambda: codes.fractional_repetition(8, 1),
    "binary": lambda: random_binary_code(8, 3, seed=0),
    "weighted": lambda: jaxwgc.weighted(
        random_binary_code(8, 3, seed=0), np.arange(1.0, 9.0)
    ),
}


@functools.cache
def small_code(name):
    return SMALL_CODES[name]()


# Tests share shapes, decoders and precisions, and so compiled programs.
class TestExact:
    @pytest.mark.parametrize("name", SMALL_CODES)
    def test_exhaustive_search_returns_the_first_worst_pattern(self, name):
        """There are one and two stragglers more than the code tolerates."""
        x64 = name in ("weighted", "binary")
        with jax.enable_x64(x64):
            self.check(small_code(name), noise=1e-10 if x64 else 1e-4)

    def check(self, code, noise):
        smallest = code.num_stragglers + 1
        for num_stragglers in (smallest, smallest + 1):
            errors = all_errors(code, num_stragglers)
            worst = max(errors.values())
            assert worst > 0.01
            first = next(
                lost for lost, error in errors.items() if error >= worst * (1 - noise)
            )
            assert lost_in(worst_pattern(code, num_stragglers)) == first

    def test_more_patterns_than_a_batch(self, with_x64):
        """C(12, 3) = 220."""
        code = random_binary_code(12, 3, seed=3)
        errors = all_errors(code, 3)
        assert errors[lost_in(worst_pattern(code, 3))] >= max(errors.values()) - 1e-9

    def test_ties_go_to_the_first(self):
        """All patterns have equal errors, but for rounding."""
        for num_stragglers in range(3):
            received = worst_pattern(small_code("reed_solomon"), num_stragglers)
            assert lost_in(received) == tuple(range(num_stragglers))

    def test_several_messages_segments_and_complex_codes(self, with_x64):
        """Workers are lost with all that they send."""
        generator = np.random.default_rng(5)
        code = code_of(
            generator.normal(size=(10, 8)) + 1j * generator.normal(size=(10, 8)),
            assignment=np.ones((5, 4), bool),
            target=np.array([1.0, 2.0, 0.5, 1.0]),
            num_segments=2,
            messages_per_worker=2,
            required_parts=np.tile([2, 4], (5, 1)),
        )
        errors = all_errors(code, 2)
        worst = max(errors, key=errors.get)
        assert lost_in(worst_pattern(code, 2)) == worst
        assert lost_in(worst_pattern(code, 2, max_patterns=0)) == worst

    @pytest.mark.parametrize("decoder", [decoders.OneStep, decoders.Group])
    def test_search_uses_the_errors_of_the_decoder(self, decoder):
        """Against the library's own errors on all 70 patterns; searched, too."""
        code = codes.fractional_repetition(8, 1)
        sets = np.array(list(itertools.combinations(range(8), 4)))
        masks = np.ones((70, 8), bool)
        np.put_along_axis(masks, sets, False, axis=1)
        errors = jaxwgc.decoding(code, masks, decoder).error
        worst = tuple(sets[np.argmax(errors >= errors.max() - 1e-4)].tolist())
        assert lost_in(worst_pattern(code, 4, decoder)) == worst
        searched = lost_in(worst_pattern(code, 4, decoder, max_patterns=0))
        error = errors[sets.tolist().index([*searched])]
        np.testing.assert_allclose(error, errors.max(), rtol=1e-4)


class Optimal(decoders.Group):
    """The search knows that it is optimal, as for blocks of equal size it is."""

    is_optimal: ClassVar[bool] = True


class TestSearch:
    @pytest.mark.parametrize("decoder", [decoders.Group, Optimal])
    @pytest.mark.parametrize("num_stragglers", [2, 7, 12])
    def test_sixty_workers_of_blocks(self, num_stragglers, decoder):
        """No single straggler changes the error until the last copy is lost."""
        code = codes.fractional_repetition(60, 2)
        decoder = decoder(**vars(code.decoders[0]))
        received = worst_pattern(code, num_stragglers, decoder, max_patterns=0)
        assert np.sum(~received) == num_stragglers
        lost_parts = ~code.assignment[received].any(axis=0)
        assert lost_parts.sum() == 3 * (num_stragglers // 3)

    @pytest.mark.parametrize("num_stragglers", [2, 4, 6])
    def test_reaches_the_worst_of_small_codes(self, num_stragglers, with_x64):
        """Eleven of twelve searches reach it; all did when this was written."""
        generator = np.random.default_rng(num_stragglers)
        reached = 0
        for trial in range(12):
            matrix = (generator.random((12, 12)) < 1 / 3).astype(float)
            if trial % 2:
                matrix *= generator.normal(size=(12, 12))
            code = code_of(matrix)
            exact, searched = (
                least_squares_error(
                    code,
                    lost_in(
                        worst_pattern(code, num_stragglers, max_patterns=max_patterns)
                    ),
                )
                for max_patterns in (50_000, 0)
            )
            assert searched <= exact + 1e-8
            reached += searched >= exact - 1e-8
        assert reached >= 11

    def test_no_swap_of_two_workers_increases_the_error(self, with_x64):
        code = random_binary_code(12, 4, seed=3)
        lost = lost_in(worst_pattern(code, 5, max_patterns=0))
        error = least_squares_error(code, lost)
        for out, back in itertools.product(range(12), lost):
            if out not in lost:
                swapped = {*lost, out} - {back}
                assert least_squares_error(code, list(swapped)) <= error + 1e-7

    def test_one_program_serves_all_numbers_of_stragglers(self):
        """Numbers of stragglers and of patterns compile no further function."""
        code = small_code("reed_solomon")
        worst_pattern(code, 2)
        client = jax.devices()[0].client
        before = len(client.live_executables())
        for num_stragglers in (1, 3, 4, 5):
            worst_pattern(code, num_stragglers)
            worst_pattern(code, num_stragglers, max_patterns=0)
        assert len(client.live_executables()) == before


class TestAnyCode:
    @settings(max_examples=25, deadline=None)
    @given(
        entries=st.lists(
            st.sampled_from([0.0, 0.0, 1.0, -2.0]), min_size=20, max_size=20
        ),
        num_stragglers=st.integers(0, 4),
    )
    def test_the_pattern_has_the_requested_number_of_stragglers(
        self, entries, num_stragglers
    ):
        """All messages may be zero, and stragglers may change nothing."""
        code = code_of(np.array(entries).reshape(5, 4))
        errors = all_errors(code, num_stragglers)
        for max_patterns in (0, 10):
            received = worst_pattern(code, num_stragglers, max_patterns=max_patterns)
            assert np.sum(~received) == num_stragglers
            assert errors[lost_in(received)] <= max(errors.values()) + 1e-6
        if math.comb(5, num_stragglers) <= 10:
            assert errors[lost_in(received)] >= max(errors.values()) - 1e-3

    def test_one_worker(self):
        for max_patterns in (0, 1):
            received = worst_pattern(codes.uncoded(1), 0, max_patterns=max_patterns)
            np.testing.assert_array_equal(received, [True])

    def test_entries_may_be_arrays_of_jax(self):
        matrix = jnp.array(np.vstack([np.eye(4), [1, 0, 1, 1]]))
        assert lost_in(worst_pattern(code_of(matrix), 1)) == (1,)


def test_the_scale_of_weights_does_not_matter(with_x64):
    """Errors that differ stay apart however small they are."""
    code = small_code("weighted")
    tiny = jaxwgc.weighted(small_code("binary"), 1e-20 * np.arange(1.0, 9.0))
    for max_patterns in (0, 100):
        received = worst_pattern(tiny, 2, max_patterns=max_patterns)
        expected = worst_pattern(code, 2, max_patterns=max_patterns)
        np.testing.assert_array_equal(received, expected)


def test_search_follows_the_decoding_error(with_x64):
    """A ridge counts a message of small numbers as lost."""
    is_small = np.arange(8) == 1
    code = code_of(
        np.diag(np.where(is_small, 1e-3, 1)), target=np.where(is_small, 1, 0.5)
    )
    assert lost_in(worst_pattern(code, 1, max_patterns=0)) == (1,)
    strained = RidgeErrors(code)
    assert strained.climb((1,)) != (1,)


class Broken(decoders.Decoder):
    """A plain sum, and no numbers where the workers 1 and 4 are both lost."""

    def weights(self, matrix, target, mask):
        weights = decoders.OneStep(1.0, shared=False).weights(matrix, target, mask)
        is_broken = ~mask[..., 1] & ~mask[..., 4]
        return jnp.where(is_broken[..., None, None], jnp.nan, weights)


@pytest.mark.parametrize("max_patterns", [0, 100])
def test_an_error_of_nan_is_the_worst(max_patterns):
    code = small_code("binary")
    received = worst_pattern(code, 2, Broken(), max_patterns=max_patterns)
    assert lost_in(received) == (1, 4)


def test_every_round_loses_the_worst_pattern():
    """Workers 0 and 4 are the copies of the first block."""

    @jax.jit
    @jax.vmap
    def sample(key):
        # The code is concrete here, though nothing that is computed is.
        model = adversarial(small_code("fractional"), 2)
        return model.sample(key, model.init(8), jnp.ones(8))[0]

    arrivals = sample(jax.random.split(jax.random.key(0), 3))
    received = np.ones((3, 8), bool)
    received[:, [0, 4]] = False
    np.testing.assert_array_equal(arrivals.received, received)
    np.testing.assert_array_equal(arrivals.times, np.where(received, 1.0, np.inf))
    np.testing.assert_array_equal(arrivals.elapsed, 1.0)


def test_pattern_of_the_adversary_is_that_of_the_decoder():
    """Least squares needs the third worker; the plain sum needs the first one more."""
    plain_sum = decoders.OneStep(1.0, shared=False)
    matrix = np.eye(4)[[0, 0, 1, 2, 3]] * [[1.0], [-5.0], [1.0], [1.0], [1.0]]
    code = code_of(matrix, decoders=(decoders.LeastSquares(), plain_sum))
    for decoder, lost in ((None, 2), (decoders.LeastSquares, 2), (decoders.OneStep, 0)):
        model = adversarial(code, 1, decoder)
        received = model.sample(jax.random.key(0), (), jnp.ones(5))[0].received
        assert lost_in(np.asarray(received)) == (lost,)


def test_max_patterns_of_zero_selects_the_search():
    model = adversarial(small_code("fractional"), 4, max_patterns=0)
    arrivals, _ = model.sample(jax.random.key(0), model.init(8), jnp.ones(8))
    assert jaxwgc.decoding(small_code("fractional"), arrivals.received).error == 4


def random_code(kind):
    """Six workers, of codes with one and with several messages and segments."""
    messages = 1 + (kind == "messages")
    segments = 3 if kind == "segments" else 1
    generator = np.random.default_rng(2)
    matrix = generator.normal(size=(6 * messages, 4 * segments))
    if kind == "complex":
        matrix = matrix + 1j * generator.normal(size=matrix.shape)
    return code_of(
        matrix,
        assignment=np.ones((6, 4), bool),
        target=np.array([1.0, 2.0, 0.0, -1.0]),
        num_segments=segments,
        messages_per_worker=messages,
        required_parts=None if messages == 1 else np.tile([2, 4], (6, 1)),
    )


class TestRidgeErrors:
    @pytest.mark.parametrize("kind", ["plain", "complex", "messages", "segments"])
    def test_errors_of_sets_and_of_every_swap_are_those_of_numpy(self, kind):
        code = random_code(kind)
        ridge = 0.01 * np.mean(np.sum(np.abs(code.encoding_matrix) ** 2, axis=1))
        expected = functools.partial(least_squares_error, code, ridge=ridge)
        errors = RidgeErrors(code)
        assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-9)
        for lost in [(), (2,), (1, 4), (0, 2, 3, 5)]:
            assert_close(errors.of(lost), expected(lost))
            swaps = all_swaps(lost, 6)
            assert len(swaps) == len(lost) * (6 - len(lost))
            after = [expected(swapped(lost, swap)) for swap in swaps]
            assert_close(errors.after_swaps(lost, swaps), after)
        for lost in itertools.combinations(range(6), 3):
            top = errors.climb(lost)
            assert errors.of(top) >= errors.of(lost)
            swaps = all_swaps(top, 6)
            assert errors.after_swaps(top, swaps).max() <= errors.of(top) + 1e-6

    def test_swaps_are_in_order(self):
        assert all_swaps((1, 3), 4).tolist() == [[0, 1], [2, 1], [0, 3], [2, 3]]
        assert swapped((1, 3), np.array([0, 3])) == (0, 1)

    @pytest.mark.parametrize(
        ("matrix", "target"), [(np.zeros((3, 2)), np.ones(2)), (np.eye(3), np.zeros(3))]
    )
    def test_codes_whose_errors_are_all_equal(self, matrix, target):
        errors = RidgeErrors(code_of(matrix, target=target))
        after = errors.after_swaps((1,), all_swaps((1,), 3))
        np.testing.assert_array_equal(after, target.sum())
        assert errors.climb((1,)) == (1,)


def test_as_many_stragglers_as_workers_are_rejected():
    code = codes.uncoded(6)
    with pytest.raises(ValueError, match="num_stragglers.* = 6 and .* = 6"):
        worst_pattern(code, 6)
    with pytest.raises(ValueError, match="num_stragglers must be less than"):
        adversarial(code, 6)


@pytest.mark.parametrize("study", [worst_pattern, adversarial])
def test_traced_codes_are_rejected(study):
    with pytest.raises(TypeError, match="code must be concrete"):
        jax.eval_shape(lambda code: study(code, 1), codes.uncoded(6))
