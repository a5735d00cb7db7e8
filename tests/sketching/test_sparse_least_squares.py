"""Least squares of BCOO matrices and operators: as of the array, never made."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
import scipy.linalg
from jax.experimental import sparse

from jaxwgc import sketching
from tests.sketching.test_preconditioned import backward_error, conditioned, make_target
from tests.sketching.test_sparse_scores import entries_of, sparse_matrix

NUM_ROWS, NUM_COLUMNS = 300, 12
KEY = jax.random.key(0)


@functools.cache
def system(condition=1e3):
    matrix = sparse_matrix((NUM_ROWS, NUM_COLUMNS), 0.3)
    random = np.random.default_rng(1)
    matrix *= np.geomspace(1, 1 / condition, NUM_COLUMNS)
    # Not by the units of columns alone.
    matrix[:, 3] += matrix[:, 4]
    return matrix, (matrix / np.abs(matrix).max(axis=0)).sum(axis=1) + 0.1 * (
        random.standard_normal(NUM_ROWS)
    )


def times(matrix, vector):
    return matrix @ vector


def transposed_times(matrix, vector):
    return vector @ matrix


def operator_of(matrix, has_sketch=False):
    return sketching.LinearOperator(
        jax.tree_util.Partial(times, matrix),
        jax.tree_util.Partial(transposed_times, matrix),
        matrix.shape,
        sketch=(lambda embedding: embedding @ matrix) if has_sketch else None,
    )


KINDS = {
    "sketch of entries": (entries_of, "sketch"),
    "columns": (entries_of, "columns"),
    "operator": (operator_of, "auto"),
    "operator with a sketch": (functools.partial(operator_of, has_sketch=True), "auto"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_as_backward_stable_as_qr(with_x64, kind):
    make, method = KINDS[kind]
    # Of an operator the units of columns are not mended.
    matrix, target = system(1e1 if kind == "operator" else 1e6)
    result = sketching.preconditioned(
        KEY,
        make(jnp.asarray(matrix)) if "op" in kind else make(matrix),
        target,
        method=method,
    )
    assert result.converged
    assert backward_error(matrix, target, result.solution) < 4e-15
    assert (result.rank is None) == (kind in ("columns", "operator"))


@pytest.mark.parametrize("kind", ["sketch of entries", "columns"])
def test_ridge_and_several_targets_in_float32(kind):
    make, method = KINDS[kind]
    matrix, target = (part.astype(np.float32) for part in system(10.0))
    targets = np.stack([target, target**2, 0 * target], axis=1)
    result = sketching.preconditioned(
        KEY, make(matrix), targets, method=method, ridge=0.5
    )
    matrix, targets = matrix.astype(float), targets.astype(float)
    normal = matrix.T @ matrix + 0.5 * np.eye(NUM_COLUMNS)
    expected = np.linalg.solve(normal, matrix.T @ targets)
    np.testing.assert_allclose(result.solution, expected, atol=2e-5)
    assert result.solution.dtype == np.float32 and result.converged.all()
    np.testing.assert_array_equal(result.solution[:, 2], 0)


@pytest.mark.parametrize("kind", ["columns", "operator"])
def test_any_units_in_float32(kind):
    """Squares are beyond its range, and so may θ be."""
    make, method = KINDS[kind]
    matrix, target = system(10.0)
    best = scipy.linalg.lstsq(matrix, target)[0]

    def solve(unit, size):
        scaled = make(jnp.asarray(matrix * unit, jnp.float32))
        scaled_target = (target * size).astype(np.float32)
        return sketching.preconditioned(KEY, scaled, scaled_target, method=method)

    for unit in (1e-24, 1e-12, 1e12, 1e30):
        result = solve(unit, unit)
        np.testing.assert_allclose(result.solution, best, rtol=1e-3)
        assert result.converged
    for unit in (1e-20, 1e20):
        assert not solve(unit, 1 / unit).converged


def test_least_norm_of_entries(with_x64):
    matrix, target = system(10.0)
    matrix = matrix.copy()
    matrix[:, 1] = matrix[:, 0]
    result = sketching.preconditioned(KEY, entries_of(matrix), target, method="sketch")
    expected = scipy.linalg.lstsq(matrix, target)[0]
    np.testing.assert_allclose(result.solution, expected, rtol=1e-9)
    assert result.rank.rank == NUM_COLUMNS - 1 and result.converged
    # Plain iterations give some solution.
    result = sketching.preconditioned(KEY, entries_of(matrix), target, method="columns")
    assert result.converged
    residual = target - matrix @ result.solution
    np.testing.assert_allclose(
        np.linalg.norm(residual), np.linalg.norm(target - matrix @ expected), rtol=1e-12
    )


def test_what_is_wrong_in_traced_input():
    matrix, target = (jnp.asarray(part, jnp.float32) for part in system(10.0))
    given = entries_of(np.asarray(matrix))

    @jax.jit
    def solve(matrix):
        return sketching.preconditioned(KEY, matrix, target, method="columns")

    data = np.array(given.data)
    data[5] = np.nan
    result = solve(sparse.BCOO((data, given.indices), shape=given.shape))
    assert not result.converged and np.isnan(result.solution).all()
    operator = operator_of(matrix)
    assert solve(operator).converged
    other = operator_of(matrix.at[7, 2].add(0.1))
    result = solve(dataclasses.replace(operator, rmatvec=other.rmatvec))
    assert not result.converged and np.isnan(result.solution).all()


def test_more_columns_than_could_be_factored():
    """As one-hot categories have: an array of this would take gigabytes."""
    size = 20_000
    row = np.arange(3 * size) % (2 * size)
    random = np.random.default_rng(0)
    indices = np.stack([row, random.integers(0, size, row.size)], axis=1)
    given = sparse.BCOO(
        (jnp.ones(row.size), jnp.asarray(indices)), shape=(2 * size, size)
    )
    target = jnp.asarray(random.standard_normal(2 * size), jnp.float32)
    result = sketching.preconditioned(KEY, given, target, ridge=0.1)
    residual = target - given @ result.solution
    gradient = residual @ given - 0.1 * result.solution
    assert result.converged and jnp.abs(gradient).max() < 2e-3


def test_an_operator_of_lineax(with_x64):
    matrix, target = system(10.0)
    own = lineax.MatrixLinearOperator(jnp.asarray(matrix))
    operator = sketching.LinearOperator(own.mv, own.transpose().mv, matrix.shape)
    result = sketching.preconditioned(KEY, operator, target)
    expected = scipy.linalg.lstsq(matrix, target)[0]
    np.testing.assert_allclose(result.solution, expected, rtol=1e-9)


def test_at_the_limits_of_the_precision(with_x64):
    """A gradient with the rounding of a large residual must not be blown up by P."""
    matrix = conditioned(1e12, (NUM_ROWS, NUM_COLUMNS))
    target = make_target(matrix, 1.0)
    best = scipy.linalg.lstsq(matrix, target)[0]
    least = np.linalg.norm(matrix @ best - target)
    given = sparse.BCOO.fromdense(jnp.asarray(matrix))
    for seed in range(5):
        key = jax.random.key(seed)
        result = sketching.preconditioned(key, given, target, method="sketch")
        residual = matrix @ np.asarray(result.solution) - target
        assert np.linalg.norm(residual) < (1 + 1e-3) * least
