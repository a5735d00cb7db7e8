"""Derivatives of solvers against closed forms and finite differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, srht
from tests.sketching.test_newton_sketch import poisson, root_of_poisson

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


SOLVERS = {"sketch": preconditioned, "sketch and solve": sketch_and_solve}


@functools.partial(jax.jit, static_argnums=0)
def forward_and_backward(function, primals, tangents, weights):
    """The change of what it gives, and the gradient of its weighted sum."""
    _, linear = jax.linearize(function, *primals)
    return linear(*tangents), jax.linear_transpose(linear, *primals)(weights)


def closed_form(primals, tangents):
    """The derivative of (XᵀX + ridge I)⁻¹ Xᵀy."""
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


def along_rank(shape, rank, target, sketch, of_scaled=False):
    """A matrix, a change that keeps its rank, and that of the solution for it.

    The shortest one, or that in the units of columns `of_scaled` to norms next to 1.
    """
    random = np.random.default_rng(1)
    left, left_change = random.standard_normal((2, shape[0], rank))
    right, right_change = random.standard_normal((2, rank, shape[1]))
    # Other units than the least norm is measured in.
    units = np.array([*[1] * (shape[1] - 1), 10])
    right, right_change = right * units, right_change * units

    norms = np.linalg.norm(left @ right, axis=0)
    scale = 2.0 ** -np.round(np.log2(norms)) if of_scaled else 1.0

    def reference(step):
        matrix = (left + step * left_change) @ (right + step * right_change)
        matrix = sketch @ matrix * scale
        return np.linalg.pinv(matrix, rcond=1e-10) @ (sketch @ target) * scale

    step = 3e-7
    expected = (reference(step) - reference(-step)) / (2 * step)
    return left @ right, left_change @ right + left @ right_change, expected


@pytest.mark.parametrize("name", SOLVERS)
def test_both_modes(name):
    """Of the closed form, also where singular values coincide, and of rank two.

    Of several targets by one solver: what it takes then, all share.
    """
    random = np.random.default_rng(0)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    has_ridge = name == "sketch"
    num_targets = (3,) if has_ridge else ()
    target, target_change = random.standard_normal((2, NUM_ROWS, *num_targets))
    weights = random.standard_normal((NUM_COLUMNS, *num_targets))
    sketch = np.eye(NUM_ROWS)
    if name == "sketch and solve":
        sketch = np.asarray(srht(KEY, NUM_ROWS, NUM_ROWS).matrix())
    designs = [
        matrix,
        np.eye(NUM_COLUMNS)[random.integers(0, NUM_COLUMNS, NUM_ROWS)],
        np.linalg.qr(matrix)[0],
        matrix * np.logspace(0, -4, NUM_COLUMNS),
    ]
    cases = []
    for design in designs:
        for ridge in (0.0, 1.0) if has_ridge else (0.0,):
            tangents = change, target_change, float(has_ridge)
            expected = closed_form(
                (sketch @ design, sketch @ target, ridge),
                (sketch @ change, sketch @ target_change, tangents[2]),
            )
            cases.append((design, ridge, tangents, expected, 1e-9))
    low_rank, along, expected = along_rank(matrix.shape, 2, target, sketch)
    cases.append((low_rank, 0.0, (along, 0 * target, 0.0), expected, 1e-7))
    for design, ridge, tangents, expected, tolerance in cases:
        result = forward_and_backward(
            SOLVERS[name], (design, target, ridge), tangents, weights
        )
        check_both_modes(result, expected, tangents, weights, tolerance)


def test_of_a_wide_matrix():
    target, weights = np.random.default_rng(2).standard_normal((2, 9))
    target = target[:4]
    matrix, change, expected = along_rank((4, 9), 4, target, np.eye(4))
    primals, tangents = (matrix, target, 0.0), (change, 0 * target, 0.0)
    factor = functools.partial(preconditioned, method="factor")
    result = forward_and_backward(factor, primals, tangents, weights)
    check_both_modes(result, expected, tangents, weights, 1e-7)


def by_operator(matrix, target):
    operator = sketching.LinearOperator(
        lambda v: matrix @ v, lambda u: u @ matrix, matrix.shape
    )
    return sketching.preconditioned(KEY, operator, target).solution


def by_entries(matrix, target):
    places = np.argwhere(np.ones(matrix.shape))
    entries = sparse.BCOO((matrix.ravel(), places), shape=matrix.shape)
    return sketching.preconditioned(KEY, entries, target, method="columns").solution


@pytest.mark.parametrize("solve", [by_operator, by_entries])
@pytest.mark.parametrize("rank", [1, 4])
def test_without_factors(solve, rank):
    """Of wide and of rank-deficient matrices, whose rank nobody has found."""
    random = np.random.default_rng(2)
    for shape in ((4, 9), (9, 4)):
        target, target_change = random.standard_normal((2, shape[0]))
        weights = random.standard_normal(shape[1])
        matrix, change, expected = along_rank(
            shape, rank, target, np.eye(shape[0]), of_scaled=solve is by_entries
        )
        expected = expected + np.asarray(solve(matrix, target_change))
        primals, tangents = (matrix, target), (change, target_change)
        result = forward_and_backward(solve, primals, tangents, weights)
        check_both_modes(result, expected, tangents, weights, 1e-7)


def second_derivative(solve, matrix, change, target, weights):
    def along(step):
        return solve(matrix + step * change, target) @ weights

    return jax.jvp(jax.grad(along), (0.0,), (1.0,))[1]


@pytest.mark.parametrize(
    "solve",
    [functools.partial(preconditioned, ridge=0.0, method="gram"), by_operator],
    ids=["gram", "operator"],
)
def test_second_derivative_is_right_or_nan(solve):
    random = np.random.default_rng(3)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    target = random.standard_normal(NUM_ROWS)

    def first(step):
        primals = matrix + step * change, target[:, None], 0
        return closed_form(primals, (change, 0, 0))[:, 0]

    expected = (first(1e-5) - first(-1e-5)) / 2e-5
    function = jax.jit(functools.partial(second_derivative, solve))
    for weights in np.eye(NUM_COLUMNS):
        result = function(matrix, change, target, weights)
        np.testing.assert_allclose(result, expected @ weights, rtol=1e-6, atol=1e-8)
    matrix[:, 1], change[:, 1] = matrix[:, 0], change[:, 0]
    assert np.isnan(function(matrix, change, target, np.ones(NUM_COLUMNS)))


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

    def fitted(features):
        params = {"slope": jnp.zeros(2), "constant": 0.0}
        args = features, counts
        result = sketching.newton_sketch(
            KEY, poisson, root_of_poisson, params, 40, args=args, tolerance=1e-20
        )
        solution = result.solution
        return jnp.sum(jnp.exp(features @ solution["slope"] + solution["constant"]))

    total, gradient = jax.jit(jax.value_and_grad(fitted))(features)
    np.testing.assert_allclose(total, counts.sum(), rtol=1e-9)
    np.testing.assert_allclose(gradient, 0 * features, atol=1e-8)


def test_an_ambiguous_rank_is_said():
    """Columns of a large mean beside a constant one, whose slopes are lost."""
    draw = np.random.default_rng(0).normal
    rows = np.stack([np.ones(200), 1e6 + draw(size=200)], 1).astype(np.float32)
    target = (rows[:, 1] - 1e6).astype(np.float32)
    key = jax.random.key(0)
    rank = sketching.preconditioned(key, rows, target).rank
    assert rank.rank == 1 and rank.is_ambiguous
    clear = rows - np.float32([0, 1e6])
    rank = sketching.preconditioned(key, clear, target).rank
    assert rank.rank == 2 and not rank.is_ambiguous
