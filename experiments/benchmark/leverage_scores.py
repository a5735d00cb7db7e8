"""Time and error of leverage scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from experiments import results
from experiments.timing import median_seconds
from jaxwgc import sketching

SCORES_SHAPE = (100_000, 200)


def section(repeats: int, seed: int, quick: bool):
    """Exact scores against NumPy's SVD and the floor of two matrix products."""
    num_rows, num_columns = (2_000, 50) if quick else SCORES_SHAPE
    table = results.ResultTable(
        f"Leverage scores of {num_rows:,} x {num_columns}: milliseconds",
        [
            "matrix",
            "dtype",
            "two products",
            "jaxwgc",
            "NumPy SVD",
            "jaxwgc / products",
            "SVD / jaxwgc",
            "worst error",
        ],
    )
    numbers = []
    rng = np.random.default_rng(seed)
    gaussian = rng.normal(size=(num_rows, num_columns))
    low_rank = rng.normal(size=(num_rows, num_columns * 3 // 4))
    low_rank = low_rank @ rng.normal(size=(num_columns * 3 // 4, num_columns))
    orthogonal = np.linalg.qr(rng.normal(size=(num_columns, num_columns)))[0]
    graded = np.linalg.qr(gaussian)[0] * np.logspace(0, -10, num_columns) @ orthogonal
    cases = [
        ("well conditioned", gaussian, np.float64),
        ("rank 3/4", low_rank, np.float64),
        ("condition 1e10", graded, np.float64),
        ("well conditioned", gaussian, np.float32),
    ]
    for name, matrix, dtype in cases:
        matrix = matrix.astype(dtype)
        with jax.enable_x64(dtype == np.float64):
            on_device = jnp.asarray(matrix)
            small = on_device[:num_columns]
            score = jax.jit(sketching.leverage_scores)
            two_products = jax.jit(lambda x, y: (x.T @ x, x @ y))
            floor, ours, peer = median_seconds(
                repeats,
                functools.partial(two_products, on_device, small),
                functools.partial(score, on_device),
                functools.partial(np.linalg.svd, matrix, full_matrices=False),
            )
            found = np.asarray(score(on_device))
        left, singular, _ = scipy.linalg.svd(
            matrix.astype(np.float64), full_matrices=False
        )
        rank = np.sum(singular > max(matrix.shape) * np.finfo(dtype).eps * singular[0])
        worst = np.abs(found - np.sum(left[:, :rank] ** 2, axis=1)).max()
        numbers.append(
            {
                "matrix": name,
                "dtype": np.dtype(dtype).name,
                "seconds": {"two_products": floor, "jaxwgc": ours, "numpy_svd": peer},
                "rank": int(rank),
                "worst_error": worst,
            }
        )
        table.add_row(
            name,
            np.dtype(dtype).name,
            f"{1e3 * floor:.0f}",
            f"{1e3 * ours:.0f}",
            f"{1e3 * peer:.0f}",
            f"{ours / floor:.2f}",
            f"{peer / ours:.1f}",
            f"{worst:.1e}",
        )
    return table, numbers
