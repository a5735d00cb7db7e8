"""Moments of effective weights, from which `jaxwgc.plan` takes noise and bias."""

import jax
import numpy as np
import pytest
import scipy.stats

import jaxwgc
from jaxwgc import codes, planning, stragglers
from jaxwgc.planning._judging import moments_of_weights
from jaxwgc.planning._rounds import Clusters

CODE = codes.uncoded(4)
NUM_MEASURED = 30


def clusters_of(shape, *, has_stalls=False, has_state=False):
    """Eight clusters whose times are all one, as `jaxwgc.plan` simulates them."""
    delay = stragglers.bernoulli_slowdown(0.0, 1.0)
    if has_state:
        delay = stragglers.unequal_speeds(delay, np.ones(shape[2]))
    return Clusters(
        delay=delay,
        key=jax.random.key(0),
        num_clusters=shape[0],
        num_rounds=shape[1],
        num_measured=NUM_MEASURED,
        has_stalls=has_stalls,
    )


@pytest.mark.parametrize("has_stalls", [False, True])
def test_stalls_add_the_bias_that_a_short_trace_may_hide(has_stalls):
    """The bias is one that χ² with a degree of freedom per part hides in 5%."""
    shape = (8, 50, CODE.num_workers)
    clusters = clusters_of(shape, has_stalls=has_stalls)
    candidate = planning.Candidate("uncoded", CODE, stragglers.fastest(3))
    # Some weights are negative, so that no part counts as lost.
    weights = np.random.default_rng(0).normal(1.0, 1.0, shape)
    moments = moments_of_weights(candidate, weights, clusters)
    variance = np.var(weights, axis=2).mean()
    size = weights.mean() ** 2
    hidden = scipy.stats.chi2.isf(0.05, df=4) / 4
    expected = variance * hidden / NUM_MEASURED if has_stalls else 0.0
    np.testing.assert_allclose(moments.bias[0], expected / size, rtol=1e-5)
    np.testing.assert_allclose(
        moments.noise[0], (variance - expected) / size, rtol=1e-5
    )


def test_weights_proportional_to_the_target_have_neither_noise_nor_bias():
    """Only their scale varies."""
    target = np.array([1.0, 2.0, 5.0, 3.0])
    shape = (8, 50, CODE.num_workers)
    scale = np.random.default_rng(0).uniform(0.5, 1.5, shape[:2])
    candidate = planning.Candidate(
        "weighted", jaxwgc.weighted(CODE, target), stragglers.fastest(3)
    )
    moments = moments_of_weights(
        candidate, scale[..., None] * target, clusters_of(shape)
    )
    np.testing.assert_allclose(moments.noise[0], 0, atol=1e-12)
    np.testing.assert_allclose(moments.bias[0], 0, atol=1e-12)
    expected = scale.var() / scale.mean() ** 2
    np.testing.assert_allclose(moments.scale_variance[0], expected, rtol=1e-6)


def test_noise_is_relative_to_the_mean_square_of_the_target():
    target = np.array([1.0, 2.0, 5.0, 3.0])
    orthogonal = np.array([5.0, 3.0, -1.0, -2.0])
    shape = (8, 50, CODE.num_workers)
    size = np.random.default_rng(0).normal(0.0, 0.1, (*shape[:2], 1))
    candidate = planning.Candidate(
        "weighted", jaxwgc.weighted(CODE, target), stragglers.fastest(3)
    )
    moments = moments_of_weights(
        candidate, target + size * orthogonal, clusters_of(shape)
    )
    # Both vectors have a squared norm of 39.
    np.testing.assert_allclose(moments.noise[0], np.mean(size**2), rtol=1e-6)
    np.testing.assert_allclose(moments.scale_variance[0], 0, atol=1e-12)


def test_lasting_noise_is_told_from_noise_without_memory():
    """Autoregressive noise of correlation 0.8 has a quarter of the variance."""
    generator = np.random.default_rng(0)
    shape = (8, 4000, CODE.num_workers)
    lasting = generator.normal(size=shape)
    for number in range(1, shape[1]):
        new = np.sqrt(1 - 0.8**2) * lasting[:, number]
        lasting[:, number] = 0.8 * lasting[:, number - 1] + new
    noise = 0.5 * lasting + np.sqrt(0.75) * generator.normal(size=shape)
    candidate = planning.Candidate("uncoded", CODE, stragglers.fastest(3))
    clusters = clusters_of(shape, has_state=True)
    moments = moments_of_weights(candidate, 10 + noise, clusters)
    np.testing.assert_allclose(moments.correlation[0], 0.8, atol=0.1)
    np.testing.assert_allclose(moments.lasting[0], 0.25, atol=0.05)
