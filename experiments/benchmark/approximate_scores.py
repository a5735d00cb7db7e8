"""Time of approximate leverage scores, and how near they are to the exact ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import results
from experiments.timing import median_seconds
from jaxwgc import sketching

SHAPE = (100_000, 1_000)
EPSILONS = (0.5, 0.3)


def section(repeats: int, seed: int, quick: bool):
    """Approximate scores beside the exact ones of the library, in float32."""
    num_rows, num_columns = (6_000, 100) if quick else SHAPE
    table = results.ResultTable(
        f"Approximate leverage scores of {num_rows:,} x {num_columns:,}, float32: "
        "milliseconds, and percent of rows",
        [
            "matrix",
            "epsilon",
            "two products",
            "exact",
            "approximate",
            "exact / approximate",
            "within 1 ± epsilon",
            "within a factor 2",
        ],
    )
    numbers = []
    rng = np.random.default_rng(seed)
    two_products = jax.jit(lambda x, y: (x.T @ x, x @ y))
    exact = jax.jit(sketching.leverage_scores)
    approximate = jax.jit(
        sketching.approximate_leverage_scores, static_argnames="epsilon"
    )
    key = jax.random.key(seed)
    for name in ("Gaussian", "heavy tails", "rank 3/5"):
        matrix = draw(rng, name, num_rows, num_columns)
        small = matrix[:num_columns]
        functions = [
            functools.partial(two_products, matrix, small),
            functools.partial(exact, matrix),
            *(functools.partial(approximate, key, matrix, eps) for eps in EPSILONS),
        ]
        floor, reference, *ours = median_seconds(repeats, *functions)
        truth = np.asarray(functions[1](), np.float64)
        for epsilon, seconds, function in zip(
            EPSILONS, ours, functions[2:], strict=True
        ):
            ratio = np.asarray(function(), np.float64) / truth
            close = np.mean(np.abs(ratio - 1) <= epsilon)
            half = np.mean((ratio >= 0.5) & (ratio <= 2))
            numbers.append(
                {
                    "matrix": name,
                    "epsilon": epsilon,
                    "seconds": {
                        "two_products": floor,
                        "exact": reference,
                        "approximate": seconds,
                    },
                    "within_epsilon": close,
                    "within_factor_2": half,
                }
            )
            table.add_row(
                name,
                str(epsilon),
                f"{1e3 * floor:.0f}",
                f"{1e3 * reference:.0f}",
                f"{1e3 * seconds:.0f}",
                f"{reference / seconds:.1f}",
                f"{100 * close:.2f}",
                f"{100 * half:.2f}",
            )
    return table, numbers


def draw(
    rng: np.random.Generator, name: str, num_rows: int, num_columns: int
) -> jax.Array:
    """A matrix whose scores are alike, of all sizes, or of lower rank."""
    width = num_columns * 3 // 5 if name == "rank 3/5" else num_columns
    matrix = rng.standard_normal((num_rows, width), np.float32)
    if name == "heavy tails":
        # Student's t with two degrees of freedom. With one, a single row is 1e6 times
        # as long as most, and the rest is at the cut-off of the rank in float32.
        matrix /= np.sqrt(rng.standard_exponential((num_rows, 1), np.float32))
    if width < num_columns:
        matrix = matrix @ rng.standard_normal((width, num_columns), np.float32)
    return jnp.asarray(matrix)
