"""The iterative Hessian sketch: its rate, and its fixed points against SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.optimize
import sklearn.linear_model

from jaxwgc.sketching import (
    count_sketch,
    iterative_hessian_sketch,
    rademacher,
    row_sampling,
    sparse_sign,
    srht,
)

# One size for most cases, so that they share compiled functions.
NUM_ROWS, NUM_COLUMNS = 400, 12
KEY = jax.random.key(0)


@functools.cache
def system():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS)) * np.logspace(
        0, -2, NUM_COLUMNS
    )
    exact = random.standard_normal(NUM_COLUMNS) / np.logspace(0, -2, NUM_COLUMNS)
    return matrix, matrix @ exact + random.standard_normal(NUM_ROWS)


@jax.jit
def traced_solution(key, matrix, target):
    return iterative_hessian_sketch(key, matrix, target, 120, 24)


@functools.cache
def of_many_keys(sketch_size, num_keys, **options):
    """8 iterations with each key."""
    # The law does not depend on the number of rows, the time does.
    matrix, target = (part[:150] for part in system())
    # Without the part that no θ explains, so that no digits cancel.
    target = matrix @ scipy.linalg.lstsq(matrix, target)[0]

    def solve(key):
        return iterative_hessian_sketch(key, matrix, target, sketch_size, 8, **options)

    return jax.vmap(solve)(jax.random.split(KEY, num_keys))


def squared_errors(sketch_size, num_keys=100, **options):
    """‖X(θ_t - θ*)‖² of every key, t = 0 ... 8, relative to the start.

    Residuals tell them: ‖y - Xθ‖² = ‖y - Xθ*‖² + ‖X(θ - θ*)‖².
    """
    found = of_many_keys(sketch_size, num_keys, **options)
    history = np.asarray(found.residual_history) ** 2
    return history / history[0, 0]


def expected_rate(sketch_size, step_size=None):
    """The factor of the mean squared error: moments of inverse Wishart matrices."""
    m, p = sketch_size, NUM_COLUMNS
    first = m / (m - p - 1)
    second = m**2 * (m - 1) / ((m - p) * (m - p - 1) * (m - p - 3))
    if step_size is None:
        step_size = first / second
    return 1 - 2 * step_size * first + step_size**2 * second


@pytest.mark.parametrize("sketch_size", [40, 120])
def test_contracts_as_theory_says(with_x64, sketch_size):
    errors = squared_errors(sketch_size).mean(axis=0)
    rate = expected_rate(sketch_size)
    np.testing.assert_allclose(
        rate,
        1
        - (sketch_size - 12)
        * (sketch_size - 15)
        / ((sketch_size - 13) * (sketch_size - 1)),
    )
    # Close to p / m.
    assert rate == pytest.approx(NUM_COLUMNS / sketch_size, rel=0.15)
    for t in (1, 2, 4):
        np.testing.assert_allclose(errors[t] ** (1 / t), rate, rtol=0.15)
    # And on: linearly, at every iteration.
    assert np.all(errors[1:] < 2 * rate * errors[:-1])


def test_a_step_of_one_is_slower_as_theory_says(with_x64):
    errors = squared_errors(120, step_size=1.0).mean(axis=0)
    rate = expected_rate(120, 1.0)
    assert rate > 1.2 * expected_rate(120)
    np.testing.assert_allclose(errors[1:4] ** (1 / np.arange(1, 4)), rate, rtol=0.15)


def test_a_small_sketch_diverges_with_a_step_of_one_only(with_x64):
    assert expected_rate(30, 1.0) > 1 > expected_rate(30)
    assert squared_errors(30, 20, step_size=1.0)[:, -1].mean() > 1
    assert squared_errors(30, 20)[:, -1].mean() < 0.1


def test_momentum_with_one_sketch(with_x64):
    # A factor of p / m = 0.1 an iteration, after some; √ of it would be 0.3.
    errors = squared_errors(120, refresh=False)
    rate = np.exp(np.mean(np.log(errors[:, 8] / errors[:, 3])) / 5)
    assert 0.05 < rate < 0.2


@pytest.mark.parametrize(
    "embedding", [rademacher, srht, count_sketch, sparse_sign, row_sampling]
)
def test_every_embedding(with_x64, embedding):
    check_solution(KEY, np.float64, 1e-8, embedding=embedding)


def test_float32_and_typed_keys():
    check_solution(KEY, np.float32, 3e-5)


def test_float32_in_64_bit_mode_and_raw_keys(with_x64):
    check_solution(jax.random.PRNGKey(1), np.float32, 3e-5)


def check_solution(key, dtype, tolerance, **options):
    matrix, target = (part.astype(dtype) for part in system())
    solve = traced_solution
    if options:
        solve = functools.partial(
            iterative_hessian_sketch, sketch_size=120, num_iterations=24, **options
        )
    found = jax.tree.map(np.asarray, solve(key, matrix, target))
    expected = scipy.linalg.lstsq(matrix, target)[0]
    assert found.solution.dtype == dtype
    assert found.converged and found.num_iterations == 24
    error = np.linalg.norm(matrix @ (found.solution - expected))
    assert error < tolerance * np.linalg.norm(target)
    assert found.residual_history.shape == (25,)
    np.testing.assert_allclose(found.residual_history[0], np.linalg.norm(target), 1e-5)


def test_least_norm_where_rank_deficient_or_wide(with_x64):
    matrix, target = system()
    half = matrix[:, :6]
    for case in (np.hstack([half, 10 * half]), matrix[:8], 0 * matrix):
        y = target[: len(case)]
        found = iterative_hessian_sketch(KEY, case, y, 120, 24)
        expected = scipy.linalg.lstsq(case, y, cond=1e-12)[0]
        np.testing.assert_allclose(found.solution, expected, rtol=1e-7, atol=1e-9)
        assert found.converged


@functools.cache
def constrained_system():
    random = np.random.default_rng(1)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    exact = random.standard_normal(NUM_COLUMNS)
    return matrix, matrix @ exact + random.standard_normal(NUM_ROWS)


# One object each, so that they are compiled once.
PROJECTIONS = {
    "non-negative": optax.projections.projection_non_negative,
    "box": functools.partial(
        optax.projections.projection_box, lower=-0.5, upper=np.linspace(0.1, 1, 12)
    ),
    "l1 ball": functools.partial(optax.projections.projection_l1_ball, scale=4.0),
}


def constrained_solution(name):
    projection = PROJECTIONS[name]
    return iterative_hessian_sketch(KEY, *constrained_system(), 120, 25, projection)


def constrained_reference(name):
    matrix, target = constrained_system()
    if name == "non-negative":
        return scipy.optimize.nnls(matrix, target)[0]
    if name == "box":
        bounds = (-0.5, np.linspace(0.1, 1, 12))
        return scipy.optimize.lsq_linear(matrix, target, bounds, tol=1e-14).x

    def fit(penalty):
        lasso = sklearn.linear_model.Lasso(
            penalty, fit_intercept=False, tol=1e-14, max_iter=10**5
        )
        return lasso.fit(matrix, target).coef_

    # The penalty at which the solution lies on the ball.
    penalty = scipy.optimize.brentq(
        lambda penalty: np.abs(fit(penalty)).sum() - 4, 1e-3, 2, xtol=1e-15
    )
    return fit(penalty)


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_constrained_solutions_are_those_of_others(with_x64, name):
    matrix, target = constrained_system()
    found = constrained_solution(name)
    expected = constrained_reference(name)
    # Some constraints hold with equality, others do not.
    assert 0 < np.sum(np.abs(expected) < 1e-9) < 12 or name == "box"
    np.testing.assert_allclose(found.solution, expected, atol=1e-9)
    assert found.converged


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_constrained_solutions_satisfy_the_optimality_conditions(with_x64, name):
    matrix, target = constrained_system()
    found = constrained_solution(name)
    solution = np.asarray(found.solution)
    gradient = matrix.T @ (matrix @ solution - target)
    # A projected gradient step of any length stays where it is.
    for length in (1e-3, 1e-1):
        moved = PROJECTIONS[name](jnp.asarray(solution - length * gradient))
        np.testing.assert_allclose(moved, solution, atol=1e-9)
    assert np.linalg.norm(gradient) > 1


def test_constraints_in_float32_and_under_vmap():
    matrix, target = (part.astype(np.float32) for part in constrained_system())
    targets = np.stack([target, -target], axis=1)
    projection = PROJECTIONS["l1 ball"]
    found = iterative_hessian_sketch(KEY, matrix, targets, 120, 25, projection)
    found = jax.tree.map(np.asarray, found)
    assert found.solution.shape == (12, 2) and found.residual_history.shape == (26, 2)
    expected = constrained_reference("l1 ball")
    np.testing.assert_allclose(found.solution[:, 0], expected, atol=2e-4)
    np.testing.assert_allclose(found.solution[:, 1], -expected, atol=2e-4)
    assert np.all(found.converged)


def test_an_inactive_constraint_changes_nothing(with_x64):
    matrix, target = constrained_system()
    box = functools.partial(optax.projections.projection_box, lower=-1e3, upper=1e3)
    found = iterative_hessian_sketch(KEY, matrix, target, 120, 20, box)
    expected = scipy.linalg.lstsq(matrix, target)[0]
    np.testing.assert_allclose(found.solution, expected, rtol=1e-8)


def test_says_no_before_it_has_converged(with_x64):
    found = jax.tree.map(np.asarray, of_many_keys(120, 100))
    assert not np.any(found.converged) and np.all(found.num_iterations == 8)


def test_no_overflow_in_float32():
    matrix, target = (part.astype(np.float32) for part in system())
    expected = traced_solution(KEY, matrix, target).solution
    for scale in (np.float32(1e-30), np.float32(1e30)):
        found = traced_solution(KEY, matrix * scale, target * scale)
        np.testing.assert_allclose(found.solution, expected, rtol=1e-3, atol=1e-3)
        assert found.converged


def test_traced_nan_is_flagged():
    matrix, target = (part.astype(np.float32) for part in system())
    assert traced_solution(KEY, matrix, target).converged
    bad_matrix, bad_target = matrix.copy(), target.copy()
    bad_matrix[3, 4], bad_target[3] = np.nan, np.inf
    for case in ((bad_matrix, target), (matrix, bad_target)):
        found = traced_solution(KEY, *case)
        assert not found.converged and np.all(np.isnan(found.solution))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sketch_size": 0}, "sketch_size must be at least 1; got 0"),
        ({"sketch_size": 7}, r"sketch_size must be at least .* = 8.*; got 7"),
        ({"num_iterations": 0}, "num_iterations must be at least 1"),
        ({"num_inner_steps": 0}, "num_inner_steps must be at least 1"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"refresh": False, "projection": jnp.abs}, "refresh must be True"),
        ({"projection": lambda x: x[:2]}, "projection must return"),
        ({"matrix": np.full((20, 4), np.nan)}, "matrix must be finite"),
        ({"target": np.ones(19)}, "target must have as many rows as matrix"),
    ],
)
def test_wrong_values(change, message):
    args = {
        "matrix": np.eye(20)[:, :4],
        "target": np.ones(20),
        "sketch_size": 16,
        "num_iterations": 2,
    }
    with pytest.raises(ValueError, match=message):
        iterative_hessian_sketch(KEY, **(args | change))


def test_wrong_types():
    with pytest.raises(TypeError, match="projection must be a function"):
        iterative_hessian_sketch(KEY, np.eye(20)[:, :4], np.ones(20), 16, 2, "box")


def test_small_steps_and_missed_directions_are_no_convergence(with_x64):
    matrix, target = system()
    found = iterative_hessian_sketch(KEY, matrix, target, 120, 24, step_size=1e-12)
    assert not found.converged
    # All of it is in one row, which the last sample misses.
    coherent = np.zeros((NUM_ROWS, NUM_COLUMNS))
    coherent[0] = 1
    found = iterative_hessian_sketch(
        KEY, coherent, target, 120, 24, embedding=row_sampling
    )
    assert not found.converged
