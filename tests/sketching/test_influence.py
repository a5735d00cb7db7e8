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

RANDOM = np.random.default_rng(0)
NUM_ROWS = 60
NUM_COLUMNS = 5
MATRIX = RANDOM.standard_normal((NUM_ROWS, NUM_COLUMNS)) ** 3
MATRIX[:, 0] = 1
TARGETS = MATRIX @ RANDOM.standard_normal((NUM_COLUMNS, 2))
TARGETS += RANDOM.standard_normal((NUM_ROWS, 2)) * (1 + MATRIX[:, 1:2] ** 2)
WEIGHTS = RANDOM.random(NUM_ROWS) + 0.1
ONES = np.ones(NUM_ROWS)
WEIGHTED = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weights"])

# One program for each kind of arguments.
traced = jax.jit(influence)


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


@WEIGHTED
def test_statsmodels_gives_the_same(weights, with_x64):
    """Its class is for equal weights, so that it gets rows times their roots."""
    matrix, targets = weighted_rows(weights, MATRIX, TARGETS)
    fits = traced(MATRIX, TARGETS, weights)
    for column, target in enumerate(targets.T):
        result = statsmodels.api.OLS(target, matrix).fit()
        peer = result.get_influence()
        ours = of_column(fits, column)
        check_close(traced(MATRIX, TARGETS[:, column], weights), ours)
        own_units = [
            (result.params, ours.coefficients),
            (result.scale, ours.residual_variance),
            (result.df_resid, ours.degrees_of_freedom),
            (peer.hat_matrix_diag, ours.leverage),
            (peer.resid_studentized_internal, ours.standardized_residuals),
            (peer.resid_studentized_external, ours.studentized_residuals),
            (peer.cooks_distance[0], ours.cooks_distance),
            (peer.dffits[0], ours.dffits),
            (result.bse, ours.standard_errors.classical),
            (result.HC0_se, ours.standard_errors.hc0),
            (result.HC1_se, ours.standard_errors.hc1),
            (result.HC2_se, ours.standard_errors.hc2),
            (result.HC3_se, ours.standard_errors.hc3),
        ]
        for expected, quantity in own_units:
            check_close(quantity, expected)
        residuals = weighted_rows(weights, ours.residuals, ours.leave_one_out_residuals)
        check_close(residuals, [result.resid, peer.resid_press])
        assert ours.rank == (NUM_COLUMNS, False)
        assert ours.converged


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
    matrix = np.concatenate([MATRIX, 30 * MATRIX[:, 1:3], 0 * ONES[:, None]], axis=1)
    fit = traced(matrix, TARGETS[:, 0])
    inverse = np.linalg.pinv(matrix, rcond=1e-12)
    full = traced(MATRIX, TARGETS[:, 0])
    names = {"coefficients", "standard_errors", "rank"}
    for name in set(full._fields) - names:
        check_close(getattr(fit, name), getattr(full, name))
    assert fit.rank == (NUM_COLUMNS, False)
    check_close(fit.coefficients, inverse @ TARGETS[:, 0])
    expected = sandwich(inverse, np.square(full.leave_one_out_residuals))
    check_close(fit.standard_errors.hc3, expected)
    assert fit.standard_errors.hc3[-1] == 0


@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_wide_matrices(ridge, with_x64):
    matrix = RANDOM.standard_normal((10, 25))
    target = RANDOM.standard_normal(10)
    fit = influence(matrix, target, ridge=ridge)
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_alone_in_its_direction(dtype):
    """The deletion of a row of leverage 1 lowers the rank."""
    matrix = np.concatenate([MATRIX, ONES[:, None]], axis=1).astype(dtype)
    matrix[:, -1] = 0
    matrix[7, -1] = 3
    target = TARGETS[:, 0].astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        fit = influence(matrix, target)
        others = influence(np.delete(matrix, 7, 0)[:, :-1], np.delete(target, 7))
    is_alone = np.arange(NUM_ROWS) == 7
    for name in (
        "leave_one_out_residuals",
        "standardized_residuals",
        "studentized_residuals",
        "cooks_distance",
        "dffits",
    ):
        np.testing.assert_array_equal(np.isnan(getattr(fit, name)), is_alone)
    names = ["leave_one_out_residuals", "standardized_residuals", "dffits"]
    tolerance = 100 * np.finfo(dtype).eps
    for name in names:
        check_close(getattr(fit, name)[~is_alone], getattr(others, name), tolerance)
    errors = fit.standard_errors
    assert np.isnan(errors.hc2).all() and np.isnan(errors.hc3).all()
    check_close(errors.hc0[:-1], others.standard_errors.hc0, tolerance)
    assert fit.degrees_of_freedom == others.degrees_of_freedom


def test_rows_of_weight_zero_are_not_in_the_fit(with_x64):
    weights = np.where(np.arange(NUM_ROWS) < 20, 0, WEIGHTS)
    fit = influence(MATRIX, TARGETS, weights)
    rest = influence(MATRIX[20:], TARGETS[20:], weights[20:])
    for result, expected in zip(fit, rest, strict=True):
        is_by_row = np.shape(result)[:1] == (NUM_ROWS,)
        check_close(result[20:] if is_by_row else result, expected)
    predicted = TARGETS[:20] - MATRIX[:20] @ rest.coefficients
    check_close(fit.residuals[:20], predicted)
    check_close(fit.leave_one_out_residuals[:20], predicted)
    assert not np.any(fit.leverage[:20]) and not np.any(fit.dffits[:20])


def test_scores_computed_before(with_x64):
    exact = traced(MATRIX, TARGETS, WEIGHTS)
    rows = np.sqrt(WEIGHTS)[:, None] * MATRIX
    for given in (sketching.leverage_scores(rows), np.full(NUM_ROWS, 0.5)):
        fit = influence(MATRIX, TARGETS, WEIGHTS, leverage=given)
        check_close(fit.leverage, given)
        for name in ("coefficients", "residuals", "residual_variance"):
            check_close(getattr(fit, name), getattr(exact, name))
        check_close(fit.degrees_of_freedom, exact.degrees_of_freedom)
        check_close(fit.standard_errors[:3], exact.standard_errors[:3])
    check_close(fit.leave_one_out_residuals, 2 * exact.residuals)
    check_close(fit.standard_errors.hc3, 2 * exact.standard_errors.hc0)
    key = jax.random.key(0)
    estimates = sketching.approximate_leverage_scores(key, MATRIX, 0.1)
    influence(MATRIX, TARGETS, leverage=estimates)


def test_few_degrees_of_freedom(with_x64):
    matrix = MATRIX[: NUM_COLUMNS + 1]
    fit = influence(matrix, TARGETS[: NUM_COLUMNS + 1, 0])
    assert fit.degrees_of_freedom == 1
    np.testing.assert_allclose(np.abs(fit.standardized_residuals), 1, rtol=1e-10)
    assert np.isnan(fit.studentized_residuals).all() and np.isnan(fit.dffits).all()
    # The other points are on a line.
    line = np.stack([np.ones(6), np.arange(6.0)], axis=1)
    fit = influence(line, np.array([0.0, 1, 2, 3, 4, 9]))
    assert np.abs(fit.studentized_residuals[5]) > 1e6
    assert np.abs(fit.studentized_residuals[:5]).max() < 10


def test_float32_at_many_rows():
    """Columns of large mean, with which products of long sums lose digits."""
    random = np.random.default_rng(1)
    matrix = random.standard_normal((100_000, 50), np.float32) + np.float32(5)
    matrix[:, 0] = 1
    target = matrix.sum(axis=1) + random.standard_normal(100_000, np.float32)
    fit = influence(matrix, target)
    wide = matrix.astype(float)
    basis, _ = np.linalg.qr(wide)
    residuals = target - basis @ (basis.T @ target.astype(float))
    rest = 1 - np.sum(basis**2, axis=1)
    left_out = residuals / rest
    estimator = np.linalg.pinv(wide)
    np.testing.assert_allclose(fit.leave_one_out_residuals, left_out, atol=5e-4)
    check_close(fit.leverage, 1 - rest, 5e-5)
    check_close(fit.standard_errors.hc3, sandwich(estimator, left_out**2), 1e-6)
    variance = residuals @ residuals / (100_000 - 50)
    check_close(fit.residual_variance, variance, 2e-6)


def test_units_of_float32():
    """Squares of columns, targets or standard errors would overflow."""
    units = 10.0 ** np.array([0, -25, 25, 10, -10])
    fit = influence(MATRIX.astype(np.float32), TARGETS[:, 0].astype(np.float32))
    matrix = (MATRIX * units).astype(np.float32)
    target = (1e12 * TARGETS[:, 0]).astype(np.float32)
    scaled = influence(matrix, target)
    check_close(scaled.coefficients * units / 1e12, fit.coefficients, 1e-4)
    check_close(scaled.residuals / 1e12, fit.residuals, 1e-4)
    for name in ("leverage", "studentized_residuals", "cooks_distance", "dffits"):
        check_close(getattr(scaled, name), getattr(fit, name), 1e-4)
    for errors, expected in zip(
        scaled.standard_errors, fit.standard_errors, strict=True
    ):
        check_close(errors * units / 1e12, expected, 1e-4)


def flat(arguments, ridge):
    """All real results, in one vector."""
    matrix, target, weights = arguments
    fit = influence(matrix, target, weights, ridge=ridge)
    leaves = [leaf for leaf in fit if leaf is not fit.rank]
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(leaves[:-1])])


@pytest.mark.parametrize("ridge", [None, 2.0])
def test_derivatives(ridge, with_x64):
    arguments = (MATRIX, TARGETS[:, 0], WEIGHTS)
    changes = tuple(RANDOM.standard_normal(array.shape) for array in arguments)

    def function(arguments, ridge=ridge):
        return flat(arguments, 0.0 if ridge is None else ridge)

    def moved(step):
        pairs = zip(arguments, changes, strict=True)
        return function(tuple(array + step * change for array, change in pairs))

    step = 1e-5
    expected = (moved(step) - moved(-step)) / (2 * step)
    value, change = jax.jvp(function, (arguments,), (changes,))
    scale = np.abs(expected) + np.abs(value)
    np.testing.assert_allclose(change / scale, expected / scale, rtol=0, atol=1e-6)
    weights = RANDOM.standard_normal(len(value))
    _, pull = jax.vjp(function, arguments)
    (gradients,) = pull(weights)
    total = sum(np.sum(g * c) for g, c in zip(gradients, changes, strict=True))
    np.testing.assert_allclose(total, weights @ change, rtol=1e-9)
    batched = jax.vmap(lambda target: pull_of(arguments, target, weights, function))
    two = batched(jnp.stack([TARGETS[:, 0], TARGETS[:, 1]]))
    np.testing.assert_allclose(two[0], gradients[0], rtol=1e-7, atol=1e-7)
    if ridge is not None:
        ends = [function(arguments, ridge + s) for s in (step, -step)]
        _, change = jax.jvp(lambda r: function(arguments, r), (ridge,), (1.0,))
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(change / scale, slope / scale, rtol=0, atol=1e-6)


def pull_of(arguments, target, weights, function):
    """The gradient of a weighted sum of results by the matrix."""
    matrix, _, row_weights = arguments

    def total(matrix):
        return weights @ function((matrix, target, row_weights))

    return jax.grad(total)(matrix)


@pytest.mark.parametrize(
    ("changes", "is_lost"),
    [
        ({"weights": -WEIGHTS}, True),
        ({"ridge": -1.0}, True),
        ({"leverage": 2 * ONES}, False),
        ({"rcond": 1.0}, True),
    ],
)
def test_traced_arguments_out_of_range(changes, is_lost, with_x64):
    fit = jax.jit(functools.partial(influence, MATRIX, TARGETS))(**changes)
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


def test_unused_quantities_are_not_computed():
    def products(function):
        text = jax.jit(function).lower(MATRIX, TARGETS).compile().as_text()
        return text.count(" dot(") + text.count("custom-call")

    distances = products(lambda x, y: influence(x, y).residuals)
    assert distances < products(influence)


@pytest.mark.parametrize("noise", [1e-2, 1e-9])
def test_studentized_residual_of_an_outlier_among_nearly_exact_rows(noise):
    """It is infinite if the residuals of the other rows are lost in rounding."""
    draw = np.random.default_rng(1)
    matrix = np.column_stack([np.ones(400), draw.normal(size=(400, 2))])
    target = matrix @ [1, 2, 3] + noise * draw.normal(size=400)
    target[0] += 1
    fit = sketching.influence(np.float32(matrix), np.float32(target))
    assert bool(np.isinf(fit.studentized_residuals[0])) == (noise < 1e-6)
    assert np.argmax(fit.studentized_residuals) == 0
    assert np.argmax(fit.dffits) == 0


def test_standard_errors_without_degrees_of_freedom_are_nan():
    """Residuals are zero up to rounding, and so would be the robust errors."""
    matrix = np.random.default_rng(0).normal(size=(10, 2))
    fits = [
        sketching.influence(matrix[:2], np.ones(2)),
        sketching.influence(matrix, np.arange(10.0), np.zeros(10)),
    ]
    for fit in fits:
        for errors in fit.standard_errors:
            assert np.all(np.isnan(errors))
