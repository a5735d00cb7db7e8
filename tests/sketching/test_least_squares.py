"""Promises of every least-squares solver, against SciPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxwgc import sketching
from jaxwgc.sketching import (
    count_sketch,
    gaussian,
    rademacher,
    row_sampling,
    sparse_sign,
)
from jaxwgc.sketching._solvers import _iterative_hessian_sketch

# One shape, so that all tests share compiled functions.
NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE = 300, 12, 96
KEY = jax.random.key(0)


def loss(params, matrix, target):
    return jnp.sum((matrix @ params - target) ** 2) / 2


def root(params, matrix, target):
    return matrix


def by_newton_sketch(key, matrix, target, size, embedding):
    return sketching.newton_sketch(
        key,
        loss,
        root,
        jnp.zeros(matrix.shape[1], matrix.dtype),
        size,
        embedding,
        args=(matrix, target),
    )


def by_iterations(key, matrix, target, size, embedding):
    return sketching.iterative_hessian_sketch(
        key, matrix, target, size, 24, embedding=embedding
    )


def preconditioned(method):
    return functools.partial(sketching.preconditioned, method=method)


SOLVERS = {
    "sketch and solve": sketching.sketch_and_solve,
    "gram": preconditioned("gram"),
    "sketch": preconditioned("sketch"),
    "factor": preconditioned("factor"),
    "iterative Hessian sketch": by_iterations,
    "Newton sketch": by_newton_sketch,
}
LINEAR = [name for name in SOLVERS if name != "Newton sketch"]


@functools.partial(jax.jit, static_argnums=(0, 4))
def solve(name, key, matrix, target, embedding=gaussian, **cutoff):
    return SOLVERS[name](key, matrix, target, SKETCH_SIZE, embedding, **cutoff)


@functools.cache
def system():
    random = np.random.default_rng(0)
    units = np.logspace(0, -1, NUM_COLUMNS)
    matrix = random.standard_normal((NUM_ROWS, NUM_COLUMNS)) * units
    return matrix, (matrix / units).sum(axis=1) + random.standard_normal(NUM_ROWS)


def check_solution(name, key, dtype, embedding=gaussian):
    matrix, target = (part.astype(dtype) for part in system())
    result = jax.tree.map(np.asarray, solve(name, key, matrix, target, embedding))
    assert result.solution.dtype == dtype and result.converged
    matrix, target = system()
    expected = scipy.linalg.lstsq(matrix, target)[0]
    optimum = np.linalg.norm(target - matrix @ expected)
    if name == "sketch and solve":
        residual = np.linalg.norm(target - matrix @ result.solution)
        np.testing.assert_allclose(result.residual_history[-1], residual, rtol=1e-5)
        # The squared excess is about p / m in the mean.
        assert 1 < (residual / optimum) ** 2 < 1 + 3 * NUM_COLUMNS / SKETCH_SIZE
    else:
        error = np.linalg.norm(matrix @ (result.solution - expected))
        assert error < (1e-7 if dtype == np.float64 else 1e-4) * optimum


@pytest.mark.parametrize("name", SOLVERS)
def test_float32(name):
    check_solution(name, jax.random.key(3), np.float32)


def test_float32_in_64_bit_mode_with_a_raw_key(with_x64):
    check_solution("sketch and solve", jax.random.PRNGKey(3), np.float32, count_sketch)


@functools.cache
def deficient_cases():
    random = np.random.default_rng(2)
    normal = random.standard_normal((NUM_ROWS, NUM_COLUMNS))
    half = normal[:, : NUM_COLUMNS // 2]
    zero_columns = normal.copy()
    zero_columns[:, [0, 5]] = 0
    return {
        "duplicated columns": np.hstack([half, half]),
        "duplicates in other units": np.hstack([half, -1e3 * half]),
        "low-rank product": normal[:, :4] @ random.standard_normal((4, NUM_COLUMNS)),
        "zero columns": zero_columns,
        "zero columns in small units": 1e-12 * zero_columns,
        "zero matrix": 0 * normal,
        "wide": normal[:8],
        "wide of rank 3": normal[:8, :3] @ normal[:3],
    }


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
    sketch, embedding = np.eye(len(matrix)), gaussian
    if name == "sketch and solve":
        # Normal entries are rounded to float32, by each program in its own way.
        embedding = rademacher
        sketch = np.asarray(embedding(KEY, SKETCH_SIZE, len(matrix)).matrix())
    result = solve(name, KEY, matrix, target, embedding)
    assert result.converged
    expected = scipy.linalg.lstsq(sketch @ matrix, sketch @ target, cond=1e-12)[0]
    tolerance = 1e-7 if name == "iterative Hessian sketch" else 1e-10
    error = np.linalg.norm(np.asarray(result.solution) - expected)
    assert error <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("name", LINEAR)
def test_no_overflow_in_float32(name):
    matrix, target = (part.astype(np.float32) for part in system())
    expected = solve(name, KEY, matrix, target)
    for scale in (np.float32(1e-30), np.float32(1e30)):
        result = solve(name, KEY, matrix * scale, target * scale)
        np.testing.assert_allclose(
            result.solution, expected.solution, rtol=1e-3, atol=1e-3
        )
        assert result.converged
        np.testing.assert_allclose(
            result.residual_history[-1] / scale,
            expected.residual_history[-1],
            rtol=1e-3,
        )
        # No float32 is as large or as small as θ, and the residual is that of zero.
        assert not solve(name, KEY, matrix * scale, target / scale).converged


@pytest.mark.parametrize("name", SOLVERS)
def test_traced_nan_is_flagged(name):
    matrix, target = (part.astype(np.float32) for part in system())
    bad_matrix, bad_target = matrix.copy(), target.copy()
    bad_matrix[3, 4], bad_target[3] = np.nan, np.inf
    for case in ((bad_matrix, target), (matrix, bad_target)):
        result = solve(name, KEY, *case)
        assert not (result.converged or np.isfinite(result.residual_history[-1]))
        assert np.isnan(result.solution).all() or name == "Newton sketch"


def test_many_targets_are_as_one_after_the_other():
    name = "sketch and solve"
    matrix, target = (part.astype(np.float32) for part in system())
    targets = np.stack([target, np.float32(1e6) * target[::-1], 0 * target], axis=1)
    result = jax.tree.map(np.asarray, solve(name, KEY, matrix, targets))
    assert result.converged.shape == result.num_iterations.shape == (3,)
    assert result.residual_history.shape[1:] == (3,)
    assert result.converged.all()
    for solution, own in zip(result.solution.T, targets.T, strict=True):
        alone = np.asarray(solve(name, KEY, matrix, own).solution)
        tolerance = 1e-4 * np.abs(alone).max()
        np.testing.assert_allclose(solution, alone, rtol=0, atol=tolerance)


def test_traced_cutoff_out_of_range_is_flagged():
    matrix, target = (part.astype(np.float32) for part in system())
    solve_with = functools.partial(solve, "sketch and solve", KEY, matrix, target)
    assert solve_with(rcond=1e-4).converged
    for rcond in (np.nan, -1.0, 2.0):
        result = solve_with(rcond=rcond)
        assert not result.converged and np.isnan(result.solution).all()


def test_an_embedding_is_what_its_constructor_makes():
    """Its own key is used, and not the solver's; also under jit and vmap."""
    name = "iterative Hessian sketch"
    matrix, target = (part.astype(np.float32) for part in system())
    keys = jax.random.split(KEY, 2)
    embeddings = jax.vmap(lambda key: gaussian(key, SKETCH_SIZE, NUM_ROWS))(keys)
    by_object = functools.partial(
        SOLVERS[name], jax.random.key(9), matrix, target, SKETCH_SIZE
    )
    mapped = np.asarray(jax.jit(jax.vmap(by_object))(embeddings).residual_history)
    for key, history in zip(keys, mapped):
        expected = solve(name, key, matrix, target).residual_history
        np.testing.assert_allclose(history[1], expected[1], rtol=1e-4)
    assert abs(mapped[0, 1] / mapped[1, 1] - 1) > 1e-3


def test_new_constructors_of_equal_embeddings_do_not_compile_again():
    matrix, target = (part.astype(np.float32) for part in system())
    sizes = []
    for _ in range(2):
        embedding = functools.partial(sparse_sign, num_nonzeros=1)
        key = jax.random.PRNGKey(3)
        result = by_iterations(key, matrix, target, SKETCH_SIZE, embedding)
        assert result.converged
        sizes.append(_iterative_hessian_sketch._solve._cache_size())
    assert sizes[0] == sizes[1]


def test_expected_excess_of_sketch_and_solve(with_x64):
    matrix, target = system()
    lengths = [
        solve("sketch and solve", key, matrix, target).residual_history[1]
        for key in map(jax.random.key, range(200))
    ]
    optimum = np.linalg.norm(target - matrix @ scipy.linalg.lstsq(matrix, target)[0])
    excess = np.mean(np.square(lengths)) / optimum**2 - 1
    # The mean of an inverse Wishart matrix; the standard error is about 3%.
    expected = NUM_COLUMNS / (SKETCH_SIZE - NUM_COLUMNS - 1)
    np.testing.assert_allclose(excess, expected, rtol=0.12)


@jax.jit
def of_many_samples(matrix, target):
    """By 20 of 200 rows, each time others."""
    return jax.vmap(
        lambda key: sketching.sketch_and_solve(key, matrix, target, 20, row_sampling)
    )(jax.random.split(KEY, 20))


def test_says_no_where_the_sketch_misses_a_direction(with_x64):
    matrix = np.zeros((200, 4))
    matrix[:4] = np.eye(4)
    target = np.arange(200.0)
    assert not np.any(of_many_samples(matrix, target).converged)
    assert not np.any(of_many_samples(1e-20 * matrix, target).converged)
    # A direction that the matrix does not have is no loss.
    deficient = np.random.default_rng(0).normal(size=(200, 4))[:, [0, 1, 0, 1]]
    assert np.all(of_many_samples(deficient, target).converged)


def test_says_yes_where_an_outlier_was_not_sampled(with_x64):
    """Rounding in a row 1e8 times as long as the others is no missed direction."""
    matrix = np.random.default_rng(0).normal(size=(200, 4))
    matrix[3] *= 1e8
    assert np.all(of_many_samples(matrix, matrix[:, 0]).converged)


def closed_form(matrix, target, ridge):
    normal = matrix.T @ matrix + ridge * np.eye(NUM_COLUMNS)
    return np.linalg.solve(normal, matrix.T @ target)


def test_ridge_of_sketch_and_solve(with_x64):
    """On the sketched system exactly, by the key of the embedding."""
    matrix, target = system()
    ridge = 0.5
    embedding = rademacher(KEY, SKETCH_SIZE, NUM_ROWS)
    result = sketching.sketch_and_solve(
        jax.random.key(9), matrix, target, SKETCH_SIZE, embedding, ridge=ridge
    )
    sketch = np.asarray(embedding.matrix())
    expected = closed_form(sketch @ matrix, sketch @ target, ridge)
    np.testing.assert_allclose(result.solution, expected, rtol=1e-9)
    residual = np.sum((target - matrix @ result.solution) ** 2)
    minimised = residual + ridge * np.sum(np.square(result.solution))
    np.testing.assert_allclose(result.residual_history[-1] ** 2, minimised, rtol=1e-9)


@pytest.mark.parametrize("case", ["refresh", "one sketch", "projection"])
def test_ridge_of_iterations(with_x64, case):
    """As on the whole."""
    matrix, target = system()
    ridge = 0.5
    options = {
        "one sketch": {"refresh": False},
        # Over the whole space, a projection that does nothing.
        "projection": {"projection": jnp.asarray, "num_inner_steps": 400},
    }.get(case, {})

    def solve(ridge):
        result = sketching.iterative_hessian_sketch(
            KEY, matrix, target, 200, 60, ridge=ridge, **options
        )
        return jnp.sum(result.solution), result

    if case == "refresh":
        (_, result), slope = jax.jit(jax.value_and_grad(solve, has_aux=True))(ridge)
        ends = [closed_form(matrix, target, near).sum() for near in (0.4999, 0.5001)]
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-4, rtol=1e-4)
    else:
        result = jax.jit(solve)(ridge)[1]
    tolerance = 1e-5 if case == "projection" else 1e-6
    expected = closed_form(matrix, target, ridge)
    np.testing.assert_allclose(result.solution, expected, rtol=tolerance)
    assert result.converged or case == "projection"
