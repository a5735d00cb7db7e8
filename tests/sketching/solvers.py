"""Solvers of least squares by name, and matrices that are hard for them."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import sketching
from jaxwgc.sketching import gaussian
from tests.sketching.problems import root_of_squares, squares

# One shape, so that all tests share compiled functions.
NUM_ROWS = 300
NUM_COLUMNS = 12
SKETCH_SIZE = 96


def by_newton_sketch(key, matrix, target, size, embedding):
    start = jnp.zeros(matrix.shape[1], matrix.dtype)
    return sketching.newton_sketch(
        key, squares, root_of_squares, start, size, embedding, args=(matrix, target)
    )


def by_iterations(key, matrix, target, size, embedding, **options):
    return sketching.iterative_hessian_sketch(
        key, matrix, target, size, 24, None, embedding, **options
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


# In float32 tests solve as here, in float64 traced: so few programs are compiled.
def solve(name, key, matrix, target, embedding=gaussian, **cutoff):
    return SOLVERS[name](key, matrix, target, SKETCH_SIZE, embedding, **cutoff)


solve_traced = jax.jit(solve, static_argnums=(0, 4))


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


def assert_no_warning_of_hidden_rows(solve, matrix, target):
    """Checks that a solver with a ridge does not warn if a row hides the others."""
    matrix = matrix.copy()
    matrix[0] *= 1e20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(matrix, target)
