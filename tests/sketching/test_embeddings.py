"""Every embedding: one S in every use, its law, E[SᵀS] = I, and its distortion."""

import collections
import functools
import math
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.stats
from jax import Array

from jaxwgc._common.arrays import product
from jaxwgc.sketching import (
    Blocks,
    Embedding,
    count_sketch,
    embedding_distortion,
    gaussian,
    preconditioned,
    rademacher,
    recommended_sketch_size,
    row_sampling,
    sketch_and_solve,
    sparse_sign,
    sparse_stack,
    srht,
)
from tests.catalogue import embeddings as catalogue
from tests.catalogue.row import makes
from tests.oracles import check_counts

# No power of two. Dense embeddings need three blocks of rows for this size, srht five,
# sparse ones two.
SKETCH_SIZE = 1000
NUM_ROWS = 5000
KEY = jax.random.key(3)
PROBABILITIES = np.array([0.3, 0.25, 0.2, 0.05, 0.2])


def weighted_rows(key, sketch_size, num_rows):
    weights = 1 + np.arange(num_rows, dtype=np.float32)
    return row_sampling(key, sketch_size, num_rows, weights)


# 1000 rows of a stack are three blocks, of unequal size.
OF_LAWS = {
    "sparse_sign": functools.partial(sparse_sign, num_nonzeros=3),
    "sparse_stack": functools.partial(sparse_stack, num_nonzeros=3),
    "row_sampling": weighted_rows,
}
# All constructors of the catalogue.
CONSTRUCTORS = {
    row.name: row.make for row in catalogue.ROWS if makes(row.make, Embedding)
}
MAKERS = CONSTRUCTORS | OF_LAWS


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def matrix_of(make, *sizes):
    return np.asarray(make(jax.random.key(0), *sizes).matrix())


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def many_matrices(make, key, sketch_size, num_rows, num):
    keys = jax.random.split(key, num)
    return jax.vmap(lambda key: make(key, sketch_size, num_rows).matrix())(keys)


@pytest.mark.parametrize(
    ("name", "sketch_size"),
    [
        *((name, 3) for name in MAKERS),
        # Those that take rows more than once where there are fewer, or distinct ones.
        *((name, 11) for name in ("srht", "sparse_sign", "sparse_stack")),
    ],
)
def test_unbiased(name, sketch_size):
    """E[SᵀS] = I within four standard errors, entry by entry."""
    make = MAKERS[name]
    num_rows = 5
    num = 4000
    matrices = many_matrices(make, jax.random.key(1), sketch_size, num_rows, num)
    matrices = np.asarray(matrices, np.float64)
    assert matrices.shape == (num, sketch_size, num_rows)
    grams = matrices.transpose(0, 2, 1) @ matrices
    error = grams.std(0) / np.sqrt(num)
    assert np.all(np.abs(grams.mean(0) - np.eye(num_rows)) < 4 * error + 1e-6)


TREE = {
    "matrix": normal(NUM_ROWS, 3),
    "vector": normal(NUM_ROWS, seed=1),
    "images": normal(NUM_ROWS, 2, 1, 2, seed=2),
    "complex": (normal(NUM_ROWS, 2, seed=3) + 1j * normal(NUM_ROWS, 2, seed=4)),
    "integers": np.arange(NUM_ROWS) % 7,
    "half": np.ones((NUM_ROWS, 1), jnp.bfloat16),
    "empty": np.zeros((NUM_ROWS, 0), np.float32),
}


@jax.jit
def matrix_and_product(embedding, tree):
    return embedding.matrix(), embedding @ tree


@pytest.mark.parametrize(
    "make",
    [gaussian, srht, MAKERS["sparse_sign"], MAKERS["sparse_stack"], weighted_rows],
)
def test_embeddings_of_one_row_have_shapes(make):
    call = functools.partial(matrix_and_product, make(KEY, 3, 1), np.ones((1, 1)))
    assert {leaf.shape for leaf in jax.eval_shape(call)} == {(3, 1)}


def test_fewer_nonzeros_by_default_where_there_is_no_room():
    for make in (sparse_sign, sparse_stack):
        for size, num_nonzeros in ((5, 5), (20, 8)):
            embedding = make(KEY, size, 30, num_nonzeros)
            default = make(KEY, size, 30)
            assert jax.tree.structure(default) == jax.tree.structure(embedding)


def check_product(result, matrix, array, eps):
    """Rounding is relative to sums of absolute values."""
    matrix = matrix.astype(float)
    array = array.astype(complex if np.iscomplexobj(array) else float)
    sizes = np.tensordot(np.abs(matrix), np.abs(array), axes=1)
    misses = np.abs(result - np.tensordot(matrix, array, axes=1))
    assert np.all(misses <= eps * sizes)


@pytest.mark.parametrize("name", MAKERS)
def test_every_use_has_the_same_matrix(name):
    """Leaves, dtypes, precisions, tracing and transposition do not change it."""
    make = MAKERS[name]
    embedding = make(KEY, SKETCH_SIZE, NUM_ROWS)
    matrix, sketch = jax.device_get(matrix_and_product(embedding, TREE))
    assert matrix.dtype == np.float32 and sketch.keys() == TREE.keys()
    for key, leaf in TREE.items():
        assert sketch[key].shape == (SKETCH_SIZE, *leaf.shape[1:])
        is_complex = key == "complex"
        assert sketch[key].dtype == (np.complex64 if is_complex else np.float32)
        check_product(sketch[key], matrix, leaf, 2e-6)

    @jax.jit
    def every_use(key, arrays, weights):
        embedding = make(key, SKETCH_SIZE, NUM_ROWS)
        sketches, adjoint = jax.vjp(embedding.apply, arrays)
        # It is the same, and so only has to be there. JAX before 0.10 cannot transpose
        # any loop that reads the argument.
        if jax.__version_info__ >= (0, 10):
            jax.eval_shape(jax.linear_transpose(embedding.apply, arrays), weights)
        assert jax.eval_shape(lambda: embedding.matrix(np.float32)).dtype == np.float32
        return [embedding.matrix(), *sketches, *adjoint(weights)[0]]

    array = TREE["matrix"].astype(np.float64)
    weights = normal(SKETCH_SIZE, 3)
    arrays = [array, TREE["matrix"]]
    all_weights = [weights.astype(np.float64), weights]
    with jax.enable_x64(True):
        results = jax.device_get(every_use(KEY, arrays, all_weights))
    exact, *results = results
    assert exact.dtype == np.float64
    assert [result.dtype for result in results] == 2 * [np.float64, np.float32]
    np.testing.assert_allclose(exact, matrix, atol=3e-7)
    check_product(results[0], exact, array, 1e-13)
    check_product(results[1], exact, array, 2e-6)
    check_product(results[2], exact.T, weights, 1e-13)
    check_product(results[3], exact.T, weights, 2e-6)


def test_sums_of_many_rows_are_accurate():
    """Few buckets in float32 do not accumulate one long sum each."""
    num_rows = 300_000
    embedding = count_sketch(jax.random.key(2), 8, num_rows)
    ones = np.ones(num_rows)
    with jax.enable_x64(True):
        sketch, expected = embedding.apply([ones.astype(np.float32), ones])
    assert sketch.dtype == np.float32 and expected.dtype == np.float64
    # Every sum is one of entries of either sign.
    bound = 10 * np.finfo(np.float32).eps * num_rows**0.5
    np.testing.assert_allclose(sketch, expected, atol=bound)


@pytest.mark.parametrize(
    "make", [gaussian, srht, sparse_sign, sparse_stack, weighted_rows]
)
def test_never_forms_the_matrix(make):
    embedding = jax.eval_shape(lambda: make(KEY, 1000, 200_000))
    rows = jax.ShapeDtypeStruct((200_000, 2), np.float32)
    program = str(jax.make_jaxpr(operator.matmul)(embedding, rows))
    shapes = re.findall(r"\[(\d+(?:,\d+)*)\]", program)
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    # S has 200 million entries.
    assert 200_000 <= max(sizes) < 20e6


# Laws beyond the second moment: what each embedding is made of.


def test_gaussian_entries():
    entries = np.ravel(matrix_of(gaussian, 100, 30)) * 10
    assert scipy.stats.kstest(entries, "norm").pvalue > 1e-3


@pytest.mark.parametrize("make", [gaussian, rademacher])
def test_blocks_of_rows_are_independent(make):
    """A key of its own for every block of rows, here of 32."""
    matrix = matrix_of(make, 2**16, 64)
    overlap = np.mean(matrix[:, :32] * matrix[:, 32:]) * 2**16
    assert abs(overlap) < 5 / np.sqrt(2**21)


def test_rademacher_entries():
    matrix = matrix_of(rademacher, 64, 300) * 8
    assert set(np.unique(matrix)) == {-1, 1}
    # All 32 bits of a word are used, and none twice.
    correlations = matrix.T @ matrix / 64 - np.eye(300)
    assert np.abs(correlations).max() < 6.5 / 8
    assert scipy.stats.binomtest(int(np.sum(matrix > 0)), matrix.size).pvalue > 1e-3


def test_srht_rows_are_distinct_hadamard_rows():
    matrix = matrix_of(srht, 5, 16) * np.sqrt(5)
    np.testing.assert_allclose(matrix @ matrix.T, 16 * np.eye(5), atol=1e-4)
    # One sign pattern on all rows: products of rows are rows of H again.
    products = matrix[1:] * matrix[0] @ scipy.linalg.hadamard(16)
    assert np.all(np.sum(np.isclose(products, 16, atol=1e-3), axis=1) == 1)


def test_srht_picks_rows_uniformly():
    keys = jax.random.split(jax.random.key(1), 4000)
    picked = jax.jit(jax.vmap(lambda key: srht(key, 3, 7)._drawn()[0]))(keys)
    counts = np.bincount(np.ravel(picked), minlength=8)
    # Draws without replacement vary less than those with.
    statistic = scipy.stats.chisquare(counts).statistic / (1 - 2 / 7)
    assert 1e-3 < scipy.stats.chi2(7).cdf(statistic) < 1 - 1e-3


def test_count_sketch():
    matrix = matrix_of(count_sketch, 8, 4000)
    assert np.all((matrix != 0).sum(0) == 1)
    assert set(np.unique(matrix)) == {-1, 0, 1}
    check_counts([*(matrix == 1).sum(1), *(matrix == -1).sum(1)])


def test_sparse_sign():
    """Every subset of rows is as likely, and signs are independent of it."""
    matrix = matrix_of(sparse_sign, 5, 8000, 3)
    columns = collections.Counter(map(tuple, np.sign(matrix.T).tolist()))
    # Ten subsets, with eight patterns of signs.
    assert len(columns) == 80 and all(np.abs(one).sum() == 3 for one in columns)
    check_counts(list(columns.values()))
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1, atol=1e-6)


@pytest.mark.parametrize(("sketch_size", "sizes"), [(6, (3, 3)), (5, (2, 3))])
def test_sparse_stack(sketch_size, sizes):
    """Each block has one entry per column; buckets and signs are independent."""
    matrix = matrix_of(sparse_stack, sketch_size, 8000, 2)
    np.testing.assert_allclose(matrix**2 * 2, matrix != 0, atol=1e-6)
    columns = collections.Counter(map(tuple, np.sign(matrix.T).tolist()))
    assert len(columns) == 4 * math.prod(sizes)
    for column in columns:
        in_blocks = np.split(np.abs(column), sizes[:1])
        assert [block.sum() for block in in_blocks] == [1, 1]
    check_counts(list(columns.values()))


def test_columns_of_a_stack_are_independent():
    """Chunks of columns, and columns of one chunk, share no bits."""
    matrix = matrix_of(sparse_stack, 8, 4096, 4)
    grams = matrix.T @ matrix
    off_diagonal = grams[~np.eye(4096, dtype=bool)]
    # The inner products of independent columns have the variance 1 / sketch_size.
    assert abs(off_diagonal.mean()) < 5 / np.sqrt(8 * 4096**2)
    assert abs(off_diagonal.var() * 8 - 1) < 0.01


@pytest.mark.parametrize("first_row", [0, 17, 1024, 2500])
def test_stacks_grow_to_more_rows_of_data(first_row):
    """Later rows of data have the columns that they have in the whole S."""
    whole = np.asarray(sparse_stack(KEY, 20, 5000, 4).matrix())
    part = sparse_stack(KEY, 20, 1500, 4, first_row=first_row).matrix()
    np.testing.assert_array_equal(part, whole[:, first_row : first_row + 1500])


@jax.jit
def sketch_of_batches(key, batches):
    """Adds the sketches of batches (num, size, ...) in one compiled loop."""
    size = batches.shape[1]

    def add(total, batch):
        number, rows = batch
        embedding = sparse_stack(key, 20, size, 4, first_row=number * size)
        return total + embedding @ rows, None

    numbers = jnp.arange(len(batches))
    total, _ = jax.lax.scan(add, jnp.zeros((20, 3)), (numbers, batches))
    return total


def test_sketch_of_a_stream_is_that_of_all_rows():
    rows = normal(3000, 3)
    total = sketch_of_batches(KEY, rows.reshape(10, 300, 3))
    expected = sparse_stack(KEY, 20, 3000, 4) @ rows
    np.testing.assert_allclose(total, expected, atol=1e-4)


@pytest.mark.parametrize("as_sparse", [False, True])
def test_stacks_grow_to_larger_sketches(as_sparse):
    """Further blocks of an equal size go below the first ones, up to their scale."""
    rows = normal(2000, 3)
    rows[rows < 0.5] = 0
    matrix = scipy.sparse.csr_array(rows) if as_sparse else rows
    first = sparse_stack(KEY, 20, 2000, 4) @ matrix
    more = sparse_stack(KEY, 30, 2000, 6, first_block=4) @ matrix
    whole = sparse_stack(KEY, 50, 2000, 10) @ matrix
    scaled = [first * np.sqrt(0.4), more * np.sqrt(0.6)]
    np.testing.assert_allclose(np.concatenate(scaled), whole, atol=1e-4)


def test_row_sampling():
    """Each row has one entry, drawn by the probabilities and scaled to be unbiased."""
    for probabilities, shares in (
        (10 * PROBABILITIES, PROBABILITIES),
        (None, np.full(5, 0.2)),
    ):
        matrix = matrix_of(row_sampling, 3000, 5, probabilities)
        assert np.all((matrix != 0).sum(1) <= 1) and np.all((matrix != 0).sum(0) == 1)
        counts = matrix.max(0) ** 2 * 3000 * shares
        np.testing.assert_allclose(counts, counts.round(), atol=1e-2)
        assert counts.sum().round() == 3000 and np.any(counts.round() != 600)
        check_counts(counts.round(), 3000 * shares)


# Distortion against NumPy, and sizes of theory against measured distortion.

NUM_COLUMNS = 3
EPSILON = 0.5


def basis_of(kind, num_rows, num_columns=NUM_COLUMNS, dtype=np.float32):
    """Incoherent, or with rows of leverage 1 beside many of next to none."""
    draw = np.random.default_rng(0)
    matrix = draw.normal(size=(num_rows, num_columns))
    if kind == "coherent":
        matrix *= 1e-3
        matrix[draw.permutation(num_rows)[:num_columns]] += np.eye(num_columns)
    return np.linalg.qr(matrix)[0].astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 2))
def measure(make, bases, size):
    """The distortion on each subspace in 100 seeds."""

    def of_seed(key):
        embedding = make(key, size, bases.shape[1])
        return jax.vmap(lambda basis: embedding_distortion(basis, embedding))(bases)

    return jax.lax.map(of_seed, jax.random.split(jax.random.key(1), 100))


@pytest.mark.parametrize(
    ("make", "num_rows", "options"),
    [
        (gaussian, 420, {}),
        # Below this many rows theory asks for all of them.
        (srht, 9000, {"num_rows": 9000}),
        (count_sketch, 2000, {}),
        (sparse_sign, 600, {"num_nonzeros": 12}),
        (sparse_stack, 600, {"num_nonzeros": 12}),
    ],
)
def test_recommended_size_reaches_its_distortion(make, num_rows, options):
    size = recommended_sketch_size(make, NUM_COLUMNS, EPSILON, **options)
    assert size < num_rows
    bases = [basis_of(kind, num_rows) for kind in ("incoherent", "coherent")]
    if make in (sparse_sign, sparse_stack):
        make = functools.partial(make, **options)
    distortions = np.asarray(measure(make, np.stack(bases), size))
    assert np.all(np.sum(distortions <= EPSILON, axis=0) >= 95)


@pytest.mark.parametrize(("sketch_size", "x64"), [(2, True), (40, False)])
def test_distortion_is_that_of_numpy(sketch_size, x64):
    """Singular values of the product are the reference; below the rank, at least 1."""
    basis = basis_of("incoherent", 50, dtype=np.float64 if x64 else np.float32)
    embedding = gaussian(jax.random.key(0), sketch_size, 50)
    product = np.asarray(embedding.matrix(np.float32), np.float64) @ basis
    gram = product.T @ product - np.eye(NUM_COLUMNS)
    with jax.enable_x64(x64):
        result = np.asarray(embedding_distortion(basis, embedding))
    assert result.dtype == basis.dtype
    np.testing.assert_allclose(result, np.linalg.norm(gram, 2), rtol=1e-5)
    assert sketch_size > NUM_COLUMNS or result >= 1 - 1e-6


def test_recommended_sizes():
    """The formulas, worked out by hand, and how sizes depend on the target."""
    size = functools.partial(recommended_sketch_size, num_columns=4)
    root = math.sqrt(1.21) - 1
    by_hand = ((2 + math.sqrt(2 * math.log(2 / 0.1))) / root) ** 2
    assert size(gaussian, epsilon=0.21, delta=0.1) == math.ceil(by_hand)
    size = functools.partial(size, epsilon=0.5, delta=0.1)
    assert size(count_sketch) == 800
    chernoff = 1.5 * math.log(1.5) - 0.5
    by_hand = 7 * math.log(80) / chernoff
    assert size(row_sampling, coherence=7) == math.ceil(by_hand)
    # By exact scores, the coherence is the number of columns.
    assert size(row_sampling) == size(row_sampling, coherence=4)
    spread = (2 + math.sqrt(8 * math.log(2**21 / 0.1))) ** 2
    by_hand = spread * math.log(160) / chernoff
    assert size(srht, num_rows=2**20 - 5) == math.ceil(by_hand)
    # A net of fineness 1/4, as in the textbook, asks for more.
    textbook = 2 * (4 * math.log(9) + math.log(20)) / (0.25**2 / 2 - 0.25**3 / 3)
    assert textbook / 2 < size(rademacher) < textbook
    # It never needs more than all rows.
    assert recommended_sketch_size(srht, 5, 0.01, num_rows=1000) == 1024


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_embedding_has_a_recommended_size(name):
    sizes = [
        recommended_sketch_size(CONSTRUCTORS[name], 3, epsilon, num_rows=10**6)
        for epsilon in (0.5, 0.1)
    ]
    assert 3 < sizes[0] < sizes[1]


def test_recommended_sizes_of_sparse_sign():
    size = functools.partial(recommended_sketch_size, sparse_sign, 10, 0.5)
    assert size(num_nonzeros=11) == math.ceil(160 * math.log(200))
    # Too few entries for the theorem: that of count_sketch still holds.
    assert size(num_nonzeros=10) == recommended_sketch_size(count_sketch, 10, 0.5)
    assert size(num_nonzeros=5000) == 5000
    # Blocks of an equal size.
    stacked = functools.partial(recommended_sketch_size, sparse_stack, 10, 0.5)
    assert stacked(num_nonzeros=11) == 11 * math.ceil(160 * math.log(200) / 11)
    assert stacked(num_nonzeros=5000) == 5000


def test_recommended_sizes_are_of_as_many_nonzeros_as_sparse_sign_has():
    """Theory needs at least 8.5 nonzeros per column; the default of both is 8."""
    size = recommended_sketch_size(sparse_sign, 10, 0.62)
    assert size == recommended_sketch_size(count_sketch, 10, 0.62)
    assert size > recommended_sketch_size(sparse_sign, 10, 0.62, num_nonzeros=9)


class Signs(Embedding):
    """An embedding of a user, with a field of its own."""

    scale: Array

    def apply_to_columns(self, arrays):
        return [product(self.to_array(array.dtype), array) for array in arrays]

    def to_array(self, dtype):
        shape = self.sketch_size, self.num_rows
        signs = jax.random.rademacher(self.key, shape, dtype)
        return self.scale.astype(dtype) * signs


def test_embeddings_of_users_are_used_like_those_of_the_library():
    matrix = normal(300, 4)
    embedding = Signs(KEY, 60, 300, scale=jnp.array(60**-0.5))
    expected = np.asarray(embedding.matrix()) @ matrix
    np.testing.assert_allclose(embedding @ matrix, expected, rtol=1e-3, atol=1e-3)
    applied = jax.jit(lambda embedding: embedding.apply({"x": matrix}))(embedding)
    np.testing.assert_allclose(applied["x"], expected, rtol=1e-3, atol=1e-3)
    target = matrix @ np.arange(4, dtype=np.float32)
    solved = preconditioned(KEY, matrix, target, 60, embedding, method="sketch")
    assert solved.converged
    np.testing.assert_allclose(solved.solution, np.arange(4), atol=1e-4)
    with pytest.raises(TypeError, match="for a sparse matrix; got Signs"):
        embedding.apply(scipy.sparse.csr_array(matrix))
    with pytest.raises(TypeError, match="for Blocks and sharded rows; got Signs"):
        sketch_and_solve(KEY, Blocks([matrix]), target, 60, embedding)
