"""Arguments that break a rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers, studies


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "rule"),
        [
            (
                lambda: stragglers.uniform(-1),
                "num_stragglers must be at least 0; got -1",
            ),
            (
                lambda: stragglers.uniform(4).init(4),
                "num_stragglers must be less than num_workers; .* = 4 and .* = 4",
            ),
            (
                lambda: stragglers.uniform(5).sample(
                    jax.random.key(0), (), jnp.ones(4)
                ),
                "num_stragglers must be less than num_workers; .* = 5 and .* = 4",
            ),
            (
                lambda: stragglers.shifted_exponential(-0.1, 1.0),
                "shift must be at least 0; got -0.1",
            ),
            (
                lambda: stragglers.shifted_exponential(math.nan, 1.0),
                "shift must be a number; got nan",
            ),
            (
                lambda: stragglers.shifted_exponential(1.0, 0),
                "rate must be positive; got 0",
            ),
            (
                lambda: stragglers.shifted_exponential(1.0, -2.0),
                "rate must be positive; got -2",
            ),
            (lambda: stragglers.pareto(0.0, 1.0), "scale must be positive; got 0"),
            (lambda: stragglers.pareto(1.0, -1.0), "shape must be positive; got -1"),
            (
                lambda: stragglers.pareto(1.0, math.nan),
                "shape must be a number; got nan",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(-0.1, 2.0),
                "probability must be at least 0; got -0.1",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(1.1, 2.0),
                "probability must be at most 1; got 1.1",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(math.nan, 2.0),
                "probability must be a number; got nan",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(0.5, 0.9),
                "slowdown must be at least 1; got 0.9",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(0.5, 2.0, time=0.0),
                "time must be positive; got 0",
            ),
            (
                lambda: stragglers.bernoulli(-0.1),
                "probability must be at least 0; got -0.1",
            ),
            (
                lambda: stragglers.bernoulli(1.5),
                "probability must be at most 1; got 1.5",
            ),
            (
                lambda: stragglers.bernoulli(0.5).init(0),
                "num_workers must be at least 1; got 0",
            ),
            (lambda: stragglers.fastest(0), "num_required must be at least 1; got 0"),
            (
                lambda: stragglers.fastest(4).arrivals(jax.random.key(0), jnp.ones(3)),
                "num_required must be at most num_workers; .* = 4 and .* = 3",
            ),
            (lambda: stragglers.deadline(0.0), "seconds must be positive; got 0"),
            (lambda: stragglers.deadline(-1.0), "seconds must be positive; got -1"),
            (
                lambda: stragglers.deadline(math.nan),
                "seconds must be a number; got nan",
            ),
        ],
    )
    def test_values(self, make, rule):
        with pytest.raises(ValueError, match=rule):
            make()

    @pytest.mark.parametrize("value", [1.0, "1", None, True, np.ones(2)])
    def test_numbers_that_are_not_ints(self, value):
        with pytest.raises(TypeError, match="num_stragglers must be a.* int"):
            stragglers.uniform(value)
        with pytest.raises(TypeError, match="num_required must be a.* int"):
            stragglers.fastest(value)

    def test_counts_that_are_traced(self):
        with pytest.raises(TypeError, match="num_stragglers must be a Python int"):
            jax.jit(lambda count: stragglers.uniform(count).init(3))(1)

    @pytest.mark.parametrize("value", ["1", None, np.ones(2), 1j])
    def test_numbers_that_are_not_real_scalars(self, value):
        for name, make in {
            "shift": lambda: stragglers.shifted_exponential(value, 1.0),
            "rate": lambda: stragglers.shifted_exponential(1.0, value),
            "scale": lambda: stragglers.pareto(value, 1.0),
            "probability": lambda: stragglers.bernoulli_slowdown(value, 1.0),
            "seconds": lambda: stragglers.deadline(value),
        }.items():
            with pytest.raises(TypeError, match=f"{name} must be a real scalar; got"):
                make()

    def test_models(self):
        pareto, wait = stragglers.pareto(1.0, 1.0), stragglers.fastest(1)
        with pytest.raises(TypeError, match="delay must be a DelayModel; got fast"):
            stragglers.delayed(wait, wait)
        with pytest.raises(TypeError, match="delay must be a DelayModel"):
            stragglers.delayed(stragglers.uniform(1), wait)
        with pytest.raises(TypeError, match="wait must be a waiting rule; got pareto"):
            stragglers.delayed(pareto, pareto)

    @pytest.mark.parametrize("key", [0, None, np.zeros(2, np.int32), np.zeros(2)])
    def test_keys(self, key):
        pareto, wait = stragglers.pareto(1.0, 1.0), stragglers.fastest(1)
        for sample in (
            stragglers.uniform(1).sample,
            stragglers.bernoulli(0.5).sample,
            pareto.sample,
            stragglers.delayed(pareto, wait).sample,
            lambda key, _, times: stragglers.fastest(1).arrivals(key, times),
        ):
            with pytest.raises(TypeError, match="key must be a PRNG key"):
                sample(key, (), jnp.ones(3))
        with pytest.raises(ValueError, match=r"key must be one key; .* \(2"):
            pareto.sample(jax.random.split(jax.random.key(0)), (), jnp.ones(3))


KEY = jax.random.key(0)
MODELS = {
    "uniform": stragglers.uniform(1),
    "bernoulli": stragglers.bernoulli(0.5),
    "adversarial": studies.adversarial(codes.fractional_repetition(4, 1), 1),
    "pareto": stragglers.pareto(1.0, 2.0),
    "exponential": stragglers.shifted_exponential(1.0, 1.0),
    "slowdown": stragglers.bernoulli_slowdown(0.5, 2.0),
    "delayed": stragglers.delayed(stragglers.pareto(1.0, 2.0), stragglers.fastest(2)),
}
WRONG = [
    ([1.0, -1.0, 1.0, 1.0], ValueError, r"be .*at least 0.*; got \w+\[1\] = -1"),
    ([1.0, 1.0, np.nan, 1.0], ValueError, r"be .*at least 0.*; got \w+\[2\] = nan"),
    (["a"] * 4, TypeError, "be real numbers; got <U1"),
    ([True] * 4, TypeError, "be real numbers; got bool"),
    ([1j] * 4, TypeError, "be real numbers; got complex128"),
    ([None] * 4, TypeError, "be real numbers; got object"),
    (4, ValueError, r"have shape \(num_workers,\); got \(\)"),
    (np.ones((4, 1)), ValueError, r"have shape \(num_workers,\); got \(4, 1\)"),
    ([], ValueError, r"have shape \(num_workers,\); got \(0,\)"),
]


@jax.jit
def traced_rounds(loads):
    """Times of the Pareto model, and its rounds by two rules."""
    delay = MODELS["pareto"]
    waits = stragglers.fastest(4), stragglers.deadline(1e6)
    models = [delay, *(stragglers.delayed(delay, wait) for wait in waits)]
    return [model.sample(KEY, (), loads)[0] for model in models]


class TestLoads:
    @pytest.mark.parametrize(("loads", "error", "rule"), WRONG)
    @pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
    def test_bad_input(self, model, loads, error, rule):
        with pytest.raises(error, match="loads must " + rule):
            model.sample(KEY, (), loads)

    @pytest.mark.parametrize(
        "delay",
        [
            stragglers.empirical(np.ones((3, 5))),
            stragglers.unequal_speeds(stragglers.pareto(1, 2), np.ones(5)),
            stragglers.markov(*[stragglers.pareto(1, 2)] * 2, 0.1, 0.2),
        ],
    )
    def test_of_other_workers_than_the_state(self, delay):
        with pytest.raises(ValueError, match=r"init.* gave, \(5,\); got \(4,\)"):
            delay.sample(KEY, delay.init(5), np.ones(4))

    @pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
    def test_infinite_loads(self, model):
        with pytest.raises(ValueError, match=r"finite and .*; got loads\[3\] = inf"):
            model.sample(KEY, (), [1, 1, 1, np.inf])

    @pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
    def test_lists_and_ints_are_arrays(self, model):
        expected = jax.tree.leaves(model.sample(KEY, (), jnp.array([2.0, 1, 0, 3])))
        for loads in ([2, 1, 0, 3], np.array([2, 1, 0, 3], np.int8)):
            found = jax.tree.leaves(model.sample(KEY, (), loads))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("load", [-1.0, np.nan, np.inf])
    def test_traced_loads_that_are_none_show(self, load):
        """As a time that is no number; such a worker is not received."""
        times, *rounds = traced_rounds(np.array([1.0, load, 1.0, 1.0]))
        np.testing.assert_array_equal(np.isnan(times), [False, True, False, False])
        for arrivals in rounds:
            assert not arrivals.received[1]
            assert np.isnan(arrivals.elapsed)

    def test_number_of_workers(self):
        for model in MODELS.values():
            with pytest.raises(TypeError, match="num_workers must be a Python int"):
                model.init(4.0)
            with pytest.raises(ValueError, match="num_workers must be at least 1"):
                model.init(0)


class TestTimes:
    rules = {"fastest": stragglers.fastest(2), "deadline": stragglers.deadline(1.0)}
    every_rule = pytest.mark.parametrize("wait", rules.values(), ids=rules)

    @every_rule
    @pytest.mark.parametrize(("times", "error", "rule"), WRONG)
    def test_bad_input(self, wait, times, error, rule):
        with pytest.raises(error, match="times must " + rule):
            wait.arrivals(KEY, times)

    @every_rule
    def test_lists(self, wait):
        expected = wait.arrivals(KEY, jnp.array([0.5, np.inf, 2.0, 0.1]))
        found = wait.arrivals(KEY, [0.5, np.inf, 2.0, 0.1])
        np.testing.assert_array_equal(found.received, [True, False, False, True])
        np.testing.assert_array_equal(found.received, expected.received)

    @every_rule
    def test_traced_times_below_zero_are_never(self, wait):
        times = jnp.array([0.5, -0.1, 2.0, 3.0])
        arrivals = jax.jit(lambda own: wait.arrivals(KEY, own))(times)
        assert not arrivals.received[1]


@pytest.mark.parametrize("value", [True, np.True_, jnp.ones((), bool)])
def test_bools_are_no_numbers(value):
    for name, make in {
        "rate": lambda: stragglers.shifted_exponential(1.0, value),
        "scale": lambda: stragglers.pareto(value, 1.0),
        "probability": lambda: stragglers.bernoulli(value),
        "seconds": lambda: stragglers.deadline(value),
    }.items():
        with pytest.raises(TypeError, match=f"{name} must be a real scalar; got"):
            make()


class WithNumpy(stragglers.WaitingRule):
    def is_over(self, times, now):
        return np.isfinite(times).sum() > 2


class WithIf(stragglers.WaitingRule):
    def is_over(self, times, now):
        return now > 2 if times[0] > 2 else now > 3


class WithoutArrivals(stragglers.WaitingRule):
    def arrivals(self, key, times):
        return times < 2


class OfEachWorker(stragglers.WaitingRule):
    def is_over(self, times, now):
        return times <= now


class Undefined(stragglers.WaitingRule):
    pass


JAX_ONLY = "must be made of JAX functions, .* jnp.where .* the value of an array"


@pytest.mark.parametrize(
    ("wait", "error", "rule"),
    [
        (WithNumpy(), TypeError, f"wait {JAX_ONLY}"),
        (WithIf(), TypeError, f"wait {JAX_ONLY}"),
        (WithoutArrivals(), TypeError, r"wait must have arrivals with .* \(4,\)"),
        (OfEachWorker(), TypeError, "wait must have an is_over that gives one bool"),
        (Undefined(), NotImplementedError, "wait must define is_over"),
    ],
)
def test_waiting_rules_that_break_their_contract(wait, error, rule):
    model = stragglers.delayed(stragglers.pareto(1.0, 2.0), wait)
    with pytest.raises(error, match=rule):
        jax.jit(model.sample)(KEY, (), np.ones(4))


class NumpyDelay(stragglers.DelayModel):
    def sample(self, key, state, loads):
        return np.asarray(jax.random.uniform(key, (3,))), ()


class NumpyModel(stragglers.StragglerModel):
    sample = NumpyDelay.sample


def test_delays_and_models_that_cannot_be_traced():
    """Found when an aggregator is made, before the first round."""
    for name, model in (
        ("delay", stragglers.delayed(NumpyDelay(), stragglers.fastest(2))),
        ("model", NumpyModel()),
    ):
        with pytest.raises(TypeError, match=f"{name} {JAX_ONLY}"):
            jaxwgc.coded_aggregate(codes.uncoded(3), model, KEY)


class Negative(stragglers.Distribution):
    def sf(self, x):
        return np.exp(-(x + 1))

    def isf(self, q):
        return -np.log(q) - 1


class Growing(stragglers.Distribution):
    def sf(self, x):
        return 1 - np.exp(-x)

    def isf(self, q):
        return -np.log1p(-q)


@pytest.mark.parametrize(
    ("law", "rule"),
    [
        (Negative(), "law must have times of at least 0.*Negative"),
        (Growing(), "law must have a survival function that does not grow.*Growing"),
    ],
)
def test_distributions_that_break_their_contract(law, rule):
    with pytest.raises(ValueError, match=rule):
        stragglers.fastest(2).expected_time(law, 3)
