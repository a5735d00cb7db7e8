"""What every decoder owes: the same weights in batches, in lanes and inside of jit."""

import jax
import numpy as np

import jaxwgc
from tests.conftest import arrivals
from tests.zoo import CODES, every_code, observed_rounds


# Lagrange, Group, Peeling, Components, OneCopy, OneStep, LeastSquares, and one within
# another.
@every_code(
    "reed_solomon, slack",
    "binary",
    "ldgm",
    "edge_graph",
    "replicated",
    "stochastic",
    "bernoulli",
    "clustered, group",
)
def test_batches_lanes_and_weights(name):
    """Of codes whose weights are traced, one that has been decoded among the lanes."""
    code = CODES[name]
    observed = np.roll(observed_rounds(name), 12, axis=0)[:24]
    if observed.dtype != bool:
        observed = observed.clip(0, code.parts_per_worker)
    part_weights = np.random.default_rng(0).integers(1, 4, (2, code.num_parts))
    part_weights[0] = 1

    def decode(observed, weights):
        own = jaxwgc.weighted(code, weights)
        return jaxwgc.decoding(own, **arrivals(observed)).weights

    flat = jax.jit(decode)
    expected = np.stack([flat(observed, own) for own in part_weights.astype(float)])

    @jax.jit
    def in_batches(weights):
        return (
            decode(observed.reshape(2, 3, 4, -1), weights),
            decode(observed[0], weights),
        )

    grid, alone = in_batches(part_weights[1].astype(float))
    assert grid.shape == (2, 3, 4, *expected.shape[2:])
    if name not in ("edge_graph", "clustered, group"):
        empty = jax.eval_shape(decode, observed[:0], part_weights[1])
        assert empty.shape == (0, *expected.shape[2:])
    in_lanes = jax.vmap(jax.vmap(decode, (0, None)), (None, 0))
    size = 1e-3 * np.abs(expected).max()
    for found, own in (
        (grid.reshape(expected[1].shape), expected[1]),
        (alone, expected[1, 0]),
        (jax.jit(in_lanes)(observed, part_weights.astype(float)), expected),
        (jaxwgc.decoding(code, **arrivals(observed)).weights, expected[0]),
    ):
        np.testing.assert_allclose(found, own, rtol=0, atol=size)
