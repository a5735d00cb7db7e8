"""The iterative Hessian sketch: its rate, and its fixed points against SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.optimize

from jaxwgc.sketching import iterative_hessian_sketch, row_sampling
from jaxwgc.sketching._solvers import _iterative_hessian_sketch
from tests.sketching.zoo import KEY

# One size for most cases, so that they share compiled functions.
NUM_ROWS = 400
NUM_COLUMNS = 12


@functools.cache
def system():
    random = np.random.default_rng(0)
    units = np.logspace(0, -2, NUM_COLUMNS)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS)) * units
    exact = random.standard_normal(NUM_COLUMNS) / units
    return matrix, matrix @ exact + random.standard_normal(NUM_ROWS)


@functools.cache
def of_many_keys(**options):
    """8 iterations with each of 100 keys."""
    # The law does not depend on the number of rows, the time does.
    matrix, target = (part[:40] for part in system())
    # Without the part that no θ explains, so that no digits cancel.
    target = matrix @ scipy.linalg.lstsq(matrix, target)[0]

    def solve(key):
        return iterative_hessian_sketch(key, matrix, target, 120, 8, **options)

    return jax.device_get(jax.vmap(solve)(jax.random.split(KEY, 100)))


def squared_errors(**options):
    """‖X(θ_t - θ*)‖² of every key, t = 0 ... 8, relative to the start.

    Residuals tell them: ‖y - Xθ‖² = ‖y - Xθ*‖² + ‖X(θ - θ*)‖².
    """
    history = of_many_keys(**options).residual_history ** 2
    return history / history[0, 0]


def expected_rate(step_size=None):
    """The factor of the mean squared error: moments of inverse Wishart matrices."""
    m = 120
    p = NUM_COLUMNS
    first = m / (m - p - 1)
    second = m**2 * (m - 1) / ((m - p) * (m - p - 1) * (m - p - 3))
    if step_size is None:
        step_size = first / second
    return 1 - 2 * step_size * first + step_size**2 * second


def test_errors_contract_at_the_theoretical_rate(with_x64):
    rate = expected_rate()
    # Close to p / m, and faster than with a step of one.
    assert rate == pytest.approx(NUM_COLUMNS / 120, rel=0.15)
    assert expected_rate(1.0) > 1.2 * rate
    for options in ({}, {"step_size": 1.0}):
        errors = squared_errors(**options).mean(axis=0)
        rate = expected_rate(*options.values())
        rates = errors[1:5] ** (1 / np.arange(1, 5))
        np.testing.assert_allclose(rates, rate, rtol=0.15)
        # And on: linearly, at every iteration.
        assert np.all(errors[1:] < 2 * rate * errors[:-1])


def test_momentum_with_one_sketch(with_x64):
    # A factor of p / m = 0.1 an iteration, after some; √ of it would be 0.3.
    errors = squared_errors(refresh=False)
    rate = np.exp(np.mean(np.log(errors[:, 8] / errors[:, 3])) / 5)
    assert 0.05 < rate < 0.2


@functools.cache
def constrained_system():
    random = np.random.default_rng(1)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    exact = random.standard_normal(NUM_COLUMNS)
    return matrix, matrix @ exact + random.standard_normal(NUM_ROWS)


def test_constrained_solutions(with_x64):
    projection = functools.partial(
        optax.projections.projection_box, lower=-0.5, upper=np.linspace(0.1, 1, 12)
    )
    matrix, target = constrained_system()
    result = iterative_hessian_sketch(KEY, matrix, target, 120, 25, projection)
    bounds = (-0.5, np.linspace(0.1, 1, 12))
    expected = scipy.optimize.lsq_linear(matrix, target, bounds, tol=1e-14).x
    # Some constraints hold with equality, others do not.
    assert 0 < np.sum(projection(1.01 * expected) == 1.01 * expected) < 12
    np.testing.assert_allclose(result.solution, expected, atol=1e-9)
    assert result.converged


def onto_a_ray(theta):
    """Equal entries, which are not negative: no entry is projected by itself."""
    return jnp.full_like(theta, jnp.maximum(jnp.mean(theta), 0))


def test_several_targets_in_any_units_in_float32():
    """X and y are brought to size 1, and θ to that of the set."""
    matrix, target = constrained_system()
    total = matrix.sum(axis=1)
    targets = np.stack([total + target, -target - total], axis=1)
    # About 1, and 0 for the second target.
    best = np.maximum(total @ targets / (total @ total), 0)
    for unit, size in ((1, 1), (1e20, 1e-10), (1e-20, 1e10)):
        result = iterative_hessian_sketch(
            KEY,
            (matrix * unit).astype(np.float32),
            (targets * size).astype(np.float32),
            120,
            25,
            onto_a_ray,
        )
        assert np.all(result.converged) and result.residual_history.shape == (26, 2)
        solution = np.asarray(result.solution) * np.float32(unit / size)
        np.testing.assert_allclose(solution, [best] * 12, atol=2e-4)


def test_too_few_steps_are_reported_as_not_converged(with_x64):
    result = of_many_keys()
    assert not np.any(result.converged) and np.all(result.num_iterations == 8)
    assert not np.any(of_many_keys(step_size=1e-12).converged)
    # All of the matrix is in one row, which the last sample misses.
    coherent = np.eye(NUM_ROWS, 1) * np.ones(NUM_COLUMNS)
    result = iterative_hessian_sketch(
        KEY, coherent, system()[1], 120, 24, embedding=row_sampling
    )
    assert not result.converged


def test_new_constructors_of_equal_embeddings_do_not_compile_again(with_x64):
    matrix, target = system()
    sizes = []
    for _ in range(2):
        embedding = functools.partial(row_sampling)
        result = iterative_hessian_sketch(
            KEY, matrix, target, 120, 24, embedding=embedding
        )
        assert result.converged
        sizes.append(_iterative_hessian_sketch._solve._cache_size())
    assert sizes[0] == sizes[1]
