"""Time and distortion of embeddings, beside SciPy's and scikit-learn's."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from experiments import results
from experiments.timing import median_seconds
from jaxwgc import sketching

NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE, NUM_SEEDS = 50_000, 25, 400, 10
OURS = ("gaussian", "rademacher", "srht", "sparse_sign", "count_sketch")

# make(seed, matrix): a new embedding is drawn and applied.
Sketch = Callable[[int, Any], Any]


def section(repeats: int, seed: int, quick: bool):
    """Each draws an embedding and applies it to the basis of a subspace, in float32.

    The distortion is that of `sketching.embedding_distortion`, in float64 by NumPy.
    """
    sizes = (2_000, 5, 80) if quick else (NUM_ROWS, NUM_COLUMNS, SKETCH_SIZE)
    num_rows, num_columns, sketch_size = sizes
    seeds = range(seed, seed + (2 if quick else NUM_SEEDS))
    rng = np.random.default_rng(seed)
    bases = {
        "Gaussian": orthonormal(rng.standard_normal((num_rows, num_columns))),
        # A few rows hold almost everything.
        "Cauchy": orthonormal(rng.standard_cauchy((num_rows, num_columns))),
    }
    table = results.ResultTable(
        f"{sketch_size} random combinations of {num_rows:,} rows of {num_columns}, "
        f"float32: milliseconds, and distortion, mean of {len(seeds)} / worst",
        ["library", "embedding", "milliseconds", *bases],
    )
    sketches = every_sketch(sketch_size, num_rows)
    matrix = bases["Gaussian"]
    on_device = jnp.asarray(matrix)
    seconds = median_seconds(
        repeats,
        *(
            functools.partial(
                sketch, seed, on_device if library == "jaxwgc" else matrix
            )
            for (library, _), sketch in sketches.items()
        ),
    )
    numbers = []
    for (library, name), time_of_one in zip(sketches, seconds, strict=True):
        found = {
            kind: [distortion(sketches[library, name](s, basis)) for s in seeds]
            for kind, basis in bases.items()
        }
        numbers.append(
            {
                "library": library,
                "embedding": name,
                "seconds": time_of_one,
                "distortion": found,
            }
        )
        table.add_row(
            library,
            name,
            f"{1e3 * time_of_one:.3g}",
            *(f"{np.mean(own):.2f} / {np.max(own):.2f}" for own in found.values()),
        )
    return table, numbers


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

    return {
        **{("jaxwgc", name): ours(name) for name in OURS},
        ("SciPy", "clarkson_woodruff_transform"): lambda seed, matrix: (
            scipy.linalg.clarkson_woodruff_transform(matrix, sketch_size, rng=seed)
        ),
        ("scikit-learn", "SparseRandomProjection"): scikit_learn(
            SparseRandomProjection
        ),
        ("scikit-learn", "GaussianRandomProjection"): scikit_learn(
            GaussianRandomProjection
        ),
    }


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    """A basis of the columns, float32."""
    return np.linalg.qr(matrix)[0].astype(np.float32)


def distortion(sketch: Any) -> float:
    """The largest |σ² - 1| over the singular values of a sketched basis."""
    values = np.linalg.svd(np.asarray(sketch, np.float64), compute_uv=False)
    return float(np.abs(values**2 - 1).max())
