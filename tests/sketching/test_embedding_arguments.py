"""What the solvers take for an embedding: constructors and objects, and no names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import sketching
from jaxwgc.sketching import gaussian, row_sampling, sparse_sign
from jaxwgc.sketching._solvers import _iterative_hessian_sketch, _newton_steps

NUM_ROWS, SKETCH_SIZE = 60, 16
KEY, OTHER_KEY = jax.random.key(0), jax.random.key(1)
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(NUM_ROWS, 3)).astype(np.float32)
TARGET = MATRIX.sum(axis=1) + RANDOM.normal(size=NUM_ROWS).astype(np.float32)


def loss(params):
    return jnp.sum((MATRIX @ params - TARGET) ** 2) / 2


def root(params):
    return jnp.asarray(MATRIX)


SOLVERS = {
    "sketch_and_solve": lambda key, embedding: sketching.sketch_and_solve(
        key, MATRIX, TARGET, SKETCH_SIZE, embedding
    ),
    "preconditioned": lambda key, embedding: sketching.preconditioned(
        key, MATRIX, TARGET, SKETCH_SIZE, embedding, method="sketch"
    ),
    "iterative_hessian_sketch": lambda key, embedding: (
        sketching.iterative_hessian_sketch(
            key, MATRIX, TARGET, SKETCH_SIZE, 3, embedding=embedding
        )
    ),
    "newton_sketch": lambda key, embedding: sketching.newton_sketch(
        key, loss, root, jnp.zeros(3), SKETCH_SIZE, embedding, max_iterations=3
    ),
    "logistic_newton_sketch": lambda key, embedding: sketching.logistic_newton_sketch(
        key, MATRIX, TARGET > 0, SKETCH_SIZE, embedding, max_iterations=3
    ),
}
# One kind of embedding for most tests, so that they share compiled functions.
one_a_column = functools.partial(sparse_sign, num_nonzeros=1)
every_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.isfinite(found.solution).all()


@every_solver
def test_an_object_is_what_its_constructor_makes(solve):
    """Its own key is used, and not the solver's."""
    expected = solve(KEY, one_a_column)
    found = solve(OTHER_KEY, one_a_column(KEY, SKETCH_SIZE, NUM_ROWS))
    assert_equal(found, expected)
    assert np.any(solve(OTHER_KEY, one_a_column).solution != expected.solution)


@every_solver
def test_constructors_with_options(solve):
    expected = solve(KEY, sparse_sign(KEY, SKETCH_SIZE, NUM_ROWS, 1))
    assert_equal(solve(KEY, one_a_column), expected)


def test_constructors_with_an_array():
    solve = SOLVERS["sketch_and_solve"]
    scores = np.linalg.norm(MATRIX, axis=1) ** 2

    def by_scores(key, sketch_size, num_rows):
        return row_sampling(key, sketch_size, num_rows, scores)

    expected = solve(KEY, row_sampling(KEY, SKETCH_SIZE, NUM_ROWS, scores))
    assert_equal(solve(KEY, by_scores), expected)


@every_solver
@pytest.mark.parametrize("embedding", ["gaussian", "fourier", None, np.eye(3)])
def test_names_are_refused(solve, embedding):
    with pytest.raises(TypeError, match=r"such as sketching.srht \(not its name\)"):
        solve(KEY, embedding)


@every_solver
def test_what_a_constructor_makes_is_checked(solve):
    with pytest.raises(TypeError, match="embedding must be a constructor"):
        solve(KEY, lambda key, sketch_size, num_rows: np.eye(sketch_size, num_rows))
    with pytest.raises(ValueError, match=r"embedding must have .* \(16, 60\); got"):
        solve(KEY, lambda key, sketch_size, num_rows: gaussian(key, 17, num_rows))
    with pytest.raises(ValueError, match=r"= \(16, 60\); got \(16, 61\)"):
        solve(KEY, gaussian(KEY, SKETCH_SIZE, NUM_ROWS + 1))


def test_new_constructors_of_equal_embeddings_do_not_compile_again():
    for name, solver in (
        ("iterative_hessian_sketch", _iterative_hessian_sketch._solve),
        ("newton_sketch", _newton_steps.newton_steps),
    ):
        solve = SOLVERS[name]
        solve(KEY, functools.partial(sparse_sign, num_nonzeros=1))
        size = solver._cache_size()
        for num_nonzeros in (1, 1):
            solve(KEY, functools.partial(sparse_sign, num_nonzeros=num_nonzeros))
        assert solver._cache_size() == size
        solve(KEY, functools.partial(sparse_sign, num_nonzeros=2))
        assert solver._cache_size() == size + 1


@every_solver
def test_embeddings_pass_jit_and_vmap(solve):
    keys = jax.random.split(KEY, 2)
    made = jax.vmap(lambda key: one_a_column(key, SKETCH_SIZE, NUM_ROWS))(keys)
    found = jax.jit(jax.vmap(lambda embedding: solve(OTHER_KEY, embedding)))(made)
    for key, solution in zip(keys, np.asarray(found.solution)):
        expected = solve(key, one_a_column).solution
        np.testing.assert_allclose(solution, expected, rtol=1e-4, atol=1e-5)
