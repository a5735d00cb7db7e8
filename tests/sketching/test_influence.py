"""Regression diagnostics against statsmodels, deleted rows and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api

from jaxwgc import sketching
from jaxwgc.sketching import Blocks, influence
from tests import oracles
from tests.conftest import weekly

RANDOM = np.random.default_rng(0)
NUM_ROWS = 60
NUM_COLUMNS = 5
MATRIX = RANDOM.standard_normal((NUM_ROWS, NUM_COLUMNS)) ** 3
MATRIX[:, 0] = 1
TARGETS = MATRIX @ RANDOM.standard_normal((NUM_COLUMNS, 2))
TARGETS += RANDOM.standard_normal((NUM_ROWS, 2)) * (1 + MATRIX[:, 1:2] ** 2)
WEIGHTS = RANDOM.random(NUM_ROWS) + 0.1
ONES = np.ones(NUM_ROWS)
WEIGHTED = pytest.mark.parametrize("weights", [ONES, WEIGHTS], ids=["equal", "weights"])

# One program for each combination of arguments. Most tests use one of these:
# `fit_of` of a matrix and two targets, `traced` with a target, weights and a ridge.
program = jax.jit(influence)


def traced(*arguments, **options):
    return jax.device_get(program(*arguments, **options))


@functools.cache
def fit_program(dtype):
    return program.lower(MATRIX.astype(dtype), TARGETS.astype(dtype)).compile()


def fit_of(matrix, targets):
    """Diagnostics of two regressions."""
    return jax.device_get(fit_program(matrix.dtype)(matrix, targets))


def check_close(result, expected, tolerance=1e-10):
    """Checks each array of a pytree, relative to its largest entry."""
    for leaf, reference in zip(
        jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
    ):
        assert np.shape(leaf) == np.shape(reference)
        atol = tolerance * np.max(np.abs(reference))
        np.testing.assert_allclose(leaf, reference, rtol=0, atol=atol)


def weighted_rows(weights, *arrays):
    """Rows times the roots of their weights."""
    roots = np.sqrt(ONES if weights is None else weights)
    return [(roots * array.T).T for array in arrays]


def sandwich(estimator, variances):
    """Standard errors of the estimates that a matrix (p, N) makes."""
    return np.sqrt(np.sum(estimator**2 * variances, axis=1))


def of_column(fits, column):
    """The fit to one of two targets."""

    def part(array):
        return array[..., column] if array.shape[-1:] == (2,) else array

    return jax.tree.map(part, fits)


def check_statsmodels(ours, matrix, target, weights=None):
    """Compares the diagnostics of one target, apart from the rank.

    The class of statsmodels is for equal weights, so that it gets rows times their
    roots. `matrix` has full rank: coefficients and their errors are compared if ours
    has no more columns.
    """
    weighted, weighted_target = weighted_rows(weights, matrix, target)
    result = statsmodels.api.OLS(weighted_target, weighted).fit()
    peer = result.get_influence()
    in_units_of_target = weighted_rows(
        weights, ours.residuals, ours.leave_one_out_residuals
    )
    check_close(in_units_of_target, [result.resid, peer.resid_press])
    pairs = [
        (result.scale, ours.residual_variance),
        (result.df_resid, ours.degrees_of_freedom),
        (peer.hat_matrix_diag, ours.leverage),
        (peer.resid_studentized_internal, ours.standardized_residuals),
        (peer.resid_studentized_external, ours.studentized_residuals),
        (peer.cooks_distance[0], ours.cooks_distance),
        (peer.dffits[0], ours.dffits),
    ]
    if len(ours.coefficients) == matrix.shape[1]:
        pairs += [
            (result.params, ours.coefficients),
            (result.bse, ours.standard_errors.classical),
            (result.HC0_se, ours.standard_errors.hc0),
            (result.HC1_se, ours.standard_errors.hc1),
            (result.HC2_se, ours.standard_errors.hc2),
            (result.HC3_se, ours.standard_errors.hc3),
        ]
    for expected, quantity in pairs:
        check_close(quantity, expected)
    assert ours.rank == (matrix.shape[1], False)
    assert np.all(ours.converged)


def test_statsmodels_gives_the_same(with_x64):
    weights = traced(MATRIX, TARGETS[:, 0], WEIGHTS, ridge=0.0)
    check_statsmodels(weights, MATRIX, TARGETS[:, 0], WEIGHTS)
    equal = fit_of(MATRIX, TARGETS)
    for column, target in enumerate(TARGETS.T):
        check_statsmodels(of_column(equal, column), MATRIX, target)


@pytest.mark.parametrize("ridge", [0.0, 3.0])
@WEIGHTED
def test_rows_are_deleted_one_by_one(weights, ridge, with_x64):
    target = TARGETS[:, 0]
    fit = traced(MATRIX, target, weights, ridge=ridge)
    matrix, weighted_target = weighted_rows(weights, MATRIX, target)
    whole = oracles.ridge_solution(matrix, weighted_target, ridge)
    moves = []
    errors = []
    variances = []
    for row in range(NUM_ROWS):
        others = np.delete(matrix, row, axis=0)
        other_target = np.delete(weighted_target, row)
        solution = oracles.ridge_solution(others, other_target, ridge)
        errors.append(target[row] - MATRIX[row] @ solution)
        moves.append(matrix @ (whole - solution))
        squared = np.sum((other_target - others @ solution) ** 2)
        variances.append(squared / (NUM_ROWS - 1 - NUM_COLUMNS))
    check_close(fit.leave_one_out_residuals, np.array(errors))
    if ridge == 0:
        changes = np.diagonal(moves)
        distances = np.sum(np.square(moves), axis=1) / fit.residual_variance
        check_close(fit.dffits, changes / np.sqrt(np.array(variances) * fit.leverage))
        check_close(fit.cooks_distance, distances / NUM_COLUMNS)


@WEIGHTED
def test_a_ridge_estimator_has_its_own_errors(weights, with_x64):
    ridge = 3.0
    fit = traced(MATRIX, TARGETS[:, 1], weights, ridge=ridge)
    matrix, target = weighted_rows(weights, MATRIX, TARGETS[:, 1])
    estimator = oracles.ridge_solution(matrix, np.eye(NUM_ROWS), ridge)
    hat = matrix @ estimator
    residuals = target - hat @ target
    freedom = NUM_ROWS - np.trace(hat)
    variance = residuals @ residuals / freedom
    rest = 1 - np.diag(hat)
    check_close(fit.coefficients, estimator @ target)
    check_close(fit.leverage, np.diag(hat))
    check_close(fit.degrees_of_freedom, freedom)
    check_close(fit.residual_variance, variance)
    expected = type(fit.standard_errors)(
        classical=sandwich(estimator, variance),
        hc0=sandwich(estimator, residuals**2),
        hc1=sandwich(estimator, residuals**2 * NUM_ROWS / freedom),
        hc2=sandwich(estimator, residuals**2 / rest),
        hc3=sandwich(estimator, (residuals / rest) ** 2),
    )
    check_close(fit.standard_errors, expected)
    standardized = residuals / np.sqrt(variance * rest)
    check_close(fit.standardized_residuals, standardized)
    distances = standardized**2 * np.diag(hat) / rest / np.trace(hat)
    check_close(fit.cooks_distance, distances)


def test_a_deficient_matrix_has_the_minimum_norm_fit(with_x64):
    """Its parameters are as many as its rank, in columns of any units."""
    full = MATRIX[:, :3]
    matrix = np.concatenate([full, 30 * MATRIX[:, 1:2], 0 * ONES[:, None]], axis=1)
    fits = fit_of(matrix, TARGETS)
    inverse = np.linalg.pinv(matrix, rcond=1e-12)
    for column, target in enumerate(TARGETS.T):
        fit = of_column(fits, column)
        check_statsmodels(fit, full, target)
        check_close(fit.coefficients, inverse @ target)
        expected = sandwich(inverse, np.square(fit.leave_one_out_residuals))
        check_close(fit.standard_errors.hc3, expected)
        assert fit.standard_errors.hc3[-1] < 1e-14


@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_wide_matrices(ridge, with_x64):
    random = np.random.default_rng(3)
    matrix = random.standard_normal((10, 25))
    target = random.standard_normal(10)
    fit = traced(matrix, target, ridge=ridge)
    estimator = matrix.T @ np.linalg.inv(matrix @ matrix.T + ridge * np.eye(10))
    check_close(fit.coefficients, estimator @ target)
    assert fit.converged
    if ridge:
        check_close(fit.leverage, np.diag(matrix @ estimator))
        rest = 1 - np.diag(matrix @ estimator)
        residuals = target - matrix @ estimator @ target
        check_close(fit.degrees_of_freedom, np.sum(rest))
        check_close(fit.leave_one_out_residuals, residuals / rest)
        check_close(
            fit.standard_errors.hc3, sandwich(estimator, (residuals / rest) ** 2)
        )
    else:
        check_close(fit.leverage, np.ones(10))
        assert fit.degrees_of_freedom == 0
        assert np.isnan(fit.residual_variance)
        assert np.isnan(fit.leave_one_out_residuals).all()
        # Residuals are zero up to rounding, and so would be the robust errors.
        assert np.isnan(np.stack(fit.standard_errors)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_alone_in_its_direction(dtype):
    """The deletion of a row of leverage 1 lowers the rank."""
    matrix = MATRIX.astype(dtype)
    matrix[:, -1] = 0
    matrix[7, -1] = 3
    is_alone = np.arange(NUM_ROWS) == 7
    with jax.enable_x64(dtype == np.float64):
        fits = fit_of(matrix, TARGETS.astype(dtype))
    tolerance = 100 * np.finfo(dtype).eps
    for column, target in enumerate(TARGETS.T):
        fit = of_column(fits, column)
        others = statsmodels.api.OLS(target[~is_alone], MATRIX[~is_alone, :-1]).fit()
        peer = others.get_influence()
        quantities = {
            "leave_one_out_residuals": peer.resid_press,
            "standardized_residuals": peer.resid_studentized_internal,
            "studentized_residuals": peer.resid_studentized_external,
            # Its number of parameters is 4, ours 5.
            "cooks_distance": peer.cooks_distance[0] * 4 / 5,
            "dffits": peer.dffits[0],
        }
        for name, expected in quantities.items():
            result = getattr(fit, name)
            np.testing.assert_array_equal(np.isnan(result), is_alone)
            check_close(result[~is_alone], expected, tolerance)
        errors = fit.standard_errors
        assert np.isnan(errors.hc2).all() and np.isnan(errors.hc3).all()
        check_close(errors.hc0[:-1], others.HC0_se, tolerance)
        assert fit.degrees_of_freedom == others.df_resid


def test_rows_of_weight_zero_are_not_in_the_fit(with_x64):
    target = TARGETS[:, 0]
    weights = np.where(np.arange(NUM_ROWS) < 20, 0, WEIGHTS)
    fit = traced(MATRIX, target, weights, ridge=0.0)
    in_fit = [part[20:] if np.shape(part)[:1] == (NUM_ROWS,) else part for part in fit]
    fit_to_rest = type(fit)(*in_fit)
    check_statsmodels(fit_to_rest, MATRIX[20:], target[20:], weights[20:])
    predicted = target[:20] - MATRIX[:20] @ fit.coefficients
    check_close(fit.residuals[:20], predicted)
    check_close(fit.leave_one_out_residuals[:20], predicted)
    assert not np.any(fit.leverage[:20]) and not np.any(fit.dffits[:20])


def with_leverage(leverage, rcond=1e-12):
    return traced(MATRIX, TARGETS, WEIGHTS, leverage=leverage, rcond=rcond)


def test_scores_computed_before(with_x64):
    rows = np.sqrt(WEIGHTS)[:, None] * MATRIX
    exact = with_leverage(oracles.leverage_scores(rows))
    half = with_leverage(np.full(NUM_ROWS, 0.5))
    check_close(half.leverage, np.full(NUM_ROWS, 0.5))
    check_close(half.leave_one_out_residuals, 2 * exact.residuals)
    check_close(half.standard_errors.hc3, 2 * exact.standard_errors.hc0)
    check_close(half.standard_errors[:3], exact.standard_errors[:3])
    for column, target in enumerate(TARGETS.T):
        check_statsmodels(of_column(exact, column), MATRIX, target, WEIGHTS)
        for name in ("coefficients", "residuals", "residual_variance"):
            check_close(getattr(half, name), getattr(exact, name))
    check_close(half.degrees_of_freedom, exact.degrees_of_freedom)


def test_few_degrees_of_freedom(with_x64):
    weights = np.float64(np.arange(NUM_ROWS) < NUM_COLUMNS + 1)
    fit = traced(MATRIX, TARGETS[:, 0], weights, ridge=0.0)
    assert fit.degrees_of_freedom == 1
    standardized = fit.standardized_residuals[: NUM_COLUMNS + 1]
    np.testing.assert_allclose(np.abs(standardized), 1, rtol=1e-10)
    assert np.isnan(fit.studentized_residuals).all() and np.isnan(fit.dffits).all()
    # Without any, residuals are zero up to rounding, and so would be the robust errors.
    for count in (NUM_COLUMNS, 0):
        weights[count:] = 0
        fit = traced(MATRIX, TARGETS[:, 0], weights, ridge=0.0)
        assert np.isnan(np.stack(fit.standard_errors)).all()


def test_float32_at_many_rows():
    """Columns of large mean, with which products of long sums lose digits."""
    random = np.random.default_rng(1)
    matrix = random.standard_normal((100_000, 50), np.float32) + np.float32(5)
    matrix[:, 0] = 1
    target = matrix.sum(axis=1) + random.standard_normal(100_000, np.float32)
    fit = influence(matrix, target)
    wide = matrix.astype(float)
    basis, triangle = np.linalg.qr(wide)
    residuals = target - basis @ (basis.T @ target.astype(float))
    rest = 1 - np.sum(basis**2, axis=1)
    left_out = residuals / rest
    estimator = np.linalg.solve(triangle, basis.T)
    np.testing.assert_allclose(fit.leave_one_out_residuals, left_out, atol=5e-4)
    check_close(fit.leverage, 1 - rest, 5e-5)
    check_close(fit.standard_errors.hc3, sandwich(estimator, left_out**2), 1e-6)
    variance = residuals @ residuals / (100_000 - 50)
    check_close(fit.residual_variance, variance, 2e-6)


def test_units_of_float32():
    """Squares of columns, targets or standard errors would overflow."""
    units = 10.0 ** np.array([0, -25, 25, 10, -10])
    fit = fit_of(MATRIX.astype(np.float32), TARGETS.astype(np.float32))
    matrix = (MATRIX * units).astype(np.float32)
    targets = (1e12 * TARGETS).astype(np.float32)
    scaled = fit_of(matrix, targets)
    column_units = units[:, None]
    check_close(scaled.coefficients * column_units / 1e12, fit.coefficients, 1e-4)
    check_close(scaled.residuals / 1e12, fit.residuals, 1e-4)
    for name in ("leverage", "studentized_residuals", "cooks_distance", "dffits"):
        check_close(getattr(scaled, name), getattr(fit, name), 1e-4)
    for errors, expected in zip(
        scaled.standard_errors, fit.standard_errors, strict=True
    ):
        check_close(errors * column_units / 1e12, expected, 1e-4)


def flat(matrix, target, weights, ridge=0.0):
    """All results that have derivatives, in one vector."""
    fit = influence(matrix, target, weights, ridge=ridge)
    leaves = [leaf for leaf in fit if leaf is not fit.rank]
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(leaves[:-1])])


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def derivatives(arguments, changes, cotangent):
    """Results, their change, and the gradient of their sum with weights."""
    results, linear = jax.linearize(flat, *arguments)
    gradient = jax.linear_transpose(linear, *arguments)(cotangent)
    return results, linear(*changes), gradient


@pytest.mark.parametrize("has_ridge", [True, weekly(False)])
def test_derivatives(has_ridge, with_x64):
    """Of two fits at once, one of which has a ridge of 0."""
    random = np.random.default_rng(4)
    arguments = [np.stack([MATRIX] * 2), TARGETS.T, np.stack([WEIGHTS] * 2)]
    changes = [random.standard_normal(array.shape) for array in arguments]
    if has_ridge:
        arguments.append(np.array([0.0, 2.0]))
        changes.append(np.array([0.0, 1.0]))
    # Seven results for each row, six for each column, and two more.
    cotangent = random.standard_normal(7 * NUM_ROWS + 6 * NUM_COLUMNS + 2)

    def moved(step):
        pairs = zip(arguments, changes, strict=True)
        moved_arguments = [array + step * change for array, change in pairs]
        results, _, _ = derivatives(moved_arguments, changes, cotangent)
        return np.asarray(results)

    step = 1e-5
    expected = (moved(step) - moved(-step)) / (2 * step)
    results, change, gradient = jax.device_get(
        derivatives(arguments, changes, cotangent)
    )
    scale = np.abs(expected) + np.abs(results)
    np.testing.assert_allclose(change / scale, expected / scale, rtol=0, atol=1e-6)
    pairs = zip(gradient, changes, strict=True)
    total = sum(np.sum((g * c).reshape(2, -1), axis=1) for g, c in pairs)
    np.testing.assert_allclose(total, change @ cotangent, rtol=1e-9)


def test_traced_arguments_out_of_range(with_x64):
    def with_ridge(weights, ridge):
        return traced(MATRIX, TARGETS[:, 0], weights, ridge=ridge)

    leverage = 0.5 * ONES
    for fit, is_lost in (
        (with_ridge(-WEIGHTS, 0.0), True),
        (with_ridge(WEIGHTS, -1.0), True),
        (with_leverage(2 * ONES), False),
        (with_leverage(leverage, rcond=1.0), True),
    ):
        assert np.isnan(fit.leave_one_out_residuals).all()
        assert np.isnan(fit.coefficients).all() == is_lost
        assert not (is_lost and np.any(fit.converged))


def test_rejected_arguments():
    for arguments, error, message in [
        ({"weights": WEIGHTS[:-1]}, ValueError, r"weights must have .*60,\); got \(59"),
        ({"leverage": ONES[:-1]}, ValueError, r"leverage must have .*; got \(59"),
        (
            {"leverage": 2 * ONES},
            ValueError,
            r"leverage must be between 0 and 1; .*2.0",
        ),
        ({"weights": -ONES}, ValueError, r"weights must be not negative; .*\[0\] = -1"),
        (
            {"matrix": sketching.LinearOperator(lambda v: v, shape=(60, 60))},
            TypeError,
            "matrix must be an array, .*; got a LinearOperator",
        ),
    ]:
        with pytest.raises(error, match=message):
            influence(**{"matrix": MATRIX, "target": TARGETS, **arguments})
    blocks = Blocks(MATRIX)
    with pytest.raises(TypeError, match="weights must be concrete, since Blocks are"):
        jax.vmap(lambda x: influence(blocks, TARGETS, x))(ONES[None])
    with pytest.raises(TypeError, match="leverage must be concrete, since Blocks are"):
        jax.vmap(lambda x: influence(blocks, TARGETS, leverage=x))(ONES[None])


def test_unused_quantities_are_not_computed(with_x64):
    def num_products(compiled):
        text = compiled.as_text()
        return text.count(" dot(") + text.count("custom-call")

    residuals = jax.jit(lambda x, y: influence(x, y).residuals)
    only_residuals = residuals.lower(MATRIX, TARGETS).compile()
    assert num_products(only_residuals) < num_products(fit_program(MATRIX.dtype))


def test_studentized_residual_of_an_outlier_among_nearly_exact_rows():
    """It is infinite if the residuals of the other rows are lost in rounding."""
    random = np.random.default_rng(1)
    matrix = random.normal(size=MATRIX.shape)
    noise = random.normal(size=(NUM_ROWS, 1)) * [1e-2, 1e-9]
    targets = (matrix @ [1, 2, 3, 4, 5])[:, None] + noise
    targets[0] += 1
    fit = fit_of(np.float32(matrix), np.float32(targets))
    np.testing.assert_array_equal(np.isinf(fit.studentized_residuals[0]), [False, True])
    assert np.all(np.argmax(fit.studentized_residuals, axis=0) == 0)
    assert np.all(np.argmax(fit.dffits, axis=0) == 0)
