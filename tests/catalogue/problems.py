"""A small problem of each kind, for the rows of sketching."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.standard_normal((20, 4))
TARGET = MATRIX @ np.ones(4) + RANDOM.standard_normal(20)
LABELS = RANDOM.integers(0, 2, 20).astype(float)
PROBABILITIES = np.array([0.3, 0.1, 0.4, 0.2])
# Of three parts with these probabilities, the first was drawn twice and the last once.
SAMPLE = jaxwgc.parts.PartitionSample(
    indices=np.array([0, 2]),
    counts=np.array([2, 1]),
    probabilities=np.array([0.5, 0.25]),
    num_draws=np.array(3),
)


def gaussian_kernel(x, y):
    """exp(-|x - y|²) of two arrays of points."""
    differences = x[:, None] - y[None]
    return jnp.exp(-jnp.sum(differences**2, axis=2))


def squared_distance(params, target):
    """The loss Σ (params - target)² / 2."""
    return jnp.sum((params - target) ** 2) / 2


def root_of_squared_distance(params, target):
    """A square root of its Hessian, the identity, with more rows than columns."""
    return jnp.eye(8, 4, dtype=params.dtype)


def positive_part(params):
    """Projects a vector to the vectors without negative entries."""
    return jnp.maximum(params, 0)
