"""Weights for noisy messages, against regularised normal equations in float64."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders

KEY = jax.random.key(0)
CODES = {
    "bernoulli": codes.bernoulli(KEY, 12, 12, 3),
    "cyclic_mds": codes.cyclic_mds(12, 3),
    "weighted": jaxwgc.weighted(codes.cyclic_mds(12, 3), np.arange(1.0, 13)),
}
MASKS = np.random.default_rng(0).random((100, 12)) > 0.25


def expected_error(code, weights, noise):
    """‖aᵀB - target‖² + noise² Σ |aᵢ|² ‖bᵢ‖²."""
    matrix = np.asarray(code.encoding_matrix)
    residual = weights @ matrix - np.asarray(code.target)
    sizes = np.sum(np.abs(matrix) ** 2, axis=1)
    return np.sum(np.abs(residual) ** 2) + noise**2 * np.abs(weights) ** 2 @ sizes


def best_weights(code, mask, noise):
    """The minimum, by regularised normal equations of the messages that arrived."""
    rows = np.asarray(code.encoding_matrix)[mask]
    gram = rows @ rows.conj().T
    penalty = noise**2 * np.diag(np.diagonal(gram))
    # Messages of no parts have rows of zeros.
    inverse = np.linalg.pinv((gram + penalty).conj(), rcond=1e-14)
    weights = np.zeros(len(mask), complex)
    weights[mask] = inverse @ rows.conj() @ np.asarray(code.target)
    return weights


@pytest.mark.parametrize("noise", [0.03, 0.3, 3.0, 1e6])
@pytest.mark.parametrize("name", CODES)
def test_the_expected_error_is_minimal(name, noise):
    code = CODES[name]
    decoder = decoders.Ridge(noise)
    weights = np.asarray(
        jaxwgc.decoding(code, MASKS, decoder).weights[..., 0, :], complex
    )
    for mask, found in zip(MASKS, weights[:, 0] if weights.ndim == 3 else weights):
        minimum = expected_error(code, best_weights(code, mask, noise), noise)
        error = expected_error(code, found, noise)
        np.testing.assert_allclose(error, minimum, rtol=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_messages_does_not_matter(size):
    code = CODES["bernoulli"]
    matrix = np.asarray(code.encoding_matrix, np.float64)
    decoder = decoders.Ridge(0.1)
    weights = jaxwgc.decoding(
        codes.GradientCode.from_matrix(matrix), MASKS, decoder
    ).weights[..., 0, :]
    resized = jaxwgc.decoding(
        codes.GradientCode.from_matrix(size * matrix), MASKS, decoder
    ).weights[..., 0, :]
    np.testing.assert_allclose(size * np.asarray(resized), weights, atol=1e-4)


def test_too_little_noise_is_rejected_with_advice():
    decoder = decoders.Ridge(0.005)
    message = "noise must be at least 0.01; got 0.005. With less, use another decoder"
    with pytest.raises(ValueError, match=message):
        jaxwgc.decoding(CODES["bernoulli"], MASKS[0], decoder)


def test_a_decoder_in_place_of_params_is_rejected():
    code = codes.uncoded(3)
    messages = np.ones((3, 2), np.float32)
    received = np.ones(3, bool)
    message = "params must be the parameters of the model; got the decoder Ridge"
    with pytest.raises(TypeError, match=message):
        jaxwgc.decode(code, messages, received, decoders.Ridge(0.1))
