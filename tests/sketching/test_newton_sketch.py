"""The Newton sketch against scikit-learn, SciPy and closed forms."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import sklearn.linear_model

from jaxwgc import sketching
from jaxwgc.sketching import (
    count_sketch,
    gaussian,
    rademacher,
    row_sampling,
    sparse_sign,
    srht,
)

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


def flat_poisson(params, features, counts):
    logits = features @ params
    return jnp.sum(jnp.exp(logits) - counts * logits)


def root_of_flat_poisson(params, features, counts):
    return features * jnp.exp(features @ params / 2)[:, None]


@pytest.mark.parametrize("num_refinements", [0, 3])
def test_logistic_regression_is_that_of_scikit_learn(with_x64, num_refinements):
    features, labels = data()
    for ridge in (1e-3, 1.0):
        found = logistic_newton_sketch(
            KEY, features, labels, 80, ridge=ridge, num_refinements=num_refinements
        )
        expected = logistic_reference(features, labels, ridge)
        np.testing.assert_allclose(found.solution, expected, rtol=1e-6, atol=1e-7)
        assert found.converged
        logits = features @ expected
        minimum = np.mean(np.logaddexp(0, logits) - labels * logits)
        minimum += ridge / 2 * np.sum(expected**2)
        np.testing.assert_allclose(found.residual_history[-1], minimum, rtol=1e-14)
        np.testing.assert_allclose(found.residual_history[0], np.log(2), rtol=1e-14)


def test_mnist_in_fewer_than_15_steps(with_x64):
    with np.load(MNIST) as file:
        images = file["images"].reshape(-1, 784) / 255
        labels = file["labels"] == 9
    # 2,000 images, of which each pixel is the mean of four, for the sake of time.
    order = np.random.default_rng(0).permutation(len(images))[:2000]
    images = images[order].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    found = sketching.logistic_newton_sketch(
        KEY, images, labels[order], 784, ridge=1e-3
    )
    expected = logistic_reference(images, labels[order], 1e-3)
    assert found.converged and found.num_iterations < 15
    assert np.abs(found.solution - expected).max() < 1e-6


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


@pytest.mark.parametrize(
    "embedding, ridge",
    [
        (rademacher, 1e-2),
        (srht, 1e-2),
        (count_sketch, 1e-2),
        (sparse_sign, 1e-2),
        (row_sampling, 0.0),
    ],
)
def test_every_embedding(with_x64, embedding, ridge):
    features, labels = data()
    found = logistic_newton_sketch(
        KEY, features, labels, 80, embedding=embedding, ridge=ridge
    )
    expected = logistic_reference(features, labels, max(ridge, 1e-12))
    np.testing.assert_allclose(found.solution, expected, atol=1e-6)
    assert found.converged


@jax.jit
def solve(key, features, labels, ridge):
    """All of it traced."""
    return logistic_newton_sketch(key, features, labels, 80, ridge=ridge)


@pytest.mark.parametrize(
    ("x64", "make_key"), [(False, jax.random.key), (True, jax.random.PRNGKey)]
)
def test_keys_dtypes_and_modes(x64, make_key):
    features, labels = (part.astype(np.float32) for part in data())
    expected = logistic_reference(*data(), 1e-2)
    with jax.enable_x64(x64):
        found = solve(make_key(2), features, labels, np.float32(1e-2))
    assert found.solution.dtype == np.float32 and found.converged
    np.testing.assert_allclose(found.solution, expected, atol=2e-3)


def test_least_squares_is_the_closed_form(with_x64):
    random = np.random.default_rng(1)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    target = random.standard_normal(NUM_ROWS)
    for ridge in (1e-9, 10.0):
        found = newton_sketch(
            KEY,
            squares,
            root_of_squares,
            np.ones(NUM_COLUMNS),
            120,
            args=(matrix, target),
            ridge=ridge,
        )
        normal = matrix.T @ matrix + ridge * np.eye(NUM_COLUMNS)
        expected = np.linalg.solve(normal, matrix.T @ target)
        np.testing.assert_allclose(found.solution, expected, atol=1e-7)
        assert found.converged


def test_effective_dimension_sets_the_sketch_size(with_x64):
    # More columns than sketched rows, and than rows; the ridge is exact.
    random = np.random.default_rng(1)
    matrix = random.standard_normal((60, 80)) * np.logspace(0, -3, 80)
    target = random.standard_normal(60)
    found = newton_sketch(
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
        found.solution, np.linalg.solve(normal, matrix.T @ target), atol=1e-6
    )
    assert found.converged


def test_poisson_regression_on_a_pytree(with_x64):
    random = np.random.default_rng(2)
    features = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    counts = random.poisson(np.exp(features[:, 0] / 2 + 1))
    start = {"constant": 0.0, "slope": np.zeros(NUM_COLUMNS)}
    found = newton_sketch(
        KEY, poisson, root_of_poisson, start, 80, args=(features, counts)
    )

    def flat(vector):
        logits = features @ vector[1:] + vector[0]
        values = np.exp(logits) - counts * logits
        slopes = np.exp(logits) - counts
        return values.sum(), np.append(slopes.sum(), slopes @ features)

    expected = scipy.optimize.minimize(
        flat, np.zeros(1 + NUM_COLUMNS), jac=True, tol=1e-10
    ).x
    np.testing.assert_allclose(found.solution["constant"], expected[0], atol=1e-5)
    np.testing.assert_allclose(found.solution["slope"], expected[1:], atol=1e-5)
    assert found.converged


@pytest.mark.parametrize("kind", ["Poisson", "least squares"])
def test_float32_from_a_start_that_is_far_away(kind):
    """Where the objective is larger at the start by a factor of 1e4 or more."""
    random = np.random.default_rng(2)
    features = random.standard_normal((NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
    features[:, 0] = 1
    if kind == "Poisson":
        target = random.poisson(np.exp(features[:, 1] / 2 + 1))
        start, functions = 3, (flat_poisson, root_of_flat_poisson)
    else:
        target = 1e4 + random.standard_normal(NUM_ROWS)
        start, functions = 0, (squares, root_of_squares)
    found = newton_sketch(
        KEY,
        *functions,
        np.full(NUM_COLUMNS, start, np.float32),
        80,
        args=(features, target.astype(np.float32)),
    )
    # Newton's method in float64.
    expected = np.zeros(NUM_COLUMNS)
    for _ in range(20):
        means = features @ expected
        weights = np.ones(NUM_ROWS)
        if kind == "Poisson":
            means = weights = np.exp(means)
        hessian = features.T @ (features * weights[:, None].astype(float))
        expected += np.linalg.solve(hessian, (target - means) @ features)
    standard_errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    errors = np.abs(found.solution - expected) / standard_errors
    assert found.converged and errors.max() < 0.05


def test_history_falls_and_stays(with_x64):
    features, labels = data()
    found = logistic_newton_sketch(KEY, features, labels, 80, ridge=1e-3)
    history = np.asarray(found.residual_history)
    assert history.shape == (51,)
    last = int(found.num_iterations)
    assert np.all(np.diff(history) <= 1e-14) and np.all(history[last:] == history[last])


def test_line_search_from_far_away(with_x64):
    # Steps of full length overshoot from here.
    features, labels = data()
    start = 30 * np.ones(NUM_COLUMNS)
    found = logistic_newton_sketch(KEY, features, labels, 80, ridge=1e-2, initial=start)
    expected = logistic_reference(features, labels, 1e-2)
    np.testing.assert_allclose(found.solution, expected, atol=1e-6)
    assert found.converged


solve_each = jax.jit(jax.vmap(solve, in_axes=(0, None, 0, 0)))


def test_vmap_over_keys_and_ridges(with_x64):
    features, labels = data()
    ridges = np.array([1e-2, 1e-1, 1.0])
    found = solve_each(
        jax.random.split(KEY, 3), features, np.stack([labels] * 3), ridges
    )
    for solution, ridge in zip(np.asarray(found.solution), ridges):
        expected = logistic_reference(features, labels, ridge)
        np.testing.assert_allclose(solution, expected, atol=1e-6)
    assert np.all(found.converged)


def test_traced_ridges_and_labels_out_of_range_are_flagged(with_x64):
    features, labels = data()
    found = solve_each(
        jax.random.split(KEY, 3),
        features,
        np.stack([labels, labels, 1.2 * labels]),
        np.array([0.1, -1e-6, 0.1]),
    )
    np.testing.assert_array_equal(found.converged, [True, False, False])


def test_says_no_where_there_is_no_minimum(with_x64):
    # A plane separates the labels.
    features, _ = data()
    found = logistic_newton_sketch(
        KEY, features, features[:, 0] > 0, 80, max_iterations=5
    )
    assert not found.converged and found.num_iterations == 5
    assert found.residual_history.shape == (6,)
    assert np.all(np.isfinite(found.solution))


def test_duplicated_features_without_a_ridge(with_x64):
    features, labels = data()
    doubled = np.hstack([features, features])
    found = logistic_newton_sketch(KEY, doubled, labels, 80)
    expected = logistic_reference(features, labels, 1e-12)
    assert found.converged
    np.testing.assert_allclose(doubled @ found.solution, features @ expected, atol=1e-4)


def test_traced_nan_is_flagged():
    features, labels = (part.astype(np.float32) for part in data())
    bad_features, bad_labels = features.copy(), labels.copy()
    bad_features[3, 4] = bad_labels[3] = np.nan
    ridge = np.float32(0.01)
    for case in ((bad_features, labels), (features, bad_labels)):
        found = solve(KEY, *case, ridge)
        assert not found.converged and np.isnan(found.residual_history[-1])
    assert solve(KEY, features, labels, ridge).converged


def test_a_loss_that_is_nan_somewhere_is_stepped_around(with_x64):
    def loss(params):
        return jnp.sum(params - jnp.log(params))

    def root(params):
        return jnp.diag(1 / params)

    # Newton's full step from 3 leaves the domain, where the loss is NaN.
    found = newton_sketch(KEY, loss, root, jnp.array([3.0, 0.1]), 64)
    np.testing.assert_allclose(found.solution, 1.0, atol=1e-6)
    assert found.converged


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sketch_size": 0}, "sketch_size must be at least 1; got 0"),
        ({"sketch_size": 3}, r"sketch_size must be at least .* = 4; got 3"),
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"num_refinements": -1}, "num_refinements must be at least 0"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
        ({"features": np.full((20, 4), np.nan)}, "features must be finite"),
        ({"labels": np.ones(19)}, "labels must have shape"),
        ({"labels": np.full(20, 2.0)}, "labels must be between 0 and 1; got 2"),
        ({"labels": np.full(20, np.nan)}, "labels must be between 0 and 1; got nan"),
        ({"initial": np.ones(3)}, "initial must have shape"),
        ({"initial": np.full(4, np.inf)}, "initial must be finite"),
    ],
)
def test_wrong_values(change, message):
    args = {"features": np.eye(20)[:, :4], "labels": np.ones(20), "sketch_size": 8}
    with pytest.raises(ValueError, match=message):
        logistic_newton_sketch(KEY, **(args | change))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"loss": lambda params: params}, ValueError, "loss must return a scalar"),
        ({"loss": 1.0}, TypeError, "loss must be a function"),
        ({"square_root_hessian": None}, TypeError, "square_root_hessian must be"),
        (
            {"square_root_hessian": lambda params: jnp.ones((9, 3))},
            ValueError,
            "square_root_hessian must return",
        ),
        ({"params": {}}, ValueError, "params must have at least one number"),
        ({"params": jnp.array([1.0, jnp.nan])}, ValueError, "params must be finite"),
        ({"params": jnp.ones(2, complex)}, TypeError, "params must be real"),
    ],
)
def test_wrong_functions_and_parameters(change, error, message):
    args = {
        "loss": lambda params: jnp.sum(params**2),
        "square_root_hessian": lambda params: jnp.ones((9, 2)),
        "params": jnp.ones(2),
        "sketch_size": 4,
    }
    with pytest.raises(error, match=message):
        newton_sketch(KEY, **(args | change))


def test_says_no_where_no_sketch_sees_the_gradient(with_x64):
    """All of the leverage is on one row, which uniform sampling misses."""
    features = np.zeros((NUM_ROWS, NUM_COLUMNS))
    features[0] = 10
    labels = np.tile([0.1, 0.9], NUM_ROWS // 2)
    found = logistic_newton_sketch(KEY, features, labels, 80, embedding=row_sampling)
    assert not found.converged
    # The Hessian is zero in one direction, the gradient is not.
    root = np.array([[2**0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = newton_sketch(
        KEY,
        lambda x: jnp.sum((x - 1) ** 2),
        lambda x: jnp.asarray(root),
        np.zeros(2),
        4,
    )
    np.testing.assert_allclose(found.solution, [1, 0], atol=1e-6)
    assert not found.converged


def test_says_no_where_labels_are_separated(with_x64):
    features, _ = data()
    labels = features[:, 0] > 0
    doubled = np.hstack([features, features])
    assert not logistic_newton_sketch(KEY, doubled, labels, 80).converged
    assert logistic_newton_sketch(KEY, features, labels, 80, ridge=0.1).converged


def test_arguments_are_a_tuple():
    with pytest.raises(TypeError, match="args must be a tuple"):
        newton_sketch(
            KEY, jnp.sum, lambda x: jnp.ones((9, 2)), np.zeros(2), 4, args=np.ones(2)
        )
