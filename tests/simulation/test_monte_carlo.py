"""Monte Carlo studies against a Python loop, summaries and estimates against SciPy."""

import collections
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import codes, simulation, stragglers

KEY = jax.random.key(0)
Result = collections.namedtuple("Result", ["draws", "more"])


def trial(key):
    """A pytree of floats, ints, bools and an empty array."""
    first, second = jax.random.split(key)
    draws = jax.random.normal(first, (2, 3))
    count = (jax.random.bits(second) % 1000).astype(int)
    return Result(draws, {"count": count, "even": count % 2 == 0, "none": draws[:0]})


alone = jax.jit(lambda key, index: trial(jax.random.fold_in(key, index)))


def one_by_one(key, num_trials):
    """Result of the docstring's rule, in a Python loop."""
    results = [alone(key, index) for index in range(num_trials)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


class TestMonteCarlo:
    @pytest.mark.parametrize(
        ("make_key", "batch_size"),
        [(jax.random.key, None), (jax.random.key, 4), (jax.random.PRNGKey, 1)],
    )
    def test_equals_a_loop_whatever_the_batch_size(self, make_key, batch_size):
        results = jaxwgc.monte_carlo(trial, make_key(3), 7, batch_size)
        expected = one_by_one(make_key(3), 7)
        chex.assert_trees_all_equal(results.more, expected.more)
        chex.assert_trees_all_close(results.draws, expected.draws, rtol=1e-6)
        chex.assert_trees_all_equal_shapes_and_dtypes(results, expected)
        assert results.draws.dtype == np.float32
        assert results.more["count"].dtype == np.int32
        for leaf in jax.tree.leaves(results):
            assert isinstance(leaf, np.ndarray)

    def test_precision_is_that_of_the_trial(self, with_x64):
        """The mode without 64 bits does not lower it."""
        results = jaxwgc.monte_carlo(trial, jax.random.key(0), 3, batch_size=2)
        assert results.draws.dtype == np.float64
        assert results.more["count"].dtype == np.int64
        chex.assert_trees_all_close(
            results, one_by_one(jax.random.key(0), 3), rtol=1e-6
        )

    @settings(max_examples=4, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
    @example(9, 12, 4)
    @example(8, 9, 4)
    def test_more_trials_extend_a_study(self, fewer, more, batch_size):
        fewer, more = sorted([fewer, more])
        key = jax.random.key(1)
        first = jaxwgc.monte_carlo(jax.random.bits, key, fewer, batch_size)
        second = jaxwgc.monte_carlo(jax.random.bits, key, more)
        np.testing.assert_array_equal(first, second[:fewer])
        assert len(np.unique(second)) == more

    @pytest.mark.parametrize(
        ("num_trials", "batch_size", "lanes"),
        [(10, 3, 3), (7, 100, 8), (5, 1, 1), (9, 8, 8), (1000, None, 256)],
    )
    def test_compiled_once_with_no_more_lanes_than_the_batch(
        self, num_trials, batch_size, lanes
    ):
        """The trial is traced once, however often the study is repeated."""
        traces = []
        batches = []

        @jax.custom_batching.custom_vmap
        def watched(key):
            return jax.random.normal(key)

        @watched.def_vmap
        def _(axis_size, in_batched, keys):
            batches.append(axis_size)
            return jax.vmap(jax.random.normal)(keys), True

        def counted(key):
            traces.append(1)
            return watched(key)

        for key in jax.random.split(jax.random.key(0), 3):
            results = jaxwgc.monte_carlo(counted, key, num_trials, batch_size)
            assert results.shape == (num_trials,)
        assert len(traces) == 1
        assert batches == [lanes]

    def test_another_number_of_trials_compiles_nothing(self, compilations):
        def trial(key):
            return jax.random.normal(key)

        first = jaxwgc.monte_carlo(trial, KEY, 300)
        compilations.clear()
        others = [jaxwgc.monte_carlo(trial, KEY, number) for number in (256, 400, 777)]
        assert not compilations
        assert [len(other) for other in others] == [256, 400, 777]
        np.testing.assert_array_equal(others[-1][:300], first)

    @pytest.mark.parametrize(
        "trial",
        [
            lambda key: jax.random.normal(jax.random.key(3)),
            lambda key: np.random.default_rng(0).random(),
            # The key is split, but not used.
            lambda key: jax.random.normal(KEY, (len(jax.random.split(key, 3)),)),
        ],
    )
    def test_a_trial_that_ignores_its_key_is_told(self, trial):
        with pytest.warns(UserWarning, match="ignores its key, .* Draw all") as seen:
            results = jaxwgc.monte_carlo(trial, KEY, 5)
        assert seen[0].filename == __file__
        assert np.ptp(results, axis=0).max() == 0

    def test_trials_may_be_equal_by_their_numbers(self):
        """The error of an exact code is 0 in each trial, and depends on the key."""
        code = codes.fractional_repetition(4, num_stragglers=1)

        def error(key):
            received = jnp.arange(4) != jax.random.randint(key, (), 0, 4)
            return jaxwgc.decoding(code, received).error

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            errors = jaxwgc.monte_carlo(error, KEY, 20)
            jaxwgc.monte_carlo(lambda key: 1.0, KEY, 1)
        assert not errors.any()

    def test_progress(self):
        calls = []
        jaxwgc.monte_carlo(
            jax.random.bits, KEY, 10, 4, lambda *progress: calls.append(progress)
        )
        assert calls == [(4, 10), (8, 10), (10, 10)]


class TestSummarize:
    @pytest.mark.parametrize("num_trials", [2, 3, 30, 5000])
    def test_intervals_are_those_of_scipy(self, num_trials):
        draw = np.random.default_rng(num_trials)
        results = {
            "normal": draw.normal(3.0, 2.0, (num_trials, 2)),
            "count": draw.integers(0, 2**40, num_trials),
        }
        summary = jaxwgc.summarize(results)
        for name, leaf in results.items():
            error = scipy.stats.sem(leaf.astype(float), axis=0)
            mean = leaf.mean(axis=0)
            low, high = scipy.stats.t.interval(
                0.95, num_trials - 1, loc=mean, scale=error
            )
            interval = summary[name]
            np.testing.assert_allclose(interval.mean, mean, rtol=1e-12)
            np.testing.assert_allclose(interval.standard_error, error, rtol=1e-10)
            np.testing.assert_allclose(
                interval.low, low, rtol=1e-8, atol=1e-9 * error.max()
            )
            np.testing.assert_allclose(interval.high, high, rtol=1e-8)
            assert interval.mean.dtype == np.float64

    def test_large_offsets_do_not_cancel(self):
        results = 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
        np.testing.assert_allclose(
            jaxwgc.summarize(results).standard_error, scipy.stats.sem(np.arange(4.0))
        )

    def test_jax_arrays_of_other_dtypes(self):
        counts = np.arange(10)
        half = counts.astype(jnp.bfloat16)
        for leaf, mean in ((counts < 3, 0.3), (half, 4.5), (counts, 4.5)):
            summary = jaxwgc.summarize(jnp.asarray(leaf))
            np.testing.assert_allclose(summary.mean, mean, rtol=1e-6)
            error = scipy.stats.sem(np.asarray(leaf, float))
            np.testing.assert_allclose(summary.standard_error, error, rtol=1e-5)
            assert summary.mean.dtype == np.float64

    def test_a_single_trial_has_no_interval(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            summary = jaxwgc.summarize({"a": np.array([[1.0, 2.0]])})["a"]
        np.testing.assert_array_equal(summary.mean, [1.0, 2.0])
        for leaf in (summary.low, summary.high, summary.standard_error):
            np.testing.assert_array_equal(leaf, [np.nan, np.nan])

    def test_errors_have_no_interval_below_zero(self):
        errors = np.concatenate([np.zeros(29), [1e3]])
        summary = jaxwgc.summarize(np.stack([errors, errors - 1e-6], axis=1))
        assert summary.low[0] == 0 and summary.low[1] < -30
        np.testing.assert_allclose(summary.high[0], summary.high[1], rtol=1e-6)

    def test_equal_results_have_no_width(self):
        summary = jaxwgc.summarize(np.full(7, 2.5))
        assert summary == simulation.Summary(2.5, 2.5, 2.5, 0.0)

    def test_a_value_that_is_not_finite_makes_its_mean_nan(self):
        summary = jaxwgc.summarize(np.array([[1.0, 1.0], [np.nan, 3.0]]))
        assert np.isnan(summary.mean[0])
        assert summary.mean[1] == 2.0


class TestProportions:
    """The mean of bools, or of numbers 0 and 1, has an interval of its own."""

    @pytest.mark.parametrize("num_trials", [1, 50])
    def test_intervals_are_those_of_scipy(self, num_trials):
        """All counts of hits side by side."""
        hits = np.arange(num_trials)[:, None] < np.arange(num_trials + 1)
        summary = jaxwgc.summarize(hits)
        for count in range(num_trials + 1):
            test = scipy.stats.binomtest(count, num_trials)
            low, high = test.proportion_ci(0.95, method="wilsoncc")
            np.testing.assert_allclose(summary.low[count], low, atol=1e-14)
            np.testing.assert_allclose(summary.high[count], high, atol=1e-14)
        np.testing.assert_allclose(summary.mean, hits.mean(0), rtol=1e-14)
        if num_trials > 1:
            errors = scipy.stats.sem(hits, axis=0)
            np.testing.assert_allclose(summary.standard_error, errors, atol=1e-14)
            numbers = jaxwgc.summarize(hits.astype(float))
            chex.assert_trees_all_equal(numbers, summary)


def test_trial_that_returns_keys():
    def study(key):
        return jaxwgc.monte_carlo(lambda trial_key: {"a": 1.0, "b": trial_key}, key, 3)[
            "a"
        ]

    rule = r"trial's result\['b'\] must be numbers or bools; got key<fry>"
    with pytest.raises(TypeError, match=rule):
        study(KEY)


def test_studies_and_summaries_in_traced_functions_are_rejected():
    with pytest.raises(TypeError, match="key must be concrete"):
        jax.jit(lambda key: jaxwgc.monte_carlo(jax.random.normal, key, 3))(KEY)

    def study(scale):
        return jaxwgc.monte_carlo(lambda key: scale * jax.random.normal(key), KEY, 3)

    for call in (jax.jit(study), jax.grad(study)):
        with pytest.raises(TypeError, match="trial's result must be concrete"):
            call(1.0)
    with pytest.raises(TypeError, match="results must be concrete"):
        jax.jit(jaxwgc.summarize)(np.ones(3))


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_counts_and_wilsons_intervals(make):
    """Workers range from never late to always late."""
    late = np.array([0, 1, 17, 49, 50])
    received = np.arange(50)[:, None] >= late
    result = simulation.straggler_probabilities(make(received))
    np.testing.assert_allclose(result.mean, (late + 0.5) / 51)
    for count, low, high in zip(late.tolist(), result.low, result.high, strict=True):
        interval = scipy.stats.binomtest(count, 50).proportion_ci(0.95, "wilsoncc")
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_code_of_a_trace():
    """Times, a deadline, estimates and a code: nearly unbiased, within the intervals.

    The bias of a part lies between those at the ends of the intervals.
    """
    scales = np.array([0.3, 0.6, 0.9, 1.2])
    times = np.random.default_rng(0).exponential(scales, (2000, 4))
    wait = stragglers.deadline(1.5)
    rounds = jax.vmap(
        lambda times_of_round: wait.arrivals(jax.random.key(0), times_of_round)
    )(times)
    estimates = simulation.straggler_probabilities(rounds.received)
    true = np.exp(-1.5 / scales)
    assert np.all((estimates.low < true) & (true < estimates.high))
    code = codes.unequal(estimates.mean, 5)
    bias = simulation.expected_error(code, true).bias
    ends = [
        simulation.expected_error(code, end).bias
        for end in (estimates.high, estimates.low)
    ]
    assert np.all((ends[0] <= bias) & (bias <= ends[1]))
    assert np.abs(bias).max() < 0.05


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        ({}, ValueError, "results must have (shape|a leading axis)"),
        (1.0, ValueError, "results must have (shape|a leading axis)"),
        (np.ones((0, 3)), ValueError, "results must have (shape|a leading axis)"),
        (
            {"a": np.ones(6, bool), "b": np.ones((5, 2))},
            ValueError,
            r"results\['b'\].*= 6; got",
        ),
        (np.ones(3) + 0j, TypeError, "results must be real numbers or"),
    ],
)
def test_summarize_rejects_results_that_are_no_trials(results, error, message):
    with pytest.raises(error, match=message):
        jaxwgc.summarize(results)


@pytest.mark.parametrize("received", [np.ones(6, bool), np.ones((0, 1), bool)])
def test_straggler_probabilities_rejects_what_is_no_trace(received):
    with pytest.raises(ValueError, match="received must have (shape|a leading axis)"):
        simulation.straggler_probabilities(received)
