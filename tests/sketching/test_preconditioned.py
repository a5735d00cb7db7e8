"""Preconditioned least squares against SciPy in float64, in easy and in hard cases."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxwgc.sketching import count_sketch, gaussian, row_sampling, sparse_sign
from jaxwgc.sketching._solvers import _preconditioned

METHODS = ["gram", "sketch", "factor"]

# One shape for most cases, so that they share compiled functions.
NUM_ROWS, NUM_COLUMNS = 300, 12
KEY = jax.random.key(0)


# A Gaussian sketch compiles faster than the default.
preconditioned = functools.partial(_preconditioned.preconditioned, embedding=gaussian)


def solve(
    key,
    matrix,
    target,
    sketch_size=None,
    embedding=gaussian,
    method="auto",
    max_iterations=49,
):
    """`preconditioned`, compiled once for all tests of equal shapes and options."""
    return compiled(key, matrix, target, sketch_size, embedding, method, max_iterations)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def compiled(key, matrix, target, sketch_size, embedding, method, max_iterations):
    return _preconditioned.preconditioned(
        key,
        matrix,
        target,
        sketch_size,
        embedding,
        method=method,
        max_iterations=max_iterations,
    )


def conditioned(condition, shape=(NUM_ROWS, NUM_COLUMNS), seed=0):
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.standard_normal(shape))[0]
    rotation = np.linalg.qr(random.standard_normal((shape[1],) * 2))[0]
    return (basis * np.logspace(0, -np.log10(condition), shape[1])) @ rotation


def make_target(matrix, noise, seed=1):
    random = np.random.default_rng(seed)
    exact = matrix @ random.standard_normal(matrix.shape[1])
    return exact + noise * random.standard_normal(matrix.shape[0])


@functools.cache
def deficient_cases():
    random = np.random.default_rng(2)
    gaussian = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    half = gaussian[:, : NUM_COLUMNS // 2]
    zero_columns = gaussian.copy()
    zero_columns[:, [0, 5]] = 0
    return {
        "duplicated columns": np.hstack([half, half]),
        "duplicates in other units": np.hstack([half, -1e3 * half]),
        "low-rank product": gaussian[:, :4] @ random.standard_normal((4, NUM_COLUMNS)),
        "zero columns": zero_columns,
        "zero matrix": 0 * gaussian,
    }


def residual(matrix, target, solution):
    """Large solutions cancel, so that products in float64 would add what they lose."""
    arrays = (np.asarray(array, np.longdouble) for array in (matrix, target, solution))
    matrix, target, solution = arrays
    return float(np.sqrt(np.sum((target - matrix @ solution) ** 2)))


def backward_error(matrix, target, solution):
    """Karlson and Waldén's estimate for changes of X, as a share of its norm."""
    _, values, right = np.linalg.svd(matrix, full_matrices=False)
    arrays = (np.asarray(array, np.longdouble) for array in (matrix, target, solution))
    matrix, target, solution = arrays
    residual = target - matrix @ solution
    gradient = right @ np.asarray(residual @ matrix, float)
    weight = values**2 * float(solution @ solution) + float(residual @ residual)
    return np.linalg.norm(gradient / np.sqrt(weight)) / np.linalg.norm(values)


@pytest.mark.parametrize("method", METHODS)
def test_is_as_backward_stable_as_qr(with_x64, method):
    """At every condition and size of the residual."""
    conditions = (1e0, 1e3, 1e6, 1e9, 1e12)
    sizes = (1e-12, 1e-6, 1e-3, 1.0)
    for condition, size in itertools.product(conditions, sizes):
        matrix = conditioned(condition)
        noise = np.random.default_rng(1).standard_normal(NUM_ROWS)
        target = make_target(matrix, 0)
        target += size * np.linalg.norm(target) / np.linalg.norm(noise) * noise
        found = solve(KEY, matrix, target, method=method)
        error = backward_error(matrix, target, found.solution)
        assert found.converged, (condition, size)
        assert error < 10 * np.finfo(float).eps, (condition, size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e6, 1e8, 1e11])
def test_residual_is_that_of_scipy(with_x64, method, condition):
    matrix = conditioned(condition)
    target = make_target(matrix, 1e-2)
    found = solve(KEY, matrix, target, method=method)
    expected = residual(matrix, target, scipy.linalg.lstsq(matrix, target)[0])
    assert found.converged and found.num_iterations < 50
    # Nothing is smaller than the optimum, up to rounding.
    error = residual(matrix, target, found.solution) / expected - 1
    assert abs(error) < max(1e-10, (1e-15 * condition) ** 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condition", [1e1, 1e6, 1e10])
def test_backward_stable_where_the_residual_is_zero(with_x64, method, condition):
    matrix = conditioned(condition)
    target = make_target(matrix, 0)
    found = solve(KEY, matrix, target, method=method)
    assert found.converged
    # ‖X‖ is 1.
    bound = 100 * np.finfo(float).eps * np.linalg.norm(found.solution)
    assert residual(matrix, target, found.solution) < bound


@pytest.mark.parametrize("condition", [1e1, 1e3])
@pytest.mark.parametrize(
    # What "factor" does is a part of what "sketch" does.
    ("x64", "method"),
    [*((False, method) for method in METHODS), (True, "gram"), (True, "sketch")],
)
def test_float32_with_either_mode(x64, method, condition):
    matrix = conditioned(condition).astype(np.float32)
    target = make_target(matrix, 1e-2).astype(np.float32)
    with jax.enable_x64(x64):
        found = solve(KEY, matrix, target, method=method)
    expected, *_ = scipy.linalg.lstsq(matrix.astype(float), target.astype(float))
    assert found.solution.dtype == jnp.float32 and found.converged
    error = np.linalg.norm(np.asarray(found.solution) - expected)
    assert error < 1e-6 * condition * np.linalg.norm(expected)
    assert residual(matrix, target, found.solution) <= (1 + 1e-5) * residual(
        matrix, target, expected
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(deficient_cases()))
def test_least_norm_where_rank_deficient(with_x64, method, name):
    matrix = deficient_cases()[name]
    target = make_target(np.ones_like(matrix), 1.0)
    found = solve(KEY, matrix, target, method=method)
    expected = scipy.linalg.lstsq(matrix, target, cond=1e-12)[0]
    assert found.converged
    size = max(np.linalg.norm(expected), 1e-30)
    error = np.linalg.norm(np.asarray(found.solution) - expected)
    assert error < 1e-11 * size + 1e-30


@pytest.mark.parametrize("rank", [7, 3])
def test_least_norm_of_a_wide_system(with_x64, rank):
    random = np.random.default_rng(3)
    matrix = random.standard_normal((7, rank)) @ random.standard_normal((rank, 20))
    target = random.standard_normal(7)
    expected = scipy.linalg.lstsq(matrix, target, cond=1e-12)[0]
    found = preconditioned(KEY, matrix, target)
    np.testing.assert_allclose(found.solution, expected, rtol=1e-11, atol=1e-13)
    assert found.converged


def stacked(solutions):
    """Several solutions as one of NumPy arrays."""
    return jax.tree.map(lambda *fields: np.stack(fields), *solutions)


class Truncated:
    """Least squares in float64 without what is below a cut-off, in scaled columns."""

    def __init__(self, matrix, target):
        self.matrix, self.target = matrix.astype(float), target.astype(float)
        norms = np.linalg.norm(self.matrix, axis=0)
        self.units = 2.0 ** np.round(np.log2(np.where(norms > 0, norms, 1)))
        left, self.values, self.right = np.linalg.svd(
            self.matrix / self.units, full_matrices=False
        )
        self.coordinates = left.T @ self.target

    def residual(self, rcond):
        """What the solution leaves: what the left vectors miss is less accurate.

        They are off by the unit roundoff times the condition, which differs from
        processor to processor; the residual of their solution by the square of that.
        """
        is_kept = self.values > rcond * self.values[0]
        parts = self.coordinates[is_kept] / self.values[is_kept]
        solution = parts @ self.right[is_kept] / self.units
        return residual(self.matrix, self.target, solution)


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
    matrices += [*deficient_cases().values(), outlier, coherent]
    matrices += [1e30 * conditioned(10), 1e-30 * conditioned(10)]
    noise = random.standard_normal(NUM_ROWS) / NUM_ROWS**0.5
    pairs = []
    for matrix in matrices:
        exact = matrix @ random.standard_normal(NUM_COLUMNS)
        size = np.linalg.norm(exact)
        weakest = np.linalg.svd(matrix, full_matrices=False)[0][:, -1]
        pairs += [(matrix, exact), (matrix, exact + size * noise)]
        pairs += [(matrix, exact + 1e-2 * size * noise)]
        pairs += [(matrix, size * (weakest + 0.1 * noise))]
    return tuple(np.stack(arrays) for arrays in zip(*pairs))


@pytest.mark.parametrize(
    "options, least",
    [
        ({"method": "gram"}, 0.85),
        ({"method": "factor"}, 0.85),
        ({"method": "sketch"}, 0.85),
        # A square Gaussian matrix, nearly: its condition multiplies what rounding does.
        ({"method": "sketch", "sketch_size": 13}, 0.7),
        ({"method": "sketch", "sketch_size": 12, "embedding": row_sampling}, 0.4),
        ({"method": "sketch", "sketch_size": 24, "embedding": count_sketch}, 0.8),
    ],
)
def test_never_converged_with_a_wrong_answer(x64, options, least):
    """The residual is what is promised, and what is right is mostly said to be so."""
    dtype = np.float64 if x64 else np.float32
    matrices, targets = (array.astype(dtype) for array in hard_cases())
    cases = zip(map(jax.random.key, range(len(targets))), matrices, targets)
    found = stacked([solve(*case, **options) for case in cases])
    rcond = (4 + NUM_COLUMNS**0.5) * float(np.finfo(dtype).eps)
    # Lengths in so small a sketch are off by a factor.
    most = (1e-8 if x64 else 1e-4) * (2 if "sketch_size" in options else 1)
    assert np.mean(found.converged) >= least
    for case in np.flatnonzero(found.converged):
        solution = found.solution[case]
        assert np.isfinite(solution).all()
        # By rounding, and in sketches, what is next to the cut-off mixes with the rest.
        promised = Truncated(matrices[case], targets[case]).residual(4 * rcond)
        size = np.linalg.norm(targets[case].astype(float))
        excess = residual(matrices[case], targets[case], solution) - promised
        assert excess <= most * size, case


@pytest.mark.parametrize("method", METHODS)
def test_float32_at_the_limit_of_its_precision(method):
    """As SciPy in float32: at a condition of 1e6 no direction is given up."""
    matrix = conditioned(1e6).astype(np.float32)
    # With more noise θ is so large that rounding of Xθ could hide more than is said.
    for noise in (0.0, 1e-3):
        target = make_target(matrix, noise).astype(np.float32)
        expected = scipy.linalg.lstsq(matrix.astype(float), target.astype(float))[0]
        found = solve(KEY, matrix, target, method=method)
        least = residual(matrix, target, expected)
        error = residual(matrix, target, found.solution) - least
        assert found.converged
        assert error < 5e-4 * least + 5e-6 * np.linalg.norm(target)


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_in_other_units_in_float32(method):
    """The shortest solution is as near to the target as any."""
    matrix = deficient_cases()["duplicates in other units"].astype(np.float32)
    target = make_target(matrix, 0).astype(np.float32)
    found = solve(KEY, matrix, target, method=method)
    assert found.converged
    error = residual(matrix, target, found.solution)
    assert error < 20 * np.finfo(np.float32).eps * np.linalg.norm(target)


@pytest.mark.parametrize("method", METHODS)
def test_equal_columns_of_many_rows_in_float32(method):
    """Rounding of long sums is not taken for a direction of X."""
    matrix = np.full((200_000, 2), 1.1, np.float32)
    target = 2.2 + np.random.default_rng(5).standard_normal(200_000)
    found = solve(
        KEY, matrix, target.astype(np.float32), method=method, embedding=sparse_sign
    )
    assert found.converged
    np.testing.assert_allclose(found.solution, [target.mean() / 2.2] * 2, rtol=1e-5)


def test_units_of_columns_do_not_matter(with_x64):
    matrix = conditioned(1e2)
    target = make_target(matrix, 0.1)
    units = np.logspace(-40, 40, NUM_COLUMNS)
    expected = scipy.linalg.lstsq(matrix, target)[0]
    for method in METHODS:
        found = solve(KEY, matrix * units, target, method=method)
        np.testing.assert_allclose(found.solution * units, expected, rtol=1e-9)
        assert found.converged


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_overflow_in_float32(method, scale):
    matrix = conditioned(10).astype(np.float32)
    target = make_target(matrix, 0.1).astype(np.float32)
    expected = scipy.linalg.lstsq(matrix, target)[0]
    scale = np.float32(scale)
    found = solve(KEY, matrix * scale, target * scale, method=method)
    np.testing.assert_allclose(found.solution, expected, rtol=1e-4, atol=1e-5)
    assert found.converged
    np.testing.assert_allclose(
        found.residual_history[-1] / scale,
        residual(matrix, target, expected),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    # Of a wide matrix, "gram" does what "factor" does.
    ("method", "shape"),
    [
        *((method, (NUM_ROWS, NUM_COLUMNS)) for method in METHODS),
        ("gram", (7, 20)),
        ("sketch", (7, 20)),
    ],
)
def test_ridge_is_the_closed_form(with_x64, method, shape):
    matrix = conditioned(1e3, (300, 20))[: shape[0], : shape[1]]
    target = make_target(matrix, 0.1)
    ridge = 1e-3
    found = jax.jit(
        lambda ridge: preconditioned(
            KEY, matrix, target, 8 * shape[1], method=method, ridge=ridge
        )
    )(ridge)
    normal = matrix.T @ matrix + ridge * np.eye(shape[1])
    expected = np.linalg.solve(normal, matrix.T @ target)
    np.testing.assert_allclose(found.solution, expected, rtol=1e-9, atol=1e-12)
    assert found.converged
    minimum = residual(matrix, target, expected) ** 2 + ridge * np.sum(expected**2)
    np.testing.assert_allclose(found.residual_history[-1] ** 2, minimum, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_history_falls_to_the_residual_and_stays(with_x64, method):
    matrix = conditioned(1e5)
    target = make_target(matrix, 0.1)
    found = solve(KEY, matrix, target, method=method)
    history = np.asarray(found.residual_history)
    assert history.shape == (50,)
    np.testing.assert_allclose(history[0], np.linalg.norm(target), rtol=1e-14)
    assert np.all(np.diff(history) <= 1e-13 * history[0])
    last = int(found.num_iterations)
    assert np.all(history[last:] == history[last])
    np.testing.assert_allclose(
        history[-1], residual(matrix, target, found.solution), rtol=1e-12
    )


def test_converges_at_the_rate_of_the_sketch(with_x64):
    matrix = conditioned(1e4)
    target = make_target(matrix, 0.0)
    # By default, a sketch has eight rows for each column.
    ratio = 1 / 8
    found = solve(KEY, matrix, target, method="sketch")
    history = np.asarray(found.residual_history)
    rates = (history[8] / history[0]) ** (1 / 8)
    # The bound of conjugate gradients on the spectrum of a Gaussian sketch, and not by
    # far better than it.
    assert 0.4 * ratio**0.5 < rates < 1.3 * ratio**0.5


def test_many_targets_are_as_one_after_the_other(with_x64):
    matrix = conditioned(1e3)
    targets = np.stack([make_target(matrix, 0.1, seed) for seed in range(3)], axis=1)
    targets[:, 1] *= 1e6
    targets[:, 2] = 0
    found = solve(KEY, matrix, targets)
    assert found.solution.shape == (NUM_COLUMNS, 3)
    assert found.residual_history.shape == (50, 3)
    assert found.converged.shape == found.num_iterations.shape == (3,)
    mapped = jax.vmap(functools.partial(solve, KEY, matrix), in_axes=1)(targets)
    for i in range(3):
        alone = solve(KEY, matrix, targets[:, i], method="gram").solution
        np.testing.assert_allclose(found.solution[:, i], alone, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(mapped.solution[i], alone, rtol=1e-10, atol=1e-14)
        assert found.converged[i] and mapped.converged[i]


def test_takes_an_embedding_and_raw_keys(with_x64):
    matrix = conditioned(1e3)
    target = make_target(matrix, 0.1)
    expected = scipy.linalg.lstsq(matrix, target)[0]

    @jax.jit
    def with_an_object(key):
        embedding = sparse_sign(key, 96, NUM_ROWS)
        return preconditioned(
            key, matrix, target, 96, embedding=embedding, method="sketch"
        )

    found = with_an_object(jax.random.PRNGKey(1))
    np.testing.assert_allclose(found.solution, expected, rtol=1e-10)
    assert found.converged


def test_says_no_where_the_sketch_misses_a_direction(with_x64):
    # With as many sampled rows as columns, most samples have repeated rows.
    matrix = conditioned(1e1)
    target = make_target(matrix, 0.0)
    found = stacked(
        [
            solve(key, matrix, target, NUM_COLUMNS, row_sampling, "sketch")
            for key in map(jax.random.key, range(40))
        ]
    )
    errors = np.linalg.norm(target - found.solution @ matrix.T, axis=1)
    is_right = errors < 1e-12 * np.linalg.norm(target)
    assert np.all(is_right[found.converged])
    assert not np.all(found.converged)


def test_says_no_where_it_may_not_finish(with_x64):
    matrix = conditioned(1e3)
    target = make_target(matrix, 0.1)
    found = solve(KEY, matrix, target, method="sketch", max_iterations=3)
    assert not found.converged and found.num_iterations == 3
    assert found.residual_history.shape == (4,)
    found = solve(KEY, matrix, target, method="factor", max_iterations=0)
    assert not found.converged and not np.any(found.solution)


@pytest.mark.parametrize("method", METHODS)
def test_traced_nan_is_flagged(method):
    matrix = conditioned(1e1).astype(np.float32)
    target = make_target(matrix, 0.1).astype(np.float32)
    bad_matrix = matrix.copy()
    bad_matrix[5, 3] = np.nan
    bad_target = target.copy()
    bad_target[5] = np.inf
    for case in ((bad_matrix, target), (matrix, bad_target)):
        found = solve(KEY, *case, method=method)
        assert not found.converged and np.all(np.isnan(found.solution))
    assert solve(KEY, matrix, target, method=method).converged


def test_one_row_and_one_column(with_x64):
    found = preconditioned(KEY, [[2.0]], [3.0])
    np.testing.assert_allclose(found.solution, [1.5])
    found = preconditioned(KEY, [[1], [2]], [1, 2])
    np.testing.assert_allclose(found.solution, [1.0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sketch_size": 0}, "sketch_size must be at least 1; got 0"),
        ({"sketch_size": 3}, r"sketch_size must be at least .* = 4; got 3"),
        ({"method": "qr"}, "method must be one of"),
        ({"embedding": count_sketch(KEY, 8, 9), "sketch_size": 8}, "embedding must"),
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"ridge": np.inf}, "ridge must be finite"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
        ({"rcond": 1.0}, "rcond must be less than 1"),
        ({"max_iterations": -1}, "max_iterations must be at least 0"),
        ({"matrix": np.ones(9)}, "matrix must have shape"),
        ({"matrix": np.ones((20, 0))}, "matrix must have at least one row"),
        ({"matrix": np.full((20, 4), np.nan)}, "matrix must be finite; got 80 NaN"),
        ({"target": np.full(20, np.inf)}, "target must be finite; got 20 NaN"),
        ({"target": np.ones(19)}, "target must have as many rows as matrix"),
        ({"target": np.ones((20, 0))}, "target must not be empty"),
        ({"target": np.ones((20, 1, 1))}, "target must have shape"),
    ],
)
def test_wrong_values(change, message):
    args = {"matrix": np.eye(20)[:, :4], "target": np.ones(20)}
    with pytest.raises(ValueError, match=message):
        preconditioned(KEY, **(args | change))


@pytest.mark.parametrize(
    "change",
    [
        {"matrix": np.ones((20, 4), complex)},
        {"target": "abc"},
        {"sketch_size": 8.0},
        {"ridge": "1"},
        {"key": 0},
    ],
)
def test_wrong_types(change):
    args = {"key": KEY, "matrix": np.eye(20)[:, :4], "target": np.ones(20)}
    with pytest.raises(TypeError):
        preconditioned(**(args | change))
