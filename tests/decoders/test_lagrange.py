"""Lagrange's weights and what stands in for them, on patterns of every kind."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc.decoders._lagrange import interpolate
from tests.conftest import every_pattern, random_patterns
from tests.oracles import least_miss


@jax.jit
def decoding_weights(code, masks):
    return jaxwgc.decoding(code, masks).weights[..., 0, :]


lagrange = jax.jit(interpolate)


def patterns(code):
    """Stragglers at equal distances, and side by side in one run and in two."""
    number = code.num_workers
    lost = np.arange(code.num_stragglers)
    strides = [step * lost % number for step in range(1, number)]
    around = np.argsort(code.decoders[0].positions)
    halves = lost + (lost >= len(lost) // 2) * (number // 2)
    starts = range(0, number, 10)
    runs = [
        around[(workers + start) % number]
        for start in starts
        for workers in (lost, halves)
    ]
    masks = [~np.isin(np.arange(number), workers) for workers in strides + runs]
    return np.array([mask for mask in masks if np.sum(~mask) == len(lost)])


def missed(code, weights):
    """By mask, in double precision: of the weights, and the least for NumPy.

    Both of the norm of the target. Where the first is below 1e-4, the second is not
    looked for.
    """
    weights = np.asarray(weights, np.complex128)
    matrix = code.encoding_matrix.astype(jax.dtypes.canonicalize_dtype(complex))
    target = np.ones((1, code.num_parts))
    norm = np.sqrt(code.num_parts)
    norms = np.linalg.norm(weights @ matrix.astype(np.complex128) - target, axis=1)
    least_norms = [
        least_miss(matrix, target, mask) if miss > 1e-4 * norm else miss
        for mask, miss in zip(weights != 0, norms, strict=True)
    ]
    return norms / norm, np.array(least_norms) / norm


@pytest.mark.parametrize("parameters", [(50, 20, 30), (200, 200, 20)], ids=str)
def test_residuals_are_no_worse_than_those_of_numpy(parameters):
    """Random patterns and patterns of every kind are decoded in float32."""
    plain = jaxwgc.codes.reed_solomon(*parameters)
    random = random_patterns(plain.num_workers, plain.num_stragglers, 1000)
    masks = np.concatenate([random, patterns(plain)])
    target = np.random.default_rng(1).integers(1, 6, plain.num_parts)
    for code in (plain, jaxwgc.weighted(plain, target)):
        weights = np.asarray(decoding_weights(code, masks))
        if code is plain:
            misses, least_norms = missed(code, weights)
            assert np.all((misses <= 1e-4) | (misses <= 3 * least_norms))
        # The product in float64 leaves the error of the weights themselves.
        reached = weights[:1000].astype(np.complex128) @ code.encoding_matrix
        errors = np.abs(reached / code.target - 1).max(axis=1)
        assert np.median(errors) < 1e-5
        assert np.quantile(errors, 0.99) < 2e-4
        assert errors.max() < 2e-3


def test_half_of_the_workers_may_be_stragglers_in_float32():
    """Lagrange's weights miss by up to 1e16 here. NumPy's, by 2e-4."""
    code = jaxwgc.codes.reed_solomon(200, 200, 100)
    misses, least_norms = missed(code, decoding_weights(code, patterns(code)))
    assert misses.max() < 1e-3
    assert np.all((misses <= 1e-4) | (misses <= 15 * least_norms))
    assert np.mean((misses <= 1e-4) | (misses <= 3 * least_norms)) > 0.9


def test_half_of_the_workers_may_be_stragglers_in_float64(with_x64):
    """Lagrange's weights miss by up to 2e9 here. NumPy's, by 3e-8."""
    code = jaxwgc.codes.reed_solomon(200, 200, 100)
    misses, _ = missed(code, decoding_weights(code, patterns(code)))
    assert misses.max() < 1e-6


@pytest.mark.parametrize("number", range(1, 11))
def test_every_pattern_of_all_parameters(number, with_x64):
    """The number of parts does not matter: weights depend on positions of workers."""
    for copies in range(1, number + 1):
        masks = every_pattern(number, copies - 1)
        for num_parts in range(1, 11):
            if num_parts * copies % number:
                continue
            code = jaxwgc.codes.reed_solomon(number, num_parts, copies)
            weights = np.asarray(lagrange(masks, code.decoders[0].positions))[:, 0]
            assert not np.any(weights[~masks])
            assert np.abs(weights @ code.encoding_matrix - 1).max() < 1e-10, code


@pytest.mark.parametrize("number_without", [1, 20])
def test_parts_of_weight_zero_are_decoded(number_without):
    """Their columns are zero, and the code may have a smaller rank than it says."""
    code = jaxwgc.codes.reed_solomon(40, 40, 10)
    weights = np.arange(40) >= number_without
    weighted_code = jaxwgc.weighted(code, weights)
    # Side by side, and at random.
    masks = np.concatenate([patterns(code)[-8:], random_patterns(40, 9, 100)])
    # One program for both, since weights are arrays.
    result = np.asarray(decoding_weights(weighted_code, masks), np.complex128)
    missed = np.linalg.norm(
        result @ weighted_code.encoding_matrix - weighted_code.target, axis=1
    )
    assert missed.max() <= 1e-4 * np.linalg.norm(weighted_code.target)


@pytest.mark.parametrize(("number", "x64"), [(12, True), (50, False), (200, True)])
def test_weights_are_rounded_once(number, x64):
    """Products of the definition, in extended precision."""
    masks = random_patterns(number, number // 3, 20)
    step = 5 if number == 12 else 19
    points = step * np.arange(number) % number
    with jax.enable_x64(x64):
        result = np.asarray(lagrange(masks, points))[:, 0]
    angle = 2 * np.pi * ((points[:, None] - points) % number).astype(np.longdouble)
    angle = angle / number
    # alpha_j / (alpha_j - alpha_i) = 1 / (1 - alpha_i / alpha_j)
    modulus = 2 * np.abs(np.sin(angle / 2))
    np.fill_diagonal(modulus, 1)
    for mask, weights in zip(masks, result, strict=True):
        logs = -np.log(modulus[mask][:, mask]).sum(axis=1)
        weights_of_mask = weights[mask]
        eps = np.finfo(result.real.dtype).eps
        np.testing.assert_allclose(
            np.abs(weights_of_mask.astype(np.clongdouble)),
            np.exp(logs),
            rtol=max(1.5 * float(eps), 3e-14),
        )


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_lagrange_decoder_may_be_given_to_a_weighted_code(weight):
    """The weights of all parts may be zero."""
    code = jaxwgc.weighted(jaxwgc.codes.reed_solomon(6, 6, 3), np.full(6, weight))
    decoder = jaxwgc.decoders.Lagrange(code.decoders[0].positions, 2)
    assert jaxwgc.decoding(code, np.arange(6) > 0, decoder).error <= 1e-9 * weight
