"""Time and distortion of embeddings, beside SciPy's and scikit-learn's."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jax.experimental import sparse
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.timing import median_seconds
from jaxwgc import sketching

NUM_ROWS = 50_000
NUM_COLUMNS = 25
SKETCH_SIZE = 400
NUM_SEEDS = 10
# Of sparse input, and our embeddings that take it.
DENSITY = 0.05
SPARSE = ("sparse_sign", "sparse_stack", "count_sketch")
OURS = ("gaussian", "rademacher", "srht", *SPARSE)

# Kinds of matrices, and methods of NumPy's generator that draw their entries.
KINDS = {"Gaussian": "standard_normal", "Cauchy": "standard_cauchy"}

# A dense array, or a sparse matrix of SciPy or JAX, which have no common type.
Matrix = Any
# sketch(seed, matrix) draws an embedding and applies it.
Sketch = Callable[[int, Matrix], Matrix]


class Embedding(NamedTuple):
    """An embedding of a library."""

    library: str
    name: str
    sketch: Sketch
    takes_sparse: bool


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns time and distortion of embeddings that are drawn and applied, in float32.

    The distortion is that of `sketching.embedding_distortion`, in float64 by NumPy.
    """
    sizes = (2_000, 5, 80) if quick else (NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE)
    num_rows, num_columns, sketch_size = sizes
    num_seeds = 2 if quick else NUM_SEEDS
    seeds = range(seed, seed + num_seeds)

    def spread(kind):
        def cell(row):
            values = row["distortion"][kind]
            return f"{np.mean(values):.2f} / {np.max(values):.2f}"

        return cell

    return timed(
        Once(rows, sizes, repeats, seeds),
        f"{sketch_size} random combinations of {num_rows:,} rows of {num_columns}, "
        f"float32: milliseconds, and distortion, mean of {num_seeds} / worst",
        {
            "library": "{library}",
            "embedding": "{embedding}",
            "input": "{input}",
            "milliseconds": "{seconds:1e3 .3g}",
            **{kind: spread(kind) for kind in KINDS},
        },
    )


def rows(sizes: tuple[int, int, int], repeats: int, seeds: range) -> Iterator[Numbers]:
    """Yields a row per embedding, of dense and of sparse input."""
    num_rows, num_columns, sketch_size = sizes
    embeddings = all_embeddings(sketch_size, num_rows)
    dense, thin = draw(seeds[0], num_rows, num_columns)
    yield from rows_of("dense", embeddings, dense, repeats, seeds)
    for_sparse = [embedding for embedding in embeddings if embedding.takes_sparse]
    yield from rows_of("sparse", for_sparse, thin, repeats, seeds)


def rows_of(
    kind: str,
    embeddings: list[Embedding],
    matrices: dict[str, Matrix],
    repeats: int,
    seeds: range,
) -> Iterator[Numbers]:
    """Yields a row per embedding of matrices of one kind."""
    inverses = {}
    on_devices = {}
    for name, matrix in matrices.items():
        triangle = np.linalg.qr(as_dense(matrix), mode="r")
        inverses[name] = np.linalg.inv(triangle)
        on_devices[name] = on_device(matrix)

    def inputs_of(embedding):
        return on_devices if embedding.library == "jaxwgc" else matrices

    calls = []
    for embedding in embeddings:
        matrix = inputs_of(embedding)["Gaussian"]
        calls.append(functools.partial(embedding.sketch, seeds[0], matrix))
    seconds = median_seconds(repeats, *calls)
    for embedding, seconds_of_embedding in zip(embeddings, seconds, strict=True):
        distortions: dict[str, list[float]] = {}
        for name, matrix in inputs_of(embedding).items():
            distortions[name] = []
            for seed in seeds:
                sketched = as_dense(embedding.sketch(seed, matrix))
                distortions[name].append(distortion(sketched @ inverses[name]))
        yield {
            "library": embedding.library,
            "embedding": embedding.name,
            "input": kind,
            "seconds": seconds_of_embedding,
            "distortion": distortions,
        }


def draw(
    seed: int, num_rows: int, num_columns: int
) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    """Returns dense and sparse matrices; in Cauchy ones, a few rows dominate."""
    shape = (num_rows, num_columns)
    dense_generator = np.random.default_rng(seed)
    sparse_generator = np.random.default_rng(seed)
    mask = sparse_generator.random(shape) < DENSITY
    dense: dict[str, Matrix] = {}
    thin: dict[str, Matrix] = {}
    for kind, law in KINDS.items():
        basis, _ = np.linalg.qr(getattr(dense_generator, law)(shape))
        dense[kind] = basis.astype(np.float32)
        entries = getattr(sparse_generator, law)(shape) * mask
        thin[kind] = scipy.sparse.csc_array(entries.astype(np.float32))
    return dense, thin


def on_device(matrix: Matrix) -> Matrix:
    """Returns an array or a sparse matrix of JAX."""
    if scipy.sparse.issparse(matrix):
        return sparse.BCOO.from_scipy_sparse(matrix)
    return jnp.asarray(matrix)


def as_dense(matrix: Matrix) -> np.ndarray:
    """Returns a float64 array of an array or a sparse matrix of SciPy."""
    if scipy.sparse.issparse(matrix):
        matrix = matrix.toarray()
    return np.asarray(matrix, np.float64)


def all_embeddings(sketch_size: int, num_rows: int) -> list[Embedding]:
    """Returns the embeddings of all libraries."""

    def ours(name: str) -> Sketch:
        make = getattr(sketching, name)

        @jax.jit
        def sketch(key, matrix):
            return make(key, sketch_size, num_rows).apply(matrix)

        return lambda seed, matrix: sketch(jax.random.key(seed), matrix)

    # The stub of scikit-learn knows only the default of the size.
    def scikit_learn(projection_class: Any) -> Sketch:
        def sketch(seed, matrix):
            projection = projection_class(sketch_size, random_state=seed)
            # It multiplies from the right.
            return projection.fit_transform(matrix.T).T

        return sketch

    sparse_projection = scikit_learn(SparseRandomProjection)
    gaussian_projection = scikit_learn(GaussianRandomProjection)

    def clarkson_woodruff(seed: int, matrix: Matrix) -> Matrix:
        return scipy.linalg.clarkson_woodruff_transform(matrix, sketch_size, rng=seed)

    return [
        *(Embedding("jaxwgc", name, ours(name), name in SPARSE) for name in OURS),
        Embedding("SciPy", "clarkson_woodruff_transform", clarkson_woodruff, True),
        Embedding("scikit-learn", "SparseRandomProjection", sparse_projection, True),
        Embedding(
            "scikit-learn", "GaussianRandomProjection", gaussian_projection, False
        ),
    ]


def distortion(sketch: np.ndarray) -> float:
    """Returns the largest |σ² - 1| over the singular values of a sketched basis."""
    values = np.linalg.svd(sketch, compute_uv=False)
    return float(np.abs(values**2 - 1).max())
