"""What every decoder owes: the same weights in batches, in lanes and inside of jit."""

import jax
import numpy as np
import pytest

import jaxwgc
from tests.conftest import arrivals
from tests.zoo import CODES, observed_rounds


# A code of each decoder, and how far weights may differ, over the largest of them.
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("reed_solomon, slack", 2e-5),  # Lagrange.
        ("bernoulli", 2e-5),  # LeastSquares.
        ("edge_graph", 1e-6),  # Components.
        ("ldgm", 1e-6),  # Peeling.
        ("stochastic", 1e-6),  # OneStep.
        # Zeros and ones: Group, OneCopy, and one decoder within another.
        ("binary", 0),
        ("replicated", 0),
        ("clustered, group", 0),
    ],
)
def test_batches_lanes_and_weights(name, tolerance):
    """Of codes whose weights are traced, one that has been decoded among the lanes."""
    code = CODES[name]
    rounds = observed_rounds(name)
    if rounds.dtype != bool:
        rounds = rounds.clip(0, code.parts_per_worker)
    # More than least squares take at once: the last batch is filled up.
    observed = np.resize(rounds, (200, code.num_workers))
    part_weights = np.random.default_rng(0).integers(1, 4, (2, code.num_parts))
    part_weights[0] = 1

    def decode(observed, weights):
        own = jaxwgc.weighted(code, weights)
        return jaxwgc.decoding(own, **arrivals(observed)).weights

    in_lanes = jax.jit(jax.vmap(jax.vmap(decode, (0, None)), (None, 0)))
    expected = np.asarray(in_lanes(observed, part_weights.astype(float)))

    @jax.jit
    def in_batches(weights):
        grid = observed.reshape(2, 25, 4, -1)
        return [decode(own, weights) for own in (grid, grid[:, :0], observed[0])]

    grid, empty, alone = in_batches(part_weights[1].astype(float))
    assert grid.shape == (2, 25, 4, *expected.shape[2:])
    assert empty.shape == (2, 0, 4, *expected.shape[2:])
    size = tolerance * np.abs(expected).max()
    for found, own in (
        (grid.reshape(expected[1].shape), expected[1]),
        (alone, expected[1, 0]),
        (jaxwgc.decoding(code, **arrivals(observed)).weights, expected[0]),
    ):
        np.testing.assert_allclose(found, own, rtol=0, atol=size)
