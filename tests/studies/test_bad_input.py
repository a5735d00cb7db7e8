"""Arguments of studies of codes that break a rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers, studies

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)
CODE, MODEL = codes.uncoded(4), stragglers.uniform(2)
DELAY = stragglers.shifted_exponential(shift=1.0, rate=0.5)
BINARY = codes.cyclic_repetition(KEY, 4, 1)


def adversarial(code=CODE, num_stragglers=2, num_workers=4, key=KEY):
    model = studies.adversarial(code, num_stragglers)
    model.init(num_workers)
    return model.sample(key, (), np.ones(num_workers))


def diagnose(code=CODE, key=KEY, num_stragglers=1, **options):
    return studies.diagnose(code, key, num_stragglers, **options)


def learn(code=BINARY, model=MODEL, key=KEY, **options):
    return studies.learn_entries(code, model, key, **options)


def plan(delay=DELAY, num_workers=4, key=KEY, **options):
    return jaxwgc.plan(delay, num_workers, key, **options)


def worst_pattern(code=CODE, num_stragglers=1, **options):
    return studies.worst_pattern(code, num_stragglers, **options)


class Negative(stragglers.DelayModel):
    def sample(self, key, state, loads):
        return -loads, state


class OfNumPy(stragglers.DelayModel):
    def sample(self, key, state, loads):
        return np.asarray(loads), state


class WithArray(stragglers.WaitingRule):
    """As a frozen dataclass with an array has it."""

    __hash__ = None


class NoArrivals(stragglers.WaitingRule):
    def arrivals(self, key, times):
        return times


LAGRANGE = {"decoder": decoders.Lagrange}
COMPLEX = codes.reed_solomon(6, 6, 3)
SEGMENTS = codes.communication_efficient(6, 2, 2)
MESSAGES = codes.partially_coded(codes.cyclic_mds(4, 1), 1)
TRACE = stragglers.empirical(np.ones((30, 3)))
OTHERS = {"own": codes.uncoded(5)}
CHOICE = jaxwgc.plan(
    DELAY, 4, KEY, replications=[1], waiting=[stragglers.fastest(4)], num_rounds=40
).best
MANY_BUSY = CHOICE._replace(code=codes.replicated(4, 8, 2), late="busy")
NO_MEMORY = CHOICE._replace(
    code=codes.stochastic(KEY, 4, 4, 2, straggler_probability=0.2), memory=True
)
BATCH = jax.vmap(lambda key: codes.cyclic_repetition(key, 4, 1))(KEYS)


@pytest.mark.parametrize(
    ("study", "options", "rule"),
    [
        (adversarial, {"num_workers": 3}, "num_workers must be that .* got 3 and 4"),
        (adversarial, {"num_stragglers": 4}, "num_stragglers must be less than"),
        (diagnose, {"num_stragglers": 4}, "num_stragglers must be less than num_work"),
        (diagnose, {"num_stragglers": [1, 9]}, "num_stragglers must be less than num"),
        (diagnose, {"num_stragglers": -1}, "num_stragglers must be at least 0; got -1"),
        (diagnose, {"num_stragglers": []}, "num_stragglers must be at least one num"),
        (diagnose, {"num_patterns": 1}, "num_patterns must be at least 2; got 1"),
        (diagnose, {"quantile_levels": [1.1]}, r"quantile_levels must be .*\[1.1\]"),
        (diagnose, {"quantile_levels": [math.nan]}, "quantile_levels must be numbers"),
        (diagnose, {"quantile_levels": 0.5}, "quantile_levels must be numbers from 0"),
        (diagnose, LAGRANGE, "decoder Lagrange needs a code evaluated"),
        (diagnose, {"max_patterns": -1}, "max_patterns must be at least 0; got -1"),
        (diagnose, {"key": KEYS}, "key must be one key"),
        (learn, {"code": COMPLEX}, "code must be real, with one message"),
        (learn, {"code": SEGMENTS}, "code must be real, with one message"),
        (learn, {"code": MESSAGES}, "code must be real, with one message"),
        (learn, {"key": KEYS}, "key must be one key"),
        (learn, {"num_steps": 0}, "num_steps must be at least 1; got 0"),
        (learn, {"batch_size": 0}, "batch_size must be at least 1; got 0"),
        (learn, {"learning_rate": 0.0}, "learning_rate must be positive; got 0.0"),
        (learn, {"learning_rate": math.nan}, "learning_rate must be a number"),
        (learn, {"model": stragglers.uniform(4)}, "num_stragglers must be less"),
        (plan, {"target": 0}, "target must be positive; got 0"),
        (plan, {"target": 1.0}, "target must be below 1"),
        (plan, {"condition": 0.5}, "condition must be at least 1"),
        (plan, {"heterogeneity": -1}, "heterogeneity must be at least 0"),
        (plan, {"heterogeneity": math.inf}, "heterogeneity must be finite"),
        (plan, {"replications": [5]}, "replications must be at most num_w"),
        (plan, {"codes": OTHERS}, "must have num_workers = 4; got 5"),
        (plan, {"codes": {}, "replications": [1]}, "replications are for the standard"),
        (plan, {"choices": []}, "choices must be at least one"),
        (plan, {"waiting": []}, "waiting must be at least one"),
        (plan, {"memory": True, "late": "cancelled"}, "memory must be False with late"),
        (plan, {"late": "never"}, "late must be .*busy.*never"),
        (plan, {"choices": [MANY_BUSY]}, 'choices.0..late must be "cancelled" for'),
        (plan, {"choices": [NO_MEMORY]}, "choices.0..memory must be False unless"),
        (plan, {"num_rounds": 10}, "num_rounds must be at least 40"),
        (plan, {"tail": -1}, "tail must be at least 0; got -1"),
        (plan, {"tail": math.inf}, "tail must be finite"),
        (plan, {"num_workers": 0}, "num_workers must be at least 1"),
        (plan, {"delay": TRACE}, "the trace must have at least 4 workers"),
        (plan, {"delay": Negative(), "replications": [1]}, "delay must give times"),
        (worst_pattern, {"num_stragglers": 4}, "less than num_workers; .* = 4 and .*4"),
        (worst_pattern, {"num_stragglers": -1}, "num_stragglers must be at least 0"),
        (worst_pattern, {"max_patterns": -1}, "max_patterns must be at least 0"),
        (worst_pattern, LAGRANGE, "decoder Lagrange needs a code"),
        (worst_pattern, {"code": BATCH}, r"code must be one code, .* \(2, 4, 4\)"),
    ],
)
def test_values(study, options, rule):
    with pytest.raises(ValueError, match=rule):
        study(**options)


@pytest.mark.parametrize(
    ("study", "options", "rule"),
    [
        (adversarial, {"code": np.eye(4)}, "code must be a GradientCode"),
        (adversarial, {"key": 0}, "key must be a PRNG key"),
        (diagnose, {"code": 3}, "code must be a GradientCode; got 3"),
        (diagnose, {"key": 0}, "key must be a PRNG key"),
        (diagnose, {"decoder": "guess"}, "decoder must be a .*; got 'guess'"),
        (diagnose, {"num_stragglers": 1.0}, "num_stragglers must be"),
        (diagnose, {"num_patterns": 10.0}, "num_patterns must be"),
        (diagnose, {"quantile_levels": [True]}, r"quantile_levels\[0\] must be real"),
        (diagnose, {"quantile_levels": ["0.5"]}, r"quantile_levels\[0\] must be real"),
        (learn, {"code": 3}, "code must be a GradientCode; got 3"),
        (learn, {"model": 0.3}, "model must be a StragglerModel"),
        (learn, {"key": 0}, "key must be a PRNG key"),
        (learn, {"num_steps": 10.0}, "num_steps must be"),
        (learn, {"batch_size": None}, "batch_size must be"),
        (learn, {"learning_rate": "fast"}, "learning_rate must be a real scalar"),
        (plan, {"replications": [1.5]}, "replications must be a Python int"),
        (plan, {"codes": ["uncoded"]}, "codes must be a Mapping of codes by"),
        (plan, {"codes": {"own": "mds"}}, "code must be a GradientCode"),
        (plan, {"choices": ["all"]}, "choices\\[0\\] must be a Choice"),
        (plan, {"waiting": ["patience"]}, "waiting must be a WaitingRule, or a"),
        (plan, {"waiting": [repr]}, "waiting must be a WaitingRule, or a function"),
        (plan, {"waiting": stragglers.fastest(4)}, "waiting must be an Iterable"),
        (plan, {"waiting": [WithArray()]}, "waiting must be hashable"),
        (plan, {"replications": 2}, "replications must be an Iterable, .* got 2"),
        (plan, {"delay": OfNumPy()}, "delay must be made of JAX functions"),
        (plan, {"waiting": [NoArrivals()]}, "wait must have arrivals .*NoArrivals"),
        (plan, {"exact": 1}, "exact must be True or False"),
        (plan, {"memory": 1}, "memory must be True or False"),
        (plan, {"delay": MODEL}, "delay must be a DelayModel"),
        (worst_pattern, {"code": np.eye(3)}, "code must be a GradientCode; got"),
        (worst_pattern, {"num_stragglers": 1.0}, "num_stragglers must be a Python int"),
        (worst_pattern, {"decoder": "best"}, "decoder must be a .*; got 'best'"),
        (worst_pattern, {"max_patterns": 1e4}, "max_patterns must be a Python int"),
    ],
)
def test_types(study, options, rule):
    with pytest.raises(TypeError, match=rule):
        study(**options)


@pytest.mark.parametrize("study", [adversarial, diagnose, learn, worst_pattern])
def test_traced_codes(study):
    def of(weights):
        study(jaxwgc.weighted(BINARY, weights))
        return 0

    for transform, shape in ((jax.jit, 4), (jax.vmap, (2, 4))):
        with pytest.raises(TypeError, match="code must be concrete"):
            transform(of)(jnp.ones(shape))


@pytest.mark.parametrize("study", [diagnose, plan])
def test_traced_keys(study):
    with pytest.raises(TypeError, match="key must be concrete"):
        jax.jit(lambda key: study(key=key))(KEY)
