"""Closed forms of `Group` and `OneCopy`, on the host and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers

CODES = {
    "one family of groups": codes.fractional_repetition(6, num_stragglers=2),
    "two families of groups": codes.binary(7, num_stragglers=2),
    "weighted groups": jaxwgc.weighted(
        codes.binary(7, num_stragglers=2), np.arange(7.0)
    ),
    "two copies": codes.replicated(3, 6, copies=2),
    "weighted copies": jaxwgc.weighted(
        codes.replicated(3, 6, copies=2), np.arange(6.0)
    ),
    "unequal numbers of copies": codes.replicated(3, 6, copies=1, loads=[1, 2, 3]),
}


class Halved(decoders.Group):
    """Never decodes, though it inherits from a decoder that tells when it does."""

    def weights(self, matrix, target, mask):
        return super().weights(matrix, target, mask) / 2


def arrays_of(code):
    """Decoder, matrix and target of a code."""
    matrix = np.asarray(code.encoding_matrix, np.float32)
    target = np.asarray(code.segment_targets, np.float32)
    return code.choose_decoder(), matrix, target


@pytest.mark.parametrize("name", CODES)
def test_weights_on_the_host_are_those_of_the_compiled_program(name):
    decoder, matrix, target = arrays_of(CODES[name])
    masks = np.random.default_rng(0).random((100, len(matrix))) < 0.6
    on_host = decoder.weights(matrix, target, masks)
    assert isinstance(on_host, np.ndarray)
    compiled = decoder.weights(matrix, target, jnp.asarray(masks))
    np.testing.assert_array_equal(on_host, compiled)


@pytest.mark.parametrize("tolerance", [1e-3, 0.3, 0.6])
@pytest.mark.parametrize("name", CODES)
def test_decoding_times_are_those_of_bisection(name, tolerance):
    decoder, matrix, target = arrays_of(CODES[name])
    by_bisection = decoders.Decoder.decoding_time
    draw = np.random.default_rng(0)
    times = draw.permuted(np.tile(np.arange(1.0, 1 + len(matrix)), (50, 1)), axis=1)
    times[draw.random(times.shape) < 0.1] = np.inf
    on_host = decoder.decoding_time(matrix, target, times, tolerance)
    assert isinstance(on_host, np.ndarray)
    assert len(np.unique(on_host)) > 3

    @jax.jit
    @jax.vmap
    def compiled(times):
        own = decoder.decoding_time(matrix, target, times, tolerance)
        bisected = by_bisection(decoder, matrix, target, times, tolerance)
        return own, bisected

    own, bisected = compiled(jnp.asarray(times))
    np.testing.assert_array_equal(own, bisected)
    np.testing.assert_array_equal(on_host, bisected)


def test_decoding_times_of_other_weights_are_not_inherited():
    code = CODES["one family of groups"]
    times = np.arange(1.0, 7.0)
    ends = []
    for decoder in (code.decoders[0], Halved(code.decoders[0].groups)):
        wait = stragglers.until_decodable(code, decoder=decoder)
        ends.append(float(wait.arrivals(jax.random.key(0), times).elapsed))
    assert ends == [2.0, 6.0]
    assert not Halved.runs_on_host
