"""Every weighting, mask, dtype and method, against NumPy in double precision.

`python -m pytest tests/test_any_round.py --hypothesis-profile=thorough` draws 10,000
examples for each property.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from tests import zoo
from tests.zoo import CODES, KEY, messages_sent, target_rows

NUM_MASKS = 4
NUM_PARAMETERS = 11
METHODS = "messages", "partials"
TINY = 1e-30
# With JAX's 64-bit mode off and on.
DTYPES = {False: (jnp.float32, jnp.bfloat16), True: (jnp.float64,)}


# One of each decoder and each way to form messages.
NAMES = [
    "reed_solomon",
    "reed_solomon, slack",
    "cyclic_mds, complex",
    "cyclic_repetition",
    "fractional_repetition",
    "binary",
    "communication_efficient",
    "communication_efficient, odd",
    "clustered",
    "multi_message",
    "partial",
    "bernoulli",
    "ldgm",
    "from_matrix",
]


class Round(NamedTuple):
    """A code with weights, the masks of some rounds, and partial gradients."""

    name: str
    weights: np.ndarray
    received: np.ndarray
    gradients: np.ndarray


@st.composite
def rounds(draw):
    """Weights of every spread and scale, masks of every kind."""
    name = draw(st.sampled_from(NAMES))
    code = CODES[name]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1.0, 3.0, 1e3, 1e6]))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e-20, 1e15]))
    weights = scale * spread ** generator.random(code.num_parts)
    if draw(st.booleans()):
        weights *= generator.choice([-1, 0, 1], code.num_parts, p=[0.1, 0.1, 0.8])
    received = np.ones((NUM_MASKS, code.num_workers), bool)
    for mask in received:
        beyond = draw(st.integers(-2, 2))
        lost = np.clip(code.num_stragglers + beyond, 0, code.num_workers)
        mask[generator.permutation(code.num_workers)[:lost]] = False
    gradients = generator.normal(size=(code.num_parts, NUM_PARAMETERS))
    return Round(name, weights, received, gradients)


def prepared(drawn):
    """The code, the code with weights, and its matrix as it is computed with."""
    code = CODES[drawn.name]
    weights = drawn.weights.astype(jnp.result_type(float))
    own = jaxwgc.weighted(code, weights)
    columns = np.repeat(weights, code.num_segments)
    matrix = np.asarray(code.encoding_matrix) * columns
    return code, own, matrix.astype(jax.dtypes.canonicalize_dtype(matrix.dtype))


def wide(array):
    """In double precision."""
    return np.asarray(array, np.complex128 if np.iscomplexobj(array) else np.float64)


@jax.jit
def _decode(code, received):
    """The code's own decoder stands once, in this program."""
    return jaxwgc.decoding(code, received)


@jax.jit
def _on_every_path(decodings, gradients):
    """Decodings of some masks, and gradients in some dtypes."""
    code = decodings.code

    def of_mask(mask, weights):
        decoding = jaxwgc.Decoding(code, mask, weights)
        weights = {
            "weights": decoding.weights,
            "effective": decoding.effective_weights,
            "error": decoding.error,
        }
        return weights, [of_gradients(decoding, each) for each in gradients]

    def of_gradients(decoding, gradients):
        params = jnp.zeros(NUM_PARAMETERS, gradients.dtype)
        messages = jaxwgc.encode(code, gradients)
        step = jaxwgc.decoded_value_and_grad(lambda params, part: params @ part, code)
        found = {
            "encoded": messages,
            "decoded": decoding.combine(messages, params),
            "collapsed": step(params, gradients, decoding)[1],
        }
        for method in METHODS:
            aggregate = jaxwgc.coded_aggregate(
                code, jaxwgc.stragglers.uniform(0), KEY, method=method
            )
            state = aggregate.init(params)
            found[method], state = aggregate.update(
                gradients, state, params, received=decoding
            )
        return found | {"residual": state.residual, "failed": state.num_undecodable}

    return jax.vmap(of_mask)(decodings.mask, decodings.weights)


@pytest.mark.parametrize("x64", [False, True], ids=["float32-bfloat16", "float64"])
@given(drawn=rounds())
def test_any_round(x64, drawn):
    gradients = [drawn.gradients.astype(dtype) for dtype in DTYPES[x64]]
    with jax.enable_x64(x64):
        code, own, matrix = prepared(drawn)
        plain = _decode(code, drawn.received)
        decodings = _decode(own, drawn.received)
        # Codes of one shape share what is done with weights.
        alike = dataclasses.replace(decodings.code, decoders=(decoders.LeastSquares(),))
        decodings = dataclasses.replace(decodings, code=alike)
        of_weights, paths = jax.tree.map(wide, _on_every_path(decodings, gradients))
    check_misses(code, drawn, matrix, of_weights["weights"])
    if np.all(drawn.weights) and code.num_stragglers > 0:
        check_as_without_weights(code, drawn, of_weights["weights"], plain.weights)
    for dtype, found in zip(DTYPES[x64], paths, strict=True):
        check_path(code, drawn, dtype, matrix, of_weights | found)


def check_misses(code, drawn, matrix, weights):
    """At most three times NumPy's: as if all parts that count did alike, or fitted."""
    columns = np.repeat(drawn.weights, code.num_segments)
    counts = columns != 0
    columns = np.where(counts, columns, 1)
    target = target_rows(code, drawn.weights)
    aim = target / columns
    plain = (matrix / columns).astype(matrix.dtype)
    masks = messages_sent(code, drawn.received)
    for found, mask in zip(weights, masks, strict=True):
        assert np.all(found[:, ~mask] == 0)
        if code.decoders[0].is_a(decoders.Peeling):
            continue  # It decodes less, and scales it up.
        norm = np.linalg.norm(aim)
        least = zoo.least_miss(plain, aim, mask)
        if least < 1e-4 * norm:
            # Part by part, whatever the others weigh.
            missed = np.linalg.norm((found @ wide(plain) - aim)[:, counts])
            assert missed <= max(3 * least, 1e-4 * norm)
        elif not code.decoders[0].is_a(decoders.Group):
            least = zoo.least_miss(matrix, target, mask)
            missed = np.linalg.norm(found @ wide(matrix) - target)
            assert missed <= 1.001 * least + 1e-5 * np.linalg.norm(target)


def check_as_without_weights(code, drawn, weights, plain):
    """Weights of an exact code do not depend on those of its parts."""
    within = (~drawn.received).sum(-1) <= code.num_stragglers
    for one, other in zip(weights[within], wide(plain)[within], strict=True):
        atol = 1e-3 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def check_path(code, drawn, dtype, matrix, found):
    """Every path of one dtype."""
    weights, effective, error = (
        found[name] for name in ("weights", "effective", "error")
    )
    gradients = drawn.gradients.astype(dtype).astype(np.float64)
    eps = float(jnp.finfo(matrix.dtype).eps)
    matrix, blocks = wide(matrix), zoo.packed(code, gradients)
    bound = 20 * eps * (np.abs(matrix) @ np.abs(blocks)) + TINY
    assert np.all(np.abs(found["encoded"] - matrix @ blocks) <= bound)

    reached = weights @ matrix
    scale = np.abs(drawn.weights).max()
    rounding = (np.abs(weights) @ np.abs(matrix)).max((1, 2)) + scale
    rounding = 30 * eps * rounding + TINY
    assert np.all(np.abs(effective - zoo.effective(code, reached)) <= rounding[:, None])

    target = target_rows(code, drawn.weights)
    missed = np.linalg.norm(reached - target, axis=(1, 2)) / np.sqrt(code.num_segments)
    size = np.sqrt(code.num_parts)
    assert np.all(np.abs(found["residual"] - missed) <= size * rounding)
    if 1e-10 < scale < 1e15:  # Squares of others leave the range of float32.
        assert np.all(np.abs(np.sqrt(error) - missed) <= size * rounding)
    bar = 1e-3 * np.linalg.norm(drawn.weights)
    clear = np.abs(missed - bar) > 2 * size * rounding
    np.testing.assert_array_equal(found["failed"][clear] == 1, (missed > bar)[clear])

    decoded = zoo.unpacked(code, reached @ blocks, NUM_PARAMETERS)
    bound = ((rounding + 1e-4 * scale) * np.abs(gradients).sum())[:, None]
    # Results of few bits are rounded to them, and so are cotangents of such losses.
    sizes = np.abs(decoded) + np.abs(effective) @ np.abs(gradients)
    bound = bound + 4 * float(jnp.finfo(dtype).eps) * sizes
    for path in ("decoded", *METHODS, "collapsed"):
        assert np.all(np.abs(found[path] - decoded) <= bound), path
