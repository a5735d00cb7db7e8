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

NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE, NUM_SEEDS = 50_000, 25, 400, 10
# Of sparse input, and our embeddings that take it.
DENSITY = 0.05
SPARSE = ("sparse_sign", "count_sketch")
OURS = ("gaussian", "rademacher", "srht", "sparse_sign", "count_sketch")

# make(seed, matrix): a new embedding is drawn and applied.
Sketch = Callable[[int, Any], Any]


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Each draws an embedding and applies it to the basis of a subspace, in float32.

    The distortion is that of `sketching.embedding_distortion`, in float64 by NumPy.
    """
    sizes = (2_000, 5, 80) if quick else (NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE)
    seeds = range(seed, seed + (2 if quick else NUM_SEEDS))

    def show(row):
        return {
            "library": row["library"],
            "embedding": row["embedding"],
            "input": row["input"],
            "milliseconds": f"{1e3 * row['seconds']:.3g}",
        } | {
            kind: f"{np.mean(values):.2f} / {np.max(values):.2f}"
            for kind, values in row["distortion"].items()
        }

    return timed(
        Once(rows, sizes, repeats, seeds, num_rows=12),
        f"{sizes[2]} random combinations of {sizes[0]:,} rows of {sizes[1]}, "
        f"float32: milliseconds, and distortion, mean of {len(seeds)} / worst",
        show,
    )


def rows(sizes: tuple[int, int, int], repeats: int, seeds: range) -> Iterator:
    """All timed in turn, one after the other then measured."""
    num_rows, num_columns, sketch_size = sizes
    rng = np.random.default_rng(seeds[0])
    bases = {
        "Gaussian": orthonormal(rng.standard_normal((num_rows, num_columns))),
        # A few rows hold almost everything.
        "Cauchy": orthonormal(rng.standard_cauchy((num_rows, num_columns))),
    }
    sketches = every_sketch(sketch_size, num_rows)
    matrix = bases["Gaussian"]
    inputs = {"jaxwgc": jnp.asarray(matrix)}
    calls = [
        functools.partial(sketch, seeds[0], inputs.get(library, matrix))
        for (library, _), sketch in sketches.items()
    ]
    seconds = median_seconds(repeats, *calls)
    for ((library, name), sketch), time in zip(sketches.items(), seconds, strict=True):
        yield {
            "library": library,
            "embedding": name,
            "input": "dense",
            "seconds": time,
            "distortion": {
                kind: [distortion(sketch(seed, basis)) for seed in seeds]
                for kind, basis in bases.items()
            },
        }
    yield from sparse_rows(sizes, repeats, seeds)


def sparse_rows(sizes: tuple[int, int, int], repeats: int, seeds: range) -> Iterator:
    """Times sketches that take a sparse matrix as it is; distortions of its span."""
    num_rows, num_columns, sketch_size = sizes
    rng = np.random.default_rng(seeds[0])
    is_there = rng.random((num_rows, num_columns)) < DENSITY
    entries = {
        "Gaussian": rng.standard_normal(is_there.shape),
        "Cauchy": rng.standard_cauchy(is_there.shape),
    }
    matrices = {
        kind: scipy.sparse.csc_array((values * is_there).astype(np.float32))
        for kind, values in entries.items()
    }
    inverses = {
        kind: np.linalg.inv(np.linalg.qr(matrix.toarray().astype(float), mode="r"))
        for kind, matrix in matrices.items()
    }
    given = {
        kind: sparse.BCOO.from_scipy_sparse(matrix) for kind, matrix in matrices.items()
    }
    every = every_sketch(sketch_size, num_rows)
    sketches = {
        name: sketch
        for name, sketch in every.items()
        if name[0] == "SciPy" or name[1] in SPARSE or "Sparse" in name[1]
    }
    inputs = {name: given if name[0] == "jaxwgc" else matrices for name in sketches}
    calls = [
        functools.partial(sketch, seeds[0], inputs[name]["Gaussian"])
        for name, sketch in sketches.items()
    ]
    seconds = median_seconds(repeats, *calls)
    for (name, sketch), time in zip(sketches.items(), seconds, strict=True):
        yield {
            "library": name[0],
            "embedding": name[1],
            "input": "sparse",
            "seconds": time,
            "distortion": {
                kind: [
                    distortion(dense(sketch(seed, matrix)) @ inverses[kind])
                    for seed in seeds
                ]
                for kind, matrix in inputs[name].items()
            },
        }


def dense(sketch: Any) -> np.ndarray:
    """Returns a float64 array of what may be a sparse matrix of SciPy."""
    sketch = sketch.toarray() if scipy.sparse.issparse(sketch) else sketch
    return np.asarray(sketch, np.float64)


def every_sketch(sketch_size: int, num_rows: int) -> dict[tuple[str, str], Sketch]:
    """By library and name. Those of scikit-learn multiply from the right."""

    def ours(name: str) -> Sketch:
        make = getattr(sketching, name)
        sketch = jax.jit(
            lambda key, matrix: make(key, sketch_size, num_rows).apply(matrix)
        )
        return lambda seed, matrix: sketch(jax.random.key(seed), matrix)

    def scikit_learn(projection: Any) -> Sketch:
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


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    """A basis of the columns, float32."""
    return np.linalg.qr(matrix)[0].astype(np.float32)


def distortion(sketch: Any) -> float:
    """The largest |σ² - 1| over the singular values of a sketched basis."""
    values = np.linalg.svd(np.asarray(sketch, np.float64), compute_uv=False)
    return float(np.abs(values**2 - 1).max())
