"""Waiting rules against sorting, and in real rounds against simulated ones."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.stragglers import _selection
from tests.catalogue.waiting_rules import ROWS
from tests.oracles import check_counts, least_miss, targets
from tests.stragglers.laws import binary, rounds_of
from tests.zoo import KEY

NUM_ROUNDS = 60
# Each rule with its row, and rules whose `ends` are formulas.
RULES = {name: (rule, row) for row in ROWS for name, rule in row.examples.items()}
FORMULAS = {name: rule for name, (rule, row) in RULES.items() if row.stays_in_numpy}
# Each part on two workers.
RING = np.eye(5) + np.eye(5)[[1, 2, 3, 4, 0]]
# Codes of five workers, with the tolerance.
CODES = {
    "binary": (codes.binary(5, 2), 1e-3),
    "complex": (codes.cyclic_mds(5, 2), 1e-3),
    "approximate": (codes.GradientCode.from_matrix(RING), 0.5),
}


@dataclasses.dataclass(frozen=True)
class OverAsBefore(stragglers.WaitingRule):
    """Over when another rule is, of which it knows nothing else."""

    rule: stragglers.WaitingRule

    def is_over(self, times, now):
        return self.rule.is_over(times, now)


@dataclasses.dataclass(frozen=True)
class SecondMore(stragglers.WaitingRule):
    """A second more than the fastest worker takes."""

    def is_over(self, times, now):
        return now >= times.min() + 1


def some_times(dtype=np.float32, ties=True):
    """Of five workers, some of which never respond."""
    generator = np.random.default_rng(0)
    times = generator.exponential(size=(NUM_ROUNDS, 5)) + 0.1
    if ties:
        times[::3] = generator.integers(0, 4, times[::3].shape)
    times[generator.random(times.shape) < 0.15] = np.inf
    times[::4, 1:] = np.inf
    times[1] = np.inf
    return times.astype(dtype)


def simulated(rule, times):
    keys = jax.random.split(KEY, len(times))
    return jax.device_get(jax.jit(jax.vmap(rule.arrivals))(keys, times))


@pytest.mark.parametrize("name", RULES)
def test_rounds_end_as_sorting_says(name, x64):
    """By the rule itself, and by bisection of `is_over` alone."""
    rule, row = RULES[name]
    times = some_times(np.float64 if x64 else np.float32, ties=name != "fastest")
    ends = np.array([row.end(rule, round_times) for round_times in times])
    for tested_rule in (rule, OverAsBefore(rule)):
        arrivals = simulated(tested_rule, times)
        np.testing.assert_array_equal(arrivals.times, times)
        np.testing.assert_allclose(arrivals.elapsed, ends, rtol=1e-5)
        assert arrivals.times.dtype == arrivals.elapsed.dtype == times.dtype
        is_in_time = (times <= arrivals.elapsed[:, None]) & np.isfinite(times)
        np.testing.assert_array_equal(arrivals.received, is_in_time)


@pytest.mark.parametrize("rule", [*FORMULAS.values(), SecondMore()], ids=repr)
def test_real_rounds_end_as_simulated_ones(rule):
    """What is known at a time tells whether the round is over, up to rounding."""
    for times in some_times()[:12]:
        elapsed = rule.ends(times)
        # Shortly after each response.
        for now in [np.float32(0), *np.sort(times[np.isfinite(times)]) * 1.001]:
            so_far = np.where(times <= now, times, np.inf)
            next_response = np.min(times, where=times > now, initial=np.inf)
            if not np.isclose(elapsed, now, rtol=1e-5):
                assert rule.is_over(so_far, now) == (elapsed <= now)
            end = rule.ends(so_far)
            if elapsed < next_response:
                np.testing.assert_allclose(end, elapsed, rtol=1e-5)
            else:
                assert end >= next_response * (1 - 1e-5)


@pytest.mark.parametrize("rule", FORMULAS.values(), ids=FORMULAS)
def test_fast_rules_stay_in_numpy(rule):
    """A real round asks after each response, for which JAX takes a millisecond."""
    times = np.array([0.5, np.inf, 1.0, 2.0, 3.0])
    assert isinstance(rule.ends(times), np.floating)
    assert isinstance(rule.is_over(times, 1.0), np.bool_)


@pytest.mark.parametrize("name", RULES)
def test_closed_forms_against_simulation(name):
    """Means and quantiles of the duration of rounds, if a rule knows them."""
    rule, row = RULES[name]
    law = stragglers.log_normal(1.0, 0.7).law(1.0)
    mean = rule.expected_time(law, 5)
    assert (mean is None) == (rule.time_quantile(law, 5, 0.9) is None)
    if mean is None:
        return
    times = np.exp(0.7 * np.random.default_rng(0).normal(size=(20_000, 5)))
    ends = np.array([row.end(rule, own) for own in times])
    assert mean == pytest.approx(ends.mean(), abs=4 * ends.std() / np.sqrt(len(ends)))
    for level in (0.1, 0.9):
        found = rule.time_quantile(law, 5, level)
        error = 4 * np.sqrt(level * (1 - level) / len(ends))
        assert np.mean(ends < found) - error <= level <= np.mean(ends <= found) + error


@pytest.mark.parametrize(
    ("wait", "short", "long"),
    [
        (stragglers.fastest(7), "first 7", "for the first 7 of 8 workers"),
        (stragglers.fastest(8), "all", "for all 8 workers"),
        (stragglers.deadline(1.346), "1.35 s", "for 1.346 s"),
        (stragglers.deadline(0.01346), "0.0135 s", "for 0.01346 s"),
    ],
)
def test_words(wait, short, long):
    assert wait.describe(8) == (short, long)


@functools.cache
def fastest(required):
    """At one length and dtype a count, so that few functions are compiled."""
    return jax.jit(stragglers.fastest(required).arrivals)


class TestFastest:
    @settings(max_examples=80, deadline=None)
    @given(
        times=st.lists(
            st.one_of(
                st.sampled_from([0.0, 1.0, 2.0, 1e-45, 3e38, math.inf]),
                st.floats(0, 4, width=32),
                st.floats(0, math.inf),
            ),
            min_size=5,
            max_size=5,
        ),
        required=st.sampled_from([1, 3, 5]),
        seed=st.integers(0, 2**32 - 1),
        x64=st.booleans(),
    )
    @example(times=[math.inf] * 5, required=3, seed=0, x64=False)
    @example(times=[0.0] * 5, required=5, seed=0, x64=False)
    @example([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 5e-324, math.inf], 3, 0, True)
    def test_are_the_least_times(self, times, required, seed, x64):
        """With ties, subnormal times and workers that never finish."""
        with np.errstate(over="ignore"):
            times = np.array(times, np.float64 if x64 else np.float32)
        with jax.enable_x64(x64):
            key = jax.random.PRNGKey(seed)
            arrivals = jax.device_get(fastest(required)(key, times))
        received = arrivals.received
        finite = np.isfinite(times)
        assert arrivals.elapsed.dtype == times.dtype
        np.testing.assert_array_equal(arrivals.times, times)
        assert received.sum() == min(required, finite.sum())
        assert not np.any(received & ~finite)
        # XLA takes subnormal numbers for zero.
        expected = np.sort(times)[required - 1]
        np.testing.assert_allclose(
            arrivals.elapsed, expected, rtol=0, atol=np.finfo(times.dtype).tiny
        )
        if received.any() and np.any(finite & ~received):
            assert times[received].max() <= times[finite & ~received].min()

    def test_ties_are_decided_uniformly(self):
        """One surely, two of the four that tie, never the slowest."""
        times = jnp.array([2.0, 1.0, 2.0, 3.0, 2.0, 2.0])
        rounds = jax.vmap(lambda key: stragglers.fastest(3).arrivals(key, times))
        received = np.asarray(jax.jit(rounds)(jax.random.split(KEY, 3000)).received)
        assert np.all(received[:, 1])
        assert not np.any(received[:, 3])
        masks, counts = np.unique(binary(received), return_counts=True)
        assert len(masks) == math.comb(4, 2)
        check_counts(counts)

    def test_pairs_and_bisection_agree(self, monkeypatch):
        """Also on ties, since both draw equal random numbers."""
        generator = np.random.default_rng(0)
        times = generator.integers(0, 5, (300, 12)).astype(np.float32)
        times[:50] = generator.random((50, 12))
        times[generator.random(times.shape) < 0.1] = np.inf
        masks = []
        for most_in_pairs in (0, 12):
            monkeypatch.setattr(_selection, "_MOST_IN_PAIRS", most_in_pairs)
            # A new function, which JAX has not traced with the other number.
            select = functools.partial(_selection.fastest_workers.__wrapped__, count=5)
            select = jax.jit(jax.vmap(select))
            masks.append(np.asarray(select(jax.random.split(KEY, 300), times)))
        np.testing.assert_array_equal(*masks)
        assert np.all(masks[0].sum(axis=1) == 5)

    def test_the_number_may_be_traced(self):
        times = jnp.array([3.0, 1.0, 2.0, 1.0])

        def round_of(number):
            return stragglers.fastest(number).arrivals(KEY, times)

        arrivals = jax.jit(jax.vmap(round_of))(jnp.array([1, 3, 4]))
        for place, number in enumerate((1, 3, 4)):
            expected = round_of(number)
            np.testing.assert_array_equal(arrivals.received[place], expected.received)
            assert arrivals.elapsed[place] == expected.elapsed
            end = jax.jit(lambda number: stragglers.fastest(number).ends(times))(number)
            assert end == expected.elapsed

    def test_zeros_of_both_signs_tie(self):
        times = np.tile(np.array([0.0, -0.0, 1.0], np.float32), (64, 1))
        received = simulated(stragglers.fastest(1), times).received
        np.testing.assert_array_equal(received.any(0), [True, True, False])


@pytest.mark.parametrize(
    ("seconds", "times", "received", "elapsed"),
    [
        (math.inf, [1.0, math.inf], [True, False], math.inf),
        # A deadline between whole numbers is not rounded to one.
        (1.5, [1, 2], [True, False], 1.5),
    ],
)
def test_deadlines(seconds, times, received, elapsed):
    arrivals = stragglers.deadline(seconds).arrivals(KEY, times)
    np.testing.assert_array_equal(arrivals.received, received)
    assert arrivals.elapsed == elapsed


class TestUntilDecodable:
    """Against NumPy's least squares on every prefix."""

    def enough(self, code, tolerance):
        """Whether a mask of messages misses the target by little enough."""
        limit = tolerance * np.linalg.norm(targets(code))

        @functools.cache
        def check(mask):
            return least_miss(code.encoding_matrix, targets(code), list(mask)) <= limit

        return lambda mask: check(tuple(mask))

    def first_time(self, times, check):
        """The first at which messages are enough; infinity if they never are."""
        finite = np.unique(times[np.isfinite(times)])
        return next((time for time in finite if check(times <= time)), np.inf)

    @pytest.mark.parametrize("name", CODES)
    def test_goes_on_at_the_first_prefix_that_decodes(self, name):
        """Simulated with all rounds side by side, and response by response."""
        code, tolerance = CODES[name]
        wait = stragglers.until_decodable(code, tolerance=tolerance)
        times = some_times()
        check = self.enough(code, tolerance)
        arrivals = simulated(wait, times)
        first = np.array([self.first_time(own, check) for own in times], np.float32)
        # Without enough responses all are waited for.
        expected = np.where(np.isinf(first), times.max(1), first)
        np.testing.assert_array_equal(arrivals.elapsed, expected)
        received = (times <= expected[:, None]) & np.isfinite(times)
        np.testing.assert_array_equal(arrivals.received, received)
        numbers = received.sum(1)[np.isfinite(first)]
        enough = code.num_workers - code.num_stragglers
        assert (min(numbers) < enough) == (name != "complex")
        assert enough <= max(numbers)
        for own, elapsed in zip(times[:12], arrivals.elapsed):
            for now in np.unique(own[np.isfinite(own)]):
                so_far = np.where(own <= now, own, np.inf)
                # Of a real round: when it ends by what is known so far.
                assert (wait.ends(so_far) <= now) == (elapsed <= now)
            assert wait.ends(np.full_like(own, np.inf)) == np.inf

    def test_messages_of_a_single_part_come_when_it_is_finished(self):
        """Of a worker that holds one part beside one that holds two."""
        code = codes.GradientCode.from_matrix([[1.0, 0, 0], [0, 1, 1]])
        wait = stragglers.until_decodable(codes.multi_message(code))
        arrivals = jax.jit(wait.arrivals)(KEY, np.array([2.0, 1.9], np.float32))
        assert (arrivals.elapsed, wait.tolerance) == (2.0, 1e-3)
        # Messages of no parts arrive at once, but the lost worker has another one.
        wait = stragglers.until_decodable(codes.partially_coded(code, 0))
        assert wait.arrivals(KEY, np.array([2.0, np.inf])).elapsed == np.inf

    def test_each_of_several_messages_counts_when_it_comes(self):
        code = codes.multi_message(codes.GradientCode.from_matrix(RING))
        delay = stragglers.shifted_exponential(shift=0.1, rate=1.0)
        wait = stragglers.until_decodable(code, tolerance=0.6)
        rounds = rounds_of(stragglers.delayed(delay, wait), code.loads, NUM_ROUNDS)
        check = self.enough(code, 0.6)
        parts = code.parts_per_worker
        share = code.required_parts / parts[:, None]
        finished = np.asarray(jax.jit(lambda own: own.finished(parts))(rounds))
        for number, times in enumerate(rounds.times):
            first = self.first_time((times[:, None] * share).ravel(), check)
            np.testing.assert_allclose(rounds.elapsed[number], first, rtol=1e-6)
            own = finished[number]
            assert check((own[:, None] >= code.required_parts).ravel())
            np.testing.assert_array_equal(rounds.received[number], own == parts)
        assert np.any((finished > 0) & (finished < parts))

    def test_with_another_decoder(self):
        """One-step decoding."""
        code = codes.bernoulli(jax.random.key(1), 5, 5, copies=3)
        masks = np.tri(5, dtype=bool)
        errors = jaxwgc.decoding(code, masks, decoders.OneStep).error
        misses = np.sqrt(errors / 5)
        tolerance = float(np.sort(misses)[1] + misses.min()) / 2
        wait = stragglers.until_decodable(code, tolerance, decoders.OneStep)
        found = jax.jit(wait.arrivals)(KEY, np.arange(1.0, 6))
        assert found.elapsed == 1 + np.argmax(misses <= tolerance)

    def test_a_traced_code(self):
        """As in a study over the entries of a code."""
        code = CODES["binary"][0]

        def rounds(matrix):
            solver = (decoders.LeastSquares(),)
            own = dataclasses.replace(code, encoding_matrix=matrix, decoders=solver)
            wait = stragglers.until_decodable(own)
            return wait.arrivals(KEY, jnp.array([3.0, 1.0, 2.0, 5.0, 4.0]))

        with jax.check_tracer_leaks():
            found = jax.eval_shape(rounds, np.float32(code.encoding_matrix))
        assert found.received.shape == (5,)


@jax.jit
def decoded_share(code, arrivals):
    return jaxwgc.decoding(code, arrivals).share


@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
def test_coverage_against_the_times_of_parts(share):
    """A round ends with the part that makes up the share, first copies alone."""
    code = codes.replicated(4, 20, 2)
    times = np.random.default_rng(0).exponential(size=(50, 4)) + 0.1
    arrivals = simulated(stragglers.coverage(code, share), times.astype(np.float32))
    copies = np.asarray(code.decoders[0].copies)
    ready = times[:, copies // 10] * (copies % 10 + 1) / 10
    ends = np.sort(ready.min(-1), axis=1)[:, int(np.ceil(20 * share)) - 1]
    np.testing.assert_allclose(arrivals.elapsed, ends, rtol=1e-5)
    assert np.all(decoded_share(code, arrivals) >= share - 1e-6)
