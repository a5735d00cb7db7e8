"""Least squares of BCOO matrices and operators: as of the array, never made."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from jax.experimental import sparse

from jaxwgc import sketching
from tests import oracles
from tests.conftest import weekly
from tests.sketching.zoo import KEY, bcoo_of

NUM_ROWS = 300
NUM_COLUMNS = 12


@functools.cache
def system(condition=10.0):
    random = np.random.default_rng(0)
    shape = NUM_ROWS, NUM_COLUMNS
    matrix = random.standard_normal(shape) * (random.random(shape) < 0.3)
    matrix *= np.geomspace(1, 1 / condition, NUM_COLUMNS)
    # Not by the units of columns alone.
    matrix[:, 3] += matrix[:, 4]
    target = (matrix / np.abs(matrix).max(axis=0)).sum(axis=1)
    return matrix, target + 0.1 * random.standard_normal(NUM_ROWS)


def times(matrix, vector):
    return matrix @ vector


def operator_of(matrix, has_sketch=False):
    return sketching.LinearOperator(
        jax.tree_util.Partial(times, matrix),
        jax.tree_util.Partial(times, matrix.T),
        matrix.shape,
        sketch=(lambda embedding: embedding @ matrix) if has_sketch else None,
    )


def of_lineax(matrix):
    operator = lineax.MatrixLinearOperator(matrix)
    return sketching.LinearOperator(operator.mv, operator.transpose().mv, matrix.shape)


@functools.partial(jax.jit, static_argnames="method")
def solve_traced(matrix, target, method):
    return sketching.preconditioned(KEY, matrix, target, method=method)


KINDS = {
    "columns": (bcoo_of, "columns"),
    "sketch": (bcoo_of, "sketch"),
    "operator": (operator_of, "auto"),
    "operator of lineax": (of_lineax, "auto"),
    "operator with a sketch": (functools.partial(operator_of, has_sketch=True), "auto"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_as_backward_stable_as_qr(with_x64, kind):
    make, method = KINDS[kind]
    # Columns of an operator without a sketch are not scaled.
    is_unscaled = kind in ("operator", "operator of lineax")
    matrix, target = system(10.0 if is_unscaled else 1e6)
    operator = make(jnp.asarray(matrix))
    result = sketching.preconditioned(KEY, operator, target, method=method)
    assert result.converged
    assert oracles.backward_error(matrix, target, result.solution) < 4e-15
    assert (result.rank is None) == ("sketch" not in kind)


@pytest.mark.parametrize("kind", ["columns", "operator"])
def test_any_units_in_float32(kind):
    """Squares are beyond its range, and so may θ be."""
    make, method = KINDS[kind]
    matrix, target = system()
    best = scipy.linalg.lstsq(matrix, target)[0]

    def solve(unit, size):
        scaled = make((matrix * unit).astype(np.float32))
        return solve_traced(scaled, (target * size).astype(np.float32), method)

    for unit in (1e-24, 1e-12, 1e12, 1e30):
        result = solve(unit, unit)
        np.testing.assert_allclose(result.solution, best, rtol=1e-3)
        assert result.converged
    for unit in (1e-20, 1e20):
        assert not solve(unit, 1 / unit).converged


@functools.partial(jax.jit, static_argnames="has_ridge")
def solve_by_columns(matrix, target, ridge, has_ridge):
    ridge = ridge if has_ridge else 0.0
    return sketching.preconditioned(KEY, matrix, target, method="columns", ridge=ridge)


# Each pair is there on every day.
@pytest.mark.parametrize(
    ("kind", "has_ridge", "x64"),
    [
        ("columns", False, False),
        ("columns", True, True),
        ("operator", False, True),
        ("operator", True, False),
        weekly("columns", False, True),
        weekly("columns", True, False),
        weekly("operator", False, False),
        weekly("operator", True, True),
    ],
    indirect=["x64"],
)
def test_small_residuals_converge(kind, has_ridge, x64):
    """If y - Xθ is small against y, its rounding hides how small its gradient is."""
    make, _ = KINDS[kind]
    random = np.random.default_rng(0)
    noise = np.array([0, 1e-12, 1e-8, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 1])
    noise = np.tile(noise, 3)
    units = np.repeat([1e-20, 1, 1e20], 9)
    dtype = jnp.result_type(float)
    for draw in (random.standard_normal, random.random):
        for ridge in (0.1, 100.0) if has_ridge else (0.0,):
            matrix = draw((2000, 20)).astype(dtype)
            target = matrix.astype(float) @ random.standard_normal((20, len(noise)))
            target += noise * random.standard_normal(target.shape)
            target = (target * units).astype(dtype)
            result = solve_by_columns(make(matrix), target, ridge, has_ridge)
            assert result.converged.all()
            assert result.num_iterations.max() < 150
            rows = np.concatenate([matrix, ridge**0.5 * np.eye(20)]).astype(float)
            right = np.concatenate([target, np.zeros((20, len(noise)))]) / units
            best = np.linalg.lstsq(rows, right, rcond=None)[0]
            actual = np.asarray(result.solution, float) / units
            minimum, norms = (
                np.linalg.norm(part, axis=0) for part in (right - rows @ best, right)
            )
            excess = np.linalg.norm(right - rows @ actual, axis=0) - minimum
            assert np.all(excess <= (1e-9 if x64 else 1e-5) * norms)


# The last limit is the one at which the iterations end by themselves.
@pytest.mark.parametrize(
    "max_iterations",
    [
        20,
        999,
        weekly(5),
        weekly(100),
    ],
)
def test_ill_conditioned_systems_do_not_converge_early(max_iterations, with_x64):
    """The test of small residuals passes no solution that is not backward stable."""
    random = np.random.default_rng(0)
    size = 100
    left = np.linalg.qr(random.standard_normal((NUM_ROWS, size)))[0]
    right = np.linalg.qr(random.standard_normal((size, size)))[0]
    for condition in (10, 1e8):
        matrix = (left * np.geomspace(1, 1 / condition, size)) @ right
        target = left.sum(axis=1) + 1e-6 * random.standard_normal(NUM_ROWS)
        result = sketching.preconditioned(
            KEY,
            bcoo_of(matrix),
            target,
            method="columns",
            max_iterations=max_iterations,
        )
        error = oracles.backward_error(matrix, target, result.solution)
        assert error < 1e-14 or not result.converged
        if max_iterations == 999:
            assert result.converged == (condition < 100)


@pytest.mark.parametrize("method", ["sketch", "columns"])
def test_deficient_entries(with_x64, method):
    """A sketch gives the solution of minimum norm, plain iterations any solution."""
    matrix, target = system()
    matrix = matrix.copy()
    matrix[:, 1] = matrix[:, 0]
    result = sketching.preconditioned(KEY, bcoo_of(matrix), target, method=method)
    expected = scipy.linalg.lstsq(matrix, target)[0]
    minimum = oracles.residual_norm(matrix, target, expected)
    actual = oracles.residual_norm(matrix, target, result.solution)
    assert result.converged
    np.testing.assert_allclose(actual, minimum, rtol=1e-12)
    if method == "sketch":
        np.testing.assert_allclose(result.solution, expected, rtol=1e-9)
        assert result.rank.rank == NUM_COLUMNS - 1


def test_auto_with_a_ridge_tries_columns_first(with_x64):
    """The sketch follows if plain iterations do not converge, or the ridge is lost."""
    random = np.random.default_rng(0)
    size = 12
    rows = random.standard_normal((NUM_ROWS, size))
    # Nearly equal columns in pairs: plain iterations need hundreds of steps.
    hard = rows * np.geomspace(1, 1e-6, size) @ random.standard_normal((size, size))
    twice = np.concatenate([rows[:, :6], rows[:, :6] * 3], axis=1)
    target = rows.sum(axis=1) + 0.1 * random.standard_normal(NUM_ROWS)

    @functools.partial(jax.jit, static_argnums=2)
    def solve(matrix, ridge, method="auto"):
        return sketching.preconditioned(KEY, matrix, target, method=method, ridge=ridge)

    for matrix, ridge, is_sketched in (
        (rows, 1.0, False),
        (twice, 1.0, False),
        (hard, 1e-12, True),
        (twice, 1e-40, True),
        (twice, 0.0, True),
    ):
        sparse_matrix = bcoo_of(matrix)
        result = solve(sparse_matrix, ridge)
        method = "sketch" if is_sketched else "columns"
        same = solve(sparse_matrix, ridge, method)
        assert result.converged
        assert result.num_iterations == same.num_iterations
        norm = np.linalg.norm(same.solution)
        assert np.linalg.norm(result.solution - same.solution) < 1e-6 * norm
        assert result.residual_history.shape == (50,)
        np.testing.assert_allclose(
            result.residual_history[-1], same.residual_history[-1]
        )
        assert result.rank.rank == (6 if matrix is twice and ridge < 1e-3 else size)


def test_derivatives_of_auto_with_a_ridge(with_x64):
    matrix, target = system()

    def total(solve):
        def of_solution(entries, target, ridge):
            return jnp.sum(jnp.sin(solve(entries, target, ridge)))

        return jax.jit(jax.grad(of_solution, argnums=(0, 1, 2)))

    sparse_matrix = bcoo_of(matrix)
    places = tuple(sparse_matrix.indices.T)

    def by_auto(entries, target, ridge):
        rebuilt = sparse.BCOO((entries, sparse_matrix.indices), shape=matrix.shape)
        return sketching.preconditioned(KEY, rebuilt, target, ridge=ridge).solution

    def directly(entries, target, ridge):
        rows = jnp.zeros(matrix.shape).at[places].set(entries)
        gram = rows.T @ rows + ridge * jnp.eye(NUM_COLUMNS)
        return jnp.linalg.solve(gram, rows.T @ target)

    result = total(by_auto)(sparse_matrix.data, target, 1.0)
    expected = total(directly)(sparse_matrix.data, target, 1.0)
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * np.abs(other).max())


def test_wrong_traced_input_is_reported_as_not_converged():
    matrix, target = (part.astype(np.float32) for part in system())
    other = matrix.copy()
    spoilt = matrix.copy()
    other[7, 2] += 0.1
    spoilt[7, 2] = np.nan
    rmatvec = operator_of(other).rmatvec
    for wrong, method in (
        (bcoo_of(spoilt), "columns"),
        (dataclasses.replace(operator_of(matrix), rmatvec=rmatvec), "auto"),
    ):
        result = solve_traced(wrong, target, method)
        assert not result.converged and np.isnan(result.solution).all()


def test_more_columns_than_could_be_factored():
    """One-hot categories have so many; an array of them would take gigabytes."""
    size = 20_000
    row = np.arange(3 * size) % (2 * size)
    random = np.random.default_rng(0)
    entries = np.ones(row.size), (row, random.integers(0, size, row.size))
    sparse_matrix = scipy.sparse.coo_array(entries, shape=(2 * size, size))
    targets = random.standard_normal((2 * size, 3)) * [1, 100, 0]
    result = sketching.preconditioned(KEY, sparse_matrix, targets, ridge=0.1)
    solution = np.asarray(result.solution)
    assert solution.dtype == np.float32 and result.converged.all()
    gradient = sparse_matrix.T @ (targets - sparse_matrix @ solution) - 0.1 * solution
    assert np.all(np.abs(gradient).max(axis=0) <= [2e-3, 0.2, 0])


@pytest.mark.parametrize(("num_columns", "is_sketched"), [(2048, True), (2049, False)])
def test_wide_sparse_matrices_are_not_sketched(num_columns, is_sketched):
    """Without a sketch no rank is found; shapes tell, so that nothing is computed."""
    num_rows = 3 * num_columns
    indices = np.arange(num_columns)[:, None].repeat(2, axis=1)
    shape = num_rows, num_columns
    matrix = sparse.BCOO((np.ones(num_columns, np.float32), indices), shape=shape)
    target = np.ones(num_rows, np.float32)
    result = jax.eval_shape(
        lambda matrix: sketching.preconditioned(KEY, matrix, target, num_columns),
        matrix,
    )
    assert (result.rank is not None) == is_sketched
