"""Every embedding: the same S in every use, its law, and E[SᵀS] = I."""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxwgc.sketching import (
    count_sketch,
    gaussian,
    rademacher,
    row_sampling,
    sparse_sign,
    srht,
)

# One size for most cases, so that they share compiled functions; no power of two.
SKETCH_SIZE, NUM_ROWS = 9, 40
KEY = jax.random.key(3)
PROBABILITIES = np.array([0.3, 0.25, 0.2, 0.05, 0.2])


def weighted_rows(key, sketch_size, num_rows):
    weights = 1 + np.arange(num_rows, dtype=np.float32)
    return row_sampling(key, sketch_size, num_rows, weights)


MAKERS = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "srht": srht,
    "count_sketch": count_sketch,
    "sparse_sign": functools.partial(sparse_sign, num_nonzeros=3),
    "row_sampling": weighted_rows,
}
every_embedding = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def many_matrices(make, key, sketch_size, num_rows, num):
    keys = jax.random.split(key, num)
    return jax.vmap(lambda key: make(key, sketch_size, num_rows).matrix())(keys)


@pytest.mark.parametrize(
    ("name", "sketch_size"),
    [
        *((name, 3) for name in MAKERS),
        # Those that take rows more than once where there are fewer, or distinct ones.
        *((name, 11) for name in ("srht", "sparse_sign")),
    ],
)
def test_unbiased(name, sketch_size):
    """E[SᵀS] = I within four standard errors, entry by entry."""
    make, num_rows, num = MAKERS[name], 5, 4000
    matrices = many_matrices(make, jax.random.key(1), sketch_size, num_rows, num)
    matrices = np.asarray(matrices, np.float64)
    assert matrices.shape == (num, sketch_size, num_rows)
    grams = matrices.transpose(0, 2, 1) @ matrices
    error = grams.std(0) / np.sqrt(num)
    assert np.all(np.abs(grams.mean(0) - np.eye(num_rows)) < 4 * error + 1e-6)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def every_use(make, sketch_size, num_rows, key, array, weights):
    """S, SX, Sᵀ, and S again by forward differentiation."""
    embedding = make(key, sketch_size, num_rows)
    sketch, tangent = jax.jvp(embedding.apply, (array,), (array,))
    _, adjoint = jax.vjp(embedding.apply, array)
    # It is the same, and so only has to be there. JAX before 0.10 cannot transpose any
    # loop that reads the argument.
    if jax.__version_info__ >= (0, 10):
        jax.eval_shape(jax.linear_transpose(embedding.apply, array), weights)
    return {
        "matrix": embedding.matrix(),
        "sketch": sketch,
        "adjoint": adjoint(weights)[0],
        "tangent": tangent,
    }


@every_embedding
def test_apply_is_the_product_with_the_matrix(make, with_x64):
    """And derivatives are the products with it and its transpose."""
    # Dense ones need three blocks of rows for this size, srht five, sparse ones two; no
    # size is a power of two.
    sketch_size, num_rows = 1000, 5000
    array = normal(num_rows, 2, dtype=np.float64)
    weights = normal(sketch_size, 2, seed=1, dtype=np.float64)
    result = every_use(make, sketch_size, num_rows, jax.random.key(0), array, weights)
    matrix = np.asarray(result.pop("matrix"))
    assert matrix.dtype == np.float64 and matrix.shape == (sketch_size, num_rows)
    forward, backward = matrix @ array, matrix.T @ weights
    for name, value in result.items():
        expected = forward if name in ("sketch", "tangent") else backward
        tolerance = 1e-12 * np.abs(expected).max()
        np.testing.assert_allclose(value, expected, atol=tolerance, err_msg=name)


# One tree for the tests below, so that they share compiled functions.
TREE = {
    "matrix": normal(NUM_ROWS, 3),
    "vector": normal(NUM_ROWS, seed=1),
    "images": normal(NUM_ROWS, 2, 1, 2, seed=2),
    "complex": (normal(NUM_ROWS, 2, seed=3) + 1j * normal(NUM_ROWS, 2, seed=4)),
    "integers": np.arange(NUM_ROWS),
    "half": np.ones((NUM_ROWS, 1), jnp.bfloat16),
    "empty": np.zeros((NUM_ROWS, 0), np.float32),
}


@pytest.mark.parametrize("make", [gaussian, srht, MAKERS["sparse_sign"], weighted_rows])
def test_of_one_row(make):
    embedding = make(KEY, 3, 1)
    np.testing.assert_allclose(embedding @ np.ones((1, 1)), embedding.matrix())


def test_fewer_nonzeros_by_default_where_there_is_no_room():
    key = jax.random.key(0)
    matrix = sparse_sign(key, 5, 30).matrix()
    np.testing.assert_array_equal(matrix, sparse_sign(key, 5, 30, 5).matrix())
    matrix = sparse_sign(key, 20, 30).matrix()
    np.testing.assert_array_equal(matrix, sparse_sign(key, 20, 30, 8).matrix())


@every_embedding
def test_precision_does_not_change_the_draws(make):
    """Neither the 64-bit mode nor the dtype of the arrays, nor how it is called."""
    array = TREE["matrix"].astype(np.float64)
    embedding = make(KEY, SKETCH_SIZE, NUM_ROWS)
    single = np.asarray(embedding.matrix())
    assert single.dtype == np.float32
    sketch = embedding.apply(TREE)["matrix"]
    assert sketch.dtype == np.float32

    def uses(key, array):
        embedding = make(key, SKETCH_SIZE, NUM_ROWS)
        matrices = embedding.matrix(), embedding.matrix(np.float32)
        sketches = embedding.apply([array, array.astype(np.float32)])
        return matrices, sketches

    with jax.enable_x64(True):
        matrices, sketches = jax.jit(uses)(KEY, array)
    dtypes = [np.float64, np.float32]
    assert [matrix.dtype for matrix in matrices] == dtypes
    assert [sketch.dtype for sketch in sketches] == dtypes
    np.testing.assert_allclose(matrices[0], single, atol=3e-7)
    np.testing.assert_allclose(sketches[0], sketch, atol=2e-5)
    np.testing.assert_allclose(sketches[1], sketch, atol=2e-6)


@every_embedding
def test_pytrees(make):
    """One S for all leaves: matrices, vectors, images, complex, integers, bfloat16."""
    embedding = make(KEY, SKETCH_SIZE, NUM_ROWS)
    matrix = np.asarray(embedding.matrix())
    sketch = embedding @ TREE
    assert sketch.keys() == TREE.keys()
    for name, leaf in TREE.items():
        assert sketch[name].shape == (SKETCH_SIZE, *leaf.shape[1:])
        assert sketch[name].dtype == (
            np.complex64 if name == "complex" else np.float32
        ), name
        expected = np.tensordot(matrix, np.asarray(leaf), axes=1)
        np.testing.assert_allclose(sketch[name], expected, atol=2e-5, rtol=1e-6)


def test_sums_of_many_rows_are_accurate():
    """In float32 too: not one long sum in each of few buckets."""
    num_rows = 300_000
    embedding = count_sketch(jax.random.key(2), 8, num_rows)
    ones = np.ones(num_rows)
    with jax.enable_x64(True):
        sketch, expected = embedding.apply([ones.astype(np.float32), ones])
    assert sketch.dtype == np.float32 and expected.dtype == np.float64
    # Every sum is one of entries of either sign.
    bound = 10 * np.finfo(np.float32).eps * num_rows**0.5
    np.testing.assert_allclose(sketch, expected, atol=bound)


def test_jit_tells_embeddings_apart():
    """Their structures differ, or a cache might take one program for the other."""
    makers = (gaussian, rademacher, srht, count_sketch, row_sampling)
    structures = [jax.tree.structure(make(jax.random.key(0), 5, 20)) for make in makers]
    for index, structure in enumerate(structures):
        assert structure not in structures[:index]
    assert structures[0] == jax.tree.structure(gaussian(jax.random.key(1), 5, 20))


@pytest.mark.parametrize("make", [gaussian, srht, sparse_sign, weighted_rows])
def test_never_forms_the_matrix(make):
    sketch_size, num_rows = 1000, 200_000
    embedding = make(jax.random.key(0), sketch_size, num_rows)
    rows = jax.ShapeDtypeStruct((num_rows, 2), np.float32)
    lowered = jax.jit(operator.matmul).lower(embedding, rows)
    memory = lowered.compile().memory_analysis()
    # In bytes; S would take 800 MB.
    assert memory is not None and memory.temp_size_in_bytes < 100e6


class TestLaws:
    """Beyond the second moment, what each embedding is made of."""

    def test_gaussian_entries(self):
        entries = np.ravel(gaussian(jax.random.key(0), 100, 30).matrix()) * 10
        assert scipy.stats.kstest(entries, "norm").pvalue > 1e-3

    def test_blocks_differ(self):
        """A key of its own for every block of rows."""
        for make in (gaussian, rademacher):
            matrix = np.asarray(make(jax.random.key(0), 2**16, 64).matrix())
            # Blocks are 32 rows long for a sketch as large.
            overlap = np.mean(matrix[:, :32] * matrix[:, 32:]) * 2**16
            assert abs(overlap) < 5 / np.sqrt(2**21)

    def test_rademacher_entries(self):
        matrix = np.asarray(rademacher(jax.random.key(0), 64, 300).matrix()) * 8
        assert set(np.unique(matrix)) == {-1, 1}
        # All 32 bits of a word are used, and none twice.
        correlations = matrix.T @ matrix / 64 - np.eye(300)
        assert np.abs(correlations).max() < 6.5 / 8
        assert scipy.stats.binomtest(int(np.sum(matrix > 0)), matrix.size).pvalue > 1e-3

    def test_srht_rows_are_distinct_hadamard_rows(self):
        matrix = np.asarray(srht(jax.random.key(0), 5, 16).matrix()) * np.sqrt(5)
        np.testing.assert_allclose(matrix @ matrix.T, 16 * np.eye(5), atol=1e-4)
        # One sign pattern on all rows: products of rows are rows of H again.
        hadamard = scipy.linalg.hadamard(16)
        for row in matrix[1:]:
            assert np.isclose(hadamard @ (matrix[0] * row), 16, atol=1e-3).sum() == 1

    def test_srht_picks_rows_uniformly(self):
        keys = jax.random.split(jax.random.key(1), 4000)
        picked = jax.jit(jax.vmap(lambda key: srht(key, 3, 7)._drawn()[0]))(keys)
        counts = np.bincount(np.ravel(picked), minlength=8)
        # Draws without replacement vary less than those with.
        statistic = scipy.stats.chisquare(counts).statistic / (1 - 2 / 7)
        assert 1e-3 < scipy.stats.chi2(7).cdf(statistic) < 1 - 1e-3

    def test_count_sketch(self):
        matrix = np.asarray(count_sketch(jax.random.key(0), 8, 4000).matrix())
        assert np.all((matrix != 0).sum(0) == 1)
        assert set(np.unique(matrix)) == {-1, 0, 1}
        cells = np.array([(matrix == 1).sum(1), (matrix == -1).sum(1)])
        assert scipy.stats.chisquare(np.ravel(cells)).pvalue > 1e-3

    def test_sparse_sign(self):
        """Every subset of rows is as likely, and signs are independent of it."""
        matrix = np.asarray(sparse_sign(jax.random.key(0), 5, 8000, 3).matrix())
        rows = np.nonzero(matrix.T)[1].reshape(8000, 3)
        signs = np.sign(np.take_along_axis(matrix.T, rows, axis=1)) > 0
        subsets = list(itertools.combinations(range(5), 3))
        cells = [
            subsets.index(tuple(row)) * 8 + sign @ [4, 2, 1]
            for row, sign in zip(rows.tolist(), signs)
        ]
        assert scipy.stats.chisquare(np.bincount(cells, minlength=80)).pvalue > 1e-3
        np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1, atol=1e-6)

    def test_row_sampling(self):
        """One entry a row, by the probabilities, each as large as makes it unbiased."""
        embedding = row_sampling(jax.random.key(0), 3000, 5, 10 * PROBABILITIES)
        matrix = np.asarray(embedding.matrix())
        assert np.all((matrix != 0).sum(1) <= 1) and np.all((matrix != 0).sum(0) == 1)
        counts = matrix.max(0) ** 2 * 3000 * PROBABILITIES
        np.testing.assert_allclose(counts, counts.round(), atol=1e-2)
        assert counts.sum().round() == 3000
        pvalue = scipy.stats.chisquare(counts.round(), 3000 * PROBABILITIES).pvalue
        assert pvalue > 1e-3

    def test_row_sampling_is_uniform_by_default(self):
        matrix = np.asarray(row_sampling(jax.random.key(0), 3000, 5).matrix())
        counts = matrix.max(0) ** 2 * 600
        assert scipy.stats.chisquare(counts.round()).pvalue > 1e-3
        assert np.any(counts.round() != 600)

    def test_row_sampling_by_traced_probabilities(self):
        """Traced values cannot be refused; wrong ones give NaN."""

        @jax.jit
        def sketch(probabilities):
            return row_sampling(KEY, 3, 5, probabilities) @ jnp.ones(5)

        assert np.isfinite(sketch(jnp.ones(5))).all()
        for wrong in (jnp.zeros(5), jnp.array([1.0, -1, 1, 1, 1])):
            assert np.isnan(sketch(wrong)).all()
