"""Every code, and every path from messages or partial gradients, against NumPy.

`python -m pytest tests/coding/test_every_path.py --hypothesis-profile=thorough` draws
20,000 examples of `test_any_round` in each precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from tests import oracles, zoo
from tests.catalogue.codes import CODES, NEVER_EXACT
from tests.paths import (
    REPRESENTATIVES,
    check_paths,
    decode,
    gradients_of,
    in_float32,
    in_working_precision,
    wide,
)
from tests.zoo import every_code


@pytest.mark.parametrize("is_weighted", [False, True])
@every_code(CODES)
def test_every_path(name, is_weighted, with_x64):
    """Masks that decode, and those that do not, the empty one included."""
    code = CODES[name]
    observed = zoo.observed_rounds(name)
    if is_weighted:
        weights = np.random.default_rng(1).integers(0, 5, code.num_parts).astype(float)
        weights[0] = 0
        code = jaxwgc.weighted(code, weights)
    gradients = gradients_of(code, np.random.default_rng(0))
    tolerance = 1e-9 if is_weighted else 1e-10
    checked = check_paths(code, observed, gradients, slack=tolerance)
    effective = checked.effective @ oracles.raveled(gradients)
    value = checked.results["value"]
    error = checked.missed**2
    np.testing.assert_allclose(value, effective.sum(1), atol=20 * tolerance)
    if code.decoders[0].is_optimal:
        best = oracles.best_mixtures(code, zoo.messages_sent(code, observed))
        minimum = oracles.squared_errors(best, code)
        scale = np.sum(code.target**2)
        np.testing.assert_allclose(error, minimum, atol=tolerance * scale)
    if not is_weighted:
        assert np.any(error < 1e-10) or name in NEVER_EXACT
        assert np.any(error > 0.1)
        # Halves and segments leak into each other in rounds that do not decode, unless
        # the effective weights are real, as they always are with this code.
        leaks = np.abs(checked.decoded - effective).max(1) > 0.1
        has_halves = code.is_complex and name != "reed_solomon, slack"
        assert np.any(leaks) == (has_halves or code.num_segments > 1)
        assert not np.any(leaks & (error < 1e-10))


NUM_ROUNDS = 4


@st.composite
def rounds(draw):
    """Weights of every spread and scale; masks, or numbers of parts, of every kind."""
    name = draw(st.sampled_from(REPRESENTATIVES))
    code = CODES[name]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1.0, 3.0, 1e3, 1e6]))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e-20, 1e15]))
    weights = scale * spread ** generator.random(code.num_parts)
    if draw(st.booleans()):
        weights *= generator.choice([-1, 0, 1], code.num_parts, p=[0.1, 0.1, 0.8])
    received = np.ones((NUM_ROUNDS, code.num_workers), bool)
    for mask in received:
        beyond = draw(st.integers(-2, 2))
        lost = np.clip(code.num_stragglers + beyond, 0, code.num_workers)
        mask[generator.permutation(code.num_workers)[:lost]] = False
    observed = received
    if code.messages_per_worker > 1:
        some = generator.integers(0, code.parts_per_worker, received.shape)
        observed = np.where(received, code.parts_per_worker, some)
    return name, weights, observed, gradients_of(code, generator)


@pytest.mark.parametrize("x64", [False, True], ids=["float32-bfloat16", "float64"])
@given(data=st.data())
def test_any_round(x64, data):
    name, weights, observed, gradients = data.draw(rounds())
    code = CODES[name]
    # As many as in `test_every_path`, and so one compilation with that.
    repeated = observed[np.arange(len(zoo.observed_rounds(name))) % NUM_ROUNDS]
    with jax.enable_x64(x64):
        weighted_code = jaxwgc.weighted(code, weights.astype(jnp.result_type(float)))
        if not x64:
            gradients = in_float32(code, gradients)
        checked = check_paths(
            weighted_code, repeated, gradients, NUM_ROUNDS, slack=1e-4
        )
        matrix = in_working_precision(weighted_code.encoding_matrix)
        plain = wide(decode(code, repeated)[1])[:NUM_ROUNDS]
    check_misses(weighted_code, observed, matrix, checked.weights)
    if np.all(weights) and code.num_stragglers > 0:
        # Weights of an exact code do not depend on those of its parts.
        whole = 1 if observed.dtype == bool else np.asarray(code.parts_per_worker)
        within = (observed != whole).sum(-1) <= code.num_stragglers
        for one, other in zip(checked.weights[within], plain[within], strict=True):
            atol = 1e-3 * np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def check_misses(code, observed, matrix, weights):
    """Checks that errors are at most three times NumPy's."""
    columns = np.repeat(code.target, code.num_segments)
    counts = columns != 0
    columns = np.where(counts, columns, 1)
    target = oracles.targets(code)
    aim = target / columns
    norm = np.linalg.norm(aim)
    plain = (matrix / columns).astype(matrix.dtype)
    if code.decoders[0].is_a(decoders.Peeling):
        return  # It decodes less, and scales it up.
    for result, mask in zip(weights, zoo.messages_sent(code, observed), strict=True):
        minimum = oracles.least_miss(plain, aim, mask)
        if minimum < 1e-4 * norm:
            # Part by part, for any weights of the others.
            missed = np.linalg.norm((result @ wide(plain) - aim)[:, counts])
            assert missed <= max(3 * minimum, 1e-4 * norm)
        elif not code.decoders[0].is_a(decoders.Group):
            minimum = oracles.least_miss(matrix, target, mask)
            missed = np.linalg.norm(result @ wide(matrix) - target)
            assert missed <= 1.001 * minimum + 1e-5 * np.linalg.norm(target)


def test_gradients_that_blocks_do_not_divide(with_x64):
    """The last segments are filled up with zeros, and cut off again."""
    name = "clustered, segments"
    code = CODES[name]
    mask, weights = decode(code, zoo.observed_rounds(name))
    everyone = jaxwgc.Decoding(code, mask[-1], weights[-1])
    for size in (0, 1, 11):
        gradients = np.random.default_rng(0).normal(size=(code.num_parts, size))
        messages = jaxwgc.encode(code, gradients)
        # Three segments of complex numbers.
        assert messages.shape == (code.num_workers, -(-size // 6))
        decoded = everyone.combine(messages, jnp.zeros(size))
        np.testing.assert_allclose(decoded, gradients.sum(0), atol=1e-10)
