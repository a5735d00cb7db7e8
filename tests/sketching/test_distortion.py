"""Distortion against NumPy, and the sizes of theory against measured distortion."""

import functools
import math

import jax
import numpy as np
import pytest

from jaxwgc.sketching import (
    count_sketch,
    embedding_distortion,
    gaussian,
    rademacher,
    recommended_sketch_size,
    row_sampling,
    sparse_sign,
    srht,
)

NUM_COLUMNS, EPSILON = 3, 0.5


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


@functools.partial(jax.jit, static_argnums=1)
def measure_sampling(basis, size, probabilities):
    """The same of sampled rows; compiled once for all probabilities."""

    def sampling(key, size, num_rows):
        return row_sampling(key, size, num_rows, probabilities)

    return measure(sampling, basis[None], size)


@pytest.mark.parametrize(
    ("constructor", "make", "num_rows", "options"),
    [
        (gaussian, gaussian, 600, {}),
        # Below this many rows theory asks for all of them.
        (srht, srht, 9000, {"num_rows": 9000}),
        (count_sketch, count_sketch, 2000, {}),
        (
            sparse_sign,
            functools.partial(sparse_sign, num_nonzeros=12),
            600,
            {"num_nonzeros": 12},
        ),
    ],
)
def test_recommended_size_keeps_its_promise(constructor, make, num_rows, options):
    size = recommended_sketch_size(constructor, NUM_COLUMNS, EPSILON, **options)
    assert size < num_rows
    bases = [basis_of(kind, num_rows) for kind in ("incoherent", "coherent")]
    distortions = np.asarray(measure(make, np.stack(bases), size))
    assert np.all(np.sum(distortions <= EPSILON, axis=0) >= 95)


def test_recommended_size_of_row_sampling():
    """By exact scores, and uniformly with the coherence that this has."""
    num_rows = 600
    basis = basis_of("coherent", num_rows)
    scores = np.sum(basis**2, axis=1)
    ones = np.ones_like(scores)
    size = recommended_sketch_size(row_sampling, NUM_COLUMNS, EPSILON)
    assert size < num_rows
    assert np.sum(measure_sampling(basis, size, scores) <= EPSILON) >= 95
    coherence = num_rows * float(scores.max())
    uniform = recommended_sketch_size(
        row_sampling, NUM_COLUMNS, EPSILON, coherence=coherence
    )
    assert np.sum(measure_sampling(basis, uniform, ones) <= EPSILON) >= 95
    # The size that scores need is not enough without them.
    assert np.sum(measure_sampling(basis, size, ones) <= EPSILON) < 50


@pytest.mark.parametrize(("sketch_size", "x64"), [(2, True), (40, False)])
def test_against_numpy(sketch_size, x64):
    """By singular values of the formed product; below the rank, at least 1."""
    basis = basis_of("incoherent", 50, dtype=np.float64 if x64 else np.float32)
    embedding = gaussian(jax.random.key(0), sketch_size, 50)
    product = np.asarray(embedding.matrix(np.float32), np.float64) @ basis
    gram = product.T @ product - np.eye(NUM_COLUMNS)
    with jax.enable_x64(x64):
        result = np.asarray(embedding_distortion(basis, embedding))
    assert result.dtype == basis.dtype
    np.testing.assert_allclose(result, np.linalg.norm(gram, 2), rtol=1e-5)
    assert sketch_size > NUM_COLUMNS or result >= 1 - 1e-6


def test_jit_and_an_isometry():
    basis = basis_of("incoherent", 32)
    result = jax.jit(embedding_distortion)(basis, srht(jax.random.key(0), 32, 32))
    assert result < 1e-5


class TestRecommendedSize:
    """The formulas, worked out by hand, and how sizes depend on the target."""

    def test_values(self):
        size = functools.partial(recommended_sketch_size, num_columns=4)
        root = math.sqrt(1.21) - 1
        by_hand = ((2 + math.sqrt(2 * math.log(2 / 0.1))) / root) ** 2
        assert size(gaussian, epsilon=0.21, delta=0.1) == math.ceil(by_hand)
        assert size(count_sketch, epsilon=0.5, delta=0.1) == 800
        chernoff = 1.5 * math.log(1.5) - 0.5
        by_hand = 7 * math.log(80) / chernoff
        result = size(row_sampling, epsilon=0.5, delta=0.1, coherence=7)
        assert result == math.ceil(by_hand)
        spread = (2 + math.sqrt(8 * math.log(2**21 / 0.1))) ** 2
        result = size(srht, epsilon=0.5, delta=0.1, num_rows=2**20 - 5)
        assert result == math.ceil(spread * math.log(160) / chernoff)
        # A net of fineness 1/4, as in the textbook, asks for more.
        textbook = 2 * (4 * math.log(9) + math.log(20)) / (0.25**2 / 2 - 0.25**3 / 3)
        result = size(rademacher, epsilon=0.5, delta=0.1)
        assert textbook / 2 < result < textbook

    def test_sparse_sign(self):
        size = functools.partial(recommended_sketch_size, sparse_sign, 10, 0.5)
        log = math.log(200)
        assert size(num_nonzeros=11) == math.ceil(160 * log)
        # Too few entries for the theorem: that of count_sketch still holds.
        assert size(num_nonzeros=10) == recommended_sketch_size(count_sketch, 10, 0.5)
        assert size(num_nonzeros=5000) == 5000

    def test_srht_never_needs_more_than_all_rows(self):
        assert recommended_sketch_size(srht, 5, 0.01, num_rows=1000) == 1024
