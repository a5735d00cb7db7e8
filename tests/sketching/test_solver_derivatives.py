"""Derivatives of solvers against closed forms and finite differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, srht
from tests import oracles
from tests.sketching import zoo
from tests.sketching.problems import poisson, root_of_poisson
from tests.sketching.zoo import KEY, check_both_modes

pytestmark = pytest.mark.usefixtures("with_x64")

NUM_ROWS = 60
NUM_COLUMNS = 5


def preconditioned(matrix, target, ridge, method="sketch"):
    return sketching.preconditioned(
        KEY, matrix, target, 40, gaussian, method=method, ridge=ridge
    ).solution


def sketch_and_solve(matrix, target, ridge):
    del ridge
    # With as many rows as X, srht keeps columns orthonormal.
    return sketching.sketch_and_solve(KEY, matrix, target, NUM_ROWS, srht).solution


SOLVERS = {"sketch": preconditioned, "sketch and solve": sketch_and_solve}


def closed_form(primals, tangents):
    """The derivative of (XᵀX + ridge I)⁻¹ Xᵀy."""
    matrix, target, ridge = primals
    change, target_change, ridge_change = tangents
    hessian = matrix.T @ matrix + ridge * np.eye(matrix.shape[1])
    solution = oracles.ridge_solution(matrix, target, ridge)
    residual = target - matrix @ solution
    moved = matrix.T @ (target_change - change @ solution) + change.T @ residual
    return np.linalg.solve(hessian, moved - ridge_change * solution)


def along_rank(shape, rank, target, target_change, sketch, of_scaled=False):
    """A matrix, a change that keeps its rank, and that of the solution for both.

    The shortest one, or that in the units of columns `of_scaled` to norms next to 1.
    """
    path = zoo.path_of_rank(shape, rank)
    # Other units than the least norm is measured in.
    units = np.array([*[1] * (shape[1] - 1), 10])
    norms = np.linalg.norm(path(0) * units, axis=0)
    scale = 2.0 ** -np.round(np.log2(norms)) if of_scaled else 1.0

    def reference(step):
        inverse = np.linalg.pinv(sketch @ path(step) * units * scale, rcond=1e-10)
        return inverse @ (sketch @ (target + step * target_change)) * scale

    step = 3e-7
    matrix, change = zoo.start_of(path)
    expected = (reference(step) - reference(-step)) / (2 * step)
    return matrix * units, change * units, expected


@pytest.mark.parametrize("name", SOLVERS)
def test_forward_and_reverse_derivatives_match_closed_forms(name):
    """Singular values may coincide, and the rank may be two.

    Several targets share one solver.
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
            primals = sketch @ design, sketch @ target, ridge
            moved = sketch @ change, sketch @ target_change, tangents[2]
            expected = closed_form(primals, moved)
            cases.append((design, ridge, tangents, expected, 1e-9))
    low_rank, along, expected = along_rank(matrix.shape, 2, target, 0 * target, sketch)
    cases.append((low_rank, 0.0, (along, 0 * target, 0.0), expected, 1e-7))
    for design, ridge, tangents, expected, tolerance in cases:
        primals = design, target, ridge
        check_both_modes(SOLVERS[name], primals, tangents, weights, expected, tolerance)


@pytest.mark.weekly
def test_derivative_for_a_wide_matrix():
    target = np.random.default_rng(2).standard_normal(4)
    matrix, change, expected = along_rank((4, 9), 4, target, 0 * target, np.eye(4))
    primals = (matrix, target, 0.0)
    tangents = (change, 0 * target, 0.0)
    factor = functools.partial(preconditioned, method="factor")
    zoo.check_forward(factor, primals, tangents, expected, 1e-7)


def by_operator(matrix, target):
    operator = sketching.LinearOperator(
        lambda v: matrix @ v, lambda u: u @ matrix, matrix.shape
    )
    return sketching.preconditioned(KEY, operator, target).solution


def by_entries(matrix, target):
    matrix = zoo.bcoo_of(matrix)
    return sketching.preconditioned(KEY, matrix, target, method="columns").solution


@pytest.mark.parametrize(
    ("solve", "shape"), [(by_operator, (4, 9)), (by_entries, (9, 4))]
)
@pytest.mark.parametrize("rank", [1, 4])
def test_derivatives_of_solvers_without_factors(solve, shape, rank):
    """Matrices are wide or rank-deficient, and their rank is unknown.

    JAX transposes the products of an operator, and those of entries.
    """
    random = np.random.default_rng(2)
    target, target_change = random.standard_normal((2, shape[0]))
    weights = random.standard_normal(shape[1])
    matrix, change, expected = along_rank(
        shape, rank, target, target_change, np.eye(shape[0]), solve is by_entries
    )
    primals = (matrix, target)
    tangents = (change, target_change)
    check_both_modes(solve, primals, tangents, weights, expected, 1e-7)


def second_by_differences(matrix, change, target):
    def first(step):
        primals = matrix + step * change, target[:, None], 0
        return closed_form(primals, (change, 0, 0))[:, 0]

    return (first(1e-5) - first(-1e-5)) / 2e-5


BY_GRAM = functools.partial(preconditioned, ridge=0.0, method="gram")


def test_second_derivative_is_right_or_nan():
    random = np.random.default_rng(3)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    target = random.standard_normal(NUM_ROWS)

    @jax.jit
    def second(matrix, change):
        def along(step):
            return BY_GRAM(matrix + step * change, target)

        def first(step):
            return jax.jvp(along, (step,), (1.0,))[1]

        return jax.jvp(first, (0.0,), (1.0,))[1]

    expected = second_by_differences(matrix, change, target)
    np.testing.assert_allclose(second(matrix, change), expected, rtol=1e-6, atol=1e-8)
    matrix[:, 1] = matrix[:, 0]
    change[:, 1] = change[:, 0]
    assert np.isnan(second(matrix, change)).all()


@pytest.mark.weekly
@pytest.mark.parametrize("solve", [BY_GRAM, by_operator], ids=["gram", "operator"])
def test_derivative_of_gradients_is_right_or_nan(solve):
    random = np.random.default_rng(3)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    target = random.standard_normal(NUM_ROWS)

    @jax.jit
    def second(matrix, change, weights):
        def along(step):
            return solve(matrix + step * change, target) @ weights

        return jax.jvp(jax.grad(along), (0.0,), (1.0,))[1]

    expected = second_by_differences(matrix, change, target)
    for weights in np.eye(NUM_COLUMNS):
        result = second(matrix, change, weights)
        np.testing.assert_allclose(result, expected @ weights, rtol=1e-6, atol=1e-8)
    matrix[:, 1] = matrix[:, 0]
    change[:, 1] = change[:, 0]
    assert np.isnan(second(matrix, change, np.ones(NUM_COLUMNS)))


def test_derivative_of_constrained_solutions():
    """It is that on the face of the set where the solution lies."""
    random = np.random.default_rng(4)
    matrix, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS))
    target = matrix @ [1, -1, 0.5, 2, -0.3] + 0.1 * random.standard_normal(NUM_ROWS)
    target_change = random.standard_normal(NUM_ROWS)

    def solve(matrix, target):
        projection = optax.projections.projection_non_negative
        return sketching.iterative_hessian_sketch(
            KEY, matrix, target, 50, 24, projection
        ).solution

    is_free = scipy.optimize.nnls(matrix, target)[0] > 0
    assert 0 < is_free.sum() < NUM_COLUMNS
    primals = matrix[:, is_free], target[:, None], 0
    tangents = change[:, is_free], target_change[:, None], 0
    on_face = closed_form(primals, tangents)
    expected = np.zeros(NUM_COLUMNS)
    expected[is_free] = on_face[:, 0]
    weights = np.arange(1.0, NUM_COLUMNS + 1)
    primals = (matrix, target)
    tangents = (change, target_change)
    check_both_modes(solve, primals, tangents, weights, expected, 1e-8)


def test_derivative_of_newton_sketch():
    """Poisson regression, of integers, with a tree of parameters and a ridge."""
    random = np.random.default_rng(5)
    features, change = random.standard_normal((2, NUM_ROWS, NUM_COLUMNS - 1)) / 2
    counts = random.poisson(2.0, NUM_ROWS)

    def solve(features, ridge):
        params = {"slope": jnp.zeros(NUM_COLUMNS - 1), "constant": 0.0}
        options = {"args": (features, counts), "ridge": ridge, "tolerance": 1e-20}
        solution = sketching.newton_sketch(
            KEY, poisson, root_of_poisson, params, 40, **options
        ).solution
        return jnp.append(solution["constant"], solution["slope"])

    design = np.column_stack([np.ones(NUM_ROWS), features])

    def gradient(theta):
        return design.T @ (np.exp(design @ theta) - counts) + 0.1 * theta

    theta = scipy.optimize.root(gradient, np.zeros(NUM_COLUMNS), tol=1e-13).x
    # The implicit function theorem on the gradient, by hand.
    means = np.exp(design @ theta)
    moved = np.pad(change, [(0, 0), (1, 0)])
    hessian = design.T @ (means[:, None] * design) + 0.1 * np.eye(NUM_COLUMNS)
    moved = design.T @ (means * (moved @ theta)) + moved.T @ (means - counts)
    expected = -np.linalg.solve(hessian, moved + theta)
    weights = random.standard_normal(NUM_COLUMNS)
    primals = (features, 0.1)
    tangents = (change, 1.0)
    check_both_modes(solve, primals, tangents, weights, expected, 1e-8)


def test_logistic_regression_is_differentiable():
    def loss(features, labels):
        result = sketching.logistic_newton_sketch(KEY, features, labels, 40)
        return jnp.sum(result.solution)

    features = np.ones((NUM_ROWS, NUM_COLUMNS))
    jax.eval_shape(jax.grad(loss, (0, 1)), features, np.ones(NUM_ROWS))
