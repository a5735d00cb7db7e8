"""Contract of every decoder: weights as by NumPy, also in batches, lanes and `jit`."""

import functools

import jax
import numpy as np
import pytest

import jaxwgc
from tests import oracles
from tests.catalogue.codes import CODES
from tests.catalogue.decoders import ROWS
from tests.conftest import arrivals
from tests.zoo import messages_sent, observed_rounds

every_decoder = pytest.mark.parametrize(
    ("row", "name"), [(row, name) for row in ROWS for name in row.codes], ids=str
)
NUM_ROUNDS = 200


@functools.cache
def many_rounds(name):
    """More than least squares take at once: the last batch is filled up."""
    rounds = observed_rounds(name)
    if rounds.dtype != bool:
        rounds = rounds.clip(0, CODES[name].parts_per_worker)
    return np.resize(rounds, (NUM_ROUNDS, CODES[name].num_workers))


@every_decoder
def test_batches_lanes_and_single_rounds_have_equal_weights(row, name):
    """The weights of the codes are traced, and one lane has no responses."""
    code = CODES[name]
    decoder = row.decoder_for(code)
    observed = many_rounds(name)
    part_weights = np.random.default_rng(0).integers(1, 4, (2, code.num_parts))
    part_weights[0] = 1

    def decode(observed, weights):
        weighted_code = jaxwgc.weighted(code, weights)
        return jaxwgc.decoding(
            weighted_code, **arrivals(observed), decoder=decoder
        ).weights

    in_lanes = jax.jit(jax.vmap(jax.vmap(decode, (0, None)), (None, 0)))
    expected = np.asarray(in_lanes(observed, part_weights.astype(float)))

    @jax.jit
    def in_batches(weights):
        grid = observed.reshape(2, 25, 4, -1)
        return [decode(masks, weights) for masks in (grid, grid[:, :0], observed[0])]

    grid, empty, alone = in_batches(part_weights[1].astype(float))
    assert grid.shape == (2, 25, 4, *expected.shape[2:])
    assert empty.shape == (2, 0, 4, *expected.shape[2:])
    size = row.tolerance * np.abs(expected).max()
    decoding = jaxwgc.decoding(code, **arrivals(observed), decoder=decoder)
    for result, reference in (
        (grid.reshape(expected[1].shape), expected[1]),
        (alone, expected[1, 0]),
        (decoding.weights, expected[0]),
    ):
        np.testing.assert_allclose(result, reference, rtol=0, atol=size)


@every_decoder
def test_residuals_and_weighted_parts_are_those_of_numpy(row, name):
    """The least residual of an optimal decoder; aᵀB of the others, by a reference."""
    code = CODES[name]
    decoder = row.decoder_for(code)
    observed = many_rounds(name)
    decoding = jaxwgc.decoding(code, **arrivals(observed), decoder=decoder)
    assert decoding.weights.shape == (NUM_ROUNDS, code.num_segments, code.num_messages)
    assert decoding.weights.dtype == (np.complex64 if code.is_complex else np.float32)
    sent = messages_sent(code, observed)
    weights = np.asarray(decoding.weights)
    assert not np.any(weights[~np.broadcast_to(sent[:, None], weights.shape)])
    mixtures = weights @ code.encoding_matrix
    reference = row.codes[name]
    if reference is not None:
        expected = np.array([reference(code, mask) for mask in sent])[:, None]
        np.testing.assert_allclose(mixtures, expected, atol=1e-5)
    else:
        assert row.example.is_optimal, f"{row} needs a reference: it is not optimal"
        minimum = oracles.squared_errors(oracles.best_mixtures(code, sent), code)
        errors = oracles.squared_errors(mixtures, code)
        np.testing.assert_allclose(errors, minimum, atol=1e-4)
    # What is missed is reported.
    expected = oracles.squared_errors(mixtures, code)
    np.testing.assert_allclose(decoding.error, expected, rtol=1e-4, atol=1e-4)
