"""Samplers of rows by their names, and least squares on what they take."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sketching import data
from jaxwgc import sketching

# Rows of a block that are drawn together.
BLOCK_SIZE = 4
# Of singular values of the sampled basis, squared.
CUTOFF = 1e-13


class Sampler(NamedTuple):
    """How rows are drawn: arguments of the library's functions."""

    rule: str = "lev"
    method: str = "with_replacement"
    weighted: bool = True


SAMPLERS = {
    "LEV": Sampler(),
    "UNIF": Sampler("unif"),
    "SLEV": Sampler("slev"),
    "LEVUNW": Sampler(weighted=False),
    "LEV, without replacement": Sampler(method="without_replacement"),
    "LEV, Poisson": Sampler(method="poisson"),
    "LEV, top k": Sampler(method="top_k"),
    "LEV, blocks": Sampler(method="blocks"),
}


def draw_rows(
    key: jax.Array, probabilities: jax.Array, size: int, method: str, weighted: bool
) -> tuple[jax.Array, jax.Array]:
    """Indices of rows and the factor of each, which is 0 for those that are no rows."""
    if method != "blocks":
        found = sketching.sample_rows(
            key, probabilities, size, method, weighted=weighted
        )
        return found.indices, found.scale
    # Neighbouring rows together, by their share of the scores, as in the paper.
    num_blocks = len(probabilities) // BLOCK_SIZE
    blocks = sketching.sample_partitions(
        key,
        sketching.partition_probabilities(probabilities, num_blocks),
        num_draws=size // BLOCK_SIZE,
    )
    indices = BLOCK_SIZE * blocks.indices[:, None] + jnp.arange(BLOCK_SIZE)
    return indices.reshape(-1), jnp.repeat(blocks.scale, BLOCK_SIZE)


def one_run(
    key: jax.Array,
    sampler: Sampler,
    every: dict[str, data.Regression],
    sizes: list[int],
) -> dict[str, jax.Array]:
    """Least squares in sampled rows: the shortest coordinates (sizes, p), by the kind."""

    def solve(size: int, own: tuple[jax.Array, ...]) -> jax.Array:
        scores, basis, target = own
        probabilities = sketching.row_probabilities(scores, sampler.rule)
        indices, scale = draw_rows(
            key, probabilities, size, sampler.method, sampler.weighted
        )
        rows, values = sketching.scale_rows((basis[indices], target[indices]), scale)
        inverse = jnp.linalg.pinv(rows.T @ rows, rtol=CUTOFF, hermitian=True)
        return inverse @ (rows.T @ values)

    # Side by side, so that one program serves all kinds.
    stacked = [(own.scores, own.basis, own.target) for own in every.values()]
    stacked = tuple(map(jnp.stack, zip(*stacked, strict=True)))
    found = [jax.vmap(functools.partial(solve, size))(stacked) for size in sizes]
    return dict(zip(every, jnp.stack(found, axis=1), strict=True))


class Measured(NamedTuple):
    """Over the smallest squared residual: of all runs, and of their mean.

    In coordinates of an orthonormal basis, so that bias and variance are those of the
    fitted values Xθ, and add up to the mean of the excess.
    """

    excess: np.ndarray
    squared_bias: np.ndarray
    variance: np.ndarray


def compare(solutions: np.ndarray, own: data.Regression) -> Measured:
    """Of coordinates (runs, sizes, p): excess (sizes, runs), the others (sizes,)."""
    errors = solutions - own.coordinates
    excess = np.sum(errors**2, axis=2) / own.squared_residual
    mean = errors.mean(axis=0)
    runs = len(errors)
    spread = np.sum((errors - mean) ** 2, axis=(0, 2))
    spread /= max(runs - 1, 1) * own.squared_residual
    # The mean of so many runs has a share of the variance in its square.
    bias = np.sum(mean**2, axis=1) / own.squared_residual - spread / runs
    return Measured(excess.T, np.maximum(bias, 0.0), spread)
