"""Time and distortion of embeddings, beside SciPy's and scikit-learn's."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jax.experimental import sparse
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import median_seconds
from jaxwgc import sketching

NUM_ROWS = 50_000
NUM_COLUMNS = 25
SKETCH_SIZE = 400
NUM_SEEDS = 10
# Of sparse input, and our embeddings that take it.
DENSITY = 0.05
SPARSE = ("sparse_sign", "count_sketch")
OURS = ("gaussian", "rademacher", "srht", "sparse_sign", "count_sketch")

# Kinds of matrices, and methods of NumPy's generator that draw their entries.
KINDS = {"Gaussian": "standard_normal", "Cauchy": "standard_cauchy"}

# sketch(seed, matrix) draws an embedding and applies it.
Sketch = Callable[[int, Any], Any]


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns time and distortion of embeddings that are drawn and applied, in float32.

    The distortion is that of `sketching.embedding_distortion`, in float64 by NumPy.
    """
    sizes = (2_000, 5, 80) if quick else (NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE)
    seeds = range(seed, seed + (2 if quick else NUM_SEEDS))

    def spread(kind):
        def cell(row):
            values = row["distortion"][kind]
            return f"{np.mean(values):.2f} / {np.max(values):.2f}"

        return cell

    return timed(
        Once(rows, sizes, repeats, seeds),
        f"{sizes[2]} random combinations of {sizes[0]:,} rows of {sizes[1]}, "
        f"float32: milliseconds, and distortion, mean of {len(seeds)} / worst",
        {
            "library": "{library}",
            "embedding": "{embedding}",
            "input": "{input}",
            "milliseconds": "{seconds:1e3 .3g}",
            **{kind: spread(kind) for kind in KINDS},
        },
    )


def rows(sizes: tuple[int, int, int], repeats: int, seeds: range) -> Iterator:
    """Yields a row per embedding, of dense and of sparse input."""
    num_rows, num_columns, sketch_size = sizes
    every = every_sketch(sketch_size, num_rows)
    some = {
        name: sketch
        for name, sketch in every.items()
        if name[0] == "SciPy" or name[1] in SPARSE or "Sparse" in name[1]
    }
    dense, thin = draw(seeds[0], num_rows, num_columns)
    for kind, sketches, matrices in (("dense", every, dense), ("sparse", some, thin)):
        inverses = {
            name: np.linalg.inv(np.linalg.qr(as_dense(matrix), mode="r"))
            for name, matrix in matrices.items()
        }
        ours = {name: on_device(matrix) for name, matrix in matrices.items()}
        given = [ours if library == "jaxwgc" else matrices for library, _ in sketches]
        calls = [
            functools.partial(sketch, seeds[0], inputs["Gaussian"])
            for sketch, inputs in zip(sketches.values(), given)
        ]
        seconds = median_seconds(repeats, *calls)
        for (name, sketch), inputs, time in zip(sketches.items(), given, seconds):
            yield {
                "library": name[0],
                "embedding": name[1],
                "input": kind,
                "seconds": time,
                "distortion": {
                    each: [
                        distortion(as_dense(sketch(seed, matrix)) @ inverses[each])
                        for seed in seeds
                    ]
                    for each, matrix in inputs.items()
                },
            }


def draw(seed: int, *shape: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns dense and sparse matrices; in Cauchy ones, a few rows dominate."""
    dense = np.random.default_rng(seed)
    thin = np.random.default_rng(seed)
    mask = thin.random(shape) < DENSITY
    bases = {}
    sparse_ones = {}
    for kind, law in KINDS.items():
        basis, _ = np.linalg.qr(getattr(dense, law)(shape))
        bases[kind] = basis.astype(np.float32)
        entries = (getattr(thin, law)(shape) * mask).astype(np.float32)
        sparse_ones[kind] = scipy.sparse.csc_array(entries)
    return bases, sparse_ones


def on_device(matrix: Any) -> Any:
    """Returns an array or a sparse matrix of JAX."""
    if scipy.sparse.issparse(matrix):
        return sparse.BCOO.from_scipy_sparse(matrix)
    return jnp.asarray(matrix)


def as_dense(matrix: Any) -> np.ndarray:
    """Returns a float64 array of an array or a sparse matrix of SciPy."""
    matrix = matrix.toarray() if scipy.sparse.issparse(matrix) else matrix
    return np.asarray(matrix, np.float64)


def every_sketch(sketch_size: int, num_rows: int) -> dict[tuple[str, str], Sketch]:
    """Returns embeddings by library and name."""

    def ours(name: str) -> Sketch:
        make = getattr(sketching, name)

        @jax.jit
        def sketch(key, matrix):
            return make(key, sketch_size, num_rows).apply(matrix)

        return lambda seed, matrix: sketch(jax.random.key(seed), matrix)

    def scikit_learn(projection: Any) -> Sketch:
        # It multiplies from the right.
        return lambda seed, matrix: (
            projection(sketch_size, random_state=seed).fit_transform(matrix.T).T
        )

    def clarkson_woodruff_transform(seed: int, matrix: Any) -> np.ndarray:
        return scipy.linalg.clarkson_woodruff_transform(matrix, sketch_size, rng=seed)

    peers = SparseRandomProjection, GaussianRandomProjection
    return {
        **{("jaxwgc", name): ours(name) for name in OURS},
        ("SciPy", "clarkson_woodruff_transform"): clarkson_woodruff_transform,
        **{("scikit-learn", peer.__name__): scikit_learn(peer) for peer in peers},
    }


def distortion(sketch: np.ndarray) -> float:
    """Returns the largest |σ² - 1| over the singular values of a sketched basis."""
    values = np.linalg.svd(sketch, compute_uv=False)
    return float(np.abs(values**2 - 1).max())
