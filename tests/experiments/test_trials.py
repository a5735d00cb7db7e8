"""Monte Carlo at ten thousand workers: clusters are one code, and steps plain ones."""

import jax
import numpy as np

import jaxwgc
from experiments.benchmark import trials
from jaxwgc import codes
from tests.conftest import random_patterns


def test_clusters_are_the_code_of_all_workers():
    """Here of two clusters, whose matrix is small enough to be formed."""
    own = trials.cluster_code(jax.random.key(0), trials.Setting(n=200, k=400))
    assert own.num_workers == trials.CLUSTER
    assert own.num_parts == 200
    received = random_patterns(200, 30, 4)
    each = jaxwgc.effective_weights(own, received.reshape(4, 2, 100)).reshape(4, 400)
    whole = jaxwgc.effective_weights(codes.clustered(own, 2), received)
    np.testing.assert_allclose(each, whole, atol=1e-5)


def test_without_stragglers_trials_are_plain_descent(monkeypatch):
    monkeypatch.setattr(trials, "PROBABILITY", 0.0)
    setting = trials.QUICK
    found = trials.run(setting, seed=0)
    assert found["peak"] > 1e7
    # The same data, by NumPy.
    keys = jax.random.split(jax.random.key(0), 4)
    features = np.asarray(jax.random.normal(keys[1], (setting.k, setting.p)), float)
    noise = np.asarray(jax.random.normal(keys[2], (setting.k,)), float)
    targets = features.sum(axis=1) + noise
    solution = np.linalg.lstsq(features, targets, rcond=None)[0]
    params = np.zeros(setting.p)
    for _ in range(setting.steps):
        params -= 0.5 / setting.k * (features @ params - targets) @ features
    error = np.sum((params - solution) ** 2) / np.sum(solution**2)
    np.testing.assert_allclose(found["error"].mean, error, rtol=1e-3)
    np.testing.assert_allclose(found["error"].standard_error, 0, atol=1e-6)
