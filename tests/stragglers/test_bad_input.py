"""Arguments that break a rule, and models of one's own that break their contract."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers, studies

KEY = jax.random.key(0)
PARETO, TABLE = stragglers.pareto(1.0, 2.0), np.ones((2, 3))
CODE = codes.binary(5, 2)
ONE = np.array([0, 1, 0])
ROUNDS = np.arange(1.0, 19).reshape(6, 3)
MANY_LOADS = {"measured_at": [1.0], "loads": 2.0}

# Of the constructor with these arguments, or of a method of what it makes.
REFUSED = [
    ("uniform", (-1,), ValueError, "num_stragglers must be at least 0; got -1"),
    ("uniform", (True,), TypeError, "num_stragglers must be an int; got True"),
    ("bernoulli", (-0.1,), ValueError, "probability must be at least 0; got -0.1"),
    ("bernoulli", (1.5,), ValueError, "probability must be at most 1; got 1.5"),
    ("bernoulli", ([0.5, 1.5],), ValueError, r"from 0 to 1; got probability\[1\]"),
    ("bernoulli", ("0.5",), TypeError, "probability must be a real scalar"),
    ("fixed", (np.ones(3, int),), TypeError, "received must be bools; got int"),
    ("fixed", (TABLE > 0,), ValueError, r"received must have shape \(num_workers"),
    ("shifted_exponential", (-0.1, 1), ValueError, "shift must be at least 0"),
    ("shifted_exponential", (1, 0), ValueError, "rate must be positive; got 0"),
    ("shifted_exponential", (1, True), TypeError, "rate must be a real scalar"),
    ("pareto", (0.0, 1.0), ValueError, "scale must be positive; got 0"),
    ("pareto", (1.0, math.nan), ValueError, "shape must be a number; got nan"),
    ("weibull", (0.0, 1.0), ValueError, "scale must be positive"),
    ("weibull", (1.0, -1.0), ValueError, "shape must be positive"),
    ("log_normal", (-1.0, 1.0), ValueError, "median must be positive"),
    ("log_normal", (1.0, 0.0), ValueError, "deviation must be positive"),
    ("bernoulli_slowdown", (1.1, 2), ValueError, "probability must be at most 1"),
    ("bernoulli_slowdown", (0.5, 0.9), ValueError, "slowdown must be at least 1"),
    ("bernoulli_slowdown", (0.5, 2, 0), ValueError, "time must be positive; got 0"),
    ("affine", (PARETO, -1.0), ValueError, "overhead must be at least 0"),
    ("affine", (PARETO, 0, -1), ValueError, "slope must be at least 0"),
    ("affine", (PARETO, 0, 1, -1), ValueError, "time must be at least 0"),
    ("affine", (3.0,), TypeError, "delay must be a DelayModel; got 3.0"),
    ("markov", (PARETO, 5.0, 0.1, 0.1), TypeError, "slow must be a DelayModel"),
    ("markov", (PARETO, PARETO, 1.1, 0), ValueError, "become_slow must be at most"),
    ("markov", (PARETO, PARETO, 0, 0), ValueError, "must not both be zero"),
    ("unequal_speeds", (PARETO, [1, 0.0]), ValueError, "speeds must be positive"),
    ("unequal_speeds", (PARETO, 1.0), ValueError, "speeds must have 1 axis"),
    ("unequal_speeds", (PARETO, ["fast"]), TypeError, "speeds must be"),
    ("empirical", (np.ones(3),), ValueError, "times must have shape"),
    ("empirical", ([[1.0, 0.0]],), ValueError, "times must be positive"),
    ("empirical", (np.ones((0, 3)),), ValueError, "times must have shape .*1 rounds"),
    ("empirical", ("fast",), TypeError, "times must be real"),
    ("empirical", (TABLE, "days"), ValueError, "resample must be one of"),
    ("empirical", (TABLE, {"loads": 0.0}), ValueError, "loads must be positive"),
    ("empirical", (TABLE, {"loads": [1, 2]}), ValueError, "loads must be positive"),
    ("empirical", (TABLE[None], MANY_LOADS), ValueError, "loads must be 1 with"),
    ("empirical", (TABLE, {"measured_at": 1.0}), ValueError, "measured_at must have 1"),
    ("empirical", (TABLE[None], {"measured_at": [1, 2]}), ValueError, "be increasing"),
    ("empirical", (TABLE[ONE, None], {"measured_at": -ONE}), ValueError, "increasing"),
    ("fastest", (0,), ValueError, "num_required must be at least 1; got 0"),
    ("fastest", (1.0,), TypeError, "num_required must be a Python int"),
    ("deadline", (-1.0,), ValueError, "seconds must be positive; got -1"),
    ("deadline", ("1",), TypeError, "seconds must be a real scalar; got '1'"),
    ("relative_deadline", (0.5, 1), ValueError, "factor must be at least 1"),
    ("relative_deadline", (2.0, 1.5), TypeError, "quorum must be a Python int"),
    ("until_decodable", (None,), TypeError, "code must be a GradientCode; got N"),
    ("until_decodable", (CODE, -1), ValueError, "tolerance must be at least 0"),
    ("until_decodable", (CODE, 0, "guess"), TypeError, "decoder must be a jaxwgc"),
    ("delayed", (stragglers.uniform(1), 1), TypeError, "delay must be a DelayM"),
    ("delayed", (PARETO, PARETO), TypeError, "wait must be a WaitingRule; got p"),
    ("fit_delays", (ROUNDS[0],), ValueError, r"shape \(rounds, workers\) or"),
    ("fit_delays", (ROUNDS[:3],), ValueError, "at least 4 rounds"),
    ("fit_delays", (ROUNDS - 1,), ValueError, "times must be positive.*got 0"),
    ("fit_delays", (ROUNDS * np.nan,), ValueError, "at least half of all; got 0%"),
    ("fit_delays", (ROUNDS * np.where(ONE, np.nan, 1),), ValueError, "here worker 1"),
    ("fit_delays", (np.ones((6, 3)),), ValueError, "times must differ; got 1.0"),
    ("fit_delays", (ROUNDS.astype(str),), TypeError, "times must be"),
    (
        "fit_delays",
        (np.where(ROUNDS > 15, np.nan, ROUNDS),),
        ValueError,
        "none in 1 rounds",
    ),
    ("fit_delays", (ROUNDS, np.ones(4)), ValueError, "loads must be one number, or"),
    ("fit_delays", (ROUNDS, -1.0), ValueError, "loads must be at least 0, finite"),
    ("fit_delays", (ROUNDS, 0.0), ValueError, "not all 0"),
    ("fit_delays", (ROUNDS, np.nan), ValueError, "finite and not all 0"),
    ("fit_delays", (ROUNDS, {"held_out": 1.0}), ValueError, "held_out must be betw"),
    ("fit_delays", (ROUNDS, {"held_out": "half"}), TypeError, "held_out must be a re"),
    ("fit_delays", (ROUNDS, {"in_order": 1}), TypeError, "in_order must be True or"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "rule"), REFUSED)
def test_arguments(name, arguments, error, rule):
    options = arguments[-1] if isinstance(arguments[-1], dict) else {}
    arguments = arguments[: len(arguments) - bool(options)]
    with pytest.raises(error, match=rule):
        getattr(stragglers, name)(*arguments, **options)


@pytest.mark.parametrize(
    ("model", "number", "rule"),
    [
        (stragglers.uniform(4), 4, "num_stragglers must be less .* = 4 and .* = 4"),
        (stragglers.bernoulli(0.5), 0, "num_workers must be at least 1; got 0"),
        (stragglers.bernoulli([0.5, 0.1]), 3, "that of probability; got 3 and 2"),
        (stragglers.fixed(np.ones(3, bool)), 4, "num_workers must be that of received"),
        (stragglers.empirical(TABLE), 4, "at least 4 workers; got 3"),
        (stragglers.unequal_speeds(PARETO, [1.0]), 0, "num_workers must be at least 1"),
    ],
)
def test_numbers_of_workers(model, number, rule):
    with pytest.raises(ValueError, match=rule):
        model.init(number)


@pytest.mark.parametrize(
    ("wait", "rule"),
    [
        (stragglers.fastest(4), "num_required must be at most .* = 4 and .* = 3"),
        (stragglers.relative_deadline(2, 4), "quorum must be at most .* 4 and .* 3"),
        (stragglers.until_decodable(CODE), "times must have .* = 5 for the code"),
    ],
)
def test_rules_for_more_workers(wait, rule):
    with pytest.raises(ValueError, match=rule):
        wait.ends(np.ones(3))
    model = stragglers.delayed(PARETO, wait)
    with pytest.raises(ValueError, match=rule):
        jaxwgc.coded_aggregate(codes.uncoded(3), model, KEY)


def test_what_must_not_be_traced():
    with pytest.raises(TypeError, match="num_stragglers must be a Python int"):
        jax.jit(lambda count: stragglers.uniform(count).init(3))(1)
    with pytest.raises(TypeError, match="times must be concrete"):
        jax.jit(lambda times: stragglers.empirical(times).init(3))(TABLE)


MODELS = {
    "uniform": stragglers.uniform(1),
    "bernoulli": stragglers.bernoulli(0.5),
    "adversarial": studies.adversarial(codes.fractional_repetition(4, 1), 1),
    "pareto": PARETO,
    "delayed": stragglers.delayed(PARETO, stragglers.fastest(2)),
}
WRONG = [
    ([1.0, -1.0, 1.0, 1.0], ValueError, r"be .*at least 0.*; got \w+\[1\] = -1"),
    ([1.0, 1.0, np.nan, 1.0], ValueError, r"be .*at least 0.*; got \w+\[2\] = nan"),
    (["a"] * 4, TypeError, "be real numbers; got <U1"),
    (4, ValueError, r"have shape \(num_workers,\) .*; got \(\)"),
    ([], ValueError, r"have shape \(num_workers,\) .*; got \(0,\)"),
]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_keys_and_loads(model):
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        model.sample(0, (), np.ones(4))
    infinite = ([1, 1, 1, np.inf], ValueError, r"finite and .*\[3\] = inf")
    for loads, error, rule in [*WRONG, infinite]:
        with pytest.raises(error, match="loads must .*" + rule):
            model.sample(KEY, (), loads)
    # Lists and ints are arrays.
    expected = jax.tree.leaves(model.sample(KEY, (), jnp.array([2.0, 1, 0, 3])))
    for loads in ([2, 1, 0, 3], np.array([2, 1, 0, 3], np.int8)):
        drawn = jax.tree.leaves(model.sample(KEY, (), loads))
        jax.tree.map(np.testing.assert_array_equal, drawn, expected)


@pytest.mark.parametrize(
    "delay",
    [
        stragglers.empirical(np.ones((3, 5))),
        stragglers.unequal_speeds(PARETO, np.ones(5)),
        stragglers.markov(PARETO, PARETO, 0.1, 0.2),
    ],
)
def test_loads_of_other_workers_than_the_state(delay):
    with pytest.raises(ValueError, match=r"init.* gave, \(5,\); got \(4,\)"):
        delay.sample(KEY, delay.init(5), np.ones(4))


@pytest.mark.parametrize("wait", [stragglers.fastest(2), stragglers.deadline(1.0)])
def test_times(wait):
    for times, error, rule in WRONG:
        with pytest.raises(error, match="times must " + rule):
            wait.arrivals(KEY, times)
    arrivals = wait.arrivals(KEY, [0.5, np.inf, 2.0, 0.1])
    np.testing.assert_array_equal(arrivals.received, [True, False, False, True])


@pytest.mark.parametrize(
    ("mask", "error", "rule"),
    [
        (np.ones(4, bool), ValueError, r"mask must have shape .*, 5\); got"),
        (np.ones(5), TypeError, "mask must be bools; got"),
    ],
)
def test_masks(mask, error, rule):
    with pytest.raises(error, match=rule):
        CODE.decodes(mask)


@pytest.mark.parametrize("load", [-1.0, np.nan, np.inf])
def test_traced_loads_that_are_none_show(load):
    """As a time that is no number; such a worker is not received."""

    @jax.jit
    def rounds(loads):
        waits = stragglers.fastest(4), stragglers.deadline(1e6)
        models = [stragglers.delayed(PARETO, wait) for wait in waits]
        return [model.sample(KEY, (), loads)[0] for model in models]

    for arrivals in rounds(np.array([1.0, load, 1.0, 1.0])):
        assert np.isnan(arrivals.times[1]) and np.isnan(arrivals.elapsed)
        assert not arrivals.received[1]


def made(base, **methods):
    """One of a class of the user's own."""
    return type("Made", (base,), methods)()


JAX_ONLY = "must be made of JAX functions, .* jnp.where .* the value of an array"


@pytest.mark.parametrize(
    ("methods", "error", "rule"),
    [
        (
            {"is_over": lambda self, times, now: np.isfinite(times).sum() > 2},
            TypeError,
            f"wait {JAX_ONLY}",
        ),
        (
            {"is_over": lambda self, times, now: now > (2 if times[0] > 2 else 3)},
            TypeError,
            f"wait {JAX_ONLY}",
        ),
        (
            {"arrivals": lambda self, key, times: times < 2},
            TypeError,
            r"wait must have arrivals with .* \(4,\)",
        ),
        (
            {"is_over": lambda self, times, now: times <= now},
            TypeError,
            "wait must have an is_over that gives one bool",
        ),
        ({}, NotImplementedError, "wait must define is_over"),
    ],
)
def test_waiting_rules_that_break_their_contract(methods, error, rule):
    model = stragglers.delayed(PARETO, made(stragglers.WaitingRule, **methods))
    with pytest.raises(error, match=rule):
        jax.jit(model.sample)(KEY, (), np.ones(4))


def test_delays_and_models_that_cannot_be_traced():
    """Found when an aggregator is made, before the first round."""

    def sample(self, key, state, loads):
        return np.asarray(jax.random.uniform(key, (3,))), ()

    delay = made(stragglers.DelayModel, sample=sample)
    for name, model in (
        ("delay", stragglers.delayed(delay, stragglers.fastest(2))),
        ("model", made(stragglers.StragglerModel, sample=sample)),
    ):
        with pytest.raises(TypeError, match=f"{name} {JAX_ONLY}"):
            jaxwgc.coded_aggregate(codes.uncoded(3), model, KEY)


def test_rules_that_cannot_be_told_apart():
    with pytest.raises(TypeError, match="wait must be hashable, .* arrays and lists"):
        made(stragglers.WaitingRule, __hash__=None).ends(np.ones(3))


@pytest.mark.parametrize(
    ("sf", "isf", "rule"),
    [
        (
            lambda self, x: np.exp(-(x + 1)),
            lambda self, q: -np.log(q) - 1,
            "law must have times of at least 0.*Made",
        ),
        (
            lambda self, x: 1 - np.exp(-x),
            lambda self, q: -np.log1p(-q),
            "law must have a nonincreasing survival function.*Made",
        ),
    ],
)
def test_distributions_that_break_their_contract(sf, isf, rule):
    law = made(stragglers.Distribution, sf=sf, isf=isf)
    with pytest.raises(ValueError, match=rule):
        stragglers.fastest(2).expected_time(law, 3)
