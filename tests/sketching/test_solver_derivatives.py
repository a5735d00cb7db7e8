"""Derivatives of solvers against closed forms and finite differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, srht

pytestmark = pytest.mark.usefixtures("with_x64")

NUM_ROWS, NUM_COLUMNS = 60, 5
KEY = jax.random.key(0)


def preconditioned(matrix, target, ridge, method="sketch"):
    return sketching.preconditioned(
        KEY, matrix, target, 40, gaussian, method=method, ridge=ridge
    ).solution


def iterative_hessian_sketch(matrix, target, ridge, projection=None):
    del ridge
    return sketching.iterative_hessian_sketch(
        KEY, matrix, target, 50, 24, projection
    ).solution


def sketch_and_solve(matrix, target, ridge):
    del ridge
    # With as many rows as X, srht keeps columns orthonormal.
    return sketching.sketch_and_solve(KEY, matrix, target, NUM_ROWS, srht).solution


SOLVERS = {
    "gram": functools.partial(preconditioned, method="gram"),
    "sketch": preconditioned,
    "factor": functools.partial(preconditioned, method="factor"),
    "iterative Hessian sketch": iterative_hessian_sketch,
    "sketch and solve": sketch_and_solve,
}


@functools.partial(jax.jit, static_argnums=0)
def forward_and_backward(function, primals, tangents, weights):
    """The change of what it gives, and the gradient of its weighted sum."""
    _, change = jax.jvp(function, primals, tangents)
    _, pull_back = jax.vjp(function, *primals)
    return change, pull_back(weights)


def closed_form(primals, tangents):
    """The derivative of (XᵀX + ridge I)⁻¹ Xᵀy, for y of shape (N, c)."""
    matrix, target, ridge = primals
    change, target_change, ridge_change = tangents
    hessian = matrix.T @ matrix + ridge * np.eye(matrix.shape[1])
    solution = np.linalg.solve(hessian, matrix.T @ target)
    residual = target - matrix @ solution
    moved = matrix.T @ (target_change - change @ solution) + change.T @ residual
    return np.linalg.solve(hessian, moved - ridge_change * solution)


def check_both_modes(result, expected, tangents, weights, tolerance):
    change, gradients = result
    tolerance = tolerance * (1 + np.abs(expected).max())
    np.testing.assert_allclose(change, expected, rtol=0, atol=tolerance)
    pairs = zip(gradients, tangents, strict=True)
    total = sum(np.sum(gradient * tangent) for gradient, tangent in pairs)
    np.testing.assert_allclose(
        total, np.sum(weights * expected), rtol=0, atol=50 * tolerance
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_is_the_closed_form(name):
    """Also where singular values coincide, under vmap, and of three targets."""
    random = np.random.default_rng(0)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    designs = [
        matrix,
        np.eye(NUM_COLUMNS)[random.integers(0, NUM_COLUMNS, NUM_ROWS)],
        np.linalg.qr(matrix)[0],
        matrix * np.logspace(0, -4, NUM_COLUMNS),
    ]
    has_ridge = name in ("gram", "sketch", "factor")
    ridges = [0.0, 1.0] if has_ridge else [0.0]
    cases = [(design, ridge) for design in designs for ridge in ridges]
    matrices, ridges = map(np.array, zip(*cases, strict=True))
    target, target_change = random.standard_normal((2, NUM_ROWS, 3))
    weights = random.standard_normal((NUM_COLUMNS, 3))
    tangents = change, target_change, np.float64(has_ridge)
    result = jax.vmap(
        functools.partial(forward_and_backward, SOLVERS[name]),
        in_axes=((0, None, 0), None, None),
    )((matrices, target, ridges), tangents, weights)
    sketch = np.eye(NUM_ROWS)
    if name == "sketch and solve":
        sketch = np.asarray(srht(KEY, NUM_ROWS, NUM_ROWS).matrix())
    for index, (matrix, ridge) in enumerate(cases):
        expected = closed_form(
            (sketch @ matrix, sketch @ target, ridge),
            (sketch @ change, sketch @ target_change, tangents[2]),
        )
        derivatives = jax.tree.map(lambda leaf: leaf[index], result)  # noqa: B023
        check_both_modes(derivatives, expected, tangents, weights, 1e-9)


@pytest.mark.parametrize(
    ("name", "shape", "rank"),
    [*((name, (NUM_ROWS, NUM_COLUMNS), 2) for name in SOLVERS), ("factor", (4, 9), 4)],
)
def test_along_matrices_of_the_same_rank(name, shape, rank):
    """In other units than the least norm is measured in; and of a wide matrix."""
    random = np.random.default_rng(1)
    left, left_change = random.standard_normal((2, shape[0], rank))
    right, right_change = random.standard_normal((2, rank, shape[1]))
    units = np.array([*[1] * (shape[1] - 1), 10])
    right, right_change = right * units, right_change * units
    target = random.standard_normal(shape[0])
    weights = random.standard_normal(shape[1])
    sketch = np.eye(shape[0])
    if name == "sketch and solve":
        sketch = np.asarray(srht(KEY, NUM_ROWS, NUM_ROWS).matrix())

    def reference(step):
        matrix = (left + step * left_change) @ (right + step * right_change)
        return np.linalg.pinv(sketch @ matrix, rcond=1e-10) @ (sketch @ target)

    step = 1e-5
    expected = (reference(step) - reference(-step)) / (2 * step)
    change = left_change @ right + left @ right_change
    primals, tangents = (left @ right, target, 0.0), (change, 0 * target, 0.0)
    result = forward_and_backward(SOLVERS[name], primals, tangents, weights)
    check_both_modes(result, expected, tangents, weights, 1e-7)


def second_derivative(matrix, change, target):
    def along(step):
        return preconditioned(matrix + step * change, target, 0.0, method="gram")

    return jax.jacfwd(jax.jacrev(along))(0.0)


def test_second_derivative_is_right_or_nan():
    random = np.random.default_rng(3)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    target = random.standard_normal(NUM_ROWS)

    def first(step):
        primals = matrix + step * change, target[:, None], 0
        return closed_form(primals, (change, 0, 0))[:, 0]

    expected = (first(1e-5) - first(-1e-5)) / 2e-5
    function = jax.jit(second_derivative)
    result = function(matrix, change, target)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-8)
    matrix[:, 1], change[:, 1] = matrix[:, 0], change[:, 0]
    assert np.isnan(function(matrix, change, target)).all()


def test_over_a_convex_set():
    """As on the face of the set where the solution lies."""
    random = np.random.default_rng(4)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    target = matrix @ [1, -1, 0.5, 2, -0.3] + 0.1 * random.standard_normal(NUM_ROWS)
    target_change = random.standard_normal(NUM_ROWS)
    solve = functools.partial(
        iterative_hessian_sketch,
        ridge=None,
        projection=optax.projections.projection_non_negative,
    )
    is_free = np.asarray(solve(matrix, target)) > 0
    assert 0 < is_free.sum() < NUM_COLUMNS
    on_face = closed_form(
        (matrix[:, is_free], target[:, None], 0),
        (change[:, is_free], target_change[:, None], 0),
    )
    expected = np.zeros(NUM_COLUMNS)
    expected[is_free] = on_face[:, 0]
    weights = np.arange(1.0, NUM_COLUMNS + 1)
    tangents = change, target_change
    result = forward_and_backward(solve, (matrix, target), tangents, weights)
    check_both_modes(result, expected, tangents, weights, 1e-8)


def test_logistic_regression():
    random = np.random.default_rng(5)
    features, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    labels, labels_change = random.uniform(0.1, 0.9, (2, NUM_ROWS))

    def solve(features, labels, ridge):
        return sketching.logistic_newton_sketch(
            KEY, features, labels, 40, ridge=ridge, tolerance=1e-20
        ).solution

    primals, tangents = (features, labels, 0.1), (change, labels_change, 1.0)
    theta = np.asarray(solve(*primals))
    # The implicit function theorem on the gradient, by hand.
    shares = 1 / (1 + np.exp(-features @ theta))
    curvature = (shares * (1 - shares))[:, None]
    hessian = features.T @ (curvature * features) / NUM_ROWS + 0.1 * np.eye(NUM_COLUMNS)
    moved = change.T @ (shares - labels) + features.T @ (
        curvature[:, 0] * (change @ theta) - labels_change
    )
    expected = -np.linalg.solve(hessian, moved / NUM_ROWS + theta)
    weights = random.standard_normal(NUM_COLUMNS)
    result = forward_and_backward(solve, primals, tangents, weights)
    check_both_modes(result, expected, tangents, weights, 1e-8)


def test_a_loss_of_integers_and_a_tree_of_parameters():
    """Poisson regression: the total of the fitted counts is that of the counts."""
    random = np.random.default_rng(6)
    features = random.standard_normal((NUM_ROWS, 2))
    counts = random.poisson(2.0, NUM_ROWS)

    def logits(params, features):
        return features @ params["slope"] + params["intercept"]

    def loss(params, features, counts):
        values = logits(params, features)
        return jnp.sum(jnp.exp(values) - counts * values)

    def root(params, features, counts):
        size = jnp.exp(logits(params, features) / 2)
        return {"slope": features * size[:, None], "intercept": size}

    def fitted(features):
        params = {"slope": jnp.zeros(2), "intercept": 0.0}
        args = features, counts
        result = sketching.newton_sketch(
            KEY, loss, root, params, 40, args=args, tolerance=1e-20
        )
        return jnp.sum(jnp.exp(logits(result.solution, features)))

    total, gradient = jax.jit(jax.value_and_grad(fitted))(features)
    np.testing.assert_allclose(total, counts.sum(), rtol=1e-9)
    np.testing.assert_allclose(gradient, 0 * features, atol=1e-8)


@pytest.mark.parametrize("method", ["gram", "factor"])
def test_an_ambiguous_rank_is_said(method):
    """Columns of a large mean beside a constant one, whose slopes are lost."""
    draw = np.random.default_rng(0).normal
    rows = np.stack([np.ones(200), 1e6 + draw(size=200)], 1).astype(np.float32)
    target = (rows[:, 1] - 1e6).astype(np.float32)
    key = jax.random.key(0)
    rank = sketching.preconditioned(key, rows, target, method=method).rank
    assert rank.rank == 1 and rank.is_ambiguous
    clear = rows - np.float32([0, 1e6])
    rank = sketching.preconditioned(key, clear, target, method=method).rank
    assert rank.rank == 2 and not rank.is_ambiguous
