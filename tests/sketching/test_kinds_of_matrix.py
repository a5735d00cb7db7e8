"""The contract of all kinds of matrices: one result, or a rejection by name.

What is not rejected must not be converted entry by entry, which takes minutes.
"""

import functools
import inspect
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxwgc
from jaxwgc import codes, sketching, stragglers
from jaxwgc.sketching import Blocks
from jaxwgc.sketching._linalg import blocks as blocks_module
from tests import oracles
from tests.catalogue.problems import KEY
from tests.catalogue.rows import SKETCHING
from tests.sketching.references import cross_validation_error

RANDOM = np.random.default_rng(0)
SHAPE = 300, 6
MATRIX = RANDOM.standard_normal(SHAPE) * (RANDOM.random(SHAPE) < 0.6)
TARGET = MATRIX @ RANDOM.standard_normal((6, 2)) + RANDOM.standard_normal((300, 2))


def entries(dense):
    """Values and places of a matrix in order, with some explicit zeros.

    Matrices of one shape have as many entries, so that they share programs.
    """
    is_stored = dense != 0
    num_zeros = max(2, dense.size * 3 // 4 - np.count_nonzero(is_stored))
    is_stored.flat[np.flatnonzero(~is_stored)[:num_zeros]] = True
    return dense[is_stored], np.nonzero(is_stored)


def disordered(dense):
    """Every entry in two parts, in any order."""
    values, places = entries(dense)
    half = values if values.dtype == bool else values // 2
    rest = values if values.dtype == bool else values - half
    order = np.random.default_rng(1).permutation(2 * len(values))
    return np.concatenate([half, rest])[order], np.tile(places, 2)[:, order]


def bcoo(dense):
    values, places = entries(dense)
    entries_and_indices = values, np.stack(places, axis=1)
    flags = {"indices_sorted": True, "unique_indices": True}
    return sparse.BCOO(entries_and_indices, shape=dense.shape, **flags)


def disordered_bcoo(dense):
    """Entries in any order, with padding that lies out of bounds."""
    values, places = disordered(dense)
    num_rows, num_columns = dense.shape
    padding = [[num_rows, num_columns], [num_rows, 0], [0, num_columns], [-1, 1]]
    entries = np.append(values, [5] * 4), np.concatenate([places.T, padding])
    return sparse.BCOO(jax.device_put(entries), shape=dense.shape)


def disordered_csr(dense):
    values, (row, column) = disordered(dense)
    order = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[order], np.arange(len(dense) + 1))
    return scipy.sparse.csr_matrix((values[order], column[order], starts), dense.shape)


def of_scipy(make, form, of=entries):
    return lambda dense: make(of(dense), dense.shape).asformat(form)


COO = scipy.sparse.coo_array, scipy.sparse.coo_matrix
SPARSE = {
    "BCOO": bcoo,
    "disordered BCOO": disordered_bcoo,
    "disordered COO": of_scipy(COO[0], "coo", disordered),
    "disordered CSR": disordered_csr,
    **{
        f"{form} {make.__name__}": of_scipy(make, form)
        for make in COO
        for form in ("csr", "csc", "coo")
    },
}


def split(matrix):
    # Of 300 rows the last block has 170, as many as one of `small_chunks`.
    return np.split(matrix, [130, 130])


def mapped(matrix):
    # The map keeps the file open.
    on_disk = tempfile.TemporaryFile()  # noqa: SIM115
    file = np.memmap(on_disk, matrix.dtype, shape=matrix.shape)
    file[:] = matrix
    return file


def sharded(matrix):
    mesh = Mesh(np.array(jax.devices()[:1]), ("rows",))
    return jax.device_put(matrix, NamedSharding(mesh, PartitionSpec("rows")))


BLOCKS = {
    "list": lambda matrix: Blocks(split(matrix)),
    "function": lambda matrix: Blocks(lambda: iter(split(matrix))),
    "memory map": lambda matrix: Blocks(mapped(matrix)),
    "sparse blocks": lambda m: Blocks([scipy.sparse.csr_array(x) for x in split(m)]),
    "one sparse matrix": lambda matrix: Blocks(scipy.sparse.coo_array(matrix)),
}
KINDS = {**SPARSE, **BLOCKS, "sharded": sharded}
# Without kinds that become one of these before any function sees them. Functions of
# sharded rows are in test_sharded_scores.py.
SOME = "disordered CSR", "list"
RIDGES = [0.1, 1.0, 10.0]
WEIGHTS = RANDOM.random(300)


def of(name, *args, **options):
    """A function of a matrix, by its name; least squares with the target."""
    function = getattr(sketching, name)
    first = [KEY] if "key" in inspect.signature(function).parameters else []
    return lambda matrix: function(*first, matrix, *args, **options)


FUNCTIONS = {
    "leverage": of("leverage_scores"),
    "cut-off": of("leverage_scores", rcond=0.7),
    "rank": of("numerical_rank"),
    "ridge": of("ridge_leverage_scores", 2.0),
    "rank k": of("rank_k_leverage_scores", 2),
    "approximate": of("approximate_leverage_scores", 0.9),
    "preconditioned": of("preconditioned", TARGET, ridge=0.5),
    "by a sketch": of("preconditioned", TARGET, method="sketch"),
    "sketch and solve": of("sketch_and_solve", TARGET, 60),
    "leave one out": of("choose_ridge", TARGET, RIDGES),
    "influence": of("influence", TARGET, WEIGHTS, ridge=0.5),
}


def best_ridge(matrix):
    errors = [cross_validation_error(matrix, TARGET, ridge) for ridge in RIDGES]
    ridge = RIDGES[np.argmin(errors)]
    return ridge, np.array(errors), oracles.ridge_solution(matrix, TARGET, ridge)


def solution_of_sketch(matrix, make=sketching.sparse_sign):
    sketch = make(KEY, 60, 300) @ [matrix, TARGET]
    return np.linalg.lstsq(*jax.device_get(sketch))[0]


# Where NumPy has them. Others are compared with those of the array.
EXACT = {
    "leverage": oracles.leverage_scores,
    "rank": lambda matrix: (np.linalg.matrix_rank(matrix), False),
    "ridge": lambda matrix: oracles.leverage_scores(matrix, 0, 2.0),
    "preconditioned": lambda matrix: oracles.ridge_solution(matrix, TARGET, 0.5),
    "by a sketch": lambda matrix: oracles.ridge_solution(matrix, TARGET, 0.0),
    "leave one out": best_ridge,
    "sketch and solve": solution_of_sketch,
}


# Others take `SOME`. Sparse blocks stay sparse in products with few columns, and
# a sparse matrix is solved by a sketch.
KINDS_OF = {
    **dict.fromkeys(("leverage", "cut-off"), KINDS),
    **dict.fromkeys(("rank k", "by a sketch"), (*SOME, "sparse blocks")),
    "preconditioned": ("list",),
    "influence": (*SOME, "sparse blocks"),
}


def solution_of(result):
    if not isinstance(result, sketching.Solution):
        return result
    assert np.all(result.converged)
    lengths = np.linalg.norm(TARGET, axis=0)
    np.testing.assert_allclose(result.residual_history[0], lengths, rtol=1e-12)
    return result.solution


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 170 rows or so, so that small matrices have several."""
    monkeypatch.setattr(blocks_module, "_CHUNK_BYTES", 8192)


def check_equal(result, expected, kind, tolerance=1e-10):
    results = jax.tree.leaves(result)
    references = jax.tree.leaves(expected)
    for leaf, reference in zip(results, references, strict=True):
        assert np.shape(leaf) == np.shape(reference), kind
        atol = tolerance * max(np.abs(reference).max(), 1)
        np.testing.assert_allclose(leaf, reference, 0, atol, err_msg=kind)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_kinds_give_one_result(name, with_x64, small_chunks):
    function = FUNCTIONS[name]
    expected = solution_of(EXACT.get(name, function)(MATRIX))
    for kind in KINDS_OF.get(name, SOME):
        result = solution_of(function(KINDS[kind](MATRIX)))
        check_equal(result, expected, kind)
        if name in ("leverage", "ridge", "approximate"):
            assert isinstance(result, np.ndarray) == (kind in BLOCKS)


@pytest.mark.parametrize("name", ["leverage", "rank", "ridge", "rank k"])
def test_wide_and_deficient(name, with_x64, small_chunks):
    wide = (MATRIX[:9, :2] @ MATRIX[:2]).T
    deficient = np.round(4 * MATRIX)
    deficient[:, 3] = deficient[:, 1] - deficient[:, 2]
    deficient[:, 5] = 0
    extreme = (1e200 * deficient, 0 * deficient) if name == "rank k" else ()
    for matrix in (wide, deficient, *extreme):
        expected = EXACT.get(name, FUNCTIONS[name])(matrix)
        for kind in SOME if name == "leverage" else KINDS_OF.get(name, SOME):
            check_equal(FUNCTIONS[name](KINDS[kind](matrix)), expected, kind, 1e-9)
    with pytest.raises(ValueError, match="at least as many rows as columns"):
        FUNCTIONS[name](sharded(wide))


# Arrays that must be dense: matrices of some functions, and all other arrays.
DENSE = [
    pytest.param(row, argument, id=f"{row.name}-{argument}")
    for row in SKETCHING
    for argument, value in row.arguments.items()
    if isinstance(value, np.ndarray | dict)
    if argument != "matrix" or row.name in ("lewis_weights", "iterative_hessian_sketch")
]


@pytest.mark.parametrize(("row", "argument"), DENSE)
def test_sparse_arguments_are_rejected_where_an_array_is_needed(row, argument):
    value = row.arguments[argument]
    is_tree = isinstance(value, dict)
    dense = np.atleast_2d(np.asarray(value["x"] if is_tree else value))
    for make in SPARSE.values():
        matrix = make(dense.reshape(len(dense), -1))
        changes = {argument: {"x": matrix} if is_tree else matrix}
        with pytest.raises(TypeError, match=f"^{argument}.* must be a dense array; go"):
            row.make(**{**row.arguments, **changes})


DENSE = "gaussian", "rademacher", "srht"


# `count_sketch` is a `sparse_sign` of one entry.
@pytest.mark.parametrize(
    "name", [*DENSE, "sparse_sign", "sparse_stack", "row_sampling"]
)
def test_embeddings(name):
    make = getattr(sketching, name)
    embedding = make(KEY, 8, 300)
    matrix = MATRIX.astype(np.float32)
    for kind in SPARSE:
        tree = {"x": SPARSE[kind](matrix), "y": TARGET}
        if name in DENSE:
            with pytest.raises(TypeError, match="embedding must be count_sketch, spar"):
                embedding @ tree
        else:
            check_equal(embedding @ tree, embedding @ {**tree, "x": matrix}, kind, 1e-5)
    if name not in ("sparse_sign", "sparse_stack"):
        for kind in ("list", "sharded"):
            with pytest.raises(TypeError, match="for Blocks and sharded rows; got _"):
                sketching.sketch_and_solve(KEY, KINDS[kind](MATRIX), TARGET, 8, make)


@pytest.mark.parametrize("kind", ["list", "sharded"])
def test_stack_of_blocks_and_sharded_rows(kind, with_x64, small_chunks):
    make = sketching.sparse_stack
    result = sketching.sketch_and_solve(KEY, KINDS[kind](MATRIX), TARGET, 60, make)
    check_equal(solution_of(result), solution_of_sketch(MATRIX, make), kind)


def stored_entries(matrix):
    """The entries of a BCOO in bounds, and their places: the others are padding."""
    values, places = (np.asarray(array) for array in (matrix.data, matrix.indices))
    assert places.min() >= 0
    is_in = np.all(places < matrix.shape, axis=1)
    return values[is_in], places[is_in]


def dense_of(matrix):
    """A BCOO as an array of NumPy."""
    values, places = stored_entries(matrix)
    dense = np.zeros(matrix.shape, values.dtype)
    np.add.at(dense, tuple(places.T), values)
    return dense


def test_sampled_rows():
    matrix = MATRIX[:20].astype(np.float32)
    target = TARGET[:20, 0]
    # Row 0, of which unused slots are, is drawn for sure; so is row 6, of 6 columns.
    sample = sketching.sample_rows(KEY, np.r_[40, :5, 40, 6:19], 8, "poisson")
    assert 0 < np.count_nonzero(sample.counts) < len(sample.counts)
    expected = matrix[sample.indices] * np.asarray(sample.scale)[:, None]
    apply = jax.jit(lambda sample, matrix: sample.apply(matrix))
    for kind, make in {"dense": np.asarray, **SPARSE}.items():
        result = sample.apply({"x": make(matrix), "y": target})
        rows = result["x"] if kind == "dense" else dense_of(result["x"])
        np.testing.assert_allclose(rows, expected, atol=1e-6, err_msg=kind)
        scaled = target[sample.indices] * sample.scale
        np.testing.assert_allclose(result["y"], scaled, atol=1e-6)
        if "BCOO" in kind:
            traced = apply(sample, make(matrix))
            np.testing.assert_array_equal(traced.data, result["x"].data)
            np.testing.assert_array_equal(traced.indices, result["x"].indices)
    with pytest.raises(ValueError, match="tree must be the data from which the sample"):
        sample.apply(matrix[:10])
    # All NaN, of zeros too, as the scale says.
    lost = sample._replace(scale=sample.scale * np.nan)
    rows = lost.apply(bcoo(matrix))
    assert np.isnan(rows.data).all()
    assert np.isnan(dense_of(rows)).any(axis=1).all()


@pytest.mark.parametrize("is_traced", [False, True])
def test_sampled_rows_stay_sparse(is_traced):
    """A dense result would take 4 TB."""
    num_rows = 2000
    num_columns = 10**9
    num_slots = 1000
    random = np.random.default_rng(0)
    indices = np.stack([np.arange(num_rows), random.integers(num_columns, size=2000)])
    entries = sparse.BCOO(
        (jnp.ones(num_rows), jnp.asarray(indices.T)), shape=(num_rows, num_columns)
    )
    sample = sketching.sample_rows(KEY, np.ones(num_rows), num_slots)
    apply = jax.jit(sample.apply) if is_traced else sample.apply
    rows = apply(entries)
    assert rows.shape == (num_slots, num_columns)
    assert rows.nse == num_rows
    used = np.count_nonzero(sample.counts)
    values, places = stored_entries(rows)
    assert len(values) == used
    order = np.argsort(places[:, 0])
    np.testing.assert_allclose(values[order], sample.scale[:used], rtol=1e-6)
    columns = indices[1][sample.indices[:used]]
    np.testing.assert_array_equal(places[order, 1], columns)


def test_sampled_rows_store_no_more_than_a_dense_result():
    matrix = MATRIX[:200].astype(np.float32)
    sample = sketching.sample_rows(KEY, np.ones(200), 7, "without_replacement")
    rows = sample.apply(bcoo(matrix))
    assert rows.nse == 7 * matrix.shape[1]
    expected = np.asarray(sample.apply(matrix))
    np.testing.assert_array_equal(dense_of(rows), expected)
    result = sketching.leverage_scores(rows)
    np.testing.assert_allclose(result, sketching.leverage_scores(expected), atol=5e-4)


def test_data_of_newton_sketch():
    """The caller's functions get a BCOO, and JAX decides what they may do with it."""
    matrix = MATRIX[:20, :4].astype(np.float32)
    seen = []

    def loss(params, entries):
        seen.append(entries)
        return jnp.sum((entries @ params) ** 2) / 2

    solve = functools.partial(
        sketching.newton_sketch,
        KEY,
        loss,
        lambda _, entries: entries.todense(),
        np.zeros(4, np.float32),
        20,
    )
    jax.eval_shape(lambda: solve(args=(disordered_csr(matrix),)))
    assert {type(entries) for entries in seen} == {sparse.BCOO}


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.int64, np.float64, np.float16, jnp.bfloat16]
)
def test_other_dtypes(dtype, small_chunks):
    """All are computed in float32; SciPy has no sparse matrices of half precision."""
    dense = (2 * MATRIX).astype(dtype)
    expected = oracles.leverage_scores(oracles.equilibrated(dense))
    kinds = "BCOO", "list", "disordered COO", "disordered CSR", "memory map"
    is_half = dtype in (np.float16, jnp.bfloat16)
    for make in (np.asarray, *map(KINDS.get, kinds[:2] if is_half else kinds)):
        scores = sketching.leverage_scores(make(dense))
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_unusable_sparse_matrices_are_rejected():
    matrix = MATRIX[:20].astype(np.float32)
    boxed = scipy.sparse.csr_array(matrix)
    boxed.data = boxed.data.astype(object)
    # Made by hand, which compiles nothing.
    places = np.tile(np.arange(6)[:, None], (20, 1, 1))
    compressed = sparse.BCSR.from_scipy_sparse(scipy.sparse.csr_array(matrix))
    nan = np.full((20, 4), np.nan, np.float32)
    calls = [
        sketching.leverage_scores,
        lambda x: sketching.preconditioned(KEY, x, TARGET[:20]),
        lambda x: sketching.count_sketch(KEY, 8, 20) @ x,
    ]
    for unusable, error, message in [
        (COO[0](matrix * 1j), TypeError, "must be real numbers; .* of complex"),
        (bcoo(matrix * 1j), TypeError, "must be real numbers; got .* of complex64"),
        (boxed, TypeError, "must be real numbers; got csr_array of object"),
        (scipy.sparse.coo_array(TARGET[:, 0]), ValueError, "must have shape .*300,"),
        (compressed, TypeError, "BCOO.from_scipy_sparse.* BCSR"),
        (sparse.BCOO((matrix, places), shape=(20, 6)), ValueError, "n_batch = 1"),
        (
            sparse.BCOO((matrix[0], places[0]), shape=(6,)),
            ValueError,
            "two sparse axes",
        ),
        (bcoo(nan), ValueError, "must be finite"),
        (scipy.sparse.csr_array(nan), ValueError, "must be finite"),
    ]:
        for call in calls:
            with pytest.raises(error, match=message):
                call(unusable)
        if isinstance(unusable, sparse.JAXSparse):
            error = TypeError
            message = "every block must be a dense array; got BC"
        with pytest.raises(error, match=message):
            sketching.leverage_scores(Blocks([unusable]))


# Blocks.


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *((name, np.asarray) for name in ("leverage", "rank k", "preconditioned")),
        ("rank k", scipy.sparse.csr_array),
    ],
)
def test_blocks_that_change_between_passes(name, make, small_chunks):
    # In the precision of their other tests, so that they share programs.
    dtype = np.float32 if name == "leverage" else np.float64
    matrix = MATRIX.astype(dtype)
    # One row in each block.
    is_heavy = np.arange(len(matrix)) % 200 == 0
    matrix[is_heavy] *= 1e8
    shuffled = matrix.copy()
    shuffled[~is_heavy] = RANDOM.permutation(matrix[~is_heavy])
    changes = {
        "scaled": 2 * matrix,
        "shuffled beside rows that outweigh all": shuffled,
        "shorter": matrix[:-1],
        "longer": np.r_[matrix, matrix],
        "none": matrix[:0],
    }

    def blocks_of(matrix):
        return [*map(make, split(matrix))]

    def function(passes, *num_rows):
        with jax.enable_x64(dtype == np.float64):
            return FUNCTIONS[name](Blocks(passes.__next__, *num_rows))

    for other in changes.values():
        # One or two looks at the first block, and one or two passes.
        for num_same in {"leverage": (2,), "rank k": (3, 4)}.get(name, (2, 3)):
            passes = [blocks_of(matrix)] * num_same + [blocks_of(other)] * 9
            with pytest.raises(ValueError, match="must (be the same in|have as many)"):
                function(iter(passes), len(matrix))
    # Rounding is no difference.
    near = matrix * dtype(1 + 1e-6)
    function(iter([blocks_of(matrix), *[blocks_of(near)] * 99]))


@pytest.mark.parametrize(
    ("name", "make"),
    [*((name, np.asarray) for name in FUNCTIONS), ("rank k", scipy.sparse.csr_array)],
)
def test_a_missing_value_in_a_block_is_named(name, make, with_x64, small_chunks):
    spoilt = MATRIX.copy()
    spoilt[207, 1] = np.nan
    with pytest.raises(ValueError, match="must be finite; got NaN .* in row 207"):
        FUNCTIONS[name](Blocks([*map(make, split(spoilt))]))


def test_wrong_blocks_are_rejected():
    square = np.eye(3)
    for blocks, error, rule in [
        (iter([square]), TypeError, "can be read again, or a function .* got list_it"),
        ((x for x in [square]), TypeError, "can be read again.*; got generator"),
        (3, TypeError, "must be an iterable .*, or a function .*; got int"),
        (lambda: 3, TypeError, r"blocks\(\) must return an iterable .* got int"),
        (lambda: square, TypeError, r"blocks\(\) must return .* got ndarray"),
        (lambda: bcoo(square), TypeError, r"blocks\(\) must return .* got BCOO"),
        ([], ValueError, "blocks must have at least one row"),
        (lambda: [square[:0]], ValueError, "blocks must have at least one row"),
        ([square[0]], ValueError, r"every block must have shape \(b, p\)"),
        (["rows.npy"], ValueError, r"every block must have shape \(b, p\).*; got \("),
        ([(square, square)], ValueError, r"every block must .*; got \(2, 3, 3\)"),
        ([square[:, :0]], ValueError, "at least one column"),
        ([square, np.eye(2)], ValueError, "many columns, .*; got 3 columns, then 2 in"),
        ([square, COO[0](square)], ValueError, "dense or all sparse; .* a csr_array"),
        ([square * 1j], TypeError, "every block must be real"),
        ([np.array([["a"]])], TypeError, "every block must be"),
    ]:
        with pytest.raises(error, match=rule):
            sketching.leverage_scores(Blocks(blocks))
    parts = MATRIX.astype(np.float32), MATRIX.astype(np.float32) * np.float32(1e25)
    with pytest.raises(ValueError, match="not contain rows far larger .* from 300 on"):
        FUNCTIONS["rank k"](Blocks([scipy.sparse.csr_array(part) for part in parts]))
    with pytest.raises(TypeError, match="rcond must be concrete, since Blocks are re"):
        jax.jit(lambda x: of("leverage_scores", rcond=x)(Blocks([MATRIX])))(0.1)
    with pytest.raises(TypeError, match="target must be concrete, since Blocks are"):
        jax.jit(lambda y: of("preconditioned", y)(Blocks([MATRIX])))(TARGET)


def test_chunks_may_be_deficient_where_the_whole_is_not(with_x64, small_chunks):
    # Rows sorted by group: every chunk misses columns that others have.
    matrix = np.zeros((1020, 6))
    for column in range(6):
        rows = matrix[170 * column : 170 * column + 210, column]
        rows[:] = RANDOM.random(len(rows))
    matrix[:170, :2] += 0.5
    scores = sketching.leverage_scores(Blocks(np.split(matrix, [100])))
    expected = oracles.leverage_scores(matrix)
    np.testing.assert_allclose(scores, expected, atol=1e-11)


def test_units_differ_between_columns_and_blocks(small_chunks):
    matrix = np.random.default_rng(3).standard_normal((682, 6))
    matrix *= 10.0 ** np.array([-34, -20, 0, 0, 20, 36])
    matrix[:128, 0] *= 1e-2
    matrix[256:300, 5] = 0
    matrix = matrix.astype(np.float32)
    scores = sketching.leverage_scores(Blocks(np.split(matrix, [128, 256])))
    expected = oracles.leverage_scores(oracles.equilibrated(matrix))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "max_passes"),
    [
        ("leverage", 2),
        ("preconditioned", 3),
        ("sketch and solve", 2),
        ("influence", 6),
    ],
)
def test_passes_over_blocks(name, max_passes, with_x64, small_chunks):
    reads = []

    def blocks():
        reads.append(0)
        return split(MATRIX)

    FUNCTIONS[name](Blocks(blocks, len(MATRIX)))
    # One more looks at the first block, for its columns and dtype.
    assert len(reads) == max_passes + 1


def partial_value_and_grad(rows):
    loss = jaxwgc.partial_value_and_grad(lambda params, part: params)
    return loss(1.0, {"x": rows})


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("partial_gradients", lambda x: jaxwgc.encode(codes.uncoded(20), x)),
        (r"parts\['x'\]", partial_value_and_grad),
        ("times", stragglers.empirical),
        ("assignment", lambda x: codes.any_placement(KEY, x, 1)),
    ],
)
def test_sparse_matrices_are_rejected_outside_of_sketching(name, call):
    for make in SPARSE.values():
        with pytest.raises(TypeError, match=f"^{name} must be a dense array; got "):
            call(make(MATRIX[:20].astype(np.float32)))


def test_an_operator_is_rebuilt_with_placeholders():
    """JAX fills pytrees with objects that are no functions, and are not checked."""
    operator = sketching.LinearOperator(lambda v: v, shape=(5, 5))
    is_function = lambda leaf: isinstance(leaf, jax.tree_util.Partial)  # noqa: E731
    leaves, structure = jax.tree.flatten(operator, is_leaf=is_function)
    rebuilt = jax.tree.unflatten(structure, [0] * len(leaves))
    assert (rebuilt.matvec, rebuilt.shape) == (0, (5, 5))
