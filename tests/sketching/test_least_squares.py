"""Promises of every least-squares solver, against SciPy in float64."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, rademacher, row_sampling
from tests import oracles
from tests.sketching.solvers import (
    LINEAR,
    NUM_COLUMNS,
    NUM_ROWS,
    SKETCH_SIZE,
    SOLVERS,
    assert_no_warning_of_hidden_rows,
    deficient_cases,
    solve,
    solve_traced,
)
from tests.sketching.zoo import KEY, conditioned, of_singular_values


@functools.cache
def system(dtype=np.float32):
    random = np.random.default_rng(0)
    units = np.logspace(0, -1, NUM_COLUMNS)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS)) * units
    target = (matrix / units).sum(axis=1) + random.standard_normal(NUM_ROWS)
    return matrix.astype(dtype), target.astype(dtype)


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_in_both_modes(name):
    matrix, target = system(np.float64)
    expected = scipy.linalg.lstsq(matrix, target)[0]
    optimum = np.linalg.norm(target - matrix @ expected)
    result = solve(name, jax.random.key(3), *system())
    with jax.enable_x64(True):
        traced = jax.eval_shape(lambda: solve(name, jax.random.PRNGKey(3), *system()))
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(traced), strict=True)
    assert all(leaf.dtype == other.dtype for leaf, other in pairs)
    assert result.solution.dtype == np.float32 and result.converged
    if name == "sketch and solve":
        residual = np.linalg.norm(target - matrix @ result.solution)
        np.testing.assert_allclose(result.residual_history[-1], residual, rtol=1e-5)
        # The squared excess is about p / m in the mean.
        assert 1 < (residual / optimum) ** 2 < 1 + 3 * NUM_COLUMNS / SKETCH_SIZE
    else:
        assert np.linalg.norm(matrix @ (result.solution - expected)) < 1e-4 * optimum


# Wide ones "gram" and "sketch" solve as "factor" does. A sketch of them is tall.
@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in LINEAR
        for case in deficient_cases()
        if name == "factor" or "wide" not in case
    ],
)
def test_least_norm_where_rank_deficient(with_x64, name, case):
    matrix = deficient_cases()[case]
    target = np.random.default_rng(3).standard_normal(len(matrix))
    sketch = np.eye(len(matrix))
    embedding = gaussian
    if name == "sketch and solve":
        # Normal entries are rounded to float32, by each program in its own way.
        embedding = rademacher
        sketch = np.asarray(embedding(KEY, SKETCH_SIZE, len(matrix)).matrix())
    result = solve_traced(name, KEY, matrix, target, embedding)
    assert result.converged
    expected = scipy.linalg.lstsq(sketch @ matrix, sketch @ target, cond=1e-12)[0]
    tolerance = 1e-7 if name == "iterative Hessian sketch" else 1e-10
    error = np.linalg.norm(np.asarray(result.solution) - expected)
    assert error <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("name", LINEAR)
def test_no_overflow_in_float32(name):
    matrix, target = system()
    expected = solve(name, KEY, matrix, target)
    length = expected.residual_history[-1]
    for scale in (np.float32(1e-30), np.float32(1e30)):
        result = solve(name, KEY, matrix * scale, target * scale)
        np.testing.assert_allclose(result.solution, expected.solution, 1e-3, 1e-3)
        assert result.converged
        np.testing.assert_allclose(result.residual_history[-1] / scale, length, 1e-3)
        # No float32 is as large or as small as θ, and the residual is that of zero.
        assert not solve(name, KEY, matrix * scale, target / scale).converged


# Of the Newton sketch, test_newton_sketch.py has labels that become NaN.
@pytest.mark.parametrize("name", LINEAR)
def test_traced_nan_is_flagged(with_x64, name):
    matrix, target = system(np.float64)
    bad_matrix = matrix.copy()
    bad_target = target.copy()
    bad_matrix[3, 4] = np.nan
    bad_target[3] = np.inf
    # The program of `test_least_norm_where_rank_deficient`.
    embedding = rademacher if name == "sketch and solve" else gaussian
    for case in ((bad_matrix, target), (matrix, bad_target)):
        result = solve_traced(name, KEY, *case, embedding)
        assert not (result.converged or np.isfinite(result.residual_history[-1]))
        assert np.isnan(result.solution).all()


def of_three_targets(rcond):
    matrix, target = system()
    targets = np.stack([target, np.float32(1e6) * target[::-1], 0 * target], axis=1)
    result = solve_traced("sketch and solve", KEY, matrix, targets, rcond=rcond)
    return matrix, targets, result


def test_many_targets_are_solved_as_if_each_were_alone():
    matrix, targets, result = of_three_targets(1e-6)
    assert result.converged.shape == result.num_iterations.shape == (3,)
    assert result.residual_history.shape[1:] == (3,) and np.all(result.converged)
    for actual, target in zip(np.asarray(result.solution).T, targets.T, strict=True):
        alone = solve("sketch and solve", KEY, matrix, target).solution
        tolerance = 1e-4 * np.abs(alone).max()
        np.testing.assert_allclose(actual, alone, rtol=0, atol=tolerance)


def test_traced_cutoff_out_of_range_is_flagged():
    for rcond in (1e-4, np.nan, -1.0, 2.0):
        *_, result = of_three_targets(rcond)
        assert np.all(result.converged == (rcond == 1e-4))
        assert np.all(result.converged) or np.isnan(result.solution).all()


def test_an_embedding_gives_the_result_of_its_constructor_and_key():
    """Its own key is used, and not the solver's."""
    by_iterations = functools.partial(solve, "iterative Hessian sketch")
    embedding = gaussian(KEY, SKETCH_SIZE, NUM_ROWS)
    actual = by_iterations(jax.random.key(9), *system(), embedding).residual_history
    by_key = [by_iterations(key, *system()) for key in (KEY, jax.random.key(9))]
    expected, other = (result.residual_history for result in by_key)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4)
    assert abs(actual[1] / other[1] - 1) > 1e-3


@jax.jit
def of_many_samples(matrix, target):
    """Solutions by 20 samples of 20 of 200 rows."""
    return jax.vmap(
        lambda key: sketching.sketch_and_solve(key, matrix, target, 20, row_sampling)
    )(jax.random.split(KEY, 20))


def test_a_direction_that_the_sketch_misses_is_reported_as_not_converged(with_x64):
    matrix = np.zeros((200, 4))
    matrix[:4] = np.eye(4)
    target = np.arange(200.0)
    assert not np.any(of_many_samples(matrix, target).converged)
    assert not np.any(of_many_samples(1e-20 * matrix, target).converged)
    # A direction that the matrix does not have is no loss, nor is rounding in a row 1e8
    # times as long as the others.
    matrix = np.random.default_rng(0).normal(size=(200, 4))
    assert np.all(of_many_samples(matrix[:, [0, 1, 0, 1]], target).converged)
    matrix[3] *= 1e8
    assert np.all(of_many_samples(matrix, matrix[:, 0]).converged)


def test_ridge_of_sketch_and_solve(with_x64):
    """The sketched system is solved exactly, by the key of the embedding."""
    matrix, target = system(np.float64)
    embedding = rademacher(KEY, SKETCH_SIZE, NUM_ROWS)

    def solve(matrix, target):
        key = jax.random.key(9)
        return sketching.sketch_and_solve(
            key, matrix, target, SKETCH_SIZE, embedding, ridge=0.5
        )

    result = solve(matrix, target)
    assert_no_warning_of_hidden_rows(solve, matrix, target)
    sketch = np.asarray(embedding.matrix())
    expected = oracles.ridge_solution(sketch @ matrix, sketch @ target, 0.5)
    np.testing.assert_allclose(result.solution, expected, rtol=1e-9)
    minimised = np.sum((target - matrix @ expected) ** 2) + 0.5 * np.sum(expected**2)
    np.testing.assert_allclose(result.residual_history[-1] ** 2, minimised, rtol=1e-9)


ITERATIONS = {
    "refresh": {},
    "one sketch": {"refresh": False},
    # Over the whole space, a projection that does nothing.
    "projection": {"projection": jnp.asarray, "num_inner_steps": 400},
}


@pytest.mark.parametrize("case", ITERATIONS)
def test_ridge_of_iterations(with_x64, case):
    """The solution is that of the whole system, and so is its derivative."""
    matrix, target = system(np.float64)

    def solve(matrix, target, ridge=0.5):
        return sketching.iterative_hessian_sketch(
            KEY, matrix, target, 200, 60, ridge=ridge, **ITERATIONS[case]
        )

    def total(ridge):
        result = solve(matrix, target, ridge)
        return jnp.sum(result.solution), result

    expected = oracles.ridge_solution(matrix, target, 0.5)
    if case == "refresh":
        (_, result), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(0.5)
        above = oracles.ridge_solution(matrix, target, 0.5001)
        below = oracles.ridge_solution(matrix, target, 0.4999)
        difference_quotient = (above - below).sum() / 2e-4
        np.testing.assert_allclose(slope, difference_quotient, rtol=1e-4)
    else:
        result = solve(matrix, target)
        assert_no_warning_of_hidden_rows(solve, matrix, target)
    tolerance = 1e-5 if case == "projection" else 1e-6
    np.testing.assert_allclose(result.solution, expected, rtol=tolerance)
    assert result.converged or case == "projection"


@pytest.mark.parametrize(
    "name", ["gram", "sketch and solve", "iterative Hessian sketch"]
)
def test_warns_if_precision_costs_rank(name):
    """Float32 may lose rank that float64 has, and long rows may hide others."""
    target = system()[1]
    values = np.append(np.logspace(0, -3, NUM_COLUMNS - 2), [1e-9] * 2)
    matrix = of_singular_values(values, (NUM_ROWS, NUM_COLUMNS))
    with pytest.warns(UserWarning, match="rank of 10 in .*, but of 12 in float64, in"):
        solve(name, KEY, matrix, target)
    hidden = conditioned(10.0, (NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
    hidden[7] *= 1e8
    with pytest.warns(UserWarning, match="rows of very different norm: most rows"):
        solve(name, KEY, hidden, target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What float64 has no more of, and what came in float32.
        solve(name, KEY, deficient_cases()["low-rank product"], target)
        solve(name, KEY, matrix.astype(np.float32), target)
    if name == "gram":
        with pytest.warns(UserWarning, match="rows of very different norm"):
            sketching.leverage_scores(hidden)
        with pytest.warns(UserWarning, match="but of 12 in float64"):
            sketching.numerical_rank(matrix)


def test_an_ambiguous_rank_is_reported():
    """Columns of a large mean beside a constant one, whose slopes are lost."""
    rows = np.array(system()[0])
    clear = rows.copy()
    rows[:, 0] = 1
    rows[:, 1] = 1e6 + rows[:, 1] / rows[:, 1].std()
    clear[:, 0] = 1
    for matrix, rank in ((rows, (11, True)), (clear, (12, False))):
        result = sketching.preconditioned(KEY, matrix, system()[1], method="gram")
        assert tuple(result.rank) == rank
