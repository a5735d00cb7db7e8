"""The solver for lineax, by the cases of lineax's own least-squares tests."""

import doctest
import functools
import subprocess
import sys

import equinox
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import jaxwgc.sketching.lineax
from jaxwgc import sketching
from jaxwgc.sketching._linalg.linear_operator import operator_from_lineax
from jaxwgc.sketching.lineax import SketchPreconditioned
from tests import oracles
from tests.conftest import weekly
from tests.sketching.zoo import KEY, conditioned, path_of_rank, start_of

TALL = (200, 4)
SHAPES = {"tall": TALL, "wide": (4, 200), "square": (6, 6), "nearly square": (9, 6)}


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
    "pytree": as_pytree,
}
SOLVER = SketchPreconditioned(KEY)


@equinox.filter_jit
def solve(matrix, vector, kind="matrix", solver=SOLVER):
    """lineax's solution, compiled once for each shape, kind of operator and solver."""
    return lx.linear_solve(OPERATORS[kind](matrix), vector, solver, throw=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve_and_differentiate(kind, in_both_modes, primals, changes, cotangent):
    """lineax's solution, its change, and the gradient of its sum with weights."""

    def value_and_solution(matrix, vector):
        solution = solve(matrix, vector, kind)
        return solution.value, (solution.result, solution.stats)

    value, linear, others = jax.linearize(value_and_solution, *primals, has_aux=True)
    gradient = None
    if in_both_modes:
        gradient = jax.linear_transpose(linear, *primals)(cotangent)
    return value, others, linear(*changes), gradient


def by_pinv(matrix, vector):
    """The solution, for matrices of rank 3 or the largest."""
    return np.linalg.pinv(matrix, rcond=1e-10) @ vector


def check_pseudoinverse_solution(matrix, vector, rank, value, result, stats):
    expected = np.linalg.lstsq(matrix, vector, rcond=1e-10)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)
    assert result == lx.RESULTS.successful
    assert stats["rank"] == (min(matrix.shape) if rank is None else rank)
    assert stats["num_steps"] <= stats["max_steps"] == 49


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("matrix", "square"),
        weekly("matrix", "nearly square"),
        weekly("function", "wide"),
        weekly("Jacobian", "tall"),
        weekly("Jacobian by rows", "tall"),
        ("Jacobian by rows", "wide"),
        weekly("composition", "tall"),
    ],
)
def test_pseudoinverse_solutions(kind, shape, with_x64):
    for rank in (None, 3):
        matrix = path_of(SHAPES[shape], rank)(0)
        vector, _ = vectors_of(matrix.shape)
        solution = solve(matrix, vector, kind)
        check_pseudoinverse_solution(
            matrix, vector, rank, solution.value, solution.result, solution.stats
        )


@pytest.mark.parametrize(
    ("kind", "shape", "in_both_modes"),
    [
        ("matrix", "tall", True),
        ("matrix", "wide", False),
        weekly("matrix", "wide", True),
        weekly("matrix", "square", True),
        weekly("matrix", "nearly square", True),
        ("function", "tall", False),
        weekly("function", "tall", True),
        weekly("function", "wide", True),
    ],
)
def test_solutions_and_derivatives(kind, shape, in_both_modes, with_x64):
    for rank in (None, 3):
        path = path_of(SHAPES[shape], rank)
        matrix, change = start_of(path)
        vector, vector_change = vectors_of(matrix.shape)
        cotangent = np.random.default_rng(3).standard_normal(matrix.shape[1])
        value, others, tangent, gradient = solve_and_differentiate(
            kind, in_both_modes, (matrix, vector), (change, vector_change), cotangent
        )
        check_pseudoinverse_solution(matrix, vector, rank, value, *others)
        step = 1e-6
        after = by_pinv(path(step), vector + step * vector_change)
        before = by_pinv(path(-step), vector - step * vector_change)
        expected = (after - before) / (2 * step)
        np.testing.assert_allclose(tangent, expected, rtol=1e-5, atol=1e-7)
        if in_both_modes:
            of_matrix, of_vector = gradient
            pulled = np.sum(of_matrix * change) + of_vector @ vector_change
            np.testing.assert_allclose(pulled, cotangent @ tangent, rtol=1e-7)


@pytest.mark.weekly
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives(inner, with_x64):
    """lineax differentiates its own rules of first derivatives."""
    path = path_of(TALL, None)
    vector, _ = vectors_of(TALL)

    def by_pinv_of_jax(step):
        return jnp.linalg.pinv(path(step), rtol=1e-10) @ vector

    expected = jax.jacfwd(jax.jacfwd(by_pinv_of_jax))(0.3)
    along = jax.jacfwd(inner(lambda step: solve(path(step), vector).value))
    result = jax.jit(along)(0.3)
    np.testing.assert_allclose(result, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["gram", "sketch", weekly("factor")])
def test_ill_conditioned_systems_are_solved_as_stably_as_by_qr(method, with_x64):
    matrix = conditioned(1e10, (2000, 10))
    solver = SketchPreconditioned(KEY, method=method)
    for vector in (matrix.sum(axis=1), vectors_of(matrix.shape)[0]):
        solution = solve(matrix, vector, solver=solver).value
        assert oracles.backward_error(matrix, vector, solution) < 4e-15


@pytest.mark.parametrize("method", ["gram", weekly("sketch")])
def test_wide_systems_lose_no_digits_to_the_square_of_the_condition(method, with_x64):
    matrix = conditioned(1e8, (2000, 10)).T
    vector = vectors_of(matrix.shape)[0]
    expected = np.linalg.lstsq(matrix, vector)[0]
    solution = solve(matrix, vector, solver=SketchPreconditioned(KEY, method=method))
    error = np.linalg.norm(solution.value - expected) / np.linalg.norm(expected)
    assert error < 1e-6


@equinox.filter_jit
def solve_pytrees(operator, vector):
    return lx.linear_solve(operator, vector, SOLVER, throw=False).value


@pytest.mark.parametrize("is_wide", [False, True], ids=["tall", "wide"])
def test_pytrees(is_wide, with_x64):
    """Of two dtypes if tall: lineax itself cannot transpose those."""
    rows = np.array([[1.0, 5.0, -1.0], [-2.0, -2.0, 3.0]])
    first_dtype = np.float64 if is_wide else np.float32
    rows = rows if is_wide else rows.T
    leaves = [[first_dtype(first), *map(np.float64, rest)] for first, *rest in rows]
    vector = [np.float64(3 + row) for row in range(len(rows))]
    operator = lx.PyTreeLinearOperator(leaves, jax.eval_shape(lambda: vector))
    first, *rest = solve_pytrees(operator, vector)
    assert first.dtype == first_dtype
    assert all(part.dtype == np.float64 for part in rest)
    expected = np.linalg.lstsq(rows, np.array(vector))[0]
    np.testing.assert_allclose([first, *rest], expected, rtol=1e-6)


def test_pytrees_that_are_not_materialised(with_x64):
    matrix = path_of(TALL, None)(0)
    vector, _ = vectors_of(matrix.shape)
    parts = [vector[:7], vector[7:]]
    solve_parts = jax.jit(lambda matrix: solve_pytrees(as_pytree(matrix), parts))
    first, rest = solve_parts(matrix)
    result = np.concatenate([first, rest["rest"]])
    np.testing.assert_allclose(result, np.linalg.lstsq(matrix, vector)[0], rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_lower_precision(dtype):
    matrix = path_of(TALL, None)(0).astype(dtype)
    vector = vectors_of(TALL)[0].astype(dtype)
    result = solve(matrix, vector).value
    assert result.dtype == dtype
    expected = np.linalg.lstsq(np.float64(matrix), np.float64(vector))[0]
    np.testing.assert_allclose(result, expected, rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("matrix", (0, 0)),
        weekly("matrix", (0, None)),
        weekly("matrix", (None, 1)),
        weekly("function", (0, 0)),
        weekly("function", (0, None)),
        ("function", (None, 1)),
    ],
)
def test_vmap(kind, axes, with_x64):
    """Of matrices, vectors or both; vectors are columns beside one matrix."""
    matrices = np.stack([path_of(TALL, None)(step) for step in range(3)])
    vectors = np.stack([vectors_of(TALL, seed)[0] for seed in range(3)])
    expected = [
        by_pinv(matrices[step * (axes[0] == 0)], vectors[step * (axes[1] is not None)])
        for step in range(3)
    ]
    matrix = matrices[0] if axes[0] is None else matrices
    vector = {None: vectors[0], 0: vectors, 1: vectors.T}[axes[1]]
    result = jax.vmap(lambda *system: solve(*system, kind).value, axes)(matrix, vector)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


@equinox.filter_jit
def solve_with_state(kind, matrix, vector, state, is_transposed):
    operator = OPERATORS[kind](matrix)
    operator = operator.T if is_transposed else operator
    return lx.linear_solve(operator, vector, SOLVER, state=state, throw=False)


@pytest.mark.parametrize("kind", ["matrix", weekly("function")])
def test_states(kind, with_x64):
    """One preconditioner serves many vectors, and the transposed system."""
    matrix = path_of(TALL, 3)(0)
    init = equinox.filter_jit(lambda matrix: SOLVER.init(OPERATORS[kind](matrix), {}))
    state = init(matrix)
    for vector in vectors_of(TALL):
        result = solve_with_state(kind, matrix, vector, state, False).value
        np.testing.assert_allclose(result, by_pinv(matrix, vector), rtol=1e-9)
    state, _ = SOLVER.transpose(*SOLVER.conj(state, {}))
    right = np.arange(4.0)
    result = solve_with_state(kind, matrix, right, state, True)
    np.testing.assert_allclose(result.value, by_pinv(matrix.T, right), atol=1e-11)
    assert result.result == lx.RESULTS.successful


@pytest.mark.weekly
def test_embeddings(with_x64):
    matrix = conditioned(1e4, TALL)
    vector = vectors_of(TALL)[0]
    embedding = sketching.gaussian(KEY, 40, 200)
    for given in (sketching.srht, sketching.count_sketch, embedding):
        solver = SketchPreconditioned(KEY, 40, given, method="sketch")
        result = solve(matrix, vector, solver=solver).value
        np.testing.assert_allclose(result, by_pinv(matrix, vector), rtol=1e-9)


@pytest.mark.parametrize(("is_wide", "sketch_size"), [(False, 1000), (True, None)])
def test_an_operator_of_products_is_not_materialised(is_wide, sketch_size):
    num_rows = 100_000
    num_columns = 200
    solver = SketchPreconditioned(
        KEY, sketch_size=sketch_size, embedding=sketching.count_sketch
    )

    @jax.jit
    def difference(v):
        """Differences of a signal at many points, without its matrix."""
        place = jnp.arange(num_rows) % num_columns
        return v[place] + 0.5 * v[(place + 1) % num_columns]

    def solve(vector):
        like = jax.ShapeDtypeStruct((num_columns,), jnp.float32)
        operator = lx.FunctionLinearOperator(difference, like)
        if is_wide:
            operator = operator.transpose()
        return lx.linear_solve(operator, vector, solver, throw=False).value

    solution = np.linspace(-1, 1, num_columns, dtype=np.float32)
    image = difference(solution)
    vector = image
    if is_wide:
        [vector] = jax.jit(jax.linear_transpose(difference, solution))(image)
    compiled = jax.jit(solve).lower(vector).compile()
    matrix_bytes = 4 * num_rows * num_columns
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * matrix_bytes
    result = compiled(vector)
    # The minimum-norm solution is in the row space, and `image` is, too.
    expected = image if is_wide else solution
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
    matrix = matrix.T if is_wide else matrix
    vector = vectors_of(matrix.shape)[0].astype(np.float32)
    result = solve(matrix, vector, solver=solver)
    assert result.result != lx.RESULTS.successful


def test_results_say_what_went_wrong():
    matrix = conditioned(100.0, TALL).astype(np.float32)
    vector = vectors_of(TALL)[0].astype(np.float32)
    few = SketchPreconditioned(KEY, method="sketch", max_iterations=1)
    result = solve(matrix, vector, solver=few)
    assert result.result == lx.RESULTS.max_steps_reached
    lost = matrix.copy()
    lost[0, 0] = np.nan
    result = solve(lost, vector)
    assert result.result == lx.RESULTS.singular
    assert np.isnan(result.value).all()
    for given in (matrix, matrix.T):
        vector = np.full(len(given), np.inf, np.float32)
        result = solve(given, vector)
        assert result.result == lx.RESULTS.nonfinite_input


def test_zeros():
    """A zero matrix has the rank 0, and a zero vector the solution 0."""
    matrix = path_of(TALL, None)(0).astype(np.float32)
    for given in (matrix, matrix.T):
        result = solve(given, np.zeros(len(given), np.float32))
        np.testing.assert_array_equal(result.value, 0)
        result = solve(0 * given, np.ones(len(given), np.float32))
        np.testing.assert_array_equal(result.value, 0)
        assert result.stats["rank"] == 0


def test_refusals():
    matrix = path_of(TALL, None)(0).astype(np.float32)
    for make in (as_matrix, as_function):
        with pytest.raises(TypeError, match="a real float dtype; got complex64"):
            SOLVER.init(make(jnp.asarray(matrix + 0j)), {})
    with pytest.raises(TypeError, match="a real float dtype; got complex64"):
        sketching.preconditioned(KEY, as_function(matrix + 0j), np.ones(200))
    with pytest.raises(ValueError, match="sketch_size must be at least min.* = 4"):
        SketchPreconditioned(KEY, 3).init(as_matrix(jnp.asarray(matrix)), {})
    solver = SketchPreconditioned(KEY, method="gram")
    with pytest.raises(ValueError, match="needs a matrix; got a .*Operator"):
        solver.init(as_function(matrix), {})

    def follow_the_advice(matrix):
        solver.init(as_matrix(as_function(matrix).as_matrix()), {})

    jax.eval_shape(follow_the_advice, matrix)


@pytest.mark.parametrize("kind", OPERATORS)
def test_products_of_operators_of_lineax(kind, with_x64):
    """Vectors of pytrees are concatenated."""
    matrix, change = start_of(path_of(TALL, None))
    random = np.random.default_rng(5)
    right = random.standard_normal(4)
    left = random.standard_normal(200)

    def products(matrix):
        operator = operator_from_lineax(lx.linearise(OPERATORS[kind](matrix)))
        assert operator.shape == TALL
        return operator.matvec(right), operator.rmatvec(left)

    along = jax.jit(lambda *pair: jax.jvp(products, *[(part,) for part in pair]))
    for results, part in zip(along(matrix, change), (matrix, change), strict=True):
        image, transposed_image = results
        np.testing.assert_allclose(image, part @ right, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(transposed_image, left @ part, rtol=1e-12)


@pytest.mark.weekly
@pytest.mark.parametrize("kind", ["function", "Jacobian", "composition", "pytree"])
def test_our_solvers_take_operators_of_lineax(kind, with_x64):
    path = path_of(TALL, None)
    matrix, change = start_of(path)
    vector, _ = vectors_of(TALL)

    def solve_by_us(matrix):
        solution = sketching.preconditioned(KEY, OPERATORS[kind](matrix), vector)
        return solution.solution, solution

    result, tangent, solution = jax.jit(
        lambda *pair: jax.jvp(solve_by_us, *[(part,) for part in pair], has_aux=True)
    )(matrix, change)
    assert solution.converged and solution.rank is None
    np.testing.assert_allclose(result, by_pinv(matrix, vector), rtol=1e-8)
    step = 1e-6
    expected = by_pinv(path(step), vector) - by_pinv(path(-step), vector)
    np.testing.assert_allclose(tangent, expected / (2 * step), rtol=1e-6)


def test_a_matrix_of_lineax_is_its_array():
    """Both give the same program."""
    matrix = path_of(TALL, None)(0).astype(np.float32)
    vector = vectors_of(TALL)[0].astype(np.float32)
    for function in (
        sketching.leverage_scores,
        functools.partial(sketching.approximate_leverage_scores, KEY),
        functools.partial(sketching.preconditioned, KEY, target=vector),
        functools.partial(
            sketching.sketch_and_solve, KEY, target=vector, sketch_size=9
        ),
    ):
        programs = [
            jax.make_jaxpr(lambda x, make, f=function: f(matrix=make(x)), 1)(
                matrix, make
            )
            for make in (as_matrix, lambda array: array)
        ]
        assert str(programs[0]) == str(programs[1])
    with pytest.raises(TypeError, match="Use approximate_leverage_scores, precond"):
        sketching.leverage_scores(as_function(matrix))


def test_equal_operators_share_a_program(compilations):
    vector = vectors_of(TALL)[0].astype(np.float32)
    matrix = path_of(TALL, None)(0).astype(np.float32)
    functional = as_function(jnp.asarray(matrix))

    def check_solution(subtracted):
        operator = functional - as_matrix(jnp.asarray(subtracted))
        solution = sketching.preconditioned(KEY, operator, vector)
        expected = by_pinv(matrix - subtracted, vector)
        np.testing.assert_allclose(solution.solution, expected, rtol=1e-4)
        assert solution.converged and solution.rank is None

    check_solution(3 * matrix)
    compilations.clear()
    check_solution(path_of(TALL, None)(1).astype(np.float32))
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
