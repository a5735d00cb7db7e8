"""The solver for lineax, by the cases of lineax's own least-squares tests."""

import doctest
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import jaxwgc.sketching.lineax
from jaxwgc import sketching
from jaxwgc.sketching.lineax import SketchPreconditioned
from tests import oracles
from tests.sketching.zoo import KEY, conditioned, path_of_rank, start_of

TALL = (200, 4)
SHAPES = {"tall": TALL, "wide": (4, 200), "square": (6, 6), "nearly square": (9, 6)}
RANKS = {"full rank": None, "rank 3": 3}


def path_of(shape, rank):
    """A path of matrices of one rank, the largest by default."""
    return path_of_rank(shape, min(shape) if rank is None else rank)


def vectors_of(shape, seed=2):
    return np.random.default_rng(seed).standard_normal((2, shape[0]))


def as_matrix(matrix):
    return lx.MatrixLinearOperator(matrix)


def as_function(matrix):
    like = jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype)
    return lx.FunctionLinearOperator(lambda v: matrix @ v, like)


def as_jacobian(matrix, jac=None):
    point = jnp.linspace(1, 2, matrix.shape[1], dtype=matrix.dtype)

    def function(x, power):
        return matrix @ (x**power / power / point ** (power - 1))

    # A power is a leaf that is no array.
    return lx.JacobianLinearOperator(function, point, args=2, jac=jac)


def as_pytree(matrix):
    """From a tuple of a vector and a dict to a list of two vectors."""
    num_columns = matrix.shape[1]

    def product(parts):
        first, rest = parts
        image = matrix[:, :1] @ first + matrix[:, 1:] @ rest["rest"]
        return [image[:7], image[7:]]

    first = jax.ShapeDtypeStruct((1,), matrix.dtype)
    rest = jax.ShapeDtypeStruct((num_columns - 1,), matrix.dtype)
    return lx.FunctionLinearOperator(product, (first, {"rest": rest}))


def as_composition(matrix):
    half = lx.TaggedLinearOperator(as_matrix(matrix / 2), ())
    size = jax.ShapeDtypeStruct(matrix.shape[:1], matrix.dtype)
    identity = lx.IdentityLinearOperator(size)
    return identity @ (half + as_function(matrix) / 2)


OPERATORS = {
    "matrix": as_matrix,
    "function": as_function,
    "Jacobian": as_jacobian,
    "Jacobian by rows": functools.partial(as_jacobian, jac="bwd"),
    "composition": as_composition,
}


def solved(operator, vector, solver=None, **options):
    solver = SketchPreconditioned(KEY) if solver is None else solver
    return lx.linear_solve(operator, vector, solver, **options)


def value_of(matrix, vector, make=as_matrix):
    return solved(make(matrix), vector).value


def by_pinv(matrix, vector):
    """The solution and its derivatives, for matrices of rank 3 or the largest."""
    return jnp.linalg.pinv(matrix, rtol=1e-10) @ vector


# A matrix of every shape and rank, and the other kinds of operators.
CASES = [
    *[("matrix", shape, rank) for shape in SHAPES for rank in RANKS],
    *[(kind, "tall", "rank 3") for kind in OPERATORS if kind != "matrix"],
    ("function", "tall", "full rank"),
    ("function", "wide", "rank 3"),
    ("Jacobian by rows", "wide", "full rank"),
]


@pytest.mark.parametrize(("kind", "shape", "rank"), CASES)
def test_pseudoinverse_solutions(kind, shape, rank, with_x64):
    matrix = path_of(SHAPES[shape], RANKS[rank])(0)
    vector, _ = vectors_of(matrix.shape)
    result = solved(OPERATORS[kind](jnp.asarray(matrix)), jnp.asarray(vector))
    expected = np.linalg.lstsq(matrix, vector, rcond=1e-10)[0]
    np.testing.assert_allclose(result.value, expected, rtol=1e-9, atol=1e-11)
    assert result.result == lx.RESULTS.successful
    expected_rank = min(matrix.shape) if RANKS[rank] is None else RANKS[rank]
    assert result.stats["rank"] == expected_rank
    assert result.stats["num_steps"] <= result.stats["max_steps"] == 49


@pytest.mark.parametrize("method", ["gram", "sketch", "factor"])
def test_ill_conditioned_systems_are_solved_as_stably_as_by_qr(method, with_x64):
    matrix = conditioned(1e10, (2000, 10))
    solver = SketchPreconditioned(KEY, method=method)
    for vector in (matrix.sum(axis=1), vectors_of(matrix.shape)[0]):
        result = solved(as_matrix(matrix), vector, solver)
        assert oracles.backward_error(matrix, vector, result.value) < 4e-15


def test_wide_systems_lose_no_digits_to_the_square_of_the_condition(with_x64):
    matrix = conditioned(1e8, (2000, 10)).T
    vector = vectors_of(matrix.shape)[0]
    expected = np.linalg.lstsq(matrix, vector)[0]
    for method in ("gram", "sketch"):
        solver = SketchPreconditioned(KEY, method=method)
        result = solved(as_matrix(matrix), vector, solver).value
        error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
        assert error < 1e-6


@pytest.mark.parametrize("is_wide", [False, True], ids=["tall", "wide"])
def test_pytrees(is_wide, x64):
    entries = [[1.0, 5.0, -1.0], [-2.0, -2.0, 3.0]]
    vector = [3.0, 4.0]
    if not is_wide:
        entries = [list(row) for row in zip(*entries, strict=True)]
        vector = [3.0, 4.0, 5.0]
    leaves = jax.tree.map(jnp.asarray, entries)
    operator = lx.PyTreeLinearOperator(leaves, jax.eval_shape(lambda: [*vector]))
    result = solved(operator, jax.tree.map(jnp.asarray, vector)).value
    expected = np.linalg.lstsq(np.array(entries), np.array(vector))[0]
    assert isinstance(result, list)
    np.testing.assert_allclose(jnp.stack(result), expected, rtol=1e-5)


def test_pytrees_that_are_not_materialised(with_x64):
    matrix = jnp.asarray(path_of(TALL, None)(0))
    vector, _ = vectors_of(matrix.shape)
    operator = as_pytree(matrix)
    first, rest = solved(operator, [vector[:7], vector[7:]]).value
    result = jnp.concatenate([first, rest["rest"]])
    np.testing.assert_allclose(result, np.linalg.lstsq(matrix, vector)[0], rtol=1e-9)
    by_us = sketching.preconditioned(KEY, operator, vector, tolerance=1e-13)
    np.testing.assert_allclose(by_us.solution, result, rtol=1e-9)


def test_mixed_dtypes(with_x64):
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    double = functools.partial(jnp.asarray, dtype=jnp.float64)
    entries = [[single(1), double(5)], [single(-2), double(-2)]]
    vector = [double(3), double(4)]
    operator = lx.PyTreeLinearOperator(entries, jax.eval_shape(lambda: vector))
    first, second = solved(operator, vector).value
    assert (first.dtype, second.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose([first, second], [-3.25, 1.25], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_lower_precision(dtype):
    matrix = jnp.asarray(path_of(TALL, None)(0), dtype)
    vector = jnp.asarray(vectors_of(TALL)[0], dtype)
    result = value_of(matrix, vector)
    assert result.dtype == dtype
    expected = np.linalg.lstsq(np.float64(matrix), np.float64(vector))[0]
    np.testing.assert_allclose(result, expected, rtol=20 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["matrix", "function"])
@pytest.mark.parametrize(
    "axes", [(0, 0), (0, None), (None, 0)], ids=["both", "matrices", "vectors"]
)
def test_vmap(axes, kind, with_x64):
    matrices = jnp.stack([path_of(TALL, None)(step) for step in range(3)])
    vectors = jnp.stack([vectors_of(TALL, seed)[0] for seed in range(3)])
    arguments = [
        array[0] if axis is None else array
        for array, axis in zip((matrices, vectors), axes, strict=True)
    ]
    solve = functools.partial(value_of, make=OPERATORS[kind])
    result = jax.vmap(solve, axes)(*arguments)
    expected = jax.vmap(by_pinv, axes)(*arguments)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_matrix_right_hand_sides(with_x64):
    """By vmap, in one compiled function with one preconditioner."""
    matrix = jnp.asarray(path_of(TALL, None)(0))
    targets = jnp.asarray(vectors_of(TALL).T)
    result = jax.vmap(value_of, (None, 1), 1)(matrix, targets)
    expected = np.linalg.lstsq(matrix, targets)[0]
    np.testing.assert_allclose(result, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "shape", "rank"),
    [case for case in CASES if case[0] in ("matrix", "function")],
)
def test_derivatives_in_both_modes(kind, shape, rank, with_x64):
    path = path_of(SHAPES[shape], RANKS[rank])
    matrix, change = start_of(path)
    vector, vector_change = vectors_of(matrix.shape)
    cotangent = np.random.default_rng(3).standard_normal(matrix.shape[1])
    solve = functools.partial(value_of, make=OPERATORS[kind])

    @jax.jit
    def derivatives(matrix, vector):
        changes = (change, vector_change)
        _, tangent = jax.jvp(solve, (matrix, vector), changes)
        _, pull_back = jax.vjp(solve, matrix, vector)
        return tangent, *pull_back(cotangent)

    result, of_matrix, of_vector = derivatives(matrix, vector)
    step = 1e-6
    after = by_pinv(path(step), vector + step * vector_change)
    before = by_pinv(path(-step), vector - step * vector_change)
    expected = (after - before) / (2 * step)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    pulled = jnp.sum(of_matrix * change) + of_vector @ vector_change
    np.testing.assert_allclose(pulled, cotangent @ result, rtol=1e-7)


@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives(inner, with_x64):
    path = path_of(TALL, None)
    vector, _ = vectors_of(TALL)
    of_step = lambda solve: lambda step: solve(path(step), vector)  # noqa: E731
    expected = jax.jacfwd(jax.jacfwd(of_step(by_pinv)))(0.3)
    result = jax.jit(jax.jacfwd(inner(of_step(value_of))))(0.3)
    np.testing.assert_allclose(result, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["matrix", "function"])
def test_states(kind, with_x64):
    """One preconditioner serves many vectors, and the transposed system."""
    matrix = jnp.asarray(path_of(TALL, 3)(0))
    operator = OPERATORS[kind](matrix)
    solver = SketchPreconditioned(KEY)
    state = solver.init(operator, {})
    for vector in vectors_of(TALL):
        result = solved(operator, vector, solver, state=state).value
        np.testing.assert_allclose(result, by_pinv(matrix, vector), rtol=1e-9)
    state, _ = solver.transpose(*solver.conj(state, {}))
    right = jnp.arange(4.0)
    result = solved(operator.T, right, solver, state=state)
    np.testing.assert_allclose(result.value, by_pinv(matrix.T, right), atol=1e-11)
    assert result.result == lx.RESULTS.successful
    made = jax.jit(lambda: solver.init(operator.T, {}))()
    again = solved(operator.T, right, solver, state=made).value
    np.testing.assert_allclose(again, result.value, atol=1e-11)


def test_embeddings(with_x64):
    matrix = jnp.asarray(conditioned(1e4, TALL))
    vector = vectors_of(TALL)[0]
    embedding = sketching.gaussian(KEY, 40, 200)
    for given in (sketching.srht, sketching.count_sketch, embedding):
        solver = SketchPreconditioned(KEY, 40, given, method="sketch")
        result = solved(as_matrix(matrix), vector, solver).value
        np.testing.assert_allclose(result, by_pinv(matrix, vector), rtol=1e-9)


@pytest.mark.parametrize(("is_wide", "sketch_size"), [(False, 1000), (True, None)])
def test_an_operator_of_products_is_not_materialised(is_wide, sketch_size):
    num_rows = 100_000
    num_columns = 200
    solver = SketchPreconditioned(
        KEY, sketch_size=sketch_size, embedding=sketching.count_sketch
    )

    def difference(v):
        """Differences of a signal at many points, without its matrix."""
        place = jnp.arange(num_rows) % num_columns
        return v[place] + 0.5 * v[(place + 1) % num_columns]

    def solve(vector):
        like = jax.ShapeDtypeStruct((num_columns,), jnp.float32)
        operator = lx.FunctionLinearOperator(difference, like)
        if is_wide:
            operator = operator.transpose()
        return lx.linear_solve(operator, vector, solver).value

    solution = jnp.linspace(-1, 1, num_columns)
    transposed = jax.linear_transpose(difference, solution)
    vector = difference(solution)
    if is_wide:
        [vector] = transposed(vector)
    compiled = jax.jit(solve).lower(vector).compile()
    matrix_bytes = 4 * num_rows * num_columns
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * matrix_bytes
    result = compiled(vector)
    # The minimum-norm solution is in the row space, and `difference(solution)` is, too.
    expected = difference(solution) if is_wide else solution
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_sketch_that_misses_a_direction_is_no_success(is_wide):
    """All of the first column is in one row, which is never sampled."""
    matrix = conditioned(10.0, TALL).astype(np.float32)
    matrix[:, 0] = 0
    matrix[7] = [1, 0, 0, 0]
    probabilities = np.full(200, 1 / 199)
    probabilities[7] = 0
    embedding = sketching.row_sampling(KEY, 40, 200, probabilities)
    solver = SketchPreconditioned(KEY, 40, embedding, method="sketch")
    operator = as_matrix(matrix.T if is_wide else matrix)
    vector = jnp.asarray(vectors_of((operator.out_size(),))[0], jnp.float32)
    result = solved(operator, vector, solver, throw=False)
    assert result.result != lx.RESULTS.successful


def test_results_say_what_went_wrong(with_x64):
    matrix = jnp.asarray(conditioned(100.0, TALL))
    vector = vectors_of(TALL)[0]
    few = SketchPreconditioned(KEY, method="sketch", max_iterations=1)
    result = solved(as_matrix(matrix), vector, few, throw=False)
    assert result.result == lx.RESULTS.max_steps_reached
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        solved(as_matrix(matrix), vector, few)
    lost = matrix.at[0, 0].set(jnp.nan)
    result = solved(as_matrix(lost), vector, throw=False)
    assert result.result == lx.RESULTS.singular
    assert jnp.isnan(result.value).all()
    for shape in ("tall", "wide"):
        matrix = jnp.asarray(path_of(SHAPES[shape], None)(0))
        vector = jnp.full(matrix.shape[0], jnp.inf)
        result = solved(as_matrix(matrix), vector, throw=False)
        assert result.result == lx.RESULTS.nonfinite_input


def test_zeros():
    """A zero matrix has the rank 0, and a zero vector the solution 0."""
    matrix = jnp.asarray(path_of(TALL, None)(0), jnp.float32)
    for given in (matrix, matrix.T):
        result = solved(as_matrix(given), jnp.zeros(len(given)))
        np.testing.assert_array_equal(result.value, 0)
        result = solved(as_matrix(0 * given), jnp.ones(len(given)))
        np.testing.assert_array_equal(result.value, 0)
        assert result.stats["rank"] == 0


def test_refusals():
    matrix = jnp.asarray(path_of(TALL, None)(0), jnp.float32)
    for make in (as_matrix, as_function):
        with pytest.raises(TypeError, match="operator must be real; got complex64"):
            SketchPreconditioned(KEY).init(make(matrix + 0j), {})
    with pytest.raises(TypeError, match="operator must be real; got complex64"):
        sketching.preconditioned(KEY, as_function(matrix + 0j), jnp.ones(200))
    with pytest.raises(ValueError, match="sketch_size must be at least min.* = 4"):
        SketchPreconditioned(KEY, 3).init(as_matrix(matrix), {})
    solver = SketchPreconditioned(KEY, method="gram")
    with pytest.raises(ValueError, match="method must be 'auto' or 'sketch' for an op"):
        solver.init(as_function(matrix), {})
    solver.init(as_matrix(as_function(matrix).as_matrix()), {})


@pytest.mark.parametrize("kind", OPERATORS)
def test_our_solvers_take_operators_of_lineax(kind, with_x64):
    matrix, change = map(jnp.asarray, start_of(path_of(TALL, None)))
    vector, _ = map(jnp.asarray, vectors_of(TALL))
    make = OPERATORS[kind]

    @jax.jit
    def solve(matrix):
        return sketching.preconditioned(KEY, make(matrix), vector).solution

    result, tangent = jax.jvp(solve, (matrix,), (change,))
    expected = jax.jvp(lambda x: by_pinv(x, vector), (matrix,), (change,))
    np.testing.assert_allclose(result, expected[0], rtol=1e-8)
    np.testing.assert_allclose(tangent, expected[1], rtol=1e-6)
    eager = sketching.preconditioned(KEY, make(matrix), vector)
    np.testing.assert_allclose(eager.solution, result, rtol=1e-9)
    assert eager.converged
    assert (eager.rank is None) == (kind != "matrix")


def test_a_matrix_of_lineax_is_its_array():
    matrix = jnp.asarray(path_of(TALL, None)(0), jnp.float32)
    operator = as_matrix(matrix)
    vector = jnp.asarray(vectors_of(TALL)[0], jnp.float32)
    for function in (
        sketching.leverage_scores,
        functools.partial(sketching.approximate_leverage_scores, KEY),
        functools.partial(sketching.preconditioned, KEY, target=vector),
        functools.partial(
            sketching.sketch_and_solve, KEY, target=vector, sketch_size=9
        ),
    ):
        jax.tree.map(
            np.testing.assert_array_equal,
            function(matrix=operator),
            function(matrix=matrix),
        )
    with pytest.raises(TypeError, match="Use approximate_leverage_scores, precond"):
        sketching.leverage_scores(as_function(matrix))


def test_equal_operators_share_a_program(compilations):
    vector = jnp.asarray(vectors_of(TALL)[0], jnp.float32)
    functional = as_function(jnp.asarray(path_of(TALL, None)(0), jnp.float32))

    def solve(step):
        matrix = jnp.asarray(path_of(TALL, None)(step), jnp.float32)
        for operator in (-as_matrix(matrix), functional):
            sketching.preconditioned(KEY, operator, vector).solution.block_until_ready()

    solve(0)
    compilations.clear()
    solve(1)
    assert not compilations


def test_the_example_of_the_docstring():
    finder = doctest.DocTestFinder(recurse=False)
    [test] = finder.find(SketchPreconditioned, "SketchPreconditioned", globs={})
    outcome = doctest.DocTestRunner().run(test)
    assert outcome.attempted > 0 and outcome.failed == 0
    assert jaxwgc.sketching.lineax.__all__ == ["SketchPreconditioned"]


def test_lineax_is_imported_on_request():
    program = """
import sys
import jaxwgc.sketching
assert "lineax" not in sys.modules and "equinox" not in sys.modules
sys.modules["lineax"] = None
import jaxwgc.sketching.lineax
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "AssertionError" not in done.stderr
    assert "ImportError: lineax is missing: pip install 'jaxwgc[lineax]'" in done.stderr
