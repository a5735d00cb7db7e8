"""Gradients of any size decode alike: no square leaves the range of floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import corruptions, stragglers
from tests import oracles
from tests.catalogue.codes import CODES
from tests.zoo import KEY, every_code

SIZES = {
    32: 10.0 ** np.array([-37, -34, -28, -20, -12, 0, 12, 18, 28, 34, 36, 37]),
    64: 10.0 ** np.array([-307, -300, -160, 0, 160, 300, 306]),
}
# Messages of rows of norm 1e3 overflow at the largest sizes, and others lose digits.
OUT_OF_RANGE = {"from_matrix"}
LENGTH = 3
NUM_ROUNDS = 3


def sizes_of(dtype):
    return SIZES[jnp.finfo(dtype).bits]


def gradients_of(code, seed=0):
    """Entries from 1/2 to 2 in magnitude, and which of the entries are always zero."""
    draw = np.random.default_rng(seed)
    num_blocks = code.num_segments * (2 if code.is_complex else 1)
    shape = code.num_parts, num_blocks * LENGTH
    gradients = np.exp2(draw.uniform(-1, 1, shape)) * draw.choice([-1, 1], shape)
    is_dead = draw.random(shape[1]) < 0.4
    gradients[:, is_dead] = 0
    return gradients, is_dead


def rounds_of(code):
    """Rounds without stragglers, with those that are tolerated, and with too many."""
    lost = [0, code.num_stragglers, min(code.num_stragglers + 2, code.num_workers - 1)]
    return np.arange(code.num_workers) >= np.array(lost)[:, None]


@jax.jit
def decode(code, received):
    decoding = jaxwgc.decoding(code, received)
    return decoding.mask, decoding.weights


def paths_of(code, received, gradients):
    """Decoded gradients (rounds, sizes, length) of all paths, for gradients by size."""
    masks, weights = decode(code, received)
    return paths_of_weights(code, masks, weights, gradients)


@jax.jit
def paths_of_weights(code, masks, weights, gradients):
    params = jnp.zeros_like(gradients[0, 0])

    def loss(params, part):
        return jnp.sum(params * part)

    def of_size(decoding, gradients):
        def aggregated(transform, updates):
            state = transform.init(params)
            return transform.update(updates, state, params, received=decoding)[0]

        messages = jaxwgc.encode(code, gradients)
        model = stragglers.uniform(0)
        return {
            "decode": jaxwgc.decode(code, messages, decoding, params),
            "collapse": decoding.collapse(gradients),
            "collapsed": jaxwgc.decoded_value_and_grad(loss, code)(
                params, gradients, decoding
            )[1],
            "partials": aggregated(
                jaxwgc.coded_aggregate(code, model, KEY, method="partials"), gradients
            ),
            "messages": aggregated(
                jaxwgc.coded_aggregate(code, model, KEY, method="messages"), gradients
            ),
            "decode_aggregate": aggregated(jaxwgc.decode_aggregate(code), messages),
        }

    def of_round(mask, weights):
        decoding = jaxwgc.Decoding(code, mask, weights)
        return jax.vmap(lambda rows: of_size(decoding, rows))(gradients)

    return jax.vmap(of_round)(masks, weights)


def check_paths(code, received, gradients, sizes, dtype):
    """Compares results over sizes with NumPy, to rounding and to underflow."""
    matrix = np.asarray(code.encoding_matrix)
    matrix = matrix.astype(jax.dtypes.canonicalize_dtype(matrix.dtype))
    weights = np.asarray(decode_wide(code, received))
    blocks = oracles.packed(code, gradients)
    expected = oracles.unpacked(code, weights @ (matrix @ blocks), gradients.shape[1])
    large = np.abs(weights) @ (np.abs(matrix) @ np.abs(blocks))
    scale = large.max()
    scaled = (sizes[:, None, None] * gradients).astype(dtype)
    precision = jnp.finfo(dtype)
    tiny = float(jnp.finfo(jnp.promote_types(dtype, jnp.float32)).tiny)
    amount = np.abs(weights).sum((1, 2)).max() * (1 + np.abs(matrix).sum(1).max())
    bound = 30 * float(precision.eps) * scale + 2 * amount * tiny / sizes
    for path, result in paths_of(code, received, scaled).items():
        result = np.asarray(result, np.float64) / sizes[:, None]
        error = np.abs(result - expected[:, None]).max((0, 2))
        assert np.all(error <= bound), path
        yield path, result


def decode_wide(code, received):
    _, weights = decode(code, received)
    wide = np.complex128 if code.is_complex else np.float64
    return np.asarray(weights, wide)


@every_code(sorted(CODES.keys() - OUT_OF_RANGE))
def test_every_size(name):
    code = CODES[name]
    gradients, is_dead = gradients_of(code)
    received = rounds_of(code)
    sizes = sizes_of(np.float32)
    for path, result in check_paths(code, received, gradients, sizes, np.float32):
        assert not np.any(result[:2, :, is_dead]), path


@every_code(["reed_solomon", "cyclic_repetition", "communication_efficient, odd"])
def test_double_precision(name, with_x64):
    code = CODES[name]
    gradients, is_dead = gradients_of(code)
    sizes = sizes_of(np.float64)
    received = rounds_of(code)
    for path, result in check_paths(code, received, gradients, sizes, np.float64):
        assert not np.any(result[:2, :, is_dead]), path


@pytest.mark.parametrize(
    "make",
    [
        lambda: jaxwgc.codes.reed_solomon(50, 20, 30),
        lambda: jaxwgc.codes.cyclic_mds(20, 6),
    ],
)
def test_more_workers(make):
    """Messages in more than one block."""
    code = make()
    gradients, is_dead = gradients_of(code)
    sizes = sizes_of(np.float32)[:-1]
    received = np.array(
        [
            np.arange(code.num_workers) % 3 != 0,
            np.arange(code.num_workers) >= 0,
            np.arange(code.num_workers) >= code.num_workers - 3,
        ]
    )
    received[0, code.num_stragglers * 3 :] = True
    for path, result in check_paths(code, received, gradients, sizes, np.float32):
        assert not np.any(result[:2, :, is_dead]), path


def test_bfloat16():
    """Gradients of few bits are coded in float32, and have the range of float32."""
    code = CODES["reed_solomon"]
    gradients, is_dead = gradients_of(code)
    gradients = gradients.astype(jnp.bfloat16).astype(np.float64)
    sizes = 2.0 ** np.array([-120, -100, -60, 0, 60, 100, 120])
    received = rounds_of(code)
    for path, result in check_paths(code, received, gradients, sizes, jnp.bfloat16):
        assert not np.any(result[:2, :, is_dead]), path


@st.composite
def powers(draw):
    """Powers of ten by part, and by entry of a message."""
    exponents = st.integers(-34, 34)
    by_part = draw(st.lists(exponents, min_size=6, max_size=6))
    by_entry = draw(st.lists(exponents, min_size=LENGTH, max_size=LENGTH))
    return np.array(by_part), np.array(by_entry)


@pytest.mark.parametrize(
    "name", ["reed_solomon", "cyclic_mds, complex", "communication_efficient"]
)
@settings(max_examples=100)
@given(exponents=powers(), seed=st.integers(0, 99))
def test_any_size_of_each_part_and_entry(name, exponents, seed):
    """Small entries are not lost because others of the gradient are large."""
    code = CODES[name]
    gradients, is_dead = gradients_of(code, seed)
    by_part, by_entry = exponents
    by_entry = np.tile(by_entry, gradients.shape[1] // LENGTH)
    exponent = np.clip(by_part[:, None] + by_entry, -34, 36)
    gradients = (gradients * 10.0**exponent).astype(np.float32)
    received = rounds_of(code)[:2]
    weights = np.abs(decode_wide(code, received))
    matrix = np.abs(np.asarray(code.encoding_matrix))
    # Each entry is rounded like the largest that is packed with it.
    sizes = np.abs(gradients).astype(float).reshape(code.num_parts, -1, LENGTH).max(1)
    amounts = (weights @ matrix).reshape(2, -1, code.num_parts, code.num_segments)
    scale = amounts.max((1, 3)) @ sizes
    expected = gradients.astype(float).sum(0)
    for path, result in paths_of(code, rounds_of(code), gradients[None]).items():
        result = np.asarray(result, np.float64)[:2, 0]
        error = np.abs(result - expected).reshape(2, -1, LENGTH)
        assert np.all(error <= 1e-4 * scale[:, None]), path
        # Parts of different size may cancel in messages, and hide how they are rounded.
        rounding = 30 * np.finfo(np.float32).eps * scale[:, None]
        dead = np.where(is_dead, result, 0).reshape(2, -1, LENGTH)
        assert np.all(np.abs(dead) <= rounding), path
        assert not np.any(dead) or np.any(by_part != by_part[0]), path


@jax.jit
def locate(code, messages, received):
    def of_size(messages):
        return jaxwgc.locate_errors(code, messages, received, KEY)

    return jax.vmap(of_size)(messages)


@every_code(
    [
        "cyclic_mds, complex",
        "fractional_repetition",
        "cyclic_repetition",
        "reed_solomon",
    ]
)
def test_errors_are_located_at_every_size(name):
    code = CODES[name]
    # Messages near the smallest float lose digits, which may not count as errors.
    sizes = sizes_of(np.float32)[1:]
    gradients, _ = gradients_of(code)
    gradients = np.tile(gradients, 400)
    messages = jax.vmap(lambda rows: jaxwgc.encode(code, rows))(
        (sizes[:, None, None] * gradients).astype(np.float32)
    )
    received = np.ones(code.num_workers, bool)
    for factor in (-1.0, 1.02):
        wrong = messages.at[:, 1].multiply(factor)
        located = locate(code, wrong, received)
        expected = np.arange(code.num_workers) == 1
        np.testing.assert_array_equal(located.wrong, np.tile(expected, (len(sizes), 1)))
        assert not np.any(located.rejected)
        assert np.all(located.mask == ~expected)
    # One message is 1e30 times as large as the others.
    spoilt = messages.at[:, 1].multiply(1e30)
    located = locate(code, spoilt, received)
    assert not np.any(located.mask[:, 1])
    assert np.all(located.mask[:, [0, *range(2, code.num_workers)]])


MODELS = {
    "additive_noise": lambda who, code: corruptions.additive_noise(who),
    "same_vector": lambda who, code: corruptions.same_vector(who),
    "codeword_part": lambda who, code: corruptions.codeword_part(who, code),
    "quantization": lambda who, code: corruptions.quantization(who, bits=6),
}


@pytest.mark.parametrize("kind", MODELS)
@every_code(["fractional_repetition", "reed_solomon"])
def test_corruptions_are_relative(name, kind):
    code = CODES[name]
    model = MODELS[kind](stragglers.bernoulli(1.0), code)
    sizes = sizes_of(np.float32)[1:-1]
    messages, _ = gradients_of(code)
    messages = messages[:, :5] * (1 + 1j if code.is_complex else 1)
    dtype = np.complex64 if code.is_complex else np.float32
    scaled = (sizes[:, None, None] * messages).astype(dtype)
    corrupt = jax.jit(jax.vmap(lambda rows: model.corrupted(KEY, rows)))
    result = np.asarray(corrupt(scaled)).astype(complex) / sizes[:, None, None]
    [one] = result[sizes == 1]
    assert np.abs(one - messages).max() > 1e-3
    np.testing.assert_allclose(
        result, np.broadcast_to(one, result.shape), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "options",
    [
        {"memory": True},
        {"correct_errors": True, "corrupt": True},
        {"debias": "share", "method": "partials"},
    ],
    ids=str,
)
@every_code(["cyclic_mds, complex", "cyclic_repetition"])
def test_options_of_coded_aggregate(name, options):
    """Three rounds at each size give the gradients and states of size 1."""
    code = CODES[name]
    num_lost = code.num_stragglers + 1
    options = {"method": "messages", **options}
    if options.get("corrupt"):
        is_right = np.arange(code.num_workers) != 3
        options["corrupt"] = corruptions.sign_flip(stragglers.fixed(is_right))
        num_lost = 0
    model = stragglers.uniform(num_lost)
    transform = jaxwgc.coded_aggregate(code, model, KEY, **options)
    sizes = sizes_of(np.float32)[1:-1]
    gradients, _ = gradients_of(code)
    params = np.zeros(gradients.shape[1], np.float32)

    @jax.jit
    @jax.vmap
    def run(gradients):
        def step(state, factor):
            updates, state = transform.update(gradients * factor, state, params)
            return state, updates

        factors = jnp.array([1.0, 0.5, 0.25], gradients.dtype)
        state, updates = jax.lax.scan(step, transform.init(params), factors)
        return updates, state.num_undecodable, state.residual, state.errors

    by_size = (sizes[:, None, None] * gradients).astype(np.float32)
    updates, *state = run(by_size)
    [one] = np.flatnonzero(sizes == 1)
    scaled = np.asarray(updates, np.float64) / sizes[:, None, None]
    scale = np.abs(scaled[one]).max()
    assert scale > 0.1
    expected = np.broadcast_to(scaled[one], scaled.shape)
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-3 * scale)
    assert np.all((scaled == 0) == (expected == 0))
    for leaf in jax.tree.leaves(state):
        assert np.all(leaf == leaf[one])
