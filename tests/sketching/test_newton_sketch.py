"""The Newton sketch against scikit-learn, SciPy and closed forms."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.linear_model

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, row_sampling

MNIST = pathlib.Path(__file__).parents[2] / "experiments" / "data" / "mnist_4_9.npz"
NUM_ROWS, NUM_COLUMNS = 400, 8
KEY = jax.random.key(0)

# Gaussian sketches compile faster than the default.
newton_sketch = functools.partial(sketching.newton_sketch, embedding=gaussian)
logistic_newton_sketch = functools.partial(
    sketching.logistic_newton_sketch, embedding=gaussian
)


@functools.cache
def data():
    random = np.random.default_rng(0)
    features = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    logits = features @ random.standard_normal(NUM_COLUMNS)
    return features, (logits + random.logistic(size=NUM_ROWS) > 0).astype(float)


def logistic_reference(features, labels, ridge):
    model = sklearn.linear_model.LogisticRegression(
        C=1 / (len(labels) * ridge),
        fit_intercept=False,
        solver="newton-cholesky",
        tol=1e-13,
        max_iter=1000,
    )
    return model.fit(features, labels).coef_[0]


def squares(params, matrix, target):
    return jnp.sum((matrix @ params - target) ** 2) / 2


def root_of_squares(params, matrix, target):
    return matrix


def poisson(params, features, counts):
    logits = features @ params["slope"] + params["constant"]
    return jnp.sum(jnp.exp(logits) - counts * logits)


def root_of_poisson(params, features, counts):
    root = jnp.exp((features @ params["slope"] + params["constant"]) / 2)
    return {"constant": root, "slope": root[:, None] * features}


@pytest.mark.parametrize("num_refinements", [0, 3])
def test_logistic_regression_is_that_of_scikit_learn(with_x64, num_refinements):
    features, labels = data()
    # From the second start steps of full length overshoot.
    for ridge, start in ((1e-3, 0), (1e-2, 30)):
        result = logistic_newton_sketch(
            KEY,
            features,
            labels,
            80,
            ridge=ridge,
            initial=np.full(NUM_COLUMNS, float(start)),
            num_refinements=num_refinements,
        )
        expected = logistic_reference(features, labels, ridge)
        np.testing.assert_allclose(result.solution, expected, rtol=1e-6, atol=1e-7)
        assert result.converged
        logits = features @ expected
        minimum = np.mean(np.logaddexp(0, logits) - labels * logits)
        minimum += ridge / 2 * np.sum(expected**2)
        history, last = result.residual_history, int(result.num_iterations)
        np.testing.assert_allclose(history[-1], minimum, rtol=1e-14)
        assert start or abs(history[0] - np.log(2)) < 1e-14
        assert history.shape == (51,) and np.all(np.diff(history) <= 1e-14)
        assert np.all(history[last:] == history[last])


def test_mnist_at_the_rate_of_the_sketch(with_x64):
    """The error falls by √(d / m) in each step but four, d the effective dimension."""
    with np.load(MNIST) as file:
        images = file["images"].reshape(-1, 784) / 255
        labels = file["labels"] == 9
    # 2,000 images, of which each pixel is the mean of four, for the sake of time.
    order = np.random.default_rng(0).permutation(len(images))[:2000]
    images = images[order].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    result = sketching.logistic_newton_sketch(
        KEY, images, labels[order], 784, ridge=1e-3
    )
    expected = logistic_reference(images, labels[order], 1e-3)
    assert result.converged
    assert np.abs(result.solution - expected).max() < 1e-6
    logits = images @ expected
    chance = scipy.special.expit(logits)
    hessian = (images.T * chance * (1 - chance)) @ images / 2000
    dimension = np.trace(np.linalg.solve(hessian + 1e-3 * np.eye(196), hessian))
    least = np.mean(np.logaddexp(0, logits) - labels[order] * logits)
    excess = result.residual_history - least - 1e-3 / 2 * np.sum(expected**2)
    assert excess[10] < (1.1 * dimension / 784) ** 6 * excess[4]
    steps = np.log(4 * np.finfo(float).eps) / np.log(dimension / 784)
    assert result.num_iterations < 4 + steps


def test_refinements_save_steps(with_x64):
    features, labels = data()
    plain, refined = (
        logistic_newton_sketch(
            KEY, features, labels, 80, ridge=1e-3, num_refinements=number
        )
        for number in (0, 3)
    )
    assert plain.converged and refined.converged
    assert refined.num_iterations <= plain.num_iterations - 3


@jax.jit
def solve(key, features, labels, ridge):
    """All of it traced."""
    return logistic_newton_sketch(key, features, labels, 80, ridge=ridge)


def test_effective_dimension_sets_the_sketch_size(with_x64):
    # More columns than sketched rows, and than rows; the ridge is exact.
    random = np.random.default_rng(1)
    matrix = random.standard_normal((60, 80)) * np.logspace(0, -3, 80)
    target = random.standard_normal(60)
    result = newton_sketch(
        KEY,
        squares,
        root_of_squares,
        np.zeros(80),
        50,
        args=(matrix, target),
        ridge=5.0,
    )
    normal = matrix.T @ matrix + 5.0 * np.eye(80)
    np.testing.assert_allclose(
        result.solution, np.linalg.solve(normal, matrix.T @ target), atol=1e-6
    )
    assert result.converged


def test_poisson_regression_on_a_pytree_from_far_away():
    """Where the objective is larger at the start by a factor of 1e4 or more."""
    random = np.random.default_rng(2)
    dtype = np.float32
    features = random.standard_normal((NUM_ROWS, NUM_COLUMNS)).astype(dtype)
    counts = random.poisson(np.exp(features[:, 0] / 2 + 1)).astype(dtype)
    start = {"constant": dtype(3), "slope": np.full(NUM_COLUMNS, 3, dtype)}
    result = newton_sketch(
        KEY, poisson, root_of_poisson, start, 80, args=(features, counts)
    )
    # Newton's method in float64.
    design = np.column_stack([np.ones(NUM_ROWS), features.astype(float)])
    expected = np.zeros(1 + NUM_COLUMNS)
    for _ in range(20):
        means = np.exp(design @ expected)
        hessian = design.T @ (design * means[:, None])
        expected += np.linalg.solve(hessian, (counts - means) @ design)
    standard_errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    params = np.append(result.solution["constant"], result.solution["slope"])
    errors = np.abs(params - expected) / standard_errors
    assert result.converged and errors.max() < 0.05


solve_each = jax.jit(jax.vmap(solve, in_axes=(0, None, 0, 0)))


def test_duplicated_features_without_a_ridge(with_x64):
    features, labels = data()
    doubled = np.hstack([features, features])
    result = logistic_newton_sketch(KEY, doubled, labels, 80)
    expected = logistic_reference(features, labels, 1e-12)
    assert result.converged
    np.testing.assert_allclose(
        doubled @ result.solution, features @ expected, atol=1e-4
    )


def test_a_loss_that_is_nan_somewhere_is_stepped_around(with_x64):
    def loss(params):
        return jnp.sum(params - jnp.log(params))

    def root(params):
        return jnp.diag(1 / params)

    # Newton's full step from 3 leaves the domain, where the loss is NaN.
    result = newton_sketch(KEY, loss, root, jnp.array([3.0, 0.1]), 64)
    np.testing.assert_allclose(result.solution, 1.0, atol=1e-6)
    assert result.converged


def test_says_no_where_no_sketch_sees_the_gradient(with_x64):
    """All of the leverage is on one row, which uniform sampling misses."""
    features = np.zeros((NUM_ROWS, NUM_COLUMNS))
    features[0] = 10
    labels = np.tile([0.1, 0.9], NUM_ROWS // 2)
    result = logistic_newton_sketch(KEY, features, labels, 80, embedding=row_sampling)
    assert not result.converged
    # The Hessian is zero in one direction, the gradient is not.
    root = np.array([[2**0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    result = newton_sketch(
        KEY,
        lambda x: jnp.sum((x - 1) ** 2),
        lambda x: jnp.asarray(root),
        np.zeros(2),
        4,
    )
    np.testing.assert_allclose(result.solution, [1, 0], atol=1e-6)
    assert not result.converged


def test_vmap_over_keys_labels_and_ridges(with_x64):
    """Ridges and labels out of range are flagged, where they are traced."""
    features, labels = data()
    ridges = np.array([1e-2, 1.0, -1e-6, 0.1])
    batch = np.stack([labels, labels, labels, 1.2 * labels])
    results = solve_each(jax.random.split(KEY, 4), features, batch, ridges)
    for solution, ridge in zip(np.asarray(results.solution)[:2], ridges):
        expected = logistic_reference(features, labels, ridge)
        np.testing.assert_allclose(solution, expected, atol=1e-6)
    np.testing.assert_array_equal(results.converged, [True, True, False, False])


def test_says_no_where_labels_are_separated(with_x64):
    """There is no minimum without a ridge."""
    features, _ = data()
    labels = features[:, 0] > 0
    doubled = np.hstack([features, features])
    result = logistic_newton_sketch(KEY, doubled, labels, 80)
    assert not result.converged and result.num_iterations == 50
    assert np.all(np.isfinite(result.solution))
    few = functools.partial(logistic_newton_sketch, max_iterations=5)
    result = jax.eval_shape(lambda: few(KEY, doubled, labels, 80))
    assert result.residual_history.shape == (6,)
    assert logistic_newton_sketch(KEY, features, labels, 80, ridge=0.1).converged
