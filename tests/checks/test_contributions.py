"""A contribution is compared with the sum on one process, and mistakes are named."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers

KEY = jax.random.key(7)
CODE = codes.cyclic_mds(4, num_stragglers=2)
PARAMS = {"w": jnp.array([0.5, -1.0])}
ROWS = np.random.default_rng(0).normal(size=(4, 20, 2)).astype(np.float32)
PARTS = {"rows": ROWS, "index": np.arange(4, dtype=np.int32)}
RANDOM = np.random.default_rng(0)


def mean_of_rows(params, part):
    return {"w": params["w"] - part["rows"].mean(0)}


def with_key_and_aux(params, part, key):
    drawn = jax.random.choice(key, part["rows"], (5,))
    return {"w": params["w"] - drawn.mean(0)}, drawn


def random_of_its_own(params, part):
    return {"w": part["rows"].sum(0) * RANDOM.normal(size=2).astype(np.float32)}


def infinite(params, part):
    return {"w": jnp.where(part["index"] == 1, jnp.inf, part["rows"].sum(0))}


def zero(params, part):
    return {"w": 0 * params["w"]}


def check(contribution=mean_of_rows, **options):
    arguments = {"code": CODE, "params": PARAMS, "parts": PARTS}
    return jaxwgc.check_step(contribution=contribution, **arguments | options)


@pytest.mark.parametrize(
    ("contribution", "options"),
    [
        (mean_of_rows, {}),
        (mean_of_rows, {"code": jaxwgc.weighted(CODE, np.arange(4.0))}),
        (with_key_and_aux, {"key": KEY, "has_aux": True}),
        (
            mean_of_rows,
            {
                "parts": None,
                "batches": lambda step, part: {"rows": ROWS[part], "index": part},
            },
        ),
    ],
)
def test_contributions_without_a_problem(contribution, options, x64):
    report = check(contribution, **options)
    assert report.ok
    assert report.gradient_error < 1e-4
    np.testing.assert_allclose(report.gradient_ratio, 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("contribution", "problem"),
    [
        (random_of_its_own, "of part 0 differs if .* from the argument key"),
        # The trace of the user's own `jit` is in its cache.
        (jax.jit(random_of_its_own), "of part 0 differs if .* from the argument key"),
        (infinite, "the contribution of part 1 is NaN or infinite"),
        (zero, "the contribution of every part is zero"),
    ],
)
def test_problems_of_contributions(contribution, problem):
    [found] = check(contribution).problems
    assert re.search(problem, found)


def test_a_term_of_zero_may_have_aux_that_counts():
    assert check(lambda *arguments: (zero(*arguments), 1.0), has_aux=True).ok


def test_clipping_goes_behind_the_aggregator():
    model = stragglers.uniform(num_stragglers=2)
    aggregate = jaxwgc.coded_aggregate(CODE, model, jax.random.key(0))
    clip = optax.clip(0.1)
    [found] = check(optimizer=optax.chain(clip, aggregate)).problems
    assert found.startswith("a transformation before the aggregator")
    assert check(optimizer=optax.chain(aggregate, clip)).ok


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"data": ROWS}, ValueError, "contribution= is compared with its sum"),
        ({"loss": len}, ValueError, "loss or contribution= must be given; got both"),
        ({"contribution": None}, ValueError, "loss or contribution= must be given"),
        ({"contribution": 3}, TypeError, "contribution must be a function; got 3"),
        ({"parts": None}, ValueError, "contribution= needs parts or batches="),
        ({"key": KEY}, ValueError, "key= is used only by batch="),
        ({"params": None}, ValueError, "params must have at least one array"),
        ({"code": None}, TypeError, "code must be a GradientCode; got None"),
    ],
)
def test_bad_arguments(others, error, message):
    with pytest.raises(error, match=message):
        check(**others)
