"""Preconditioned least squares against SciPy in float64, in easy and in hard cases."""

import functools
import itertools

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, row_sampling
from tests import oracles
from tests.oracles import residual_norm
from tests.sketching import zoo
from tests.sketching.solvers import (
    NUM_COLUMNS,
    NUM_ROWS,
    assert_no_warning_of_hidden_rows,
    deficient_cases,
    solve,
    solve_traced,
)
from tests.sketching.zoo import KEY

METHODS = ["gram", "sketch", "factor"]


conditioned = functools.partial(zoo.conditioned, shape=(NUM_ROWS, NUM_COLUMNS))
# A Gaussian sketch compiles faster than the default.
preconditioned = functools.partial(sketching.preconditioned, embedding=gaussian)


def make_target(matrix, noise, seed=1):
    random = np.random.default_rng(seed)
    exact = matrix @ random.standard_normal(matrix.shape[1])
    return exact + noise * random.standard_normal(matrix.shape[0])


@pytest.mark.parametrize("method", METHODS)
def test_is_as_backward_stable_as_qr(with_x64, method):
    """Conditions and sizes of the residual vary over many orders of magnitude."""
    conditions = (1e0, 1e3, 1e6, 1e9, 1e12)
    sizes = (1e-12, 1e-6, 1e-3, 1.0)
    noise = np.random.default_rng(1).standard_normal(NUM_ROWS)
    for condition, size in itertools.product(conditions, sizes):
        matrix = conditioned(condition)
        target = make_target(matrix, 0)
        target += size * np.linalg.norm(target) / np.linalg.norm(noise) * noise
        result = solve_traced(method, KEY, matrix, target)
        error = oracles.backward_error(matrix, target, result.solution)
        assert result.converged, (condition, size)
        assert error < 10 * np.finfo(float).eps, (condition, size)


def gradient_norm(matrix, target, solution):
    """‖Xᵀ(y - Xθ)‖ in extended precision."""
    missed = oracles.residual(matrix, target, solution)
    return float(np.linalg.norm((missed @ matrix.astype(np.longdouble)).astype(float)))


@pytest.mark.parametrize("method", METHODS)
def test_normal_equations_hold_as_after_qr(with_x64, method):
    """Rounding of Xᵀr dominates θ: its norm is that of QR, in the median of problems.

    Measured: at most 1.1 times. With products that add rows in order, with directions
    from an updated residual or without damped steps, it is 4 to 50 times.
    """
    ratios = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        noise = random.standard_normal(NUM_ROWS)
        matrix = conditioned(1e10, seed=seed)
        basis, upper = np.linalg.qr(matrix)
        noise -= basis @ (basis.T @ noise)
        target = make_target(matrix, 0) + 0.1 * noise / np.linalg.norm(noise)
        by_qr = scipy.linalg.solve_triangular(upper, basis.T @ target)
        result = solve_traced(method, jax.random.key(seed), matrix, target)
        reached = gradient_norm(matrix, target, result.solution)
        ratios.append(reached / gradient_norm(matrix, target, by_qr))
    assert np.median(ratios) < 10


def stacked(solutions):
    """Several solutions as one of NumPy arrays."""
    return jax.tree.map(lambda *fields: np.stack(fields), *solutions)


def truncated_residual(matrix, target, rcond):
    """The residual of the solution by singular values above a cut-off, scaled columns.

    What the left vectors miss is less accurate: they are off by the unit roundoff times
    the condition, the residual of their solution by the square of that.
    """
    matrix = matrix.astype(float)
    target = target.astype(float)
    norms = np.linalg.norm(matrix, axis=0)
    units = 2.0 ** np.round(np.log2(np.where(norms > 0, norms, 1)))
    left, values, right = np.linalg.svd(matrix / units, full_matrices=False)
    is_kept = values > rcond * values[0]
    parts = (left.T @ target)[is_kept] / values[is_kept]
    return residual_norm(matrix, target, parts @ right[is_kept] / units)


@functools.cache
def hard_cases():
    """Conditions, scales, zeros, duplicates, outliers x targets in and out of range."""
    random = np.random.default_rng(4)
    gaussian = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    outlier = conditioned(1e4)
    outlier[3] *= 1e4
    coherent = 1e-3 * gaussian
    coherent[::25] += np.eye(NUM_COLUMNS)
    matrices = [conditioned(10.0**power, seed=power) for power in range(13)]
    deficient = [case for case in deficient_cases().values() if len(case) == NUM_ROWS]
    matrices += [*deficient, outlier, coherent]
    matrices += [unit * conditioned(10) for unit in (1e30, 1e-30, 1e-35)]
    noise = random.standard_normal(NUM_ROWS) / NUM_ROWS**0.5
    pairs = []
    for matrix in matrices:
        exact = matrix @ random.standard_normal(NUM_COLUMNS)
        size = np.linalg.norm(exact)
        weakest = np.linalg.svd(matrix, full_matrices=False)[0][:, -1]
        pairs += [(matrix, exact), (matrix, exact + size * noise)]
        pairs += [(matrix, exact + 1e-2 * size * noise)]
        pairs += [(matrix, size * (weakest + 0.1 * noise))]
    # In float32 the last direction is cut off; but the shortest θ, in units of columns
    # of which every third is twice the others, has more of it than of the one before.
    basis = np.linalg.qr(gaussian)[0]
    turn = np.array([[0, 0, 1], [0.5**0.5, 0.5**0.5, 0], [0.5**0.5, -(0.5**0.5), 0]])
    right = np.kron(scipy.linalg.hadamard(4) / 2, turn) * np.tile([1, 2, 1], 4)
    matrix = basis * np.append(np.ones(NUM_COLUMNS - 2), [7e-6, 7e-7]) @ right
    pairs += [(matrix, basis[:, [0, -2, -1]] @ [1, part, 1]) for part in (-0.02, 0.02)]
    return tuple(np.stack(arrays) for arrays in zip(*pairs))


@pytest.mark.parametrize(
    ("options", "min_converged", "x64"),
    [
        *(
            ({"method": method}, 0.85, x64)
            for method in METHODS
            for x64 in (False, True)
        ),
        # A square Gaussian matrix, nearly: its condition multiplies what rounding does.
        ({"sketch_size": 13}, 0.7, True),
        ({"sketch_size": 12, "embedding": row_sampling}, 0.4, False),
    ],
)
def test_never_converged_with_a_wrong_answer(x64, options, min_converged):
    """The residual is what is promised, and what is right is mostly said to be so."""
    dtype = np.float64 if x64 else np.float32
    matrices, targets = (array.astype(dtype) for array in hard_cases())
    cases = zip(map(jax.random.key, range(len(targets))), matrices, targets)
    with jax.enable_x64(x64):
        if "method" in options:
            solver = solve_traced if x64 else solve
            solve_case = functools.partial(solver, options["method"])
        else:
            by_sketch = functools.partial(preconditioned, method="sketch", **options)
            solve_case = jax.jit(by_sketch)
        result = stacked([solve_case(*case) for case in cases])
    rcond = (4 + NUM_COLUMNS**0.5) * float(np.finfo(dtype).eps)
    # Lengths in so small a sketch are off by a factor.
    tolerance = (1e-8 if x64 else 1e-4) * (2 if "sketch_size" in options else 1)
    # By rounding, and in sketches, what is next to the cut-off mixes with the rest.
    cases = zip(matrices, targets, result.solution)
    actual = np.array([residual_norm(*case) for case in cases])
    cases = zip(matrices, targets)
    best = np.array([truncated_residual(*case, 4 * rcond) for case in cases])
    is_right = actual - best <= tolerance * np.linalg.norm(
        targets.astype(float), axis=1
    )
    assert is_right[result.converged].all(), np.flatnonzero(~is_right)
    assert np.mean(result.converged[is_right]) >= min_converged


@pytest.mark.parametrize("method", METHODS)
def test_float32_at_the_limit_of_its_precision(method):
    """At a condition of 1e6, SciPy in float32 gives up no direction either."""
    matrix = conditioned(1e6).astype(np.float32)
    # With more noise θ is so large that rounding of Xθ could hide more than is said.
    for noise in (0.0, 1e-3):
        target = make_target(matrix, noise).astype(np.float32)
        expected = scipy.linalg.lstsq(matrix.astype(float), target.astype(float))[0]
        result = solve(method, KEY, matrix, target)
        minimum = residual_norm(matrix, target, expected)
        error = residual_norm(matrix, target, result.solution) - minimum
        assert result.converged
        assert error < 5e-4 * minimum + 5e-6 * np.linalg.norm(target)


def test_equal_columns_of_many_rows_in_float32():
    """Rounding of long sums is not taken for a direction of X."""
    matrix = np.full((500_000, 2), 1.1, np.float32)
    target = 2.2 + np.random.default_rng(5).standard_normal(500_000)
    result = sketching.preconditioned(KEY, matrix, target.astype(np.float32))
    assert result.converged
    np.testing.assert_allclose(result.solution, [target.mean() / 2.2] * 2, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_least_norm_of_columns_in_all_units(with_x64, method):
    """Small ones first, which depend on large ones."""
    half = conditioned(1e2, shape=(NUM_ROWS, NUM_COLUMNS // 2))
    target = make_target(half, 0.1)
    rank = half.shape[1]
    mixture = np.random.default_rng(5).standard_normal((rank, rank))
    small = np.logspace(-6, -1, rank)
    large = np.logspace(0, 6, rank)
    matrix = np.hstack([half @ mixture * small, half * large])
    # As A [M, I] diag(d) with small M diag(d).
    ratio = mixture * small / large[:, None]
    best = scipy.linalg.lstsq(half, target)[0] / large
    best = np.linalg.solve(np.eye(rank) + ratio @ ratio.T, best)
    result = solve_traced(method, KEY, matrix, target)
    expected = np.concatenate([ratio.T @ best, best])
    np.testing.assert_allclose(result.solution, expected, rtol=1e-9)


# For the wide matrix, "gram" does the same as "factor".
@pytest.mark.parametrize("shape", [(NUM_ROWS, NUM_COLUMNS), (7, 20)])
def test_ridge_is_the_closed_form(with_x64, shape):
    matrix = conditioned(1e3, shape=shape)
    target = make_target(matrix, 0.1)
    ridge = 1e-3
    by_gram = functools.partial(preconditioned, KEY, method="gram", ridge=ridge)
    result = by_gram(matrix, target)
    assert_no_warning_of_hidden_rows(by_gram, matrix, target)
    expected = oracles.ridge_solution(matrix, target, ridge)
    np.testing.assert_allclose(result.solution, expected, rtol=1e-9, atol=1e-12)
    assert result.converged
    minimum = residual_norm(matrix, target, expected) ** 2 + ridge * np.sum(expected**2)
    np.testing.assert_allclose(result.residual_history[-1] ** 2, minimum, rtol=1e-10)


def test_a_traced_ridge_that_is_negative_gives_nan(with_x64):
    matrix = conditioned(10.0)

    @jax.jit
    def solve_with(ridge):
        return preconditioned(KEY, matrix, matrix[:, 0], method="factor", ridge=ridge)

    result = solve_with(-1.0)
    assert np.isnan(result.solution).all()
    assert not result.converged


@pytest.mark.parametrize("method", METHODS)
def test_history_falls_to_the_residual_and_stays(with_x64, method):
    matrix = conditioned(1e5)
    target = make_target(matrix, 0.1)
    result = solve_traced(method, KEY, matrix, target)
    history = np.asarray(result.residual_history)
    assert history.shape == (50,)
    np.testing.assert_allclose(history[0], np.linalg.norm(target), rtol=1e-14)
    # Where θ is long, rounding of Xθ is all that the last steps change.
    rounding = np.finfo(float).eps * np.linalg.norm(matrix)
    assert np.diff(history).max() <= 10 * rounding * np.linalg.norm(result.solution)
    last = int(result.num_iterations)
    assert np.all(history[last:] == history[last])
    residual = residual_norm(matrix, target, result.solution)
    np.testing.assert_allclose(history[-1], residual, rtol=1e-12)


def test_converges_at_the_rate_of_the_sketch(with_x64):
    matrix = conditioned(1e4)
    target = make_target(matrix, 0.0)
    # By default, a sketch has eight rows for each column.
    ratio = 1 / 8
    result = solve_traced("sketch", KEY, matrix, target)
    history = np.asarray(result.residual_history)
    rates = (history[8] / history[0]) ** (1 / 8)
    # The bound of conjugate gradients on the spectrum of a Gaussian sketch, and not by
    # far better than it.
    assert 0.4 * ratio**0.5 < rates < 1.3 * ratio**0.5


def test_too_few_iterations_are_reported_as_not_converged(with_x64):
    matrix = conditioned(1e3)
    target = make_target(matrix, 0.1)
    with_at_most = functools.partial(preconditioned, KEY, matrix, target)
    result = with_at_most(method="sketch", max_iterations=3)
    assert not result.converged and result.num_iterations == 3
    assert result.residual_history.shape == (4,)
    result = jax.eval_shape(lambda: with_at_most(max_iterations=0))
    assert result.residual_history.shape == (1,)


def test_one_row_and_one_column(with_x64):
    np.testing.assert_allclose(preconditioned(KEY, [[2]], [3]).solution, [1.5])


# What others have reported of other libraries, run as it was reported.


def test_corners_of_an_image_in_perspective():
    """JAX 11433: Σ|Ax - b| of 562 in float32, where NumPy's float64 has 0.0005."""
    here = np.array([[122, 1141], [686, 1209], [626, 2], [23, 339]])
    there = np.array([[0, 1279], [719, 1279], [719, 0], [0, 0]])
    rows = []
    for (x, y), (u, v) in zip(here, there):
        rows.append([x, y, 1, 0, 0, 0, -x * u, -y * u])
        rows.append([0, 0, 0, x, y, 1, -x * v, -y * v])
    matrix = np.array(rows, np.float32)
    target = there.ravel().astype(np.float32)
    result = sketching.preconditioned(KEY, matrix, target)
    error = np.abs(matrix.astype(float) @ np.asarray(result.solution, float) - target)
    assert result.converged and error.sum() < 0.02
    exact = np.linalg.solve(matrix.astype(float), target)
    np.testing.assert_allclose(result.solution, exact, rtol=1e-3)


def test_the_cutoff_does_not_grow_with_rows():
    """scikit-learn 33032: with max(N, p) eps one of two columns counts as rounding."""
    random = np.random.RandomState(1137)
    first = random.rand(500_000)
    matrix = np.stack([first, 0.3 * first + 0.1 * random.rand(len(first))], axis=1)
    target = matrix @ [0.5, 2.0] + 0.1 * random.rand(len(first))
    matrix = matrix.astype(np.float32)
    target = target.astype(np.float32)
    expected = scipy.linalg.lstsq(matrix.astype(float), target.astype(float))[0]
    minimum = residual_norm(matrix, target, expected)
    result = sketching.preconditioned(KEY, matrix, target)
    assert result.converged and result.rank.rank == 2
    # As in scikit-learn's own test.
    actual = residual_norm(matrix, target, result.solution)
    assert actual == pytest.approx(minimum, rel=1e-6)
