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


# Rules and data are arguments, so that they share what is compiled.
@functools.partial(jax.jit, static_argnames=("size", "method", "weighted"))
def solutions_of(
    keys: jax.Array,
    probabilities: jax.Array,
    basis: jax.Array,
    target: jax.Array,
    size: int,
    method: str,
    weighted: bool,
) -> jax.Array:
    """Least squares in sampled rows: the shortest coordinates, (runs, p)."""

    def solve(key: jax.Array) -> jax.Array:
        indices, scale = draw_rows(key, probabilities, size, method, weighted)
        rows, values = sketching.scale_rows((basis[indices], target[indices]), scale)
        inverse = jnp.linalg.pinv(rows.T @ rows, rtol=CUTOFF, hermitian=True)
        return inverse @ (rows.T @ values)

    return jax.lax.map(solve, keys)


class Measured(NamedTuple):
    """Over the smallest squared residual: of all runs (runs,), and of their mean.

    In coordinates of an orthonormal basis, so that bias and variance are those of the
    fitted values Xθ, and add up to the mean of the excess.
    """

    excess: np.ndarray
    squared_bias: float
    variance: float


def measure(
    key: jax.Array, every: dict[str, data.Regression], size: int, runs: int
) -> dict[str, dict[str, Measured]]:
    """By the sampler and the kind of the data, which share keys."""
    keys = jax.random.split(key, runs)

    def of(sampler: Sampler, own: data.Regression) -> Measured:
        probabilities = sketching.row_probabilities(own.scores, sampler.rule)
        found = solutions_of(
            keys,
            probabilities,
            own.basis,
            own.target,
            size,
            sampler.method,
            sampler.weighted,
        )
        return _compare(np.asarray(found), own)

    return {
        name: {kind: of(sampler, own) for kind, own in every.items()}
        for name, sampler in SAMPLERS.items()
    }


def _compare(solutions: np.ndarray, own: data.Regression) -> Measured:
    errors = solutions - own.coordinates
    excess = np.sum(errors**2, axis=1) / own.squared_residual
    mean = errors.mean(axis=0)
    runs = len(errors)
    spread = np.sum((errors - mean) ** 2) / max(runs - 1, 1) / own.squared_residual
    # The mean of so many runs has a share of the variance in its square.
    bias = max(np.sum(mean**2) / own.squared_residual - spread / runs, 0.0)
    return Measured(excess, float(bias), float(spread))
