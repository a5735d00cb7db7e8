"""The Newton sketch against scikit-learn, SciPy and closed forms."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.linear_model

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, row_sampling
from tests import oracles
from tests.sketching.problems import poisson, root_of_poisson, root_of_squares, squares
from tests.sketching.zoo import KEY

NUM_ROWS = 400
NUM_COLUMNS = 8

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
    options = {"fit_intercept": False, "solver": "newton-cholesky", "max_iter": 1000}
    penalty = 1 / (len(labels) * ridge)
    model = sklearn.linear_model.LogisticRegression(C=penalty, tol=1e-13, **options)
    return model.fit(features, labels).coef_[0]


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, 0, 0, 0))
def solve_each(key, features, labels, ridge, initial):
    options = {"ridge": ridge, "initial": initial}
    return logistic_newton_sketch(key, features, labels, 80, **options)


def test_logistic_regression_matches_scikit_learn(with_x64):
    """Traced; ridges and labels out of range are flagged. Refinements save steps."""
    features, labels = data()
    # From the second start steps of full length overshoot.
    ridges = np.array([1e-3, 1e-2, 1.0, -1e-6, 0.1])
    starts = np.zeros((5, NUM_COLUMNS))
    starts[1] = 30
    batch = np.outer([1, 1, 1, 1, 1.2], labels)
    keys = jax.random.split(KEY, 5)
    actual = jax.device_get(solve_each(keys, features, batch, ridges, starts))
    plain = [jax.tree.map(operator.itemgetter(i), actual) for i in range(5)]
    assert not plain[3].converged and not plain[4].converged
    refined = [
        logistic_newton_sketch(
            KEY, *data(), 80, ridge=ridges[i], initial=starts[i], num_refinements=3
        )
        for i in range(2)
    ]
    assert refined[0].num_iterations <= plain[0].num_iterations - 3
    # By about d / m in a step: of 8 effective dimensions, with sketches of 80 rows.
    excess = plain[0].residual_history - plain[0].residual_history[-1]
    assert 0 < excess[11] < 0.2**7 * excess[4]
    for index, result in [*enumerate(plain[:3]), *enumerate(refined)]:
        ridge = ridges[index]
        expected = logistic_reference(features, labels, ridge)
        np.testing.assert_allclose(result.solution, expected, rtol=1e-6, atol=1e-7)
        assert result.converged
        logits = features @ expected
        minimum = np.mean(np.logaddexp(0, logits) - labels * logits)
        minimum += ridge / 2 * np.sum(expected**2)
        history = result.residual_history
        last = int(result.num_iterations)
        np.testing.assert_allclose(history[-1], minimum, rtol=1e-14)
        assert index == 1 or abs(history[0] - np.log(2)) < 1e-14
        assert history.shape == (51,) and np.all(np.diff(history) <= 1e-14)
        assert np.all(history[last:] == history[last])


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
    expected = oracles.ridge_solution(matrix, target, 5.0)
    np.testing.assert_allclose(result.solution, expected, atol=1e-6)
    assert result.converged


def test_poisson_regression_on_a_pytree_from_far_away():
    """The objective is larger at the start by a factor of at least 1e4."""
    random = np.random.default_rng(2)
    dtype = np.float32
    features = random.standard_normal((NUM_ROWS, NUM_COLUMNS)).astype(dtype)
    counts = random.poisson(np.exp(features[:, 0] / 2 + 1)).astype(dtype)
    start = {"constant": dtype(3), "slope": np.full(NUM_COLUMNS, 3, dtype)}
    result = newton_sketch(
        KEY, poisson, root_of_poisson, start, 80, args=(features, counts)
    )
    # The step of Newton's method in float64, in standard errors.
    design = np.column_stack([np.ones(NUM_ROWS), features.astype(float)])
    params = np.append(result.solution["constant"], result.solution["slope"])
    means = np.exp(design @ params)
    inverse = np.linalg.inv(design.T @ (design * means[:, None]))
    step = inverse @ ((counts - means) @ design)
    assert result.converged and np.all(np.abs(step) < 0.05 * np.diag(inverse) ** 0.5)


@jax.jit
def solve_of_doubled_features(labels, ridge):
    features, _ = data()
    doubled = np.hstack([features, features])
    return logistic_newton_sketch(KEY, doubled, labels, 80, ridge=ridge)


def test_duplicated_features_without_a_ridge(with_x64):
    features, labels = data()
    result = solve_of_doubled_features(labels, 0.0)
    expected = logistic_reference(features, labels, 1e-12)
    assert result.converged
    fitted = np.hstack([features, features]) @ result.solution
    np.testing.assert_allclose(fitted, features @ expected, atol=1e-4)


def test_a_loss_that_is_nan_somewhere_is_stepped_around(with_x64):
    # Newton's full step from 3 leaves the domain, where the loss is NaN.
    result = newton_sketch(
        KEY,
        lambda x: jnp.sum(x - jnp.log(x)),
        lambda x: jnp.diag(1 / x),
        jnp.array([3.0, 0.1]),
        64,
    )
    np.testing.assert_allclose(result.solution, 1.0, atol=1e-6)
    assert result.converged


def test_a_gradient_that_no_sketch_sees_is_reported_as_not_converged(with_x64):
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


def test_separated_labels_are_reported_as_not_converged(with_x64):
    """There is no minimum without a ridge."""
    features, _ = data()
    labels = np.float64(features[:, 0] > 0)
    result = solve_of_doubled_features(labels, 0.0)
    assert not result.converged and result.num_iterations == 50
    assert np.all(np.isfinite(result.solution))
    assert solve_of_doubled_features(labels, 0.1).converged
    few = functools.partial(logistic_newton_sketch, max_iterations=5)
    result = jax.eval_shape(lambda: few(KEY, features, labels > 0, 80))
    assert result.residual_history.shape == (6,)
